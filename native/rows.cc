// embed and rows: y[i] = table[at[i]] · splice: x with rows `at` replaced, in order · gather (permute): a strided copy
// reference: rows(), splice() and permute()

#include "decode.h"
#include "kernels.h"
#include "packed.h"
#include "simd.h"
#include "walk.h"

namespace llama4 {
namespace LLAMA4_ISA {

namespace {
constexpr int64_t kGrain = 16384;  // elements a claim
}

namespace {
// Row r of a packed table of `width` columns, block by block.
void packed_row(int type, const uint8_t* table, int64_t width, int64_t r, float* y) {
  const Block block = block_of(type);
  const int64_t blocks = width / block.elements;
  const uint8_t* group = table + r / kGroup * kGroup * blocks * block.bytes;
  alignas(16) uint8_t bytes[sizeof(Q6_K)];  // the largest block that is packed
  for (int64_t b = 0; b < blocks; b++) {
    unpack_block(type, group, blocks, int(r % kGroup), b, bytes);
    decode_row(type, bytes, y + b * block.elements, block.elements);
  }
}
}  // namespace

void rows(Pool& pool, int type, const void* table, int64_t width, const int32_t* at, int64_t n, float* y) {
  const Block block = block_of(plain(type));
  const int64_t row_bytes = width / block.elements * block.bytes;
  parallel(pool, n, kGrain / (width + 1) + 1, [&](int64_t i, int64_t last, int) {
    for (; i < last; i++)
      if (is_packed(type)) packed_row(plain(type), static_cast<const uint8_t*>(table), width, at[i], y + i * width);
      else decode_row(type, static_cast<const uint8_t*>(table) + at[i] * row_bytes, y + i * width, width);
  });
}

void splice(Pool& pool, const float* x, int64_t rows, int64_t width, const float* from, const int32_t* at, int64_t n,
            float* y) {
  const size_t row_bytes = size_t(width) * sizeof(float);
  parallel(pool, rows, kGrain / (width + 1) + 1, [&](int64_t first, int64_t last, int) {
    memcpy(y + first * width, x + first * width, size_t(last - first) * row_bytes);
  });
  for (int64_t i = 0; i < n; i++) memcpy(y + at[i] * width, from + i * width, row_bytes);
}

void gather(Pool& pool, const float* x, const Walk& walk, float* y) {
  const int64_t width = walk.shape[walk.rank - 1], stride = walk.strides[walk.rank - 1];
  parallel(pool, rows_of(walk), kGrain / (width + 1) + 1, [&](int64_t row, int64_t last, int) {
    for (; row < last; row++) {
      const float* from = x + row_offset(walk, row);
      float* to = y + row * width;
      if (stride == 1) memcpy(to, from, size_t(width) * sizeof(float));
      else
        for (int64_t i = 0; i < width; i++) to[i] = from[i * stride];
    }
  });
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

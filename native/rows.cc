// embed and rows: y[i] = table[at[i]] · splice: x with rows `at` replaced, in order · gather (permute): a strided copy
// reference: rows(), splice() and permute()
// scatter: y[at[i]] += x[i] · sum: over some axes; both ways back, reference: scatterRows() and sumTo()

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

// The rows that go to one row are added in their order.
void scatter_rows(Pool& pool, const float* x, int64_t width, const int32_t* at, int64_t m, int64_t n, float* y) {
  int64_t* start = static_cast<int64_t*>(pool.shared(Pool::kOperation, size_t(n + 2 + m) * sizeof(int64_t)));
  int64_t* from = start + n + 2;  // sources, by their target: those of row r are [start[r], start[r + 1])
  for (int64_t r = 0; r < n + 2; r++) start[r] = 0;
  for (int64_t i = 0; i < m; i++) start[at[i] + 2]++;
  for (int64_t r = 1; r < n + 2; r++) start[r] += start[r - 1];
  for (int64_t i = 0; i < m; i++) from[start[at[i] + 1]++] = i;
  parallel(pool, n, kGrain / (width + 1) + 1, [&](int64_t r, int64_t last, int) {
    for (; r < last; r++) {
      float* to = y + r * width;
      if (start[r] == start[r + 1]) memset(to, 0, size_t(width) * sizeof(float));
      else memcpy(to, x + from[start[r]] * width, size_t(width) * sizeof(float));
      for (int64_t i = start[r] + 1; i < start[r + 1]; i++) {
        const float* more = x + from[i] * width;
        for (int64_t j = 0; j < width; j++) to[j] += more[j];
      }
    }
  });
}

// The last axis of one of the walks is x's own; rows of it are added as they stand, or to one number.
void sum_axes(Pool& pool, const float* x, const Walk& kept, const Walk& summed, float* y) {
  const int64_t width = kept.shape[kept.rank - 1], stride = kept.strides[kept.rank - 1];
  const int64_t length = summed.shape[summed.rank - 1], step = summed.strides[summed.rank - 1];
  const int64_t outer = rows_of(kept), sums = rows_of(summed);
  constexpr int64_t kColumns = 64;  // of an item
  const int64_t parts = (width + kColumns - 1) / kColumns;
  parallel(pool, outer * parts, kGrain / (kColumns * sums * length + 1) + 1, [&](int64_t item, int64_t last, int) {
    for (; item < last; item++) {
      const int64_t row = item / parts, first = item % parts * kColumns;
      const int64_t columns = width - first < kColumns ? width - first : kColumns;
      const float* from = x + row_offset(kept, row) + first * stride;
      float total[kColumns] = {};
      for (int64_t r = 0; r < sums; r++) {
        const float* at = from + row_offset(summed, r);
        if (step == 1)
          for (int64_t c = 0; c < columns; c++, at += stride) {
            vec s{};
            each_vec(length, [&](int64_t i) { s += load(at + i); }, [&](int64_t i, int64_t part) { s += load_part(at + i, part); });
            total[c] += sum(s);
          }
        else
          for (int64_t l = 0; l < length; l++, at += step)
            for (int64_t c = 0; c < columns; c++) total[c] += at[c * stride];
      }
      memcpy(y + row * width + first, total, size_t(columns) * sizeof(float));
    }
  });
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

// y[t, o] = Σᵢ x[t, i] · w[o, i] + b[o]        reference: linear() of src/backends/reference/reference.ts
//
// Exact numerics: float32 activations, weights dequantized to the float32 that their format defines; a result does
// not depend on T, on the other rows or on the threads (dot.h). Weights of 16 and 32 bits are widened on the way to
// the registers when there are few tokens; everything else goes through a panel of float32 rows in the cache.

#include "decode.h"
#include "dot.h"
#include "int8.h"
#include "kernels.h"

namespace llama4 {
namespace LLAMA4_ISA {

namespace {

constexpr int kPanel = 16;     // rows of weights a thread takes at a time
constexpr int kFewTokens = 6;  // up to here weights are widened anew for each pass over the tokens

struct Panel {
  const Product* product;
  int64_t row, rows;
  const uint8_t* w;
};

// Panel number `item` of all products laid end to end.
inline Panel panel_of(const Linear& l, int64_t item, int64_t row_bytes) {
  const int64_t panels = (l.O + kPanel - 1) / kPanel;
  const Product* product = l.products + item / panels;
  const int64_t row = item % panels * kPanel;
  return {product, row, l.O - row < kPanel ? l.O - row : kPanel,
          static_cast<const uint8_t*>(product->w) + row * row_bytes};
}

template <typename T>
inline void multiply(const Linear& l, const Panel& p, const T* w) {
  const Product& product = *p.product;
  dot_all(w, l.I, p.rows, l.x + product.row * l.I, l.I, product.T, l.I, [&](int64_t t, int64_t r, float value) {
    product.y[t * l.O + p.row + r] = l.b ? value + l.b[p.row + r] : value;
  });
}

void multiply_exact(const Linear& l, const Panel& p, int64_t row_bytes, float* panel) {
  const bool few = p.product->T <= kFewTokens;
  if (l.type == kF32) return multiply(l, p, reinterpret_cast<const float*>(p.w));
  if (l.type == kBF16 && few) return multiply(l, p, reinterpret_cast<const bf16*>(p.w));
  if (l.type == kF16 && few) return multiply(l, p, reinterpret_cast<const f16*>(p.w));
  for (int64_t r = 0; r < p.rows; r++) decode_row(l.type, p.w + r * row_bytes, panel + r * l.I, l.I);
  multiply(l, p, panel);
}

}  // namespace

void linear(Pool& pool, const Linear& l) {
  if (is_packed(l.type)) return linear_int8(pool, l);
  const Block block = block_of(l.type);
  const int64_t row_bytes = l.I / block.elements * block.bytes;
  const int64_t panels = (l.O + kPanel - 1) / kPanel * l.count;
  pool.reserve_own(size_t(kPanel) * size_t(l.I) * sizeof(float));
  parallel(pool, panels, 1, [&](int64_t first, int64_t last, int thread) {
    for (int64_t item = first; item < last; item++)
      multiply_exact(l, panel_of(l, item, row_bytes), row_bytes, static_cast<float*>(pool.own(thread)));
  });
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

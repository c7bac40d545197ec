// y[t] = Σₖ down_e(swiglu(gate_e(s·x[t]), up_e(s·x[t]))) with e, s the k-th choice of row t        reference: experts()
//
// Rows are grouped by expert, so that each expert's weights are read once; all products of a kind are one run of the
// pool. Sums over k keep the order of the choices.

#include "kernels.h"
#include "simd.h"

namespace llama4 {
namespace LLAMA4_ISA {

void experts(Pool& pool, const Experts& a) {
  const int64_t n = a.T * a.top_k, D = a.D, F = a.F;
  const auto matrix_bytes = [](int type, int64_t elements) {
    const Block block = block_of(type);
    return elements / block.elements * block.bytes;
  };
  // x in groups [n, D], gate and up [n, F], down [n, D]; products; where choice i stands in the groups; group starts.
  const size_t floats = size_t(n) * size_t(2 * D + 2 * F);
  const size_t bytes = floats * sizeof(float) + size_t(2 * a.E) * sizeof(Product) + size_t(n + a.E + 1) * sizeof(int64_t);
  float* grouped = static_cast<float*>(pool.shared(Pool::kOperation, bytes));
  float *gate = grouped + n * D, *up = gate + n * F, *down = up + n * F;
  Product* products = reinterpret_cast<Product*>(down + n * D);
  int64_t *place = reinterpret_cast<int64_t*>(products + 2 * a.E), *start = place + n;

  for (int64_t e = 0; e <= a.E; e++) start[e] = 0;
  for (int64_t i = 0; i < n; i++) start[a.chosen[i] + 1]++;
  for (int64_t e = 0; e < a.E; e++) start[e + 1] += start[e];
  for (int64_t i = 0; i < n; i++) place[i] = start[a.chosen[i]]++;  // start[e] becomes the end of group e
  const auto first = [&](int64_t e) { return e ? start[e - 1] : 0; };

  parallel(pool, n, 16384 / D + 1, [&](int64_t i, int64_t last, int) {
    for (; i < last; i++) {
      const float *x = a.x + i / a.top_k * D, s = a.scores[i];
      float* to = grouped + place[i] * D;
      for (int64_t j = 0; j < D; j++) to[j] = s * x[j];
    }
  });

  // One product for each expert that has rows; matrix e of a bank starts at e times its bytes.
  const auto collect = [&](Product* to, const void* bank, int64_t bytes, float* y, int64_t out) {
    int64_t count = 0;
    for (int64_t e = 0; e < a.E; e++)
      if (start[e] > first(e))
        to[count++] = {first(e), start[e] - first(e), static_cast<const uint8_t*>(bank) + e * bytes,
                       y + first(e) * out};
    return count;
  };
  const int64_t used = collect(products, a.gate, matrix_bytes(a.gate_type, F * D), gate, F);
  collect(products + used, a.up, matrix_bytes(a.up_type, F * D), up, F);
  if (a.gate_type == a.up_type) {
    linear(pool, {grouped, n, products, 2 * used, D, F, a.gate_type, a.int8, nullptr});
  } else {
    linear(pool, {grouped, n, products, used, D, F, a.gate_type, a.int8, nullptr});
    linear(pool, {grouped, n, products + used, used, D, F, a.up_type, a.int8, nullptr});
  }
  swiglu(pool, gate, up, n * F, gate);
  collect(products, a.down, matrix_bytes(a.down_type, D * F), down, D);
  linear(pool, {gate, n, products, used, F, D, a.down_type, a.int8, nullptr});

  parallel(pool, a.T, 16384 / D + 1, [&](int64_t t, int64_t last, int) {
    for (; t < last; t++) {
      float* y = a.y + t * D;
      memcpy(y, down + place[t * a.top_k] * D, size_t(D) * sizeof(float));
      for (int64_t k = 1; k < a.top_k; k++) {
        const float* from = down + place[t * a.top_k + k] * D;
        for (int64_t j = 0; j < D; j++) y[j] += from[j];
      }
    }
  });
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

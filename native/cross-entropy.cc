// y = mean over rows with target >= 0 of log Σⱼ exp(x[j]) − x[target]        reference: crossEntropy()

#include "kernels.h"
#include "simd.h"

namespace llama4 {
namespace LLAMA4_ISA {

void cross_entropy(Pool& pool, const float* logits, const int32_t* targets, int64_t T, int64_t V, float* y) {
  double* losses = static_cast<double*>(pool.shared(Pool::kOperation, size_t(T) * sizeof(double)));
  parallel(pool, T, 16384 / V + 1, [&](int64_t t, int64_t last, int) {
    for (; t < last; t++) {
      losses[t] = 0;
      if (targets[t] < 0) continue;
      const float* row = logits + t * V;
      float top = row[0];
      for (int64_t i = 1; i < V; i++) top = row[i] > top ? row[i] : top;
      double total = 0;
      each_vec(
          V, [&](int64_t i) { total += double(sum(exp(load(row + i) - splat(top)))); },
          [&](int64_t i, int64_t part) {
            const vec e = exp(load_part(row + i, part) - splat(top));
            for (int64_t j = 0; j < part; j++) total += double(e[j]);
          });
      losses[t] = __builtin_log(total) + double(top) - double(row[targets[t]]);
    }
  });
  double loss = 0;
  int64_t counted = 0;
  for (int64_t t = 0; t < T; t++) {
    loss += losses[t];
    counted += targets[t] >= 0;
  }
  *y = float(loss / double(counted));
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

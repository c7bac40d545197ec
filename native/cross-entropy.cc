// y = mean over rows with target >= 0 of log Σⱼ exp(x[j]) − x[target]        reference: crossEntropy()
// dx = dy · (softmax(x) − [j = target]) / rows with target >= 0                 reference: crossEntropyBackward()

#include "kernels.h"
#include "simd.h"

namespace llama4 {
namespace LLAMA4_ISA {

namespace {
float largest_of(const float* row, int64_t n) {
  vec tops = splat(row[0]);
  each_vec(n, [&](int64_t i) { tops = max(tops, load(row + i)); },
           [&](int64_t i, int64_t part) {
             for (int64_t j = i; j < i + part; j++) tops[0] = row[j] > tops[0] ? row[j] : tops[0];
           });
  return largest(tops);
}
}  // namespace

void cross_entropy(Pool& pool, const float* logits, const int32_t* targets, int64_t T, int64_t V, float* y) {
  double* losses = static_cast<double*>(pool.shared(Pool::kOperation, size_t(T) * sizeof(double)));
  parallel(pool, T, 16384 / V + 1, [&](int64_t t, int64_t last, int) {
    for (; t < last; t++) {
      losses[t] = 0;
      if (targets[t] < 0) continue;
      const float* row = logits + t * V;
      const float top = largest_of(row, V);
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

void cross_entropy_backward(Pool& pool, const float* logits, const int32_t* targets, const float* dy, int64_t T, int64_t V,
                            float* dx) {
  int64_t counted = 0;
  for (int64_t t = 0; t < T; t++) counted += targets[t] >= 0;
  const float share = *dy / float(counted);
  parallel(pool, T, 16384 / V + 1, [&](int64_t t, int64_t last, int) {
    for (; t < last; t++) {
      const float* row = logits + t * V;
      float* out = dx + t * V;
      if (targets[t] < 0) {
        memset(out, 0, size_t(V) * sizeof(float));
        continue;
      }
      const vec top = splat(largest_of(row, V));
      double total = 0;
      each_vec(
          V,
          [&](int64_t i) {
            const vec e = exp(load(row + i) - top);
            store(out + i, e);
            total += double(sum(e));
          },
          [&](int64_t i, int64_t part) {
            const vec e = exp(load_part(row + i, part) - top);
            store_part(out + i, e, part);
            for (int64_t j = 0; j < part; j++) total += double(e[j]);
          });
      const vec scale = splat(float(double(share) / total));
      each_vec(V, [&](int64_t i) { store(out + i, load(out + i) * scale); },
               [&](int64_t i, int64_t part) { store_part(out + i, load_part(out + i, part) * scale, part); });
      out[targets[t]] -= share;
    }
  });
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

// In place: w by AdamW, x ← a·x + b·y, Σx²        reference: adamW(), blend(), sumSquares()

#include "kernels.h"
#include "simd.h"

namespace llama4 {
namespace LLAMA4_ISA {

static inline vec sqrt(vec x) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(x);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(x);
#else
  for (int i = 0; i < W; i++) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

namespace {

constexpr int64_t kGrain = 16384;

// m ← β₁m + (1 − β₁)g, v ← β₂v + (1 − β₂)g², w ← (1 − rate·decay)·w − step·m / (√v·root + ε)
inline void adam_w_one(const AdamW& a, vec& w, vec g, vec& m, vec& v) {
  g = g * splat(a.scale);
  m = splat(a.beta1) * m + splat(a.rest1) * g;
  v = splat(a.beta2) * v + splat(a.rest2) * (g * g);
  w = splat(a.keep) * w - splat(a.step) * m / (sqrt(v) * splat(a.root) + splat(a.eps));
}

}  // namespace

void adam_w(Pool& pool, const AdamW& a) {
  parallel(pool, a.n, kGrain, [&](int64_t first, int64_t last, int) {
    float *w = a.w + first, *m = a.m + first, *v = a.v + first;
    const float* g = a.g + first;
    each_vec(
        last - first,
        [&](int64_t i) {
          vec wi = load(w + i), mi = load(m + i), vi = load(v + i);
          adam_w_one(a, wi, load(g + i), mi, vi);
          store(w + i, wi), store(m + i, mi), store(v + i, vi);
        },
        [&](int64_t i, int64_t part) {
          vec wi = load_part(w + i, part), mi = load_part(m + i, part), vi = load_part(v + i, part);
          adam_w_one(a, wi, load_part(g + i, part), mi, vi);
          store_part(w + i, wi, part), store_part(m + i, mi, part), store_part(v + i, vi, part);
        });
  });
}

void blend(Pool& pool, float* x, const float* y, int64_t n, float a, float b) {
  parallel(pool, n, kGrain, [&](int64_t first, int64_t last, int) {
    each_vec(
        last - first,
        [&](int64_t i) { store(x + first + i, splat(a) * load(x + first + i) + splat(b) * load(y + first + i)); },
        [&](int64_t i, int64_t part) {
          store_part(x + first + i, splat(a) * load_part(x + first + i, part) + splat(b) * load_part(y + first + i, part), part);
        });
  });
}

// Runs of 1,024 in f32 and their sums in f64, in order: the same whatever the threads.
double sum_squares(Pool& pool, const float* x, int64_t n) {
  constexpr int64_t kRun = 1024;
  const int64_t runs = (n + kRun - 1) / kRun;
  double* sums = static_cast<double*>(pool.shared(Pool::kOperation, size_t(runs) * sizeof(double)));
  parallel(pool, runs, kGrain / kRun, [&](int64_t run, int64_t last, int) {
    for (; run < last; run++) {
      const float* from = x + run * kRun;
      vec total{};
      each_vec(
          (run + 1) * kRun < n ? kRun : n - run * kRun, [&](int64_t i) { total += load(from + i) * load(from + i); },
          [&](int64_t i, int64_t part) { total += load_part(from + i, part) * load_part(from + i, part); });
      sums[run] = double(sum(total));
    }
  });
  double total = 0;
  for (int64_t run = 0; run < runs; run++) total += sums[run];
  return total;
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

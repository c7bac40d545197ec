// rmsNorm    y = x · rsqrt(mean(x²) + eps) · w
// layerNorm  y = (x − mean) · rsqrt(variance + eps) · w + b        reference: rmsNorm() and layerNorm()

#include "kernels.h"
#include "simd.h"

namespace llama4 {
namespace LLAMA4_ISA {

namespace {

constexpr int64_t kGrain = 4096;  // elements a claim: below, waking a thread costs more than it saves

int64_t rows_of(int64_t n) { return (kGrain + n - 1) / n; }

// Σ f(x) over a row; f of zero must be zero.
template <typename F>
inline float reduce(const float* x, int64_t n, const F& f) {
  vec s{};
  each_vec(n, [&](int64_t i) { s += f(load(x + i)); }, [&](int64_t i, int64_t part) { s += f(load_part(x + i, part)); });
  return sum(s);
}

}  // namespace

void rms_norm(Pool& pool, const Norm& a) {
  parallel(pool, a.rows, rows_of(a.n), [&](int64_t row, int64_t last, int) {
    for (; row < last; row++) {
      const float* x = a.x + row * a.n;
      float* y = a.y + row * a.n;
      const float squares = reduce(x, a.n, [](vec v) { return v * v; });
      const vec scale = splat(1.0f / __builtin_sqrtf(squares / float(a.n) + a.eps));
      each_vec(
          a.n,
          [&](int64_t i) { store(y + i, a.w ? load(x + i) * scale * load(a.w + i) : load(x + i) * scale); },
          [&](int64_t i, int64_t part) {
            const vec v = load_part(x + i, part) * scale;
            store_part(y + i, a.w ? v * load_part(a.w + i, part) : v, part);
          });
    }
  });
}

void layer_norm(Pool& pool, const Norm& a) {
  parallel(pool, a.rows, rows_of(a.n), [&](int64_t row, int64_t last, int) {
    for (; row < last; row++) {
      const float* x = a.x + row * a.n;
      float* y = a.y + row * a.n;
      const float mean = reduce(x, a.n, [](vec v) { return v; }) / float(a.n);
      float squares = 0;
      vec s{};
      each_vec(
          a.n,
          [&](int64_t i) {
            const vec v = load(x + i) - splat(mean);
            s += v * v;
          },
          [&](int64_t i, int64_t part) {
            for (int64_t j = i; j < i + part; j++) squares += (x[j] - mean) * (x[j] - mean);
          });
      const vec scale = splat(1.0f / __builtin_sqrtf((sum(s) + squares) / float(a.n) + a.eps));
      const auto normal = [&](vec v, vec w, vec b) { return (v - splat(mean)) * scale * w + b; };
      each_vec(
          a.n, [&](int64_t i) { store(y + i, normal(load(x + i), load(a.w + i), load(a.b + i))); },
          [&](int64_t i, int64_t part) {
            store_part(y + i, normal(load_part(x + i, part), load_part(a.w + i, part), load_part(a.b + i, part)), part);
          });
    }
  });
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

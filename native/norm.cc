// rmsNorm    y = x · rsqrt(mean(x²) + eps) · w
// layerNorm  y = (x − mean) · rsqrt(variance + eps) · w + b        reference: rmsNorm() and layerNorm()
// and their ways back: rmsNormBackward() and layerNormBackward() of src/backends/reference/backward.ts

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

// Calls row(x, dy, dx, dw, db) for every row. dw and db gather kBlock rows each in memory of their own, and those blocks
// are added in order, so that sums do not depend on the threads.
constexpr int64_t kBlock = 64;
template <typename F>
void each_row_back(Pool& pool, const NormBackward& a, const F& row) {
  const int64_t blocks = (a.rows + kBlock - 1) / kBlock, sums = (a.dw != nullptr) + (a.db != nullptr);
  float* memory = static_cast<float*>(pool.shared(Pool::kOperation, size_t(blocks * sums * a.n) * sizeof(float)));
  parallel(pool, blocks, (rows_of(a.n) + kBlock - 1) / kBlock, [&](int64_t block, int64_t end, int) {
    for (; block < end; block++) {
      float *dw = memory + block * sums * a.n, *db = dw + a.n;
      if (sums) memset(dw, 0, size_t(sums * a.n) * sizeof(float));
      const int64_t last = (block + 1) * kBlock < a.rows ? (block + 1) * kBlock : a.rows;
      for (int64_t r = block * kBlock; r < last; r++) row(a.x + r * a.n, a.dy + r * a.n, a.dx + r * a.n, dw, db);
    }
  });
  const auto gather = [&](const float* from, float* to) {
    memset(to, 0, size_t(a.n) * sizeof(float));
    for (int64_t block = 0; block < blocks; block++)
      for (int64_t i = 0; i < a.n; i++) to[i] += from[block * sums * a.n + i];
  };
  if (a.dw) gather(memory, a.dw);
  if (a.db) gather(memory + a.n, a.db);
}

// Σ f(i) and for the last few Σ g(i, part).
template <typename F, typename G>
inline float reduce_at(int64_t n, const F& f, const G& g) {
  vec s{};
  each_vec(n, [&](int64_t i) { s += f(i); }, [&](int64_t i, int64_t part) { s += g(i, part); });
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

void rms_norm_backward(Pool& pool, const NormBackward& a) {
  const float n = float(a.n);
  each_row_back(pool, a, [&](const float* x, const float* dy, float* dx, float* dw, float*) {
    const float scale = 1.0f / __builtin_sqrtf(reduce(x, a.n, [](vec v) { return v * v; }) / n + a.eps);
    const float products = reduce_at(
        a.n, [&](int64_t i) { return load(x + i) * (a.w ? load(dy + i) * load(a.w + i) : load(dy + i)); },
        [&](int64_t i, int64_t part) {
          const vec g = load_part(dy + i, part);
          return load_part(x + i, part) * (a.w ? g * load_part(a.w + i, part) : g);
        });
    const vec s = splat(scale), mean = splat(products * scale / n);
    each_vec(
        a.n,
        [&](int64_t i) {
          const vec normal = load(x + i) * s, d = load(dy + i);
          store(dx + i, s * ((a.w ? d * load(a.w + i) : d) - normal * mean));
          if (a.dw) store(dw + i, load(dw + i) + d * normal);
        },
        [&](int64_t i, int64_t part) {
          const vec normal = load_part(x + i, part) * s, d = load_part(dy + i, part);
          store_part(dx + i, s * ((a.w ? d * load_part(a.w + i, part) : d) - normal * mean), part);
          if (a.dw) store_part(dw + i, load_part(dw + i, part) + d * normal, part);
        });
  });
}

void layer_norm_backward(Pool& pool, const NormBackward& a) {
  const float n = float(a.n);
  each_row_back(pool, a, [&](const float* x, const float* dy, float* dx, float* dw, float* db) {
    const float mean = reduce(x, a.n, [](vec v) { return v; }) / n;
    float squares = 0;
    for (int64_t i = a.n / W * W; i < a.n; i++) squares += (x[i] - mean) * (x[i] - mean);
    squares += reduce(x, a.n / W * W, [&](vec v) { return (v - splat(mean)) * (v - splat(mean)); });
    const vec s = splat(1.0f / __builtin_sqrtf(squares / n + a.eps)), m = splat(mean);
    const auto part_g = [&](int64_t i, int64_t part) { return load_part(dy + i, part) * load_part(a.w + i, part); };
    const auto g = [&](int64_t i) { return load(dy + i) * load(a.w + i); };
    const vec g_mean = splat(reduce_at(a.n, g, part_g) / n);
    const vec products = splat(reduce_at(
        a.n, [&](int64_t i) { return g(i) * (load(x + i) - m) * s; },
        [&](int64_t i, int64_t part) { return part_g(i, part) * (load_part(x + i, part) - m) * s; }) / n);
    each_vec(
        a.n,
        [&](int64_t i) {
          const vec normal = (load(x + i) - m) * s;
          store(dx + i, s * (g(i) - g_mean - normal * products));
          store(dw + i, load(dw + i) + load(dy + i) * normal);
          store(db + i, load(db + i) + load(dy + i));
        },
        [&](int64_t i, int64_t part) {
          const vec normal = (load_part(x + i, part) - m) * s, d = load_part(dy + i, part);
          store_part(dx + i, s * (part_g(i, part) - g_mean - normal * products), part);
          store_part(dw + i, load_part(dw + i, part) + d * normal, part);
          store_part(db + i, load_part(db + i, part) + d, part);
        });
  });
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

// add, mul, swiglu = silu(gate) ⊙ up, gelu = x · Φ(x)        reference: the functions of the same names
// and the ways back of the last two: swigluBackward() and geluBackward() of src/backends/reference/backward.ts

#include "kernels.h"
#include "simd.h"
#include "walk.h"

namespace llama4 {
namespace LLAMA4_ISA {

namespace {

constexpr int64_t kGrain = 16384;  // elements a claim: below, waking a thread costs more than it saves

template <typename F>
inline void map2(Pool& pool, const float* a, const float* b, int64_t n, float* y, const F& f) {
  parallel(pool, n, kGrain, [&](int64_t first, int64_t last, int) {
    each_vec(
        last - first, [&](int64_t i) { store(y + first + i, f(load(a + first + i), load(b + first + i))); },
        [&](int64_t i, int64_t part) {
          store_part(y + first + i, f(load_part(a + first + i, part), load_part(b + first + i, part)), part);
        });
  });
}

}  // namespace

void add(Pool& pool, const float* a, const float* b, int64_t n, float* y) {
  map2(pool, a, b, n, y, [](vec a, vec b) { return a + b; });
}

void swiglu(Pool& pool, const float* gate, const float* up, int64_t n, float* y) {
  map2(pool, gate, up, n, y, [](vec gate, vec up) { return gate * sigmoid(gate) * up; });
}

// Φ(x), where Φ(−u) = e^(−u·q(u)) / 2 for u >= 0. q is fitted on [0, 10] (Lawson's least maximum): with it gelu is
// off by at most 6e-9, before rounding; beyond, it lets the exponential end in 0.
static inline vec normal_share(vec x) {
  const vec u = min(max(x, -x), splat(20.0f));
  constexpr float falling[] = {1.1519632e-8f,  -4.0743154e-7f, 5.8912215e-6f,  -4.4479199e-5f, 1.6813081e-4f,
                               4.8621023e-5f, -4.8717326e-3f, 3.6387313e-2f, 3.1829494e-1f,  7.9788619e-1f};
  vec q{};
  for (const float coefficient : falling) q = q * u + splat(coefficient);
  const vec tail = splat(0.5f) * exp(-u * q);
  return x < vec{} ? tail : splat(1.0f) - tail;
}

static inline vec gelu(vec x) { return x * normal_share(x); }

void gelu(Pool& pool, const float* x, int64_t n, float* y) {
  parallel(pool, n, kGrain, [&](int64_t first, int64_t last, int) {
    each_vec(
        last - first, [&](int64_t i) { store(y + first + i, gelu(load(x + first + i))); },
        [&](int64_t i, int64_t part) { store_part(y + first + i, gelu(load_part(x + first + i, part)), part); });
  });
}

// gelu′(x) = Φ(x) + x·φ(x)
void gelu_backward(Pool& pool, const float* x, const float* dy, int64_t n, float* dx) {
  map2(pool, x, dy, n, dx, [](vec x, vec dy) {
    const vec density = splat(0.3989422804f) * exp(splat(-0.5f) * x * x);
    return dy * (normal_share(x) + x * density);
  });
}

// silu′(g) = σ(g)·(1 + g·(1 − σ(g)))
void swiglu_backward(Pool& pool, const float* gate, const float* up, const float* dy, int64_t n, float* d_gate, float* d_up) {
  parallel(pool, n, kGrain, [&](int64_t first, int64_t last, int) {
    const auto step = [](vec g, vec u, vec d, vec& dg, vec& du) {
      const vec s = sigmoid(g);
      dg = d * u * s * (splat(1.0f) + g * (splat(1.0f) - s));
      du = d * g * s;
    };
    vec dg, du;
    each_vec(
        last - first,
        [&](int64_t i) {
          i += first;
          step(load(gate + i), load(up + i), load(dy + i), dg, du);
          store(d_gate + i, dg);
          store(d_up + i, du);
        },
        [&](int64_t i, int64_t part) {
          i += first;
          step(load_part(gate + i, part), load_part(up + i, part), load_part(dy + i, part), dg, du);
          store_part(d_gate + i, dg, part);
          store_part(d_up + i, du, part);
        });
  });
}

// Rows of the last axis: b's stride there is 1 (a row by a row) or 0 (a row by a number).
void mul(Pool& pool, const float* a, const float* b, const Walk& walk_b, float* y) {
  const int64_t width = walk_b.shape[walk_b.rank - 1];
  const bool one = walk_b.strides[walk_b.rank - 1] == 0;
  parallel(pool, rows_of(walk_b), kGrain / width + 1, [&](int64_t row, int64_t last, int) {
    for (; row < last; row++) {
      const float* to = b + row_offset(walk_b, row);
      const float *x = a + row * width;
      float* out = y + row * width;
      each_vec(
          width, [&](int64_t i) { store(out + i, load(x + i) * (one ? splat(*to) : load(to + i))); },
          [&](int64_t i, int64_t part) {
            store_part(out + i, load_part(x + i, part) * (one ? splat(*to) : load_part(to + i, part)), part);
          });
    }
  });
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

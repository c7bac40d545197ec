// dx[t, i] = Σₒ dy[t, o] · w[o, i]        reference: linearInput() of src/backends/reference/backward.ts
// dw[o, i] = Σₜ dy[t, o] · x[t, i]        reference: linearWeight()
//
// Both are gemm.h's product with B as it is stored, row by row; A of dw is dy's transpose. Sums are float32; factors are
// too, or rounded to bf16.

#include "pairs.h"
#include "product.h"

namespace llama4 {
namespace LLAMA4_ISA {

namespace {

struct Floats {
  static constexpr int64_t kElements = 1;
  static constexpr bool tiles = false;
  static vec load(const float* row, int64_t k, int64_t I) {
    return I - k >= W ? LLAMA4_ISA::load(row + k) : load_part(row + k, I - k);
  }
  static vec load_column(const float* x, int64_t N, int64_t k, int64_t, int64_t n) {
    return n >= W ? LLAMA4_ISA::load(x + k * N) : load_part(x + k * N, n);
  }
  static vec multiply_add(vec a, vec b, vec sum) { return sum + a * b; }
};

// A panel of n lanes from lane k on of B [K, N], from its column on.
template <typename Lanes>
inline void pack_columns(const float* b, int64_t N, int64_t k, int64_t K, int64_t column, int64_t columns, int64_t n,
                         float* out) {
  for (int64_t i = 0; i < n; i++, out += kWide) {
    store(out, Lanes::load_column(b + column, N, k + i, K, columns));
    store(out + W, columns > W ? Lanes::load_column(b + column + W, N, k + i, K, columns - W) : vec{});
  }
}

inline void write_row(float* y, int64_t columns, const float* sums) {
  if (columns == kWide) store(y, load(sums)), store(y + W, load(sums + W));
  else memcpy(y, sums, size_t(columns) * sizeof(float));
}

template <typename Lanes>
struct Back {
  static constexpr bool tiles = Lanes::tiles;
  const LinearBackward& a;
  static vec multiply_add(vec a, vec b, vec sum) { return Lanes::multiply_add(a, b, sum); }
};

template <typename Lanes>
struct Input : Back<Lanes> {
  using Back<Lanes>::a;
  const int64_t count, rows, N, depth;
  explicit Input(const LinearBackward& a)
      : Back<Lanes>{a}, count(a.E), rows(a.starts[a.E]), N(a.I), depth(ceil_div(a.O, Lanes::kElements)) {}

  int64_t first(int64_t p) const { return a.starts[p]; }
  int64_t last(int64_t p) const { return a.starts[p + 1]; }
  void pack_a(int64_t row, int64_t rows, int64_t k, int64_t n, float* out) const {
    for (int64_t end = row + rows; row < end; row++, out += depth_of<Lanes>)
      for (int64_t i = 0; i < n; i += W) store(out + i, Lanes::load(a.dy + row * a.O, k + i, a.O));
  }
  void pack_b(int64_t p, int64_t column, int64_t columns, int64_t k, int64_t n, float* out, float*) const {
    pack_columns<Lanes>(a.factor + p * a.O * a.I, a.I, k, a.O, column, columns, n, out);
  }
  void write(int64_t, int64_t row, int64_t column, int64_t columns, const float* sums) const {
    write_row(a.result + row * a.I + column, columns, sums);
  }
};

// Of the rows [from, from + depth) of dy and x.
template <typename Lanes>
struct Weight : Back<Lanes> {
  using Back<Lanes>::a;
  const int64_t from, T, depth, count = 1, rows, N;
  float* const dw;
  Weight(const LinearBackward& a, int64_t e)
      : Back<Lanes>{a}, from(a.starts[e]), T(a.starts[e + 1] - from), depth(ceil_div(T, Lanes::kElements)), rows(a.O),
        N(a.I), dw(a.result + e * a.O * a.I) {}

  int64_t first(int64_t) const { return 0; }
  int64_t last(int64_t) const { return a.O; }
  void pack_a(int64_t row, int64_t rows, int64_t k, int64_t n, float* out) const {
    const float* at = a.dy + from * a.O + row;
    for (int64_t r = 0; r < rows; r += W)
      for (int64_t t = 0; t < n; t += W) {
        vec m[W];
#pragma GCC unroll 16
        for (int i = 0; i < W; i++) m[i] = t + i < n ? Lanes::load_column(at + r, a.O, k + t + i, T, rows - r) : vec{};
        transpose(m);
        for (int64_t i = 0; i < W && r + i < rows; i++) store(out + (r + i) * depth_of<Lanes> + t, m[i]);
      }
  }
  void pack_b(int64_t, int64_t column, int64_t columns, int64_t k, int64_t n, float* out, float*) const {
    pack_columns<Lanes>(a.factor + from * a.I, a.I, k, T, column, columns, n, out);
  }
  void write(int64_t, int64_t row, int64_t column, int64_t columns, const float* sums) const {
    write_row(dw + row * a.I + column, columns, sums);
  }
};

template <typename Lanes>
void by_input(Pool& pool, const LinearBackward& a) {
  gemm(pool, Input<Lanes>(a));
}

template <typename Lanes>
void by_weight(Pool& pool, const LinearBackward& a) {
  for (int64_t e = 0; e < a.E; e++) {
    const Weight<Lanes> problem(a, e);
    if (problem.depth > 0) gemm(pool, problem);
    else memset(problem.dw, 0, size_t(a.O * a.I) * sizeof(float));
  }
}

}  // namespace

void linear_input(Pool& pool, const LinearBackward& a) {
  if (a.starts[a.E] == 0) return;
#if defined(__AVX512BF16__)
  if (a.rounded && has_bf16()) return by_input<Pairs>(pool, a);
#endif
  by_input<Floats>(pool, a);
}

void linear_weight(Pool& pool, const LinearBackward& a) {
#if defined(__AVX512BF16__)
  if (a.rounded && has_bf16()) return by_weight<Pairs>(pool, a);
#endif
  by_weight<Floats>(pool, a);
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

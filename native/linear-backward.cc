// dx[t, i] = Σₒ dy[t, o] · w[o, i]        reference: linearInput() of src/backends/reference/backward.ts
// dw[o, i] = Σₜ dy[t, o] · x[t, i]        reference: linearWeight()
//
// Both are gemm.h's product with B as it is stored, row by row; A of dw is dy's transpose. All is float32.

#include "gemm.h"

namespace llama4 {
namespace LLAMA4_ISA {

namespace {

// A panel of n rows of B [.., N], from its row k and column on.
inline void pack_rows_of(const float* b, int64_t N, int64_t k, int64_t column, int64_t columns, int64_t n, float* out) {
  const float* from = b + k * N + column;
  if (columns == kWide)
    for (int64_t i = 0; i < n; i++, from += N, out += kWide) {
      store(out, load(from));
      store(out + W, load(from + W));
    }
  else
    for (int64_t i = 0; i < n; i++, from += N, out += kWide)
      for (int64_t c = 0; c < kWide; c++) out[c] = c < columns ? from[c] : 0;
}

inline void write_row(float* y, int64_t columns, const float* sums) {
  if (columns == kWide) store(y, load(sums)), store(y + W, load(sums + W));
  else memcpy(y, sums, size_t(columns) * sizeof(float));
}

struct Back {
  const LinearBackward& a;
  static vec multiply_add(vec a, vec b, vec sum) { return sum + a * b; }
};

struct Input : Back {
  const int64_t count, rows, N, depth;
  explicit Input(const LinearBackward& a) : Back{a}, count(a.E), rows(a.starts[a.E]), N(a.I), depth(a.O) {}

  int64_t first(int64_t p) const { return a.starts[p]; }
  int64_t last(int64_t p) const { return a.starts[p + 1]; }
  void pack_a(int64_t row, int64_t rows, int64_t k, int64_t n, float* out) const {
    for (int64_t i = 0; i < rows; i++) memcpy(out + i * kDepth, a.dy + (row + i) * a.O + k, size_t(n) * sizeof(float));
  }
  void pack_b(int64_t p, int64_t column, int64_t columns, int64_t k, int64_t n, float* out, float*) const {
    pack_rows_of(a.factor + p * a.O * a.I, a.I, k, column, columns, n, out);
  }
  void write(int64_t, int64_t row, int64_t column, int64_t columns, const float* sums) const {
    write_row(a.result + row * a.I + column, columns, sums);
  }
};

// Of the rows [from, from + depth) of dy and x.
struct Weight : Back {
  const int64_t from, depth, count = 1, rows, N;
  float* const dw;
  Weight(const LinearBackward& a, int64_t e)
      : Back{a}, from(a.starts[e]), depth(a.starts[e + 1] - from), rows(a.O), N(a.I), dw(a.result + e * a.O * a.I) {}

  int64_t first(int64_t) const { return 0; }
  int64_t last(int64_t) const { return a.O; }
  void pack_a(int64_t row, int64_t rows, int64_t k, int64_t n, float* out) const {
    const float* at = a.dy + (from + k) * a.O + row;
    for (int64_t r = 0; r < rows; r += W)
      for (int64_t t = 0; t < n; t += W) {
        vec m[W];
#pragma GCC unroll 16
        for (int i = 0; i < W; i++) {
          const float* p = at + (t + i) * a.O + r;
          m[i] = t + i >= n ? vec{} : rows - r >= W ? load(p) : load_part(p, rows - r);
        }
        transpose(m);
        for (int64_t i = 0; i < W && r + i < rows; i++) store(out + (r + i) * kDepth + t, m[i]);
      }
  }
  void pack_b(int64_t, int64_t column, int64_t columns, int64_t k, int64_t n, float* out, float*) const {
    pack_rows_of(a.factor + from * a.I, a.I, k, column, columns, n, out);
  }
  void write(int64_t, int64_t row, int64_t column, int64_t columns, const float* sums) const {
    write_row(dw + row * a.I + column, columns, sums);
  }
};

}  // namespace

void linear_input(Pool& pool, const LinearBackward& a) {
  if (a.starts[a.E] > 0) gemm(pool, Input(a));
}

void linear_weight(Pool& pool, const LinearBackward& a) {
  for (int64_t e = 0; e < a.E; e++) {
    const Weight problem(a, e);
    if (problem.depth > 0) gemm(pool, problem);
    else memset(problem.dw, 0, size_t(a.O * a.I) * sizeof(float));
  }
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

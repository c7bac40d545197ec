// Dot products of R rows of weights with C rows of floats. Each is one accumulator of W lanes over the row, then the
// lanes' sum, whatever R and C: a result never depends on which other rows are computed beside it.

#pragma once

#include "simd.h"

namespace llama4 {
namespace LLAMA4_ISA {

// What fits the registers beside the operands: 32 of AVX-512, else 16.
#if defined(__AVX512F__)
constexpr int kTileRows = 4, kTileTokens = 6;
#else
constexpr int kTileRows = 3, kTileTokens = 4;
#endif

// y(c, r) = Σᵢ w[r][i] · x[c][i]
template <int R, int C, typename T, typename Y>
static inline void dot_tile(const T* w, int64_t w_stride, const float* x, int64_t x_stride, int64_t n, const Y& y) {
  vec acc[R][C] = {};
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    vec a[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) a[r] = widen(w + r * w_stride + i);
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) {
      const vec b = load(x + c * x_stride + i);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) acc[r][c] += a[r] * b;
    }
  }
  if (i < n)
    for (int c = 0; c < C; c++) {
      const vec b = load_part(x + c * x_stride + i, n - i);
      for (int r = 0; r < R; r++) acc[r][c] += widen_part(w + r * w_stride + i, n - i) * b;
    }
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) y(c, r, sum(acc[r][c]));
}

template <int C, typename T, typename Y>
static inline void dot_rows(const T* w, int64_t w_stride, int64_t rows, const float* x, int64_t x_stride, int64_t n,
                            const Y& y) {
  int64_t r = 0;
  for (; r + kTileRows <= rows; r += kTileRows)
    dot_tile<kTileRows, C>(w + r * w_stride, w_stride, x, x_stride, n,
                           [&](int c, int dr, float value) { y(c, r + dr, value); });
  for (; r < rows; r++)
    dot_tile<1, C>(w + r * w_stride, w_stride, x, x_stride, n, [&](int c, int, float value) { y(c, r, value); });
}

// y(t, r, Σᵢ w[r][i] · x[t][i]) for all rows and tokens.
template <typename T, typename Y>
static inline void dot_all(const T* w, int64_t w_stride, int64_t rows, const float* x, int64_t x_stride, int64_t tokens,
                           int64_t n, const Y& y) {
  int64_t t = 0;
  for (; t + kTileTokens <= tokens; t += kTileTokens)
    dot_rows<kTileTokens>(w, w_stride, rows, x + t * x_stride, x_stride, n,
                          [&](int c, int64_t r, float value) { y(t + c, r, value); });
  for (; t + 2 <= tokens; t += 2)
    dot_rows<2>(w, w_stride, rows, x + t * x_stride, x_stride, n,
                [&](int c, int64_t r, float value) { y(t + c, r, value); });
  if (t < tokens)
    dot_rows<1>(w, w_stride, rows, x + t * x_stride, x_stride, n,
                [&](int, int64_t r, float value) { y(t, r, value); });
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

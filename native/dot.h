// Products of a few rows: weights are transposed in registers on their way from memory, so that a register holds one
// lane (gemm.h) of W columns and sums run in gemm.h's order. A result is the same, bit for bit, for one row and for many.

#pragma once

#include "gemm.h"

namespace llama4 {
namespace LLAMA4_ISA {

// Groups of W columns side by side for C rows: their sums and W transposed registers stay in registers.
template <int C>
constexpr int groups_for() {
#if defined(__AVX512F__)
  return 2;
#else
  return C == 1 ? 4 : C <= 3 ? 2 : 1;
#endif
}

constexpr int64_t kFewRows = 6;

// y(c, o, W sums) for C rows of x, as lanes, and `columns` <= G · W rows of weights: Lanes::load(row, k, I) are W lanes
// of a row of I elements from lane k on.
template <typename Lanes, int C, int G, typename T, typename Y>
static inline void dot_groups(const T* w, int64_t columns, const float* x, int64_t I, const Y& y) {
  const int64_t depth = ceil_div(I, Lanes::kElements);
  vec total[G][C];
  for (int64_t block = 0; block < depth; block += kDepth) {
    const int64_t end = depth - block < kDepth ? depth : block + kDepth;
    vec acc[G][C] = {};
    // Step s of a block asks for its share of what the group reads in the next one, row by row: memory likes runs.
    const T* next = block + kDepth < depth ? w + (block + kDepth) * Lanes::kElements : w + G * W * I;
    const auto ask = [&](int g, int64_t s) __attribute__((always_inline)) {
      constexpr int64_t line = 64 / sizeof(T), lines = kDepth * Lanes::kElements / line, share = W * W * lines / kDepth;
      const T* at = next + (g * W + s * share / lines) * I + s * share % lines * line;
#pragma GCC unroll 16
      for (int64_t i = 0; i < share; i++) __builtin_prefetch(at + i * line);
    };
    int64_t k = block;
    if (columns == G * W)
      for (; k + W <= end && (k + W) * Lanes::kElements <= I; k += W)
#pragma GCC unroll 4
        for (int g = 0; g < G; g++) {
          const T* row = w + g * W * I + k * Lanes::kElements;
          ask(g, (k - block) / W);
          vec m[W];
#pragma GCC unroll 16
          for (int i = 0; i < W; i++, row += I) {
            m[i] = Lanes::load(row);
            asm("" : "+r"(row));  // one pointer that walks: kept apart, those of all rows would fill the registers
          }
          transpose(m);
#pragma GCC unroll 16
          for (int i = 0; i < W; i++)
#pragma GCC unroll 8
            for (int c = 0; c < C; c++)
              acc[g][c] = Lanes::multiply_add(splat(x[c * depth + k + i]), m[i], acc[g][c]);
        }
    for (; k < end; k += W)  // the last lanes, and fewer columns: the last one stands for those that are not there
      for (int g = 0; g < G; g++) {
        vec m[W];
        for (int i = 0; i < W; i++)
          m[i] = Lanes::load(w + (g * W + i < columns ? g * W + i : columns - 1) * I, k, I);
        transpose(m);
        for (int i = 0; i < W && k + i < end; i++)
          for (int c = 0; c < C; c++)
            acc[g][c] = Lanes::multiply_add(splat(x[c * depth + k + i]), m[i], acc[g][c]);
      }
    for (int g = 0; g < G; g++)
      for (int c = 0; c < C; c++) total[g][c] = block ? total[g][c] + acc[g][c] : acc[g][c];
  }
  for (int g = 0; g < G; g++)
    for (int c = 0; c < C; c++) y(c, g * W, total[g][c]);
}

// The same for any number of columns; a last few go in single groups.
template <typename Lanes, int C, typename T, typename Y>
static inline void dot_columns(const T* w, int64_t columns, const float* x, int64_t I, const Y& y) {
  constexpr int G = groups_for<C>();
  int64_t o = 0;
  const auto from = [&](int c, int64_t column, vec sums) { y(c, o + column, sums); };
  for (; o + G * W <= columns; o += G * W) dot_groups<Lanes, C, G>(w + o * I, G * W, x, I, from);
  for (; o < columns; o += W) dot_groups<Lanes, C, 1>(w + o * I, columns - o < W ? columns - o : W, x, I, from);
}

// The same for 1 … kFewRows rows.
template <typename Lanes, typename T, typename Y>
static inline void dot_rows(int64_t rows, const T* w, int64_t columns, const float* x, int64_t I, const Y& y) {
  switch (rows) {
    case 1: return dot_columns<Lanes, 1>(w, columns, x, I, y);
    case 2: return dot_columns<Lanes, 2>(w, columns, x, I, y);
    case 3: return dot_columns<Lanes, 3>(w, columns, x, I, y);
    case 4: return dot_columns<Lanes, 4>(w, columns, x, I, y);
    case 5: return dot_columns<Lanes, 5>(w, columns, x, I, y);
    case 6: return dot_columns<Lanes, 6>(w, columns, x, I, y);
  }
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

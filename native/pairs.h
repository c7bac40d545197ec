// Numbers rounded to bf16, two neighbours along k a lane of gemm.h and dot.h; products are summed in float32.

#pragma once

#include "gemm.h"

namespace llama4 {
namespace LLAMA4_ISA {

#if defined(__AVX512BF16__)

struct Pairs {
  static constexpr int64_t kElements = 2;
  static constexpr bool tiles = kTiles;

  // f(w) with rows of weights as they are stored.
  template <typename F>
  static bool as_stored(int type, const uint8_t* w, const F& f) {
    if (type == kF32) f(reinterpret_cast<const float*>(w));
    else f(reinterpret_cast<const bf16*>(w));
    return true;
  }

  // Rounds to nearest, ties to even.
  static vec load(const float* p) {
    return (vec)_mm512_cvtne2ps_pbh(LLAMA4_ISA::load(p + W), LLAMA4_ISA::load(p));
  }
  static vec load(const float* x, int64_t k, int64_t I) {
    const int64_t left = I - 2 * k;
    const float* p = x + 2 * k;
    if (left >= 2 * W) return load(p);
    const vec low = left >= W ? LLAMA4_ISA::load(p) : left > 0 ? load_part(p, left) : vec{};
    return (vec)_mm512_cvtne2ps_pbh(left > W ? load_part(p + W, left - W) : vec{}, low);
  }
  static vec load(const bf16* w) { return LLAMA4_ISA::load(reinterpret_cast<const float*>(w)); }
  static vec load(const bf16* w, int64_t k, int64_t I) {
    const int64_t left = I - 2 * k;
    if (left >= 2 * W) return load(w + 2 * k);
    return (vec)_mm512_maskz_loadu_epi16(left > 0 ? (__mmask32(1) << left) - 1 : 0, w + 2 * k);
  }

  // Lane k of the columns [0, n <= W) of rows N apart: elements 2k and 2k + 1 < K of each.
  static vec load_column(const float* x, int64_t N, int64_t k, int64_t K, int64_t n) {
    const auto row = [&](int64_t i) { return i < K ? n >= W ? LLAMA4_ISA::load(x + i * N) : load_part(x + i * N, n) : vec{}; };
    const __m256i even = (__m256i)_mm512_cvtneps_pbh(row(2 * k)), odd = (__m256i)_mm512_cvtneps_pbh(row(2 * k + 1));
    return (vec)_mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
  }

  // n rows as lanes, in `room`.
  static const float* rows(const float* x, int64_t n, int64_t I, float* room) {
    const int64_t depth = ceil_div(I, 2);
    for (int64_t row = 0; row < n; row++)
      each_vec(depth, [&](int64_t k) { store(room + row * depth + k, load(x + row * I, k, I)); },
               [&](int64_t k, int64_t part) { store_part(room + row * depth + k, load(x + row * I, k, I), part); });
    return room;
  }

  static vec multiply_add(vec a, vec b, vec sum) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
};

#endif

}  // namespace LLAMA4_ISA
}  // namespace llama4

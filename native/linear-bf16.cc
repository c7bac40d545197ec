// y[t, o] = Σᵢ bf16(x[t, i]) · w[o, i] + b[o]        reference: linear(), whose x is rounded to bf16 here
//
// Two neighbouring k a lane; vdpbf16ps adds both products to a float32. The AVX-512 object alone is compiled with
// AVX512_BF16, which not every such processor has.

#include "product.h"

namespace llama4 {
namespace LLAMA4_ISA {

#if defined(__AVX512BF16__)

namespace {

struct Pairs {
  static constexpr int64_t kElements = 2;

  template <typename F>
  static bool as_stored(int, const uint8_t* w, const F& f) {
    f(reinterpret_cast<const bf16*>(w));
    return true;
  }

  // Rounds to nearest, ties to even.
  static vec load(const float* x, int64_t k, int64_t I) {
    const int64_t left = I - 2 * k;
    const float* p = x + 2 * k;
    if (left >= 2 * W) return (vec)_mm512_cvtne2ps_pbh(LLAMA4_ISA::load(p + W), LLAMA4_ISA::load(p));
    const vec low = left >= W ? LLAMA4_ISA::load(p) : load_part(p, left);
    return (vec)_mm512_cvtne2ps_pbh(left > W ? load_part(p + W, left - W) : vec{}, low);
  }
  static vec load(const bf16* w) { return LLAMA4_ISA::load(reinterpret_cast<const float*>(w)); }
  static vec load(const bf16* w, int64_t k, int64_t I) {
    const int64_t left = I - 2 * k;
    if (left >= 2 * W) return load(w + 2 * k);
    return (vec)_mm512_maskz_loadu_epi16((__mmask32(1) << left) - 1, w + 2 * k);
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

}  // namespace

bool has_bf16() {
  static const bool has = __builtin_cpu_supports("avx512bf16");
  return has;
}
void linear_bf16(Pool& pool, const Linear& l) { multiply<Pairs>(pool, l); }

#else

bool has_bf16() { return false; }
void linear_bf16(Pool&, const Linear&) {}

#endif

}  // namespace LLAMA4_ISA
}  // namespace llama4

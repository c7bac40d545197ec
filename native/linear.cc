// y[t, o] = Σᵢ x[t, i] · w[o, i] + b[o]        reference: linear() of src/backends/reference/reference.ts
//
// Exact numerics: float32 activations, weights dequantized to the float32 that their format defines. A result depends
// neither on the other rows, nor on how many they are, nor on the threads. Where the type allows it, x is rounded to
// int8 (linear-int8.cc) or bf16 (linear-bf16.cc).

#include "int8.h"
#include "product.h"

namespace llama4 {
namespace LLAMA4_ISA {

namespace {

struct Floats {
  static constexpr int64_t kElements = 1;
  static constexpr bool tiles = false;

  // f(w) with rows of weights in their own type, where load() takes it.
  template <typename F>
  static bool as_stored(int type, const uint8_t* w, const F& f) {
    if (type == kF32) return f(reinterpret_cast<const float*>(w)), true;
    if (type == kBF16) return f(reinterpret_cast<const bf16*>(w)), true;
    if (type == kF16) return f(reinterpret_cast<const f16*>(w)), true;
    return false;
  }

  template <typename T>
  static vec load(const T* p) { return widen(p); }
  template <typename T>
  static vec load(const T* row, int64_t k, int64_t I) {
    return I - k >= W ? widen(row + k) : widen_part(row + k, I - k);
  }

  static const float* rows(const float* x, int64_t, int64_t, float*) { return x; }

  static vec multiply_add(vec a, vec b, vec sum) { return sum + a * b; }
};

}  // namespace

void linear(Pool& pool, const Linear& l) {
  if (is_packed(l.type)) linear_int8(pool, l);
  else if (is_rounded(l.type) && has_bf16()) linear_bf16(pool, l);
  else multiply<Floats>(pool, l);
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

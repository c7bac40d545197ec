// Activations as blocks of 32 int8 with a float32 scale, for integer products with quantized weights.

#pragma once

#include "kernels.h"
#include "simd.h"

namespace llama4 {
namespace LLAMA4_ISA {

constexpr bool has_int8(int type) {
  return type == kQ8_0 || type == kQ4_0 || type == kQ4_K || type == kQ5_K || type == kQ6_K;
}

// linear() with int8 activations.
void linear_int8(Pool& pool, const Linear& l);

// One row: x[i] ≈ d[i / 32] · q[i]; sd[b] = d[b] · Σ q of block b, for the k-quants' minima.
struct Acts {
  const int8_t* q;
  const float *d, *sd;
};

}  // namespace LLAMA4_ISA
}  // namespace llama4

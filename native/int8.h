// Activations as blocks of 32 int8 with a float32 scale, for integer products with packed weights (packed.h).

#pragma once

#include "kernels.h"
#include "packed.h"
#include "simd.h"

namespace llama4 {
namespace LLAMA4_ISA {

// One row: x[i] ≈ d[i / 32] · q[i], each off by at most d / 2.
struct Acts {
  const int8_t* q;
  const float* d;
  const float* sd;        // d · Σ q of a block: what the k-quants' minima take
  const int32_t* minus;   // −Σ q of a block: what weights shifted to unsigned take
  const int16_t* minus16; // the same of its two halves
};

// Rows of activations, quantized.
struct Quantized {
  int64_t I;
  int8_t* q;
  float *d, *sd;
  int32_t* minus;
  int16_t* minus16;

  static size_t bytes(int64_t rows, int64_t I) { return size_t(rows) * size_t(I / 32) * 48; }
  Quantized(void* memory, int64_t rows, int64_t I)
      : I(I), q(static_cast<int8_t*>(memory)), d(reinterpret_cast<float*>(q + rows * I)), sd(d + rows * (I / 32)),
        minus(reinterpret_cast<int32_t*>(sd + rows * (I / 32))),
        minus16(reinterpret_cast<int16_t*>(minus + rows * (I / 32))) {}
  Acts row(int64_t t) const {
    const int64_t b = t * (I / 32);
    return {q + t * I, d + b, sd + b, minus + b, minus16 + 2 * b};
  }
  // Elements [first, first + n) of row t, whole blocks, from `scale` · x.
  void set(int64_t t, int64_t first, const float* x, int64_t n, float scale = 1) const;
};

// x [rows, I], quantized by all threads unless it is what the pool holds.
Quantized quantized(Pool& pool, const float* x, int64_t rows, int64_t I, int64_t id, Held& held);

// linear() with packed weights.
void linear_int8(Pool& pool, const Linear& l);

// Row t of a product: where its activations are and where its result goes.
struct Row {
  int64_t x;  // of the quantized rows
  float* y;
};

// y[o] = w[o] · x for each row and o of [0, O). `w` is packed.
struct Int8Product {
  const uint8_t* w;
  int type;  // without kPacked
  int64_t O;
  const Row* rows;
  int64_t T;
  const float* b;  // or nullptr
};

void multiply_int8(Pool& pool, const Quantized& x, const Int8Product* products, int64_t count);

// Rows of swiglu(gate · x, up · x), quantized into `out`, whose row is `first` + t.
struct Int8Gated {
  const uint8_t *gate, *up;
  int gate_type, up_type;
  int64_t F;
  const int64_t* rows;   // of x
  const float* scales;   // of x's rows, or nullptr
  int64_t first, T;
};

void multiply_gated_int8(Pool& pool, const Quantized& x, const Int8Gated* products, int64_t count, const Quantized& out);

}  // namespace LLAMA4_ISA
}  // namespace llama4

// Activations as blocks of 32 int8 with a float32 scale, for integer products with packed weights (packed.h).

#pragma once

#include "kernels.h"
#include "packed.h"
#include "simd.h"
#include "tiles.h"

namespace llama4 {
namespace LLAMA4_ISA {

// Up to so many rows meet each word of the weights on its way from memory; more go by tiles, where there are any.
constexpr int64_t kFewTokens = kTiles || W == 16 ? 6 : 4;

// 32 elements of a row: x[i] ≈ d · q[i], off by at most d / 2. All that a product wants of them is one line of the cache, so
// that one pointer serves.
struct alignas(64) ActBlock {
  int8_t q[32];
  float d, sd;  // sd: d · Σ q
  // What sums begin with, −2^shift · Σ q of the block or of each of its halves, where weights are shifted to unsigned by
  // 2^shift. AVX2 adds in 16 bits: there both halves of a word are such a sum, low of elements 0 and 1 of each four, high of 2 and 3.
  // And it multiplies q8_0 signed, but shifts q5_k.
  int32_t minus_q4_0, minus_q8_0_or_q5_k, minus_q6_k[2];
  static constexpr int shift_q4_0 = 3, shift_q8_0_or_q5_k = W == 8 ? 4 : 7, shift_q6_k = 5;
};

// Rows of activations, quantized.
struct Quantized {
  int64_t rows, I;
  int64_t width;  // blocks from a row to the next: an odd number, since powers of two would share few sets of a cache
  ActBlock* blocks;

  static size_t bytes(int64_t rows, int64_t I) { return size_t(rows) * size_t(I / 32 | 1) * sizeof(ActBlock); }
  Quantized(void* memory, int64_t rows, int64_t I)
      : rows(rows), I(I), width(I / 32 | 1), blocks(static_cast<ActBlock*>(memory)) {}
  // Block b of row t.
  ActBlock* at(int64_t t, int64_t b) const { return blocks + t * width + b; }
  // Elements [first, first + n) of row t, whole blocks, from `scale` · x.
  void set(int64_t t, int64_t first, const float* x, int64_t n, float scale = 1) const;
  // Row t is that row of x.
  void copy(int64_t t, const Quantized& x, int64_t row) const;
};

// linear() with packed weights.
void linear_int8(Pool& pool, const Linear& l);

// Row t of `y` is w times row `first` + t of the activations. `w` is packed.
struct Int8Product {
  const uint8_t* w;
  int type;  // without kPacked
  int64_t O;
  int64_t first, T;
  float* const* y;
  const float* b;  // or nullptr
};

void multiply_int8(Pool& pool, const Quantized& x, const Int8Product* products, int64_t count);

// Row `first` + t of swiglu(gate · x, up · x) by the same row of x, quantized into `out`.
struct Int8Gated {
  const uint8_t *gate, *up;
  int gate_type, up_type;
  int64_t F;
  int64_t first, T;
  const float* scales;  // of T rows of x, or nullptr
};

void multiply_gated_int8(Pool& pool, const Quantized& x, const Int8Gated* products, int64_t count, const Quantized& out);

}  // namespace LLAMA4_ISA
}  // namespace llama4

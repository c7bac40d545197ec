// Rows of the formats that models come in, to float32 by whole registers: the same bits as to_f32_row(), which does
// every format, some ten times faster.

#pragma once

#include "kernels.h"
#include "simd.h"

namespace llama4 {
namespace LLAMA4_ISA {

// By intrinsics where there are some: GCC 12 takes __builtin_convertvector from bytes apart into single elements.
static inline ivec widen_bytes(const int8_t* q) {
#if defined(__AVX512F__)
  return (ivec)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q)));
#elif defined(__AVX2__)
  return (ivec)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(q)));
#else
  ivec v;
  for (int i = 0; i < W; i++) v[i] = q[i];
  return v;
#endif
}

// y[i] = scale · q[i] − offset for n small integers; exact products, so one rounding (block-formats.ts).
template <int N>
static inline void scale_bytes(const int8_t* q, float scale, float offset, float* __restrict y) {
  for (int i = 0; i < N; i += W) store(y + i, splat(scale) * __builtin_convertvector(widen_bytes(q + i), vec) - splat(offset));
}

// Bytes side by side in registers: of loops that shift, mask and join bytes GCC 12 makes single-byte code.
typedef uint8_t bytes16 __attribute__((vector_size(16)));
typedef uint8_t bytes32 __attribute__((vector_size(32)));

template <typename V>
static inline V load_bytes(const uint8_t* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}

static inline void decode_fast(const Q8_0& b, float* y) { scale_bytes<32>(b.q, f16_to_f32(b.d), 0, y); }

static inline void decode_fast(const Q4_0& b, float* y) {
  int8_t q[32];
  const bytes16 pairs = load_bytes<bytes16>(b.qs), low = (pairs & 15) - 8, high = (pairs >> 4) - 8;
  memcpy(q, &low, 16);
  memcpy(q + 16, &high, 16);
  scale_bytes<32>(q, f16_to_f32(b.d), 0, y);
}

// Sub-block k of a block with minima, from its 32 integers.
template <typename B>
static inline void scale_sub_block(const B& b, int k, bytes32 integers, float* y) {
  int8_t q[32];
  memcpy(q, &integers, 32);
  scale_bytes<32>(q, f16_to_f32(b.d) * float(scale6(b.s, k)), f16_to_f32(b.dmin) * float(min6(b.s, k)), y + 32 * k);
}

static inline void decode_fast(const Q4_K& b, float* y) {
#pragma GCC unroll 4
  for (int k = 0; k < 8; k += 2) {
    const bytes32 pairs = load_bytes<bytes32>(b.qs + 16 * k);
    scale_sub_block(b, k, pairs & 15, y);
    scale_sub_block(b, k + 1, pairs >> 4, y);
  }
}

static inline void decode_fast(const Q5_K& b, float* y) {
  const bytes32 fifths = load_bytes<bytes32>(b.qh);
#pragma GCC unroll 4
  for (int k = 0; k < 8; k += 2) {
    const bytes32 pairs = load_bytes<bytes32>(b.qs + 16 * k);
    scale_sub_block(b, k, (pairs & 15) | (((fifths >> k) & 1) << 4), y);
    scale_sub_block(b, k + 1, (pairs >> 4) | (((fifths >> (k + 1)) & 1) << 4), y);
  }
}

static inline void decode_fast(const Q6_K& b, float* y) {
  const float d = f16_to_f32(b.d);
#pragma GCC unroll 8
  for (int r = 0; r < 8; r++) {
    const int n = r >> 2, j = r & 3, shift = 4 * (j >> 1);
    const bytes32 low = load_bytes<bytes32>(b.ql + 64 * n + 32 * (j & 1)), high = load_bytes<bytes32>(b.qh + 32 * n);
    const bytes32 integers = (((low >> shift) & 15) | (((high >> (2 * j)) & 3) << 4)) - 32;
    int8_t q[32];
    memcpy(q, &integers, 32);
    scale_bytes<16>(q, d * float(b.scales[2 * r]), 0, y + 32 * r);
    scale_bytes<16>(q + 16, d * float(b.scales[2 * r + 1]), 0, y + 32 * r + 16);
  }
}

template <typename T>
static inline void widen_row(const T* in, float* y, int64_t n) {
  each_vec(n, [&](int64_t i) { store(y + i, widen(in + i)); },
           [&](int64_t i, int64_t part) { store_part(y + i, widen_part(in + i, part), part); });
}

// n elements of a row; blocks divide n.
static inline void decode_row(int type, const void* in, float* y, int64_t n) {
  const auto blocks = [&](const auto* b, int elements) {
    for (int64_t i = 0; i < n / elements; i++) decode_fast(b[i], y + i * elements);
  };
  switch (type) {
    case kF16: return widen_row(static_cast<const f16*>(in), y, n);
    case kBF16: return widen_row(static_cast<const bf16*>(in), y, n);
    case kQ8_0: return blocks(static_cast<const Q8_0*>(in), 32);
    case kQ4_0: return blocks(static_cast<const Q4_0*>(in), 32);
    case kQ4_K: return blocks(static_cast<const Q4_K*>(in), 256);
    case kQ5_K: return blocks(static_cast<const Q5_K*>(in), 256);
    case kQ6_K: return blocks(static_cast<const Q6_K*>(in), 256);
    default: to_f32_row(type, in, y, n);
  }
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

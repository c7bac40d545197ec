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

static inline void decode_fast(const Q8_0& b, float* y) { scale_bytes<32>(b.q, f16_to_f32(b.d), 0, y); }

static inline void decode_fast(const Q4_0& b, float* y) {
  int8_t q[32];
  for (int i = 0; i < 16; i++) q[i] = int8_t((b.qs[i] & 15) - 8);
  for (int i = 0; i < 16; i++) q[i + 16] = int8_t((b.qs[i] >> 4) - 8);
  scale_bytes<32>(q, f16_to_f32(b.d), 0, y);
}

static inline void decode_fast(const Q4_K& b, float* y) {
  const float d = f16_to_f32(b.d), dmin = f16_to_f32(b.dmin);
  for (int k = 0; k < 8; k += 2) {
    int8_t low[32], high[32];
    const uint8_t* qs = b.qs + 16 * k;
    for (int l = 0; l < 32; l++) low[l] = int8_t(qs[l] & 15);
    for (int l = 0; l < 32; l++) high[l] = int8_t(qs[l] >> 4);
    scale_bytes<32>(low, d * float(scale6(b.s, k)), dmin * float(min6(b.s, k)), y + 32 * k);
    scale_bytes<32>(high, d * float(scale6(b.s, k + 1)), dmin * float(min6(b.s, k + 1)), y + 32 * k + 32);
  }
}

static inline void decode_fast(const Q5_K& b, float* y) {
  const float d = f16_to_f32(b.d), dmin = f16_to_f32(b.dmin);
  for (int k = 0; k < 8; k += 2) {
    int8_t low[32], high[32];
    const uint8_t* qs = b.qs + 16 * k;
    for (int l = 0; l < 32; l++) low[l] = int8_t((qs[l] & 15) | (((b.qh[l] >> k) & 1) << 4));
    for (int l = 0; l < 32; l++) high[l] = int8_t((qs[l] >> 4) | (((b.qh[l] >> (k + 1)) & 1) << 4));
    scale_bytes<32>(low, d * float(scale6(b.s, k)), dmin * float(min6(b.s, k)), y + 32 * k);
    scale_bytes<32>(high, d * float(scale6(b.s, k + 1)), dmin * float(min6(b.s, k + 1)), y + 32 * k + 32);
  }
}

static inline void decode_fast(const Q6_K& b, float* y) {
  const float d = f16_to_f32(b.d);
  for (int r = 0; r < 8; r++) {
    const int n = r >> 2, j = r & 3, shift = 4 * (j >> 1);
    const uint8_t *ql = b.ql + 64 * n + 32 * (j & 1), *qh = b.qh + 32 * n;
    int8_t q[32];
    for (int l = 0; l < 32; l++) q[l] = int8_t((((ql[l] >> shift) & 15) | (((qh[l] >> (2 * j)) & 3) << 4)) - 32);
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

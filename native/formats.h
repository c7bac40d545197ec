// The block formats as C++ sees them: one struct each, and its values in float32.
// Definition and drawings: src/tensor/block-formats.ts and i-quants.ts; every function here must give the same bits.
//
// The functions are compiled once for each instruction set inside namespace llama4::LLAMA4_ISA, and call nothing of
// the standard library that is not a macro or a builtin: an inline function shared between objects of different
// instruction sets would be linked in whichever version comes first.

#pragma once

#include <cstdint>
#include <cstring>

#ifndef LLAMA4_ISA
#define LLAMA4_ISA baseline
#endif

namespace llama4 {

// GGUF's type ids; F8_E4M3, which GGUF lacks, has one of ours.
enum Type : int {
  kF32 = 0, kF16 = 1, kQ4_0 = 2, kQ4_1 = 3, kQ5_0 = 6, kQ5_1 = 7, kQ8_0 = 8,
  kQ2_K = 10, kQ3_K = 11, kQ4_K = 12, kQ5_K = 13, kQ6_K = 14,
  kIQ2_XXS = 16, kIQ2_XS = 17, kIQ3_XXS = 18, kIQ1_S = 19, kIQ4_NL = 20, kIQ3_S = 21, kIQ2_S = 22, kIQ4_XS = 23,
  kI8 = 24, kI16 = 25, kI32 = 26, kI64 = 27, kF64 = 28, kIQ1_M = 29, kBF16 = 30, kTQ1_0 = 34, kTQ2_0 = 35,
  kMXFP4 = 39, kF8_E4M3 = 256,
};

using f16_bits = uint16_t;

struct Q4_0 { f16_bits d; uint8_t qs[16]; };
struct Q4_1 { f16_bits d, m; uint8_t qs[16]; };
struct Q5_0 { f16_bits d; uint8_t qh[4]; uint8_t qs[16]; };
struct Q5_1 { f16_bits d, m; uint8_t qh[4]; uint8_t qs[16]; };
struct Q8_0 { f16_bits d; int8_t q[32]; };
struct Q2_K { uint8_t s[16]; uint8_t qs[64]; f16_bits d, dmin; };
struct Q3_K { uint8_t hmask[32]; uint8_t qs[64]; uint8_t s[12]; f16_bits d; };
struct Q4_K { f16_bits d, dmin; uint8_t s[12]; uint8_t qs[128]; };
struct Q5_K { f16_bits d, dmin; uint8_t s[12]; uint8_t qh[32]; uint8_t qs[128]; };
struct Q6_K { uint8_t ql[128]; uint8_t qh[64]; int8_t scales[16]; f16_bits d; };
struct TQ1_0 { uint8_t qs[48]; uint8_t qh[4]; f16_bits d; };
struct TQ2_0 { uint8_t qs[64]; f16_bits d; };
struct IQ4_NL { f16_bits d; uint8_t qs[16]; };
struct IQ4_XS { f16_bits d; uint16_t high; uint8_t low[4]; uint8_t qs[128]; };
struct IQ2_XXS { f16_bits d; struct { uint8_t row[4], a[4]; } sub[8]; };
struct IQ2_XS { f16_bits d; uint16_t w[32]; uint8_t s[8]; };
struct IQ2_S { f16_bits d; uint8_t row[32]; uint8_t signs[32]; uint8_t high[8]; uint8_t s[8]; };
struct IQ3_XXS { f16_bits d; uint8_t row[64]; uint8_t a[8][4]; };
struct IQ3_S { f16_bits d; uint8_t row[64]; uint8_t high[8]; uint8_t signs[32]; uint8_t s[4]; };
struct IQ1_S { f16_bits d; uint8_t row[32]; uint16_t h[8]; };
struct IQ1_M { uint8_t row[32]; uint8_t high[16]; uint16_t s[4]; };
struct MXFP4 { uint8_t e; uint8_t qs[16]; };

static_assert(sizeof(Q4_0) == 18 && sizeof(Q4_1) == 20 && sizeof(Q5_0) == 22 && sizeof(Q5_1) == 24);
static_assert(sizeof(Q8_0) == 34 && sizeof(IQ4_NL) == 18 && sizeof(MXFP4) == 17);
static_assert(sizeof(Q2_K) == 84 && sizeof(Q3_K) == 110 && sizeof(Q4_K) == 144 && sizeof(Q5_K) == 176);
static_assert(sizeof(Q6_K) == 210 && sizeof(TQ1_0) == 54 && sizeof(TQ2_0) == 66 && sizeof(IQ4_XS) == 136);
static_assert(sizeof(IQ2_XXS) == 66 && sizeof(IQ2_XS) == 74 && sizeof(IQ2_S) == 82 && sizeof(IQ3_XXS) == 98);
static_assert(sizeof(IQ3_S) == 110 && sizeof(IQ1_S) == 50 && sizeof(IQ1_M) == 56);

// Elements and bytes of a block; {0, 0} for an id that nothing here reads.
struct Block { int elements, bytes; };
static constexpr Block block_of(int type) {
  switch (type) {
    case kF32: case kI32: return {1, 4};
    case kF16: case kBF16: case kI16: return {1, 2};
    case kI8: case kF8_E4M3: return {1, 1};
    case kF64: case kI64: return {1, 8};
    case kQ4_0: return {32, sizeof(Q4_0)};
    case kQ4_1: return {32, sizeof(Q4_1)};
    case kQ5_0: return {32, sizeof(Q5_0)};
    case kQ5_1: return {32, sizeof(Q5_1)};
    case kQ8_0: return {32, sizeof(Q8_0)};
    case kQ2_K: return {256, sizeof(Q2_K)};
    case kQ3_K: return {256, sizeof(Q3_K)};
    case kQ4_K: return {256, sizeof(Q4_K)};
    case kQ5_K: return {256, sizeof(Q5_K)};
    case kQ6_K: return {256, sizeof(Q6_K)};
    case kTQ1_0: return {256, sizeof(TQ1_0)};
    case kTQ2_0: return {256, sizeof(TQ2_0)};
    case kIQ4_NL: return {32, sizeof(IQ4_NL)};
    case kIQ4_XS: return {256, sizeof(IQ4_XS)};
    case kIQ2_XXS: return {256, sizeof(IQ2_XXS)};
    case kIQ2_XS: return {256, sizeof(IQ2_XS)};
    case kIQ2_S: return {256, sizeof(IQ2_S)};
    case kIQ3_XXS: return {256, sizeof(IQ3_XXS)};
    case kIQ3_S: return {256, sizeof(IQ3_S)};
    case kIQ1_S: return {256, sizeof(IQ1_S)};
    case kIQ1_M: return {256, sizeof(IQ1_M)};
    case kMXFP4: return {32, sizeof(MXFP4)};
    default: return {0, 0};
  }
}

// The codebooks, laid out as iqTables of src/tensor/iq-grids.ts, which alone defines them. TypeScript hands the
// pointer over once, before any i-quant or MXFP4 is read, and keeps the bytes alive.
inline const int8_t* iq_tables = nullptr;
inline void set_iq_tables(const int8_t* tables) { iq_tables = tables; }
constexpr int kGridIQ2_XXS = 0, kGridIQ2_XS = 2048, kGridIQ2_S = 6144, kGridIQ3_XXS = 14336, kGridIQ3_S = 15360,
              kGridIQ1_S = 17408, kLevelsIQ4 = 33792, kLevelsMXFP4 = 33808, kIqTablesLength = 33824;

namespace LLAMA4_ISA {

static inline float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

static inline uint32_t bits_of_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

static inline float bf16_to_f32(uint16_t bits) { return float_of_bits(uint32_t(bits) << 16); }

static inline uint16_t f32_to_bf16(float value) {
  const uint32_t bits = bits_of_float(value);
  const uint32_t nearest_even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return uint16_t((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : nearest_even);
}

// The 15 bits without the sign, read as a float32 exponent and fraction, are 2^112 too small, subnormals included.
static inline float f16_to_f32(f16_bits h) {
  const uint32_t magnitude = uint32_t(h & 0x7fff) << 13;
  const uint32_t finite = bits_of_float(float_of_bits(magnitude) * 0x1p112f);
  return float_of_bits((uint32_t(h & 0x8000) << 16) | ((h & 0x7c00) == 0x7c00 ? magnitude | 0x7f800000 : finite));
}

static inline f16_bits f32_to_f16(float value) {
  const int32_t bits = int32_t(bits_of_float(value));
  const int32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  const int32_t normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Near 0.5 float32's spacing is that of float16's subnormals, so that this addition rounds.
  const int32_t subnormal = int32_t(bits_of_float(float_of_bits(uint32_t(magnitude)) + 0.5f)) - 0x3f000000;
  const int32_t nan = 0x7e00 | ((magnitude >> 13) & 0x3ff);
  const int32_t half = magnitude > 0x7f800000    ? nan
                       : magnitude >= 0x477ff000 ? 0x7c00
                       : magnitude >= 0x38800000 ? normal
                                                 : subnormal;
  return f16_bits(sign | half);
}

static inline float f8_e4m3_to_f32(uint8_t bits) {
  const uint32_t magnitude = bits & 0x7f;
  const uint32_t finite = bits_of_float(float_of_bits(magnitude << 20) * 0x1p120f);
  return float_of_bits((uint32_t(bits & 0x80) << 24) | (magnitude == 0x7f ? 0x7fc00000 : finite));
}

static inline int nibble(const uint8_t* bytes, int index) { return (bytes[index >> 1] >> (4 * (index & 1))) & 15; }

static inline uint32_t u32_of(const uint8_t* bytes) {
  uint32_t value;
  memcpy(&value, bytes, 4);
  return value;
}

// Q4_K's and Q5_K's eight 6-bit scales and minima.
static inline int scale6(const uint8_t* s, int k) {
  return k < 4 ? s[k] & 63 : (s[k + 4] & 15) | ((s[k - 4] >> 6) << 4);
}
static inline int min6(const uint8_t* s, int k) {
  return k < 4 ? s[k + 4] & 63 : (s[k + 4] >> 4) | ((s[k] >> 6) << 4);
}

// Seven stored signs; the eighth makes the number of negative ones even.
static inline int even_signs(uint32_t bits) {
  const uint32_t seven = bits & 127;
  return int(seven | (uint32_t(__builtin_parity(seven)) << 7));
}

// --- one block to float32 ---

static inline void decode(const Q8_0& b, float* y) {
  const float d = f16_to_f32(b.d);
  for (int i = 0; i < 32; i++) y[i] = d * float(b.q[i]);
}

static inline void decode(const Q4_0& b, float* y) {
  const float d = f16_to_f32(b.d);
  for (int i = 0; i < 16; i++) {
    y[i] = d * float((b.qs[i] & 15) - 8);
    y[i + 16] = d * float((b.qs[i] >> 4) - 8);
  }
}

static inline void decode(const Q4_1& b, float* y) {
  const float d = f16_to_f32(b.d), m = f16_to_f32(b.m);
  for (int i = 0; i < 16; i++) {
    y[i] = d * float(b.qs[i] & 15) + m;
    y[i + 16] = d * float(b.qs[i] >> 4) + m;
  }
}

static inline void decode(const Q5_0& b, float* y) {
  const float d = f16_to_f32(b.d);
  const uint32_t qh = u32_of(b.qh);
  for (int i = 0; i < 16; i++) {
    y[i] = d * float(int((b.qs[i] & 15) | (((qh >> i) & 1) << 4)) - 16);
    y[i + 16] = d * float(int((b.qs[i] >> 4) | (((qh >> (i + 16)) & 1) << 4)) - 16);
  }
}

static inline void decode(const Q5_1& b, float* y) {
  const float d = f16_to_f32(b.d), m = f16_to_f32(b.m);
  const uint32_t qh = u32_of(b.qh);
  for (int i = 0; i < 16; i++) {
    y[i] = d * float((b.qs[i] & 15) | (((qh >> i) & 1) << 4)) + m;
    y[i + 16] = d * float((b.qs[i] >> 4) | (((qh >> (i + 16)) & 1) << 4)) + m;
  }
}

static inline void decode(const Q4_K& b, float* y) {
  const float d = f16_to_f32(b.d), dmin = f16_to_f32(b.dmin);
  for (int k = 0; k < 8; k++) {
    const float scale = d * float(scale6(b.s, k)), min = dmin * float(min6(b.s, k));
    const uint8_t* qs = b.qs + 32 * (k >> 1);
    const int shift = 4 * (k & 1);
    for (int l = 0; l < 32; l++) y[32 * k + l] = scale * float((qs[l] >> shift) & 15) - min;
  }
}

static inline void decode(const Q5_K& b, float* y) {
  const float d = f16_to_f32(b.d), dmin = f16_to_f32(b.dmin);
  for (int k = 0; k < 8; k++) {
    const float scale = d * float(scale6(b.s, k)), min = dmin * float(min6(b.s, k));
    const uint8_t* qs = b.qs + 32 * (k >> 1);
    const int shift = 4 * (k & 1);
    for (int l = 0; l < 32; l++)
      y[32 * k + l] = scale * float(((qs[l] >> shift) & 15) | (((b.qh[l] >> k) & 1) << 4)) - min;
  }
}

// Q6_K, Q3_K, Q2_K and TQ2_0 lay 128 elements out as four runs j of 32 that share bytes.
static inline void decode(const Q6_K& b, float* y) {
  const float d = f16_to_f32(b.d);
  for (int r = 0; r < 8; r++) {
    const int n = r >> 2, j = r & 3;
    const uint8_t *ql = b.ql + 64 * n + 32 * (j & 1), *qh = b.qh + 32 * n;
    for (int l = 0; l < 32; l++) {
      const int q = ((ql[l] >> (4 * (j >> 1))) & 15) | (((qh[l] >> (2 * j)) & 3) << 4);
      y[32 * r + l] = d * float(b.scales[2 * r + (l >> 4)]) * float(q - 32);
    }
  }
}

static inline void decode(const Q3_K& b, float* y) {
  const float d = f16_to_f32(b.d);
  for (int i = 0; i < 256; i++) {
    const int n = i >> 7, j = (i >> 5) & 3, l = i & 31, k = i >> 4;
    const int low = (b.s[k & 7] >> (4 * (k >> 3))) & 15, high = (b.s[8 + (k & 3)] >> (2 * (k >> 2))) & 3;
    const int q = ((b.qs[32 * n + l] >> (2 * j)) & 3) - ((b.hmask[l] >> (4 * n + j)) & 1 ? 0 : 4);
    y[i] = d * float((low | (high << 4)) - 32) * float(q);
  }
}

static inline void decode(const Q2_K& b, float* y) {
  const float d = f16_to_f32(b.d), dmin = f16_to_f32(b.dmin);
  for (int i = 0; i < 256; i++) {
    const int s = b.s[i >> 4], q = (b.qs[32 * (i >> 7) + (i & 31)] >> (2 * ((i >> 5) & 3))) & 3;
    y[i] = d * float(s & 15) * float(q) - dmin * float(s >> 4);
  }
}

static inline void decode(const TQ2_0& b, float* y) {
  const float d = f16_to_f32(b.d);
  for (int i = 0; i < 256; i++)
    y[i] = d * float(((b.qs[32 * (i >> 7) + (i & 31)] >> (2 * ((i >> 5) & 3))) & 3) - 1);
}

// Digit `place` of byte/256 in base 3.
static inline int ternary(int byte, int place) {
  constexpr int powers[5] = {1, 3, 9, 27, 81};
  return (((byte * powers[place]) & 255) * 3) >> 8;
}

static inline void decode(const TQ1_0& b, float* y) {
  const float d = f16_to_f32(b.d);
  for (int i = 0; i < 160; i++) y[i] = d * float(ternary(b.qs[i & 31], i >> 5) - 1);
  for (int i = 0; i < 80; i++) y[160 + i] = d * float(ternary(b.qs[32 + (i & 15)], i >> 4) - 1);
  for (int i = 0; i < 16; i++) y[240 + i] = d * float(ternary(b.qh[i & 3], i >> 2) - 1);
}

static inline void decode_levels(const uint8_t* qs, const int8_t* levels, float scale, float* y) {
  for (int i = 0; i < 16; i++) {
    y[i] = scale * float(levels[qs[i] & 15]);
    y[i + 16] = scale * float(levels[qs[i] >> 4]);
  }
}

static inline void decode(const IQ4_NL& b, float* y) { decode_levels(b.qs, iq_tables + kLevelsIQ4, f16_to_f32(b.d), y); }

static inline void decode(const MXFP4& b, float* y) {
  // 2^(e − 128): e = 0 and 1 are subnormal.
  const float scale = float_of_bits(b.e > 1 ? uint32_t(b.e - 1) << 23 : 0x00200000u << b.e);
  decode_levels(b.qs, iq_tables + kLevelsMXFP4, scale, y);
}

static inline void decode(const IQ4_XS& b, float* y) {
  const float d = f16_to_f32(b.d);
  for (int k = 0; k < 8; k++) {
    const int scale = nibble(b.low, k) | (((b.high >> (2 * k)) & 3) << 4);
    decode_levels(b.qs + 16 * k, iq_tables + kLevelsIQ4, d * float(scale - 32), y + 32 * k);
  }
}

// Bit j of `signs` set: element j is negative.
static inline void decode_row(const int8_t* row, int width, int signs, float scale, float* y) {
  for (int j = 0; j < width; j++) y[j] = scale * float((signs >> j) & 1 ? -row[j] : row[j]);
}

static inline void decode(const IQ2_XXS& b, float* y) {
  const float d = f16_to_f32(b.d);
  for (int k = 0; k < 8; k++) {
    const uint32_t a = u32_of(b.sub[k].a);
    const float scale = d * (0.5f + float(a >> 28)) * 0.25f;
    for (int l = 0; l < 4; l++)
      decode_row(iq_tables + kGridIQ2_XXS + 8 * b.sub[k].row[l], 8, even_signs(a >> (7 * l)), scale,
                 y + 32 * k + 8 * l);
  }
}

static inline void decode(const IQ2_XS& b, float* y) {
  const float d = f16_to_f32(b.d);
  for (int g = 0; g < 32; g++) {
    const float scale = d * (0.5f + float(nibble(b.s, g >> 1))) * 0.25f;
    decode_row(iq_tables + kGridIQ2_XS + 8 * (b.w[g] & 511), 8, even_signs(b.w[g] >> 9), scale, y + 8 * g);
  }
}

static inline void decode(const IQ2_S& b, float* y) {
  const float d = f16_to_f32(b.d);
  for (int g = 0; g < 32; g++) {
    const int row = b.row[g] | (((b.high[g >> 2] >> (2 * (g & 3))) & 3) << 8);
    const float scale = d * (0.5f + float(nibble(b.s, g >> 1))) * 0.25f;
    decode_row(iq_tables + kGridIQ2_S + 8 * row, 8, b.signs[g], scale, y + 8 * g);
  }
}

static inline void decode(const IQ3_XXS& b, float* y) {
  const float d = f16_to_f32(b.d);
  for (int k = 0; k < 8; k++) {
    const uint32_t a = u32_of(b.a[k]);
    const float scale = d * (0.5f + float(a >> 28)) * 0.5f;
    for (int r = 0; r < 8; r++)
      decode_row(iq_tables + kGridIQ3_XXS + 4 * b.row[8 * k + r], 4, even_signs(a >> (7 * (r >> 1))) >> (4 * (r & 1)),
                 scale, y + 32 * k + 4 * r);
  }
}

static inline void decode(const IQ3_S& b, float* y) {
  const float d = f16_to_f32(b.d);
  for (int r = 0; r < 64; r++) {
    const int k = r >> 3, row = b.row[r] | (((b.high[k] >> (r & 7)) & 1) << 8);
    const float scale = d * float(1 + 2 * nibble(b.s, k));
    decode_row(iq_tables + kGridIQ3_S + 4 * row, 4, b.signs[r >> 1] >> (4 * (r & 1)), scale, y + 4 * r);
  }
}

static inline void decode_shifted(int row, bool down, float scale, float* y) {
  const int8_t* values = iq_tables + kGridIQ1_S + 8 * row;
  for (int j = 0; j < 8; j++) y[j] = scale * (float(values[j]) + (down ? -0.125f : 0.125f));
}

static inline void decode(const IQ1_S& b, float* y) {
  const float d = f16_to_f32(b.d);
  for (int k = 0; k < 8; k++) {
    const int h = b.h[k];
    for (int l = 0; l < 4; l++)
      decode_shifted(b.row[4 * k + l] | (((h >> (3 * l)) & 7) << 8), h & 0x8000, d * float(2 * ((h >> 12) & 7) + 1),
                     y + 32 * k + 8 * l);
  }
}

static inline void decode(const IQ1_M& b, float* y) {
  int bits = 0;
  for (int t = 0; t < 4; t++) bits |= (b.s[t] >> 12) << (4 * t);
  const float d = f16_to_f32(f16_bits(bits));
  for (int g = 0; g < 32; g++) {
    const int s = (b.s[g >> 3] >> (3 * ((g >> 1) & 3))) & 7, high = nibble(b.high, g);
    decode_shifted(b.row[g] | ((high & 7) << 8), high & 8, d * float(2 * s + 1), y + 8 * g);
  }
}

template <typename B>
static inline void decode_blocks(const void* in, float* out, int64_t n, int elements) {
  const B* blocks = static_cast<const B*>(in);
  for (int64_t i = 0; i < n / elements; i++) decode(blocks[i], out + i * elements);
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

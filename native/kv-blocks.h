// Keys and values in blocks of slots: where each lies, and how it gets there.
//
// A block holds, for each key head, its slots in panels of kPanel; the last panel of a block may be narrower. In a panel
// of w slots stand
//
//   keys    [d][w]    an element of all keys side by side: a register holds the scores of as many keys as it has lanes
//   values  [w][d]
//
// and with q8_0, for each 32 elements of d, w scales in float16, then int8 keys [16][w][2] or values [w / 2][32][2], which
// in a narrow panel are [w][32]. Either way w slots take the bytes of w rows of d.

#pragma once

#include "decode.h"
#include "kernels.h"
#include "simd.h"

namespace llama4 {
namespace LLAMA4_ISA {

constexpr int64_t kPanel = 16;
static_assert(kPanel % W == 0);

struct KVBlocks {
  uint8_t *keys, *values;
  int type;  // kF32, kF16 or kQ8_0
  int64_t block_size, K, d;

  int64_t row_bytes() const { return type == kF32 ? 4 * d : type == kF16 ? 2 * d : d / 32 * 34; }
  // The byte where the panel that begins at `slot` of a block begins.
  int64_t panel(int64_t block, int64_t head, int64_t slot) const {
    return ((block * K + head) * block_size + slot) * row_bytes();
  }
};

// `lane` of a panel of w slots becomes the key k; q8_0 through `row`, the same in blocks.
template <typename T, typename F>
inline void spread_key(const float* k, int64_t d, T* panel, int64_t lane, int64_t w, const F& encode) {
  for (int64_t i = 0; i < d; i++) panel[i * w + lane] = encode(k[i]);
}

// A row in blocks of q8_0; of NaN where a number is beyond it.
inline void to_q8(const float* x, int64_t d, Q8_0* row) {
  if (quantize_rows(kQ8_0, x, reinterpret_cast<uint8_t*>(row), 1, d) < 0) return;
  for (int64_t b = 0; b < d / 32; b++) row[b] = {0x7e00, {1}};
}

inline void store_q8(const Q8_0* row, int64_t d, uint8_t* panel, int64_t lane, int64_t w, bool is_key) {
  for (int64_t b = 0; b < d / 32; b++, panel += 34 * w) {
    memcpy(panel + 2 * lane, &row[b].d, 2);
    uint8_t* q = panel + 2 * w;
    if (is_key)
      for (int64_t pair = 0; pair < 16; pair++) memcpy(q + 2 * (pair * w + lane), row[b].q + 2 * pair, 2);
    else if (w < kPanel) memcpy(q + 32 * lane, row[b].q, 32);
    else
      for (int64_t i = 0; i < 32; i++) q[(lane / 2 * 32 + i) * 2 + lane % 2] = uint8_t(row[b].q[i]);
  }
}

// A key and a value of d floats to their slot of a block. `row`: room for d elements in q8_0.
inline void write_slot(const KVBlocks& kv, int64_t block, int64_t head, int64_t slot, const float* k, const float* v,
                       Q8_0* row) {
  const int64_t d = kv.d, lane = slot % kPanel, first = slot - lane;
  const int64_t w = kv.block_size - first < kPanel ? kv.block_size - first : kPanel;
  const int64_t at = kv.panel(block, head, first);
  uint8_t *keys = kv.keys + at, *values = kv.values + at;
  switch (kv.type) {
    case kF32:
      spread_key(k, d, reinterpret_cast<float*>(keys), lane, w, [](float x) { return x; });
      memcpy(values + lane * 4 * d, v, size_t(4 * d));
      return;
    case kF16: {
      spread_key(k, d, reinterpret_cast<f16_bits*>(keys), lane, w, f32_to_f16);
      f16_bits* to = reinterpret_cast<f16_bits*>(values) + lane * d;
      for (int64_t i = 0; i < d; i++) to[i] = f32_to_f16(v[i]);
      return;
    }
    default:
      to_q8(k, d, row);
      store_q8(row, d, keys, lane, w, true);
      to_q8(v, d, row);
      store_q8(row, d, values, lane, w, false);
  }
}

// n slots' panels of keys, or of values, as floats in the same order: where they are, or decoded into `room`.
inline const float* panel_floats(int type, const uint8_t* panels, int64_t n, int64_t d, float* room) {
  if (type == kF32) return reinterpret_cast<const float*>(panels);
  widen_row(reinterpret_cast<const f16*>(panels), room, n * d);
  return room;
}

// Rows in blocks of 32 int16 with a scale: x ≈ scale · q to 2⁻¹⁶ of the block's largest, for exact products with int8.
struct ShortRows {
  int16_t* q;    // [rows, d]
  float* scale;  // [rows, d / 32]
};

inline void to_shorts(const float* x, int64_t n, const ShortRows& to) {
  for (int64_t b = 0; b < n / 32; b++, x += 32) {
    vec tops{}, poison{};  // poison: NaN of any NaN or infinity
    for (int i = 0; i < 32; i += W) {
      const vec v = load(x + i);
      tops = max(max(v, -v), tops);
      poison += v * splat(0);
    }
    const float most = largest(tops), inverse = most > 1e-30f ? 32767.0f / most : 0;
    to.scale[b] = most / 32767.0f + sum(poison);
    int32_t q[32];
    for (int i = 0; i < 32; i += W) {
      const uvec rounded = rounded_bits(load(x + i) * splat(inverse));
      memcpy(q + i, &rounded, sizeof rounded);
    }
    for (int i = 0; i < 32; i++) to.q[b * 32 + i] = int16_t(q[i]);
  }
}

// Pairs of int16 in lanes. By intrinsics: GCC 12 does not find these instructions by itself.
#if defined(__AVX512F__)
static inline ivec widen_pairs(const int8_t* p) {
  return (ivec)_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
static inline ivec add_pair_products(ivec sum, ivec a, ivec b) {
  return (ivec)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}
#elif defined(__AVX2__)
static inline ivec widen_pairs(const int8_t* p) {
  return (ivec)_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static inline ivec add_pair_products(ivec sum, ivec a, ivec b) {
  return sum + (ivec)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}
#else
typedef int16_t shorts __attribute__((vector_size(4 * W)));
static inline ivec widen_pairs(const int8_t* p) {
  shorts s;
  for (int i = 0; i < 2 * W; i++) s[i] = p[i];
  return (ivec)s;
}
static inline ivec add_pair_products(ivec sum, ivec a, ivec b) {
#if defined(__SSE2__)
  return sum + (ivec)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  const shorts x = (shorts)a, y = (shorts)b;
  for (int i = 0; i < W; i++) sum[i] += x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1];
  return sum;
#endif
}
#endif

static inline ivec splat_pair(const int16_t* p) {
  int32_t pair;
  memcpy(&pair, p, 4);
  return ivec{} + pair;
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

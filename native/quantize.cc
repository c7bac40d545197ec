// Rows of any stored type to float32, and float32 rows to the types that `convert` writes.
// Specification: src/tensor/quantize.ts and block-formats.ts. The bytes are the same, bit for bit and on every
// instruction set: the same float32 operations in the same order, lanes being candidates and not elements, so that a
// wider register only does more candidates at a time. Hence no fused multiply-add in this file.

#include "formats.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("O3", "fp-contract=off")
#endif

namespace llama4 {
namespace LLAMA4_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int W = 16;  // floats in a register
#elif defined(__AVX__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif
constexpr int kLanes = 16;  // candidates tried side by side

typedef float vec __attribute__((vector_size(4 * W)));

inline vec load(const float* p) {
  vec v;
  memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, vec v) { memcpy(p, &v, sizeof v); }
inline vec splat(float value) { return value - vec{}; }
inline vec clamp(vec v, float low, float high) {
#if defined(__AVX512F__)
  // with a mask of ones: the plain intrinsics make GCC 12 warn of an uninitialised value
  return _mm512_maskz_min_ps(0xffff, _mm512_maskz_max_ps(0xffff, v, splat(low)), splat(high));
#elif defined(__AVX__)
  return _mm256_min_ps(_mm256_max_ps(v, splat(low)), splat(high));
#elif defined(__SSE2__)
  return _mm_min_ps(_mm_max_ps(v, splat(low)), splat(high));
#else
  const vec lo = splat(low), hi = splat(high);
  v = v > lo ? v : lo;
  return v < hi ? v : hi;
#endif
}

// To the nearest whole number, ties to even, for |v| < 2^22; where there is no instruction for it, by a sum whose
// spacing is 1.
constexpr float kMagic = 12582912.0f;
inline vec round_even(vec v) {
#if defined(__AVX512F__)
  return _mm512_maskz_roundscale_ps(0xffff, v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX__)
  return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  return (v + splat(kMagic)) - splat(kMagic);
#endif
}
inline float round_even(float v) { return (v + kMagic) - kMagic; }
inline float clamp(float v, float low, float high) {
  v = v > low ? v : low;
  return v < high ? v : high;
}

inline float absolute(float v) { return float_of_bits(bits_of_float(v) & 0x7fffffff); }

// Sum of p[0..15] as a tree: halves of 8, 4, 2, 1.
inline float tree_sum(float* p) {
  for (int j = 0; j < 8; j++) p[j] += p[j + 8];
  for (int j = 0; j < 4; j++) p[j] += p[j + 4];
  for (int j = 0; j < 2; j++) p[j] += p[j + 2];
  return p[0] + p[1];
}

template <int N>
inline float max_of(const float* x) {
  float m[16];
  for (int j = 0; j < 16; j++) m[j] = x[j];
  for (int i = 16; i < N; i += 16)
    for (int j = 0; j < 16; j++) m[j] = x[i + j] > m[j] ? x[i + j] : m[j];
  for (int j = 0; j < 8; j++) m[j] = m[j] > m[j + 8] ? m[j] : m[j + 8];
  for (int j = 0; j < 4; j++) m[j] = m[j] > m[j + 4] ? m[j] : m[j + 4];
  for (int j = 0; j < 2; j++) m[j] = m[j] > m[j + 2] ? m[j] : m[j + 2];
  return m[0] > m[1] ? m[0] : m[1];
}

inline float min_of32(const float* x) {
  float negative[32];
  for (int i = 0; i < 32; i++) negative[i] = -x[i];
  return -max_of<32>(negative);
}

// The first of 16 lanes that holds the largest value.
inline int first_largest(const float* v) {
  const float largest = max_of<16>(v);
  int first = 0;
  for (int lane = kLanes - 1; lane > 0; lane--) first = v[lane] == largest ? lane : first;
  return v[0] == largest ? 0 : first;
}

// --- simple blocks ---

// The reciprocal of a scale; 0 where it would overflow, d being 0 in float16 too.
inline float reciprocal(float d) { return absolute(d) > 1e-38f ? 1.0f / d : 0.0f; }

inline void encode(const float* x, Q8_0& b) {
  float magnitude[32];
  for (int i = 0; i < 32; i++) magnitude[i] = absolute(x[i]);
  const float d = max_of<32>(magnitude) / 127.0f, inverse = reciprocal(d);
  b.d = f32_to_f16(d);
  for (int i = 0; i < 32; i++) {  // half away from zero
    const float v = x[i] * inverse, a = absolute(v);
    const int whole = int(a), rounded = whole + (a - float(whole) >= 0.5f ? 1 : 0);
    b.q[i] = int8_t(v < 0 ? -rounded : rounded);
  }
}

// The element of the largest magnitude, with its sign; of several the first.
inline float extreme(const float* x) {
  const float max = max_of<32>(x), min = min_of32(x);
  if (max > -min) return max;
  if (max < -min) return min;
  for (int i = 0; i < 32; i++)
    if (absolute(x[i]) == max) return x[i];
  return 0;
}

// q = min(levels, floor(v)) for v >= 0.
inline void quantize32(const float* x, float offset, float inverse, float bias, int levels, uint8_t* q) {
  for (int i = 0; i < 32; i++) {
    const int whole = int((x[i] - offset) * inverse + bias);
    q[i] = uint8_t(whole < levels ? whole : levels);
  }
}

inline void pack_nibbles(const uint8_t* q, uint8_t* qs) {
  for (int i = 0; i < 16; i++) qs[i] = uint8_t((q[i] & 15) | (q[i + 16] << 4));
}

inline void pack_fifth(const uint8_t* q, uint8_t* qh) {
  uint32_t bits = 0;
  for (int i = 0; i < 32; i++) bits |= uint32_t(q[i] >> 4) << i;
  memcpy(qh, &bits, 4);
}

inline void encode(const float* x, Q4_0& b) {
  uint8_t q[32];
  const float d = extreme(x) / -8.0f;
  b.d = f32_to_f16(d);
  quantize32(x, 0, reciprocal(d), 8.5f, 15, q);
  pack_nibbles(q, b.qs);
}

// + 0: an all-zero block has no −0 in it.
inline void encode(const float* x, Q4_1& b) {
  uint8_t q[32];
  const float min = min_of32(x) + 0.0f, max = max_of<32>(x) + 0.0f, d = (max - min) / 15.0f;
  b.d = f32_to_f16(d);
  b.m = f32_to_f16(min);
  quantize32(x, min, reciprocal(d), 0.5f, 15, q);
  pack_nibbles(q, b.qs);
}

inline void encode(const float* x, Q5_0& b) {
  uint8_t q[32];
  const float d = extreme(x) / -16.0f;
  b.d = f32_to_f16(d);
  quantize32(x, 0, reciprocal(d), 16.5f, 31, q);
  pack_fifth(q, b.qh);
  pack_nibbles(q, b.qs);
}

inline void encode(const float* x, Q5_1& b) {
  uint8_t q[32];
  const float min = min_of32(x) + 0.0f, max = max_of<32>(x) + 0.0f, d = (max - min) / 31.0f;
  b.d = f32_to_f16(d);
  b.m = f32_to_f16(min);
  quantize32(x, min, reciprocal(d), 0.5f, 31, q);
  pack_fifth(q, b.qh);
  pack_nibbles(q, b.qs);
}

// --- Q4_K and Q5_K ---

// First guesses for a sub-block: q = round((x − low)·(levels + stretch)/range + shift).
constexpr float kStretch[kLanes] = {-2, -2, -1.5f, -1.5f, -1, -1, -0.5f, -0.5f, 0, 0, 0.25f, 0.25f, 0.5f, 0.5f, 1, 1};
constexpr float kShift[kLanes] = {0, -0.5f, 0, -0.5f, 0, -0.5f, 0, -0.5f, 0, -0.5f, 0, -0.5f, 0, -0.5f, 0, -0.5f};

// Neighbours of the rounded (scale, min) that are tried with their real errors.
constexpr float kScaleStep[kLanes] = {0, 0, 0, 0, 0, -1, -1, -1, -1, -1, 1, 1, 1, 1, 1, 2};
constexpr float kMinStep[kLanes] = {0, -1, 1, -2, 2, 0, -1, 1, -2, 2, 0, -1, 1, -2, 2, 1};

// One sub-block of 32: x, its weights, t = x − low with low = min(0, least x), and for each candidate the best scale d
// and offset c of t ≈ d·q + c so far. `gain` is by how much Σ w·(t − d·q − c)² is less than Σ w·t²; −1: nothing yet.
struct SubBlock {
  const float* x;
  float w[32], t[32];
  float low, range, sum_w, sum_wt;
  float d[kLanes], c[kLanes], gain[kLanes];
};

inline void prepare(const float* x, SubBlock& s) {
  float sum[16];
  s.x = x;
  for (int j = 0; j < 16; j++) sum[j] = x[j] * x[j] + x[j + 16] * x[j + 16];
  const float twice_rms = 2.0f * __builtin_sqrtf(tree_sum(sum) / 32.0f), least = min_of32(x);
  s.low = least < 0 ? least : 0;
  s.range = max_of<32>(x) - s.low;
  for (int i = 0; i < 32; i++) s.w[i] = twice_rms + absolute(x[i]);
  for (int i = 0; i < 32; i++) s.t[i] = x[i] - s.low;
  for (int j = 0; j < 16; j++) sum[j] = s.w[j] + s.w[j + 16];
  s.sum_w = tree_sum(sum);
  for (int j = 0; j < 16; j++) sum[j] = s.w[j] * s.t[j] + s.w[j + 16] * s.t[j + 16];
  s.sum_wt = tree_sum(sum);
  for (int lane = 0; lane < kLanes; lane++) {
    s.d[lane] = s.range;
    s.c[lane] = -s.low;
    s.gain[lane] = -1;
  }
}

// Rounds with the candidates' (inverse, shift), finds for those q the d and c that minimise Σ w·(t − d·q − c)² under
// c <= −low (a block's min cannot be negative), and keeps them where they are better than what the lane has.
template <int Levels>
inline void fit(SubBlock& s, int lane, vec inverse, vec shift) {
  vec q1{}, q2{}, qt{};  // Σ w·q, Σ w·q², Σ w·q·t
  for (int i = 0; i < 32; i++) {
    const vec t = splat(s.t[i]);
    const vec q = clamp(round_even(t * inverse + shift), 0, Levels);
    const vec wq = splat(s.w[i]) * q;
    q1 += wq;
    q2 += wq * q;
    qt += wq * t;
  }
  const vec w1 = splat(s.sum_w), t1 = splat(s.sum_wt), low = splat(s.low);
  const vec determinant = w1 * q2 - q1 * q1, numerator = w1 * qt - q1 * t1;
  const vec free_d = numerator / determinant, free_c = (t1 - free_d * q1) / w1;
  const vec bound_d = (qt + low * q1) / q2;
  // 1e-5: below, q is as good as constant and the determinant rounding error.
  const auto free = (determinant > splat(1e-5f) * (w1 * q2)) & (numerator > vec{}) & (free_c + low <= vec{});
  const vec d = free ? free_d : bound_d, c = free ? free_c : -low;
  const vec gain = d * (((qt + qt) - d * q2) - (c + c) * q1) + c * ((t1 + t1) - c * w1);
  const auto better = (d > vec{}) & (d <= splat(s.range)) & (gain > load(s.gain + lane));
  store(s.d + lane, better ? d : load(s.d + lane));
  store(s.c + lane, better ? c : load(s.c + lane));
  store(s.gain + lane, better ? gain : load(s.gain + lane));
}

// The best real (scale, min >= 0) found for each sub-block: 16 guesses, each improved once. One loop a step, so that
// the processor overlaps sub-blocks.
template <int Levels>
inline void search(SubBlock* subs, float* scales, float* mins) {
  for (int k = 0; k < 8; k++)
    for (int lane = 0; lane < kLanes; lane += W) {
      const vec per_range = splat(1.0f / subs[k].range);
      fit<Levels>(subs[k], lane, (splat(Levels) + load(kStretch + lane)) * per_range, load(kShift + lane));
    }
  for (int k = 0; k < 8; k++)
    for (int lane = 0; lane < kLanes; lane += W) {
      const vec inverse = splat(1) / load(subs[k].d + lane);
      fit<Levels>(subs[k], lane, inverse, -load(subs[k].c + lane) * inverse);
    }
  for (int k = 0; k < 8; k++) {
    const SubBlock& s = subs[k];
    const int best = first_largest(s.gain);
    if (!(s.range > 1e-30f)) {  // flat: whatever was fitted is void
      scales[k] = 0;
      mins[k] = -s.low;
    } else if (s.gain[best] > 0) {
      scales[k] = s.d[best];
      mins[k] = -(s.c[best] + s.low);
    } else {
      scales[k] = s.range / float(Levels);
      mins[k] = -s.low;
    }
  }
}

// Around (scale, min) in units of (d, dmin): the whole numbers 0–63 with the least Σ w·(value − x)².
template <int Levels>
inline void settle(const SubBlock& s, float d, float dmin, float& scale, float& min) {
  float scales[kLanes], mins[kLanes], gains[kLanes];
  for (int lane = 0; lane < kLanes; lane += W) {
    const vec sc = clamp(splat(scale) + load(kScaleStep + lane), 0, 63);
    const vec mn = clamp(splat(min) + load(kMinStep + lane), 0, 63);
    const vec step = splat(d) * sc, offset = splat(dmin) * mn;
    const vec inverse = step > vec{} ? splat(1) / step : vec{};
    vec gain{};  // minus the error
    for (int i = 0; i < 32; i++) {
      const vec xi = splat(s.x[i]);
      const vec q = clamp(round_even((xi + offset) * inverse), 0, Levels);
      const vec r = (step * q - offset) - xi;
      gain -= splat(s.w[i]) * (r * r);
    }
    store(scales + lane, sc);
    store(mins + lane, mn);
    store(gains + lane, gain);
  }
  const int best = first_largest(gains);
  scale = scales[best];
  min = mins[best];
}

// A super-block of 256: d, dmin, the 6-bit scales and minima packed into s[12], and every q.
template <int Levels>
inline void encode_affine(const float* x, f16_bits& half_d, f16_bits& half_dmin, uint8_t* s, uint8_t* q) {
  SubBlock subs[8];
  float scales[8], mins[8];
  for (int k = 0; k < 8; k++) prepare(x + 32 * k, subs[k]);
  search<Levels>(subs, scales, mins);
  float max_scale = 0, max_min = 0;
  for (int k = 0; k < 8; k++) {
    max_scale = scales[k] > max_scale ? scales[k] : max_scale;
    max_min = mins[k] > max_min ? mins[k] : max_min;
  }
  half_d = f32_to_f16(max_scale / 63.0f);
  half_dmin = f32_to_f16(max_min / 63.0f);
  const float d = f16_to_f32(half_d), dmin = f16_to_f32(half_dmin);

  uint8_t sc[8], mn[8];
  for (int k = 0; k < 8; k++) {
    const float* xk = x + 32 * k;
    float scale = d > 0 ? clamp(round_even(scales[k] / d), 0, 63) : 0;
    float min = dmin > 0 ? clamp(round_even(mins[k] / dmin), 0, 63) : 0;
    settle<Levels>(subs[k], d, dmin, scale, min);
    sc[k] = uint8_t(scale);
    mn[k] = uint8_t(min);
    const float step = d * scale, offset = dmin * min, inverse = step > 0 ? 1.0f / step : 0.0f;
    for (int i = 0; i < 32; i++)
      q[32 * k + i] = uint8_t(int(clamp(round_even((xk[i] + offset) * inverse), 0, Levels)));
  }
  for (int k = 0; k < 4; k++) {
    s[k] = uint8_t(sc[k] | ((sc[k + 4] >> 4) << 6));
    s[k + 4] = uint8_t(mn[k] | ((mn[k + 4] >> 4) << 6));
    s[k + 8] = uint8_t((sc[k + 4] & 15) | ((mn[k + 4] & 15) << 4));
  }
}

inline void pack_runs(const uint8_t* q, uint8_t* qs) {
  for (int pair = 0; pair < 4; pair++)
    for (int l = 0; l < 32; l++)
      qs[32 * pair + l] = uint8_t((q[64 * pair + l] & 15) | (q[64 * pair + 32 + l] << 4));
}

inline void encode(const float* x, Q4_K& b) {
  uint8_t q[256];
  encode_affine<15>(x, b.d, b.dmin, b.s, q);
  pack_runs(q, b.qs);
}

inline void encode(const float* x, Q5_K& b) {
  uint8_t q[256];
  encode_affine<31>(x, b.d, b.dmin, b.s, q);
  pack_runs(q, b.qs);
  for (int l = 0; l < 32; l++) {
    int bits = 0;
    for (int k = 0; k < 8; k++) bits |= (q[32 * k + l] >> 4) << k;
    b.qh[l] = uint8_t(bits);
  }
}

// --- Q6_K ---

// d is chosen so that the largest element is 30.5 steps of the scale 127: most blocks do best with their extreme
// within −32 … 31, not at its end.
constexpr float kReach = 30.5f;

constexpr float kMagnitudeStep[kLanes] = {0, -1, 1, -2, 2, -3, 3, -4, 4, -5, 5, -6, 6, -7, 7, -8};

// The signed scale of 16 elements with the least Σ w·(value − x)², among 16 magnitudes around `magnitude` and both
// signs (q reaches −32 but only +31).
inline float settle16(const float* x, const float* w, float d, float magnitude) {
  float scales[2 * kLanes], gains[2 * kLanes];
  for (int sign = 0; sign < 2; sign++)
    for (int lane = 0; lane < kLanes; lane += W) {
      vec scale = clamp(splat(magnitude) + load(kMagnitudeStep + lane), 0, 127);
      if (sign) scale = -scale;
      const vec step = splat(d) * scale;
      const vec inverse = step != vec{} ? splat(1) / step : vec{};
      vec gain{};  // minus the error
      for (int i = 0; i < 16; i++) {
        const vec xi = splat(x[i]);
        const vec q = clamp(round_even(xi * inverse), -32, 31);
        const vec r = step * q - xi;
        gain -= splat(w[i]) * (r * r);
      }
      store(scales + kLanes * sign + lane, scale);
      store(gains + kLanes * sign + lane, gain);
    }
  const int plus = first_largest(gains), minus = kLanes + first_largest(gains + kLanes);
  return scales[gains[minus] > gains[plus] ? minus : plus];
}

inline void encode(const float* x, Q6_K& b) {
  float most[16], magnitude[256];
  for (int i = 0; i < 256; i++) magnitude[i] = absolute(x[i]);
  for (int k = 0; k < 16; k++) most[k] = max_of<16>(magnitude + 16 * k);
  b.d = f32_to_f16(max_of<16>(most) / (kReach * 127.0f));
  const float d = f16_to_f32(b.d);

  uint8_t q[256];
  for (int k = 0; k < 16; k++) {
    const float* xk = x + 16 * k;
    float w[16], square[16], sum[16];
    for (int i = 0; i < 16; i++) sum[i] = square[i] = xk[i] * xk[i];
    const float mean = tree_sum(sum) / 16.0f;
    for (int i = 0; i < 16; i++) w[i] = square[i] + mean;
    const float scale = d > 0 ? settle16(xk, w, d, clamp(round_even(most[k] / (kReach * d)), 0, 127)) : 0;
    const float step = d * scale, inverse = step != 0 ? 1.0f / step : 0.0f;
    b.scales[k] = int8_t(scale);
    for (int i = 0; i < 16; i++)
      q[16 * k + i] = uint8_t(int(clamp(round_even(xk[i] * inverse), -32, 31)) + 32);
  }
  for (int n = 0; n < 2; n++)
    for (int l = 0; l < 32; l++) {
      const uint8_t *run = q + 128 * n + l;
      b.ql[64 * n + l] = uint8_t((run[0] & 15) | ((run[64] & 15) << 4));
      b.ql[64 * n + 32 + l] = uint8_t((run[32] & 15) | ((run[96] & 15) << 4));
      b.qh[32 * n + l] = uint8_t((run[0] >> 4) | ((run[32] >> 4) << 2) | ((run[64] >> 4) << 4) | ((run[96] >> 4) << 6));
    }
}

template <typename B>
void encode_blocks(const float* x, uint8_t* out, int64_t n, int elements) {
  for (int64_t i = 0; i < n / elements; i++) {
    B block;
    encode(x + i * elements, block);
    memcpy(out + i * int64_t(sizeof(B)), &block, sizeof(B));
  }
}

void f32_row_to_f16(const float* x, uint8_t* out, int64_t n) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    const __m128i bits = _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT);
    memcpy(out + 2 * i, &bits, sizeof bits);
  }
#endif
  for (; i < n; i++) {
    const f16_bits bits = f32_to_f16(x[i]);
    memcpy(out + 2 * i, &bits, 2);
  }
}

void f16_row_to_f32(const uint8_t* in, float* out, int64_t n) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    __m128i bits;
    memcpy(&bits, in + 2 * i, sizeof bits);
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(bits));
  }
#endif
  for (; i < n; i++) {
    f16_bits bits;
    memcpy(&bits, in + 2 * i, 2);
    out[i] = f16_to_f32(bits);
  }
}

// The first element that float16 could not hold (65,520 and more, infinite, NaN), or −1.
int64_t first_too_large(const float* x, int64_t n) {
  constexpr int32_t limit = 0x477ff000;
  constexpr int64_t kPiece = 4096;
  for (int64_t start = 0; start < n; start += kPiece) {
    const int64_t end = start + kPiece < n ? start + kPiece : n;
    int32_t most = 0;
    for (int64_t i = start; i < end; i++) {
      const int32_t magnitude = int32_t(bits_of_float(x[i]) & 0x7fffffff);
      most = magnitude > most ? magnitude : most;
    }
    if (most < limit) continue;
    for (int64_t i = start; i < end; i++)
      if (int32_t(bits_of_float(x[i]) & 0x7fffffff) >= limit) return i;
  }
  return -1;
}

}  // namespace

// Writes rows·columns floats as `type`: F32, BF16, F16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K or Q6_K; blocks must
// divide `columns`. Returns −1, or, having written nothing, the index of the first element that the type cannot hold;
// −2 for another type. Any split of the rows over threads gives the same bytes.
int64_t quantize_rows(int type, const float* x, uint8_t* out, int64_t rows, int64_t columns) {
  const int64_t n = rows * columns;
  if (type == kF32) {
    memcpy(out, x, size_t(n) * 4);
    return -1;
  }
  if (type == kBF16) {
    for (int64_t i = 0; i < n; i++) {
      const uint16_t bits = f32_to_bf16(x[i]);
      memcpy(out + 2 * i, &bits, 2);
    }
    return -1;
  }
  const int64_t bad = first_too_large(x, n);
  if (bad >= 0) return bad;
  switch (type) {
    case kF16: f32_row_to_f16(x, out, n); break;
    case kQ8_0: encode_blocks<Q8_0>(x, out, n, 32); break;
    case kQ4_0: encode_blocks<Q4_0>(x, out, n, 32); break;
    case kQ4_1: encode_blocks<Q4_1>(x, out, n, 32); break;
    case kQ5_0: encode_blocks<Q5_0>(x, out, n, 32); break;
    case kQ5_1: encode_blocks<Q5_1>(x, out, n, 32); break;
    case kQ4_K: encode_blocks<Q4_K>(x, out, n, 256); break;
    case kQ5_K: encode_blocks<Q5_K>(x, out, n, 256); break;
    case kQ6_K: encode_blocks<Q6_K>(x, out, n, 256); break;
    default: return -2;
  }
  return -1;
}

// Reads n elements of any type of formats.h as float32; false for another type. Blocks must divide n.
bool to_f32_row(int type, const void* in, float* out, int64_t n) {
  const uint8_t* bytes = static_cast<const uint8_t*>(in);
  switch (type) {
    case kF32: memcpy(out, in, size_t(n) * 4); return true;
    case kF16: f16_row_to_f32(bytes, out, n); return true;
    case kBF16:
      for (int64_t i = 0; i < n; i++) {
        uint16_t bits;
        memcpy(&bits, bytes + 2 * i, 2);
        out[i] = bf16_to_f32(bits);
      }
      return true;
    case kF8_E4M3:
      for (int64_t i = 0; i < n; i++) out[i] = f8_e4m3_to_f32(bytes[i]);
      return true;
#define PLAIN(T)                            \
  for (int64_t i = 0; i < n; i++) {         \
    T value;                                \
    memcpy(&value, bytes + i * sizeof(T), sizeof(T)); \
    out[i] = float(value);                  \
  }                                         \
  return true
    case kF64: PLAIN(double);
    case kI64: PLAIN(int64_t);
    case kI32: PLAIN(int32_t);
    case kI16: PLAIN(int16_t);
    case kI8: PLAIN(int8_t);
#undef PLAIN
    case kQ4_0: decode_blocks<Q4_0>(in, out, n, 32); return true;
    case kQ4_1: decode_blocks<Q4_1>(in, out, n, 32); return true;
    case kQ5_0: decode_blocks<Q5_0>(in, out, n, 32); return true;
    case kQ5_1: decode_blocks<Q5_1>(in, out, n, 32); return true;
    case kQ8_0: decode_blocks<Q8_0>(in, out, n, 32); return true;
    case kQ2_K: decode_blocks<Q2_K>(in, out, n, 256); return true;
    case kQ3_K: decode_blocks<Q3_K>(in, out, n, 256); return true;
    case kQ4_K: decode_blocks<Q4_K>(in, out, n, 256); return true;
    case kQ5_K: decode_blocks<Q5_K>(in, out, n, 256); return true;
    case kQ6_K: decode_blocks<Q6_K>(in, out, n, 256); return true;
    case kTQ1_0: decode_blocks<TQ1_0>(in, out, n, 256); return true;
    case kTQ2_0: decode_blocks<TQ2_0>(in, out, n, 256); return true;
    case kIQ4_NL: decode_blocks<IQ4_NL>(in, out, n, 32); return true;
    case kIQ4_XS: decode_blocks<IQ4_XS>(in, out, n, 256); return true;
    case kIQ2_XXS: decode_blocks<IQ2_XXS>(in, out, n, 256); return true;
    case kIQ2_XS: decode_blocks<IQ2_XS>(in, out, n, 256); return true;
    case kIQ2_S: decode_blocks<IQ2_S>(in, out, n, 256); return true;
    case kIQ3_XXS: decode_blocks<IQ3_XXS>(in, out, n, 256); return true;
    case kIQ3_S: decode_blocks<IQ3_S>(in, out, n, 256); return true;
    case kIQ1_S: decode_blocks<IQ1_S>(in, out, n, 256); return true;
    case kIQ1_M: decode_blocks<IQ1_M>(in, out, n, 256); return true;
    case kMXFP4: decode_blocks<MXFP4>(in, out, n, 32); return true;
    default: return false;
  }
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

// y[t, o] = Σ_b dw_b · dx_b · Σᵢ qw[i] · qx[i]        reference: linear(), whose x is rounded to int8 here
//
// Activations: blocks of 32, dx = max|x| / 127, so that each is off by at most dx / 2. Sums inside a block are exact
// integers; blocks are added in float32, in an order that depends on the instruction set but neither on T nor on the
// threads.

#include "int8.h"

namespace llama4 {
namespace LLAMA4_ISA {

namespace {

constexpr int kPanel = 16;

void quantize_row(const float* x, int64_t n, int8_t* q, float* d, float* sd) {
  for (int64_t b = 0; b < n / 32; b++) {
    vec most{};
    for (int i = 0; i < 32; i += W) {
      const vec v = load(x + 32 * b + i);
      most = max(most, max(v, -v));
    }
    const float scale = largest(most) / 127.0f;
    const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
    const vec magic = splat(12582912.0f);  // rounds to the nearest whole number, ties to even
    ivec total{};
    for (int i = 0; i < 32; i += W) {
      const vec whole = (load(x + 32 * b + i) * splat(inverse) + magic) - magic;
      const ivec integers = __builtin_convertvector(whole, ivec);
      total += integers;
      for (int j = 0; j < W; j++) q[32 * b + i + j] = int8_t(integers[j]);
    }
    int s = 0;
    for (int j = 0; j < W; j++) s += total[j];
    d[b] = scale;
    sd[b] = scale * float(s);
  }
}

// The eight 6-bit scales and minima of Q4_K and Q5_K as bytes (drawn in block-formats.ts).
inline void unpack_scales(const uint8_t* s, uint32_t (&scales)[2], uint32_t (&mins)[2]) {
  const uint32_t a = u32_of(s), b = u32_of(s + 4), c = u32_of(s + 8);
  scales[0] = a & 0x3f3f3f3f;
  mins[0] = b & 0x3f3f3f3f;
  scales[1] = (c & 0x0f0f0f0f) | ((a >> 2) & 0x30303030);
  mins[1] = ((c >> 4) & 0x0f0f0f0f) | ((b >> 2) & 0x30303030);
}

#if defined(__AVX2__)

// A row is one stream of memory, which the prefetchers follow best; blocks alternate between kPhases sums, so that the
// latency of an addition is hidden.
#if defined(__AVX512F__)
constexpr int kPhases = 4;
#else
constexpr int kPhases = 2;
#endif
struct Acc {
  __m256 phase[kPhases];
};
inline float total(const Acc& sums) {
  __m256 acc = sums.phase[0] + sums.phase[1];
#if defined(__AVX512F__)
  acc = acc + (sums.phase[2] + sums.phase[3]);
#endif
  __m128 four = _mm256_castps256_ps128(acc) + _mm256_extractf128_ps(acc, 1);
  four = four + _mm_movehl_ps(four, four);
  return four[0] + four[1];
}

inline __m256i bytes32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

// Eight sums of four products each: u in 0 … 128, x in −127 … 127.
inline __m256i dot_unsigned(__m256i u, __m256i x) {
#if defined(__AVX512VNNI__)
  return _mm256_dpbusd_epi32(_mm256_setzero_si256(), u, x);
#else
  return _mm256_madd_epi16(_mm256_maddubs_epi16(u, x), _mm256_set1_epi16(1));
#endif
}
inline __m256i dot_signed(__m256i magnitude, __m256i w, __m256i x) {
  return dot_unsigned(magnitude, _mm256_sign_epi8(x, w));
}
inline __m256 floats(__m256i v) { return _mm256_cvtepi32_ps(v); }
inline __m256 eight_bytes(const uint32_t (&words)[2]) {
  return floats(_mm256_cvtepu8_epi32(_mm_set_epi32(0, 0, int(words[1]), int(words[0]))));
}
inline float half(f16_bits bits) { return _cvtsh_ss(bits); }

inline void add_to(__m256& acc, __m256 scale, __m256i p) { acc = _mm256_fmadd_ps(scale, floats(p), acc); }

template <int C>
inline void mac_simple(__m256i w, float d, int64_t b, int phase, const Acts (&x)[C], Acc (&acc)[C]) {
  const __m256i magnitude = _mm256_abs_epi8(w);
#pragma GCC unroll 4
  for (int c = 0; c < C; c++)
    add_to(acc[c].phase[phase], _mm256_set1_ps(d * x[c].d[b]), dot_signed(magnitude, w, bytes32(x[c].q + 32 * b)));
}

// Adds block b's part to C products of one row.
template <int C>
inline void mac(const Q8_0& w, int64_t b, int phase, const Acts (&x)[C], Acc (&acc)[C]) {
  mac_simple(bytes32(w.q), half(w.d), b, phase, x, acc);
}

template <int C>
inline void mac(const Q4_0& w, int64_t b, int phase, const Acts (&x)[C], Acc (&acc)[C]) {
  const __m128i pairs = _mm_loadu_si128(reinterpret_cast<const __m128i*>(w.qs));
  const __m256i nibbles = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(pairs, 4), pairs), _mm256_set1_epi8(15));
  mac_simple(_mm256_sub_epi8(nibbles, _mm256_set1_epi8(8)), half(w.d), b, phase, x, acc);
}

template <int C, typename Sub>
inline void mac_minima(const uint8_t* s, float d, float dmin, int64_t b, const Acts (&x)[C], Acc (&acc)[C],
                       const Sub& sub) {
  uint32_t scale_bytes[2], min_bytes[2];
  unpack_scales(s, scale_bytes, min_bytes);
  const __m256 scales = eight_bytes(scale_bytes) * _mm256_set1_ps(d);
  const __m256 mins = eight_bytes(min_bytes) * _mm256_set1_ps(-dmin);
  alignas(32) float scaled[C][8];
#pragma GCC unroll 4
  for (int c = 0; c < C; c++) {
    _mm256_store_ps(scaled[c], scales * _mm256_loadu_ps(x[c].d + 8 * b));
    acc[c].phase[0] = _mm256_fmadd_ps(mins, _mm256_loadu_ps(x[c].sd + 8 * b), acc[c].phase[0]);
  }
#pragma GCC unroll 8
  for (int k = 0; k < 8; k++) {
    const __m256i u = sub(k);
#pragma GCC unroll 4
    for (int c = 0; c < C; c++)
      add_to(acc[c].phase[k % kPhases], _mm256_set1_ps(scaled[c][k]),
             dot_unsigned(u, bytes32(x[c].q + 256 * b + 32 * k)));
  }
}

template <int C>
inline void mac(const Q4_K& w, int64_t b, int, const Acts (&x)[C], Acc (&acc)[C]) {
  mac_minima(w.s, half(w.d), half(w.dmin), b, x, acc, [&](int k) {
    const __m256i pairs = bytes32(w.qs + 32 * (k >> 1));
    return _mm256_and_si256(k & 1 ? _mm256_srli_epi16(pairs, 4) : pairs, _mm256_set1_epi8(15));
  });
}

template <int C>
inline void mac(const Q5_K& w, int64_t b, int, const Acts (&x)[C], Acc (&acc)[C]) {
  const __m256i fifths = bytes32(w.qh);
  mac_minima(w.s, half(w.d), half(w.dmin), b, x, acc, [&](int k) {
    const __m256i pairs = bytes32(w.qs + 32 * (k >> 1));
    const __m256i low = _mm256_and_si256(k & 1 ? _mm256_srli_epi16(pairs, 4) : pairs, _mm256_set1_epi8(15));
    const __m256i bit = _mm256_and_si256(_mm256_srli_epi16(fifths, k), _mm256_set1_epi8(1));
    return _mm256_or_si256(low, _mm256_slli_epi16(bit, 4));
  });
}

template <int C>
inline void mac(const Q6_K& w, int64_t b, int, const Acts (&x)[C], Acc (&acc)[C]) {
  const float d = half(w.d);
#pragma GCC unroll 8
  for (int r = 0; r < 8; r++) {
    const int n = r >> 2, j = r & 3;
    const __m256i pairs = bytes32(w.ql + 64 * n + 32 * (j & 1)), upper = bytes32(w.qh + 32 * n);
    const __m256i low = _mm256_and_si256(j >> 1 ? _mm256_srli_epi16(pairs, 4) : pairs, _mm256_set1_epi8(15));
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(upper, 2 * j), _mm256_set1_epi8(3));
    const __m256i u = _mm256_or_si256(low, _mm256_slli_epi16(high, 4));
    const __m256i q = _mm256_sub_epi8(u, _mm256_set1_epi8(32)), magnitude = _mm256_abs_epi8(q);
    // Lanes 0–3 are the first sixteen elements, lanes 4–7 the others.
    const __m256 scale = _mm256_set_m128(_mm_set1_ps(d * float(w.scales[2 * r + 1])), _mm_set1_ps(d * float(w.scales[2 * r])));
#pragma GCC unroll 4
    for (int c = 0; c < C; c++)
      add_to(acc[c].phase[r % kPhases], scale * _mm256_set1_ps(x[c].d[8 * b + r]),
             dot_signed(magnitude, q, bytes32(x[c].q + 256 * b + 32 * r)));
  }
}

#else

typedef float Acc;
inline float total(Acc acc) { return acc; }
constexpr int kPhases = 1;

// Σ w[i] · x[i] of n small integers.
template <int N>
inline int dot(const int8_t* w, const int8_t* x) {
  int s = 0;
  for (int i = 0; i < N; i++) s += int(w[i]) * int(x[i]);
  return s;
}

template <int C>
inline void mac_simple(const int8_t* w, float d, int64_t b, const Acts (&x)[C], Acc (&acc)[C]) {
  for (int c = 0; c < C; c++) acc[c] += d * x[c].d[b] * float(dot<32>(w, x[c].q + 32 * b));
}

template <int C>
inline void mac(const Q8_0& w, int64_t b, int, const Acts (&x)[C], Acc (&acc)[C]) {
  mac_simple(w.q, f16_to_f32(w.d), b, x, acc);
}

template <int C>
inline void mac(const Q4_0& w, int64_t b, int, const Acts (&x)[C], Acc (&acc)[C]) {
  int8_t q[32];
  for (int i = 0; i < 16; i++) {
    q[i] = int8_t((w.qs[i] & 15) - 8);
    q[i + 16] = int8_t((w.qs[i] >> 4) - 8);
  }
  mac_simple(q, f16_to_f32(w.d), b, x, acc);
}

template <int C>
inline void mac_minima(const uint8_t* qs, const uint8_t* qh, const uint8_t* s, float d, float dmin, int64_t b,
                       const Acts (&x)[C], Acc (&acc)[C]) {
  for (int k = 0; k < 8; k++) {
    int8_t q[32];
    for (int l = 0; l < 32; l++)
      q[l] = int8_t(((qs[32 * (k >> 1) + l] >> (4 * (k & 1))) & 15) | (qh ? ((qh[l] >> k) & 1) << 4 : 0));
    const float scale = d * float(scale6(s, k)), min = dmin * float(min6(s, k));
    for (int c = 0; c < C; c++)
      acc[c] += scale * x[c].d[8 * b + k] * float(dot<32>(q, x[c].q + 256 * b + 32 * k)) - min * x[c].sd[8 * b + k];
  }
}

template <int C>
inline void mac(const Q4_K& w, int64_t b, int, const Acts (&x)[C], Acc (&acc)[C]) {
  mac_minima(w.qs, nullptr, w.s, f16_to_f32(w.d), f16_to_f32(w.dmin), b, x, acc);
}

template <int C>
inline void mac(const Q5_K& w, int64_t b, int, const Acts (&x)[C], Acc (&acc)[C]) {
  mac_minima(w.qs, w.qh, w.s, f16_to_f32(w.d), f16_to_f32(w.dmin), b, x, acc);
}

template <int C>
inline void mac(const Q6_K& w, int64_t b, int, const Acts (&x)[C], Acc (&acc)[C]) {
  const float d = f16_to_f32(w.d);
  for (int r = 0; r < 8; r++) {
    const int n = r >> 2, j = r & 3;
    int8_t q[32];
    for (int l = 0; l < 32; l++)
      q[l] = int8_t((((w.ql[64 * n + 32 * (j & 1) + l] >> (4 * (j >> 1))) & 15) |
                     (((w.qh[32 * n + l] >> (2 * j)) & 3) << 4)) - 32);
    for (int c = 0; c < C; c++) {
      const int8_t* xq = x[c].q + 256 * b + 32 * r;
      acc[c] += d * x[c].d[8 * b + r] *
                (float(w.scales[2 * r]) * float(dot<16>(q, xq)) + float(w.scales[2 * r + 1]) * float(dot<16>(q + 16, xq + 16)));
    }
  }
}

#endif

// All activations of the call, quantized once.
struct Rows {
  const int8_t* q;
  const float *d, *sd;
  int64_t I;
  Acts row(int64_t t) const { return {q + t * I, d + t * (I / 32), sd + t * (I / 32)}; }
};

constexpr int64_t kAhead = 2048;  // bytes between what is read and what is asked for

// Row o of the weights with C rows of x from t on.
template <typename B, int C>
inline void tile(const Linear& l, const Product& p, const Rows& rows, int64_t o, int64_t t) {
  const int64_t blocks = l.I / (sizeof(B) < 64 ? 32 : 256);
  const B* w = static_cast<const B*>(p.w) + o * blocks;
  Acts x[C];
  for (int c = 0; c < C; c++) x[c] = rows.row(p.row + t + c);
  Acc acc[C] = {};
  constexpr int kStep = sizeof(B) < 64 ? kPhases : 1;  // blocks a turn; k-quants alternate inside a block
  int64_t b = 0;
  for (; b + kStep <= blocks; b += kStep) {
    for (size_t line = 0; line < kStep * sizeof(B); line += 64)
      __builtin_prefetch(reinterpret_cast<const uint8_t*>(w + b) + kAhead + line);
#pragma GCC unroll 4
    for (int phase = 0; phase < kStep; phase++) mac(w[b + phase], b + phase, phase, x, acc);
  }
  for (; b < blocks; b++) mac(w[b], b, 0, x, acc);
  for (int c = 0; c < C; c++) {
    const float value = total(acc[c]);
    p.y[(t + c) * l.O + o] = l.b ? value + l.b[o] : value;
  }
}

template <typename B>
void multiply(Pool& pool, const Linear& l, const Rows& rows) {
  const int64_t panels = (l.O + kPanel - 1) / kPanel;
  parallel(pool, panels * l.count, 1, [&](int64_t item, int64_t end, int) {
    for (; item < end; item++) {
      const Product& p = l.products[item / panels];
      const int64_t first = item % panels * kPanel, last = first + kPanel < l.O ? first + kPanel : l.O;
      int64_t t = 0;
      for (; t + 4 <= p.T; t += 4)
        for (int64_t o = first; o < last; o++) tile<B, 4>(l, p, rows, o, t);
      for (; t < p.T; t++)
        for (int64_t o = first; o < last; o++) tile<B, 1>(l, p, rows, o, t);
    }
  });
}

}  // namespace

void linear_int8(Pool& pool, const Linear& l) {
  const int64_t blocks = l.I / 32;
  // d and sd first: they stay aligned.
  float* d = static_cast<float*>(pool.shared(Pool::kActivations, size_t(l.N) * size_t(l.I + 8 * blocks)));
  float* sd = d + l.N * blocks;
  int8_t* q = reinterpret_cast<int8_t*>(sd + l.N * blocks);
  parallel(pool, l.N, 8, [&](int64_t t, int64_t end, int) {
    for (; t < end; t++) quantize_row(l.x + t * l.I, l.I, q + t * l.I, d + t * blocks, sd + t * blocks);
  });
  const Rows rows{q, d, sd, l.I};
  switch (l.type) {
    case kQ8_0: return multiply<Q8_0>(pool, l, rows);
    case kQ4_0: return multiply<Q4_0>(pool, l, rows);
    case kQ4_K: return multiply<Q4_K>(pool, l, rows);
    case kQ5_K: return multiply<Q5_K>(pool, l, rows);
    case kQ6_K: return multiply<Q6_K>(pool, l, rows);
  }
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

// One register of floats, as wide as the instruction set has. Included by kernels only, which are compiled once for
// each instruction set inside namespace llama4::LLAMA4_ISA; nothing here may be shared between them (see formats.h).

#pragma once

#include "formats.h"
#include "pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace llama4 {
namespace LLAMA4_ISA {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float vec __attribute__((vector_size(4 * W)));
typedef int32_t ivec __attribute__((vector_size(4 * W)));
typedef uint32_t uvec __attribute__((vector_size(4 * W)));
typedef uint16_t halves __attribute__((vector_size(2 * W)));

static inline vec load(const float* p) {
  vec v;
  memcpy(&v, p, sizeof v);
  return v;
}
static inline void store(float* p, vec v) { memcpy(p, &v, sizeof v); }

// The first n < W floats, zero beyond; and back.
static inline vec load_part(const float* p, int64_t n) {
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
#else
  vec v{};
  for (int64_t i = 0; i < n; i++) v[i] = p[i];
  return v;
#endif
}
static inline void store_part(float* p, vec v, int64_t n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), v);
#else
  for (int64_t i = 0; i < n; i++) p[i] = v[i];
#endif
}

static inline vec splat(float value) { return value - vec{}; }
static inline vec max(vec a, vec b) { return a > b ? a : b; }
static inline vec min(vec a, vec b) { return a < b ? a : b; }

// The lanes' sum, as a tree: halves of 8, 4, 2, 1, on every instruction set.
static inline float sum(vec v) {
#if defined(__AVX512F__)
  const __m256 eight = _mm512_castps512_ps256(v) + _mm512_extractf32x8_ps(v, 1);
#elif defined(__AVX2__)
  const __m256 eight = v;
#endif
#if defined(__AVX2__)
  __m128 four = _mm256_castps256_ps128(eight) + _mm256_extractf128_ps(eight, 1);
  four = four + _mm_movehl_ps(four, four);
  return four[0] + four[1];
#else
  return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

static inline float largest(vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(v);
#elif defined(__AVX2__)
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return four[0] > four[1] ? four[0] : four[1];
#else
  float m = v[0];
  for (int i = 1; i < W; i++) m = v[i] > m ? v[i] : m;
  return m;
#endif
}

// W stored weights as floats, exactly.
static inline vec widen(const float* p) { return load(p); }

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

static inline vec widen(const bf16* p) {
  halves h;
  memcpy(&h, p, sizeof h);
  return (vec)(__builtin_convertvector(h, uvec) << 16);
}

static inline vec widen(const f16* p) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  vec v;
  for (int i = 0; i < W; i++) v[i] = f16_to_f32(p[i].bits);
  return v;
#endif
}

template <typename T>
static inline vec widen_part(const T* p, int64_t n) {
  T padded[W] = {};
  memcpy(static_cast<void*>(padded), p, size_t(n) * sizeof(T));
  return widen(padded);
}

// Added to a number of at most 2²², it rounds that to a whole one, which the low bits of the sum then are.
constexpr float kRounding = 12582912.0f;  // 1.5·2²³
static inline uvec rounded_bits(vec x) { return (uvec)(x + splat(kRounding)) - (uvec)splat(kRounding); }

// eˣ to 2 ulp: 2ⁿ·eʳ with |r| <= ln 2 / 2 by its Taylor series to r⁷; 0 below −87.3 (no subnormals), ∞ above 88.37.
static inline vec exp(vec x) {
  const vec bounded = min(splat(88.7f), x);  // NaN stays
  const vec shifted = bounded * splat(1.44269504f) + splat(kRounding), n = shifted - splat(kRounding);
  const vec r = (bounded - n * splat(0.693359375f)) + n * splat(2.12194440e-4f);
  vec p = splat(1.0f / 5040);
  p = p * r + splat(1.0f / 720);
  p = p * r + splat(1.0f / 120);
  p = p * r + splat(1.0f / 24);
  p = p * r + splat(1.0f / 6);
  p = p * r + splat(0.5f);
  p = p * r + splat(1.0f);
  p = p * r + splat(1.0f);
  const uvec exponent = ((uvec)shifted + 127) << 23;  // of 2ⁿ: only n's bits stay
  const vec y = x < splat(-87.3f) ? vec{} : p * (vec)exponent;
  return x != x ? x : y;
}

static inline vec sigmoid(vec x) { return splat(1.0f) / (splat(1.0f) + exp(-x)); }

// Shares out items [0, n) of at least `grain` items a claim: f(first, last, thread).
template <typename F>
static inline void parallel(Pool& pool, int64_t n, int64_t grain, const F& f) {
  const int64_t most = int64_t(pool.threads()) * 16;
  int64_t size = (n + most - 1) / most;
  if (size < grain) size = grain;
  struct Context { const F* f; int64_t n, size; } context{&f, n, size};
  pool.run((n + size - 1) / size,
           [](void* context, int64_t item, int thread) {
             const Context& c = *static_cast<Context*>(context);
             const int64_t first = item * c.size, last = first + c.size < c.n ? first + c.size : c.n;
             (*c.f)(first, last, thread);
           },
           &context);
}

// Calls f(i, n) for each W of [0, n), with fewer in the last: f must take n < W.
template <typename F, typename G>
static inline void each_vec(int64_t n, const F& whole, const G& part) {
  int64_t i = 0;
  for (; i + W <= n; i += W) whole(i);
  if (i < n) part(i, n - i);
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

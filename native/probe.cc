// What this machine can do, for `bench` and bench/kernels.ts: bytes a second that all threads read from memory, and
// multiply-adds a second in registers (a multiply-add is two operations).

#include <time.h>

#include "kernels.h"
#include "simd.h"
#include "tiles.h"

namespace llama4 {
namespace LLAMA4_ISA {

namespace {

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

// Best of five runs of `work` on every thread, in calls a second and thread together.
double rate(Pool& pool, void (*work)(void*, int64_t, int), void* context) {
  const int64_t items = pool.threads() * 8;
  double best = 0;
  for (int run = 0; run < 5; run++) {
    const double start = now();
    pool.run(items, work, context);
    const double speed = double(items) / (now() - start);
    best = speed > best ? speed : best;
  }
  return best;
}

constexpr int kChains = 12;        // independent sums: latency times throughput of a multiply-add
constexpr int kTurns = 100000;     // of kChains multiply-adds, or of kInt8Turn and kBf16Turn with their lanes

// Keeps a value alive without writing it anywhere.
template <typename T>
inline void keep(T& value) {
#if defined(__x86_64__)
  asm volatile("" : "+x"(value));
#else
  asm volatile("" : "+m"(value));
#endif
}

void multiply_floats(void*, int64_t, int) {
  vec acc[kChains] = {}, a = splat(1.0f), b = splat(1e-9f);
  for (int i = 0; i < kTurns; i++)
#pragma GCC unroll 12
    for (int c = 0; c < kChains; c++) {
      keep(a);  // or the product is made once
      acc[c] += a * b;
      keep(acc[c]);
    }
}

#if defined(__AMX_TILE__)
constexpr int kInt8Turn = 4 * 16 * 16 * 64, kBf16Turn = kInt8Turn / 2;
void multiply_int8(void*, int64_t, int) {
  const Tiles tiles;
  zero_tile<4>(), zero_tile<5>(), zero_tile<6>(), zero_tile<7>();
  for (int i = 0; i < kTurns; i++)
    multiply_int8_tiles<0, 4, 6>(), multiply_int8_tiles<1, 4, 7>(), multiply_int8_tiles<2, 5, 6>(), multiply_int8_tiles<3, 5, 7>();
}
void multiply_bf16(void*, int64_t, int) {
  const Tiles tiles;
  zero_tile<4>(), zero_tile<5>(), zero_tile<6>(), zero_tile<7>();
  for (int i = 0; i < kTurns; i++)
    multiply_bf16_tiles<0, 4, 6>(), multiply_bf16_tiles<1, 4, 7>(), multiply_bf16_tiles<2, 5, 6>(), multiply_bf16_tiles<3, 5, 7>();
}
#elif defined(__AVX512VNNI__)
constexpr int kInt8Turn = kChains * 64, kBf16Turn = kInt8Turn / 2;
void multiply_int8(void*, int64_t, int) {
  __m512i acc[kChains] = {}, a = _mm512_set1_epi8(1), b = _mm512_set1_epi8(2);
  for (int i = 0; i < kTurns; i++)
#pragma GCC unroll 12
    for (int c = 0; c < kChains; c++) {
      acc[c] = _mm512_dpbusd_epi32(acc[c], a, b);
      keep(acc[c]);
    }
}
__attribute__((target("avx512bf16"))) void multiply_bf16(void*, int64_t, int) {
  vec acc[kChains] = {};
  const __m512bh a = (__m512bh)_mm512_set1_epi32(0x3f803f80), b = a;
  for (int i = 0; i < kTurns; i++)
#pragma GCC unroll 12
    for (int c = 0; c < kChains; c++) {
      acc[c] = _mm512_dpbf16_ps(acc[c], a, b);
      keep(acc[c]);
    }
}
#elif defined(__AVX2__)
constexpr int kInt8Turn = kChains * 32;
void multiply_int8(void*, int64_t, int) {
  __m256i acc[kChains] = {}, a = _mm256_set1_epi8(1), b = _mm256_set1_epi8(2);
  for (int i = 0; i < kTurns; i++)
#pragma GCC unroll 12
    for (int c = 0; c < kChains; c++) {
      keep(a);
      acc[c] = _mm256_add_epi16(acc[c], _mm256_maddubs_epi16(a, b));
      keep(acc[c]);
    }
}
#else
constexpr int kInt8Turn = kChains * W;
void multiply_int8(void*, int64_t, int) {
  ivec acc[kChains] = {}, a = ivec{} + 1;
  for (int i = 0; i < kTurns; i++)
#pragma GCC unroll 12
    for (int c = 0; c < kChains; c++) {
      acc[c] += a * acc[c];
      keep(acc[c]);
    }
}
#endif

struct Memory {
  const uint8_t* bytes;
  int64_t each;  // bytes an item
};

void read_memory(void* context, int64_t item, int) {
  const Memory& m = *static_cast<Memory*>(context);
  const uint8_t* p = m.bytes + item * m.each;
  ivec acc[4] = {};
  for (int64_t i = 0; i + int64_t(sizeof acc) <= m.each; i += int64_t(sizeof acc))
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
      ivec v;
      memcpy(&v, p + i + c * int64_t(sizeof v), sizeof v);
      acc[c] ^= v;
    }
  for (int c = 0; c < 4; c++) keep(acc[c]);
}

}  // namespace

Peaks probe(Pool& pool, void* memory, int64_t bytes) {
  Memory m{static_cast<const uint8_t*>(memory), bytes / (pool.threads() * 8)};
  const double turns = 2.0 * kTurns;  // two operations each
  Peaks peaks;
  peaks.dram_read = rate(pool, read_memory, &m) * double(m.each);
  peaks.f32_flops = rate(pool, multiply_floats, nullptr) * turns * kChains * W;
  peaks.int8_ops = rate(pool, multiply_int8, nullptr) * turns * kInt8Turn;
  peaks.bf16_flops = peaks.f32_flops;  // without instructions of its own, bf16 is widened to float32
#if defined(__AVX512VNNI__)
  if (__builtin_cpu_supports("avx512bf16")) peaks.bf16_flops = rate(pool, multiply_bf16, nullptr) * turns * kBf16Turn;
#endif
  return peaks;
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

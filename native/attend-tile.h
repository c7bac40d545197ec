// What attention does with one tile of keys and values, for a number of query rows: scores[r][s] = q[r] · k[s], and
// mix[r] = keep[r] · mix[r] + Σ_s weights[r][s] · v[s]. Blocks of rows and lanes whose sums stay in registers; every sum
// runs in the order of d, or of the slots, or is one of integers: with q8_0, queries and weights are rounded to int16.

#pragma once

#include "kv-blocks.h"
#include "simd.h"

namespace llama4 {
namespace LLAMA4_ISA {

namespace {

constexpr int64_t kTile = 64;  // slots

// Rows and registers of a block of sums that fit the registers beside the operands: 32 of AVX-512, else 16.
constexpr int R = 6;
#if defined(__AVX512F__)
constexpr int P = 4;
#else
constexpr int P = 2;
#endif

constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// f(Count<n>) for a number of rows n <= R.
template <int N>
struct Count { static constexpr int n = N; };
template <typename F>
inline void with_rows(int64_t n, const F& f) {
  switch (n < R ? n : R) {
    case 1: return f(Count<1>{});
    case 2: return f(Count<2>{});
    case 3: return f(Count<3>{});
    case 4: return f(Count<4>{});
    case 5: return f(Count<5>{});
    default: return f(Count<R>{});
  }
}

// N rows of M registers of sums. Unrolled, so that GCC keeps them in registers from the first to the last.
template <int N, int M>
struct Block {
  vec sums[N][M];
  template <typename F>
  void each(const F& f) {
#pragma GCC unroll 8
    for (int r = 0; r < N; r++)
#pragma GCC unroll 4
      for (int m = 0; m < M; m++) f(sums[r][m], r, m);
  }
};

// Few rows read keys and values from memory as they are stored, and while they work on a tile's ask for those that they
// work on next, as four streams: one alone was read at three quarters of their speed. Many rows have a tile as floats,
// and ask for nothing.
inline bool few_rows(int64_t rows) { return rows <= 2 * R; }
struct Next {
  const uint8_t* at;  // or nullptr
  int64_t quarter;    // bytes of a stream
  // Called for each `bytes` bytes that are worked on, from the byte `from` on; asks for a line of each stream at once.
  void ask(uint64_t from, uint64_t bytes) const {
    if (!at || from % 256 >= bytes) return;
    const uint8_t* line = at + from / 256 * 64;
    __builtin_prefetch(line);
    __builtin_prefetch(line + quarter);
    __builtin_prefetch(line + 2 * quarter);
    __builtin_prefetch(line + 3 * quarter);
  }
};

// scores[r][lane] = Σᵢ q[r][i] · keys[i][lane] for N rows and M registers of lanes: whole panels, or a part of one.
template <int N, int M, typename T>
inline void score_block(const float* q, int64_t d, const T* keys, int64_t lanes, Next next, int64_t from,
                        float* scores) {
  Block<N, M> block{};
  const T* at[M];
  for (int m = 0; m < M; m++) at[m] = keys + m * W / kPanel * kPanel * d + m * W % kPanel;
  for (int64_t i = 0; i < d; i++) {
    vec k[M];
#pragma GCC unroll 4
    for (int m = 0; m < M; m++) k[m] = widen(at[m] + i * lanes);
    next.ask(from + i * M * W * int64_t(sizeof(T)), M * W * int64_t(sizeof(T)));
    block.each([&](vec& sum, int r, int m) { sum += splat(q[r * d + i]) * k[m]; });
  }
  block.each([&](vec sum, int r, int m) { store(scores + r * kTile + m * W, sum); });
}

// The scores of a tile of n keys for all rows.
template <typename T>
void score_tile(const float* q, int64_t rows, int64_t d, const T* keys, int64_t n, Next next, float* scores) {
  const int64_t whole = n / kPanel * kPanel;
  for (int64_t r = 0; r < rows; r += R, next.at = nullptr)
    with_rows(rows - r, [&](auto count) {
      constexpr int N = decltype(count)::n;
      int64_t j = 0;
      const auto block = [&](auto registers, int64_t lanes) {
        constexpr int M = decltype(registers)::n;
        score_block<N, M>(q + r * d, d, keys + j / kPanel * kPanel * d + j % kPanel, lanes, next,
                          j * d * int64_t(sizeof(T)), scores + r * kTile + j);
        j += M * W;
      };
      while (j + P * W <= whole) block(Count<P>{}, kPanel);
      while (j < n) block(Count<1>{}, j < whole ? kPanel : n - whole);
    });
}

// The same for int8 keys and int16 queries: exact integer sums of 32 products, scaled.
template <int N, int M>
inline void score_block_q8(const ShortRows& q, int64_t d, const uint8_t* const* panels, int64_t lanes, Next next,
                           int64_t from, float* scores) {
  Block<N, M> block{};
  for (int64_t b = 0; b < d / 32; b++) {
    const int64_t at = b * 34 * lanes;
    ivec products[N][M] = {};
    for (int64_t i = 0; i < 32; i += 2) {
      ivec k[M];
#pragma GCC unroll 2
      for (int m = 0; m < M; m++) k[m] = widen_pairs(reinterpret_cast<const int8_t*>(panels[m]) + at + (2 + i) * lanes);
      next.ask(from + (b * 34 + i) * M * W, 2 * M * W);
      block.each([&](vec&, int r, int m) {
        products[r][m] = add_pair_products(products[r][m], splat_pair(q.q + r * d + b * 32 + i), k[m]);
      });
    }
    next.ask(from + (b * 34 + 32) * M * W, 2 * M * W);
    vec scales[M];
    for (int m = 0; m < M; m++) scales[m] = widen(reinterpret_cast<const f16*>(panels[m] + at));
    block.each([&](vec& sum, int r, int m) {
      sum += __builtin_convertvector(products[r][m], vec) * (scales[m] * splat(q.scale[r * (d / 32) + b]));
    });
  }
  block.each([&](vec sum, int r, int m) { store(scores + r * kTile + m * W, sum); });
}

inline void score_tile_q8(const ShortRows& q, int64_t rows, int64_t d, const uint8_t* keys, int64_t n, Next next,
                   float* scores) {
  const int64_t row_bytes = d / 32 * 34, whole = n / kPanel * kPanel;
  for (int64_t r = 0; r < rows; r += R, next.at = nullptr)
    with_rows(rows - r, [&](auto count) {
      constexpr int N = decltype(count)::n;
      int64_t j = 0;
      const auto block = [&](auto registers, int64_t lanes) {
        constexpr int M = decltype(registers)::n;
        const uint8_t* panels[M];  // scales and pairs of elements both take two bytes a key
        for (int m = 0; m < M; m++) {
          const int64_t lane = j + m * W;
          panels[m] = keys + lane / kPanel * kPanel * row_bytes + lane % kPanel * 2;
        }
        score_block_q8<N, M>({q.q + r * d, q.scale + r * (d / 32)}, d, panels, lanes, next, j * row_bytes,
                             scores + r * kTile + j);
        j += M * W;
      };
      while (j + P / 2 * W <= whole) block(Count<P / 2>{}, kPanel);
      while (j < n) block(Count<1>{}, j < whole ? kPanel : n - whole);
    });
}

struct Range {
  int64_t from, to;
};

// mix[r] ← keep[r]·mix[r] + Σⱼ weights[r][j] · values[j] over the slots of a range, for N rows and M registers of the head.
template <int N, int M, typename T>
inline void mix_block(const float* weights, const float* keep, const T* values, int64_t d, Range slots, Next next,
                      int64_t from, float* mix, int64_t width) {
  Block<N, M> block;
  block.each([&](vec& sum, int r, int m) { sum = splat(keep[r]) * load(mix + r * width + m * W); });
  for (int64_t j = slots.from; j < slots.to; j++) {
    vec v[M];
#pragma GCC unroll 4
    for (int m = 0; m < M; m++) v[m] = widen(values + j * d + m * W);
    next.ask(from + j * M * W * int64_t(sizeof(T)), M * W * int64_t(sizeof(T)));
    block.each([&](vec& sum, int r, int m) { sum += splat(weights[r * kTile + j]) * v[m]; });
  }
  block.each([&](vec sum, int r, int m) { store(mix + r * width + m * W, sum); });
}

template <typename T>
void mix_tile(const float* weights, const float* keep, int64_t rows, const T* values, int64_t d, Range slots, Next next,
              float* mix, int64_t width) {
  for (int64_t r = 0; r < rows; r += R, next.at = nullptr)
    with_rows(rows - r, [&](auto count) {
      constexpr int N = decltype(count)::n;
      int64_t i = 0;
      const auto block = [&](auto registers) {
        constexpr int M = decltype(registers)::n;
        mix_block<N, M>(weights + r * kTile, keep + r, values + i, d, slots, next, i * slots.to * int64_t(sizeof(T)),
                        mix + r * width + i, width);
        i += M * W;
      };
      while (i + P * W <= width) block(Count<P>{});
      while (i < width) block(Count<1>{});
    });
}

// N rows' weights of the slots of a tile, times the scales of a block of values, as int16: weight · scale ≈ units · q, to
// 2⁻¹⁶ of the row's largest.
template <int N>
inline void weights_to_shorts(const float* weights, const float* scales, int16_t* q, float* units) {
  vec zeros{};  // NaN of any NaN or infinity
  for (int64_t j = 0; j < kTile; j += W) zeros += load(scales + j) * splat(0);
  const float poison = sum(zeros);
#pragma GCC unroll 8
  for (int p = 0; p < N; p++) {
    vec scaled[kTile / W], most{};
#pragma GCC unroll 16
    for (int j = 0; j < kTile / W; j++) {
      scaled[j] = load(weights + p * kTile + j * W) * load(scales + j * W);
      most = max(scaled[j], most);
    }
    const float top = largest(most), inverse = top > 1e-30f ? 32767.0f / top : 0;
    units[p] = top / 32767.0f + poison;
#pragma GCC unroll 16
    for (int j = 0; j < kTile / W; j++) {
      const halves rounded = __builtin_convertvector(rounded_bits(scaled[j] * splat(inverse)), halves);
      memcpy(q + p * kTile + j * W, &rounded, sizeof rounded);
    }
  }
}

// mix[r] ← keep[r]·mix[r] + units[r]·Σⱼ q[r][j] · values[j] over the slots of a tile, for N rows and M registers of elements of
// int8, from element i on: the sums are exact integers. n: as in score_tile().
template <int N, int M>
inline void mix_block_q8(const int16_t* q, const float* units, const float* keep, const uint8_t* values, int64_t d,
                         int64_t i, int64_t n, Next next, float* mix, int64_t width) {
  ivec products[N][M] = {};
  const int8_t* bytes = reinterpret_cast<const int8_t*>(values);
  const int64_t row_bytes = d / 32 * 34, b = i / 32;
  const auto add = [&](const ivec* v, const auto& weights) {
#pragma GCC unroll 8
    for (int r = 0; r < N; r++)
#pragma GCC unroll 4
      for (int m = 0; m < M; m++) products[r][m] = add_pair_products(products[r][m], weights(r), v[m]);
  };
  int64_t j = 0;
  for (; j + kPanel <= n; j += kPanel) {
    const int8_t* panel = bytes + j * row_bytes + (b * 34 + 2) * kPanel + i % 32 * 2;
    for (int64_t slot = 0; slot < kPanel; slot += 2) {
      ivec v[M];
#pragma GCC unroll 4
      for (int m = 0; m < M; m++) v[m] = widen_pairs(panel + 32 * slot + 2 * m * W);
      if (i % 32 == 0) next.ask(b * 34 * n + (j + slot) * 34, 68);
      add(v, [&](int r) { return splat_pair(q + r * kTile + j + slot); });
    }
  }
  const int64_t w = n - j;  // of a narrow panel
  const int8_t* panel = bytes + j * row_bytes + (b * 34 + 2) * w + i % 32;
  for (int64_t slot = 0; slot < w; slot++) {
    ivec v[M];  // pairs of an element and its sign, which counts nothing
    for (int m = 0; m < M; m++) v[m] = widen_bytes(panel + 32 * slot + m * W);
    if (i % 32 == 0) next.ask(b * 34 * n + (j + slot) * 34, 34);
    add(v, [&](int r) { return ivec{} + int32_t(uint16_t(q[r * kTile + j + slot])); });
  }
#pragma GCC unroll 8
  for (int r = 0; r < N; r++)
#pragma GCC unroll 4
    for (int m = 0; m < M; m++) {
      float* at = mix + r * width + i + m * W;
      store(at, splat(keep[r]) * load(at) + __builtin_convertvector(products[r][m], vec) * splat(units[r]));
    }
}

inline void mix_tile_q8(const float* weights, const float* keep, int64_t rows, const uint8_t* values, int64_t d, int64_t n,
                        Range slots, Next next, float* mix, int64_t width) {
  const int64_t row_bytes = d / 32 * 34;
  for (int64_t r = 0; r < rows; r += R, next.at = nullptr)
    with_rows(rows - r, [&](auto count) {
      constexpr int N = decltype(count)::n, M = 2;
      float units[N], scales[kTile] = {};
      int16_t q[N * kTile];
      for (int64_t b = 0; b < d / 32; b++) {
        for (int64_t j = 0; j < n; j += W) {
          const int64_t first = j / kPanel * kPanel, w = least(kPanel, n - first);
          store(scales + j, widen(reinterpret_cast<const f16*>(values + first * row_bytes + b * 34 * w) + j % kPanel));
        }
        for (int64_t j = 0; j < slots.from; j++) scales[j] = 0;  // what is not seen may hold anything
        for (int64_t j = slots.to; j < kTile; j++) scales[j] = 0;
        weights_to_shorts<N>(weights + r * kTile, scales, q, units);
        for (int64_t i = 32 * b; i < 32 * (b + 1); i += M * W)
          mix_block_q8<N, M>(q, units, keep + r, values, d, i, n, next, mix + r * width, width);
      }
    });
}

}  // namespace
}  // namespace LLAMA4_ISA
}  // namespace llama4

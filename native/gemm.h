// C[m, n] = Σₖ A[m, k] · B[k, n] by panels that stay in the caches, after Goto and van de Geijn 2008, "Anatomy of
// high-performance matrix multiplication", and Van Zee and van de Geijn 2015, "BLIS".
//
// Both operands are packed as 32-bit lanes along k: one float32, or two bf16. A panel of B is kDepth lanes of kWide
// columns and stays in L1; rows of A stream past it, kStrip at a time, each value broadcast to all columns, or, where
// there are tiles for bf16 (tiles.h), kTileRows at a time by panels of kTileDepth. Packing decodes, rounds and transposes,
// so another orientation or format is another packer: a problem P says how (product.h).
//
// Each sum runs over a panel's lanes in order, then over those blocks in order: it does not depend on what else is
// computed, nor on the shape of the tile, so dot.h gives the same bits.

#pragma once

#include "kernels.h"
#include "simd.h"
#include "tiles.h"

namespace llama4 {
namespace LLAMA4_ISA {

// Registers: kStrip · 2 sums, 2 of the panel, 1 broadcast; 32 of AVX-512, else 16. With tiles: 2 by 2 of them.
#if defined(__AVX512F__)
constexpr int kStrip = 12;
#else
constexpr int kStrip = 6;
#endif
constexpr int kTileRows = 32;  // of A at a time
constexpr int kWide = 2 * W;
constexpr int64_t kDepth = 256;               // a panel is 32 KiB of AVX-512's 48 KiB of L1
constexpr int64_t kTileDepth = 128;           // by tiles: a panel and a strip of A, 16 KiB each, stay there together
constexpr int64_t kMostRows = 1024;           // of A in a pass: their sums, at most 512 KiB, are half of L2
constexpr int64_t kMostPacked = int64_t(16) << 20;  // bytes of A packed at a time, for all threads: a share of L3
constexpr int64_t kPackRows = 16;             // of A, packed together
constexpr int64_t kMostPanels = 4;            // of B in an item: A is read once for them

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Lanes picked from two registers, of four at a time: pick(q, j) says lane j of quad q, 0 … W − 1 of a, W … of b.
template <typename Pick>
__attribute__((always_inline)) static inline vec pick(vec a, vec b, const Pick& pick) {
  ivec from{};
#pragma GCC unroll 16
  for (int l = 0; l < W; l++) from[l] = pick(l / 4, l % 4);
  return __builtin_shuffle(a, b, from);
}

// m[i][j] = m[j][i]: first inside quads of lanes, by two rounds of interleaving, then the quads.
__attribute__((always_inline)) static inline void transpose(vec (&m)[W]) {
  vec t[W];
#pragma GCC unroll 16
  for (int i = 0; i < W; i += 2) {
    t[i] = pick(m[i], m[i + 1], [](int q, int j) { return 4 * q + j / 2 + j % 2 * W; });
    t[i + 1] = pick(m[i], m[i + 1], [](int q, int j) { return 4 * q + 2 + j / 2 + j % 2 * W; });
  }
#pragma GCC unroll 16
  for (int i = 0; i < W; i += 4)
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
      m[i + 2 * h] = pick(t[i + h], t[i + 2 + h], [](int q, int j) { return 4 * q + j % 2 + j / 2 * W; });
      m[i + 2 * h + 1] = pick(t[i + h], t[i + 2 + h], [](int q, int j) { return 4 * q + 2 + j % 2 + j / 2 * W; });
    }
  // Now quad q of m[4 · r + j] is column 4 · q + j of rows 4 · r …: each round takes even and odd quads of two apart.
  const auto split = [](vec a, vec b, vec& even, vec& odd) __attribute__((always_inline)) {
    constexpr int half = W / 8 > 0 ? W / 8 : 1;
    even = pick(a, b, [](int q, int j) { return 8 * (q % half) + j + q / half * W; });
    odd = pick(a, b, [](int q, int j) { return 8 * (q % half) + 4 + j + q / half * W; });
  };
  if constexpr (W == 8) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      split(m[j], m[4 + j], t[j], t[4 + j]);
      m[j] = t[j];
      m[4 + j] = t[4 + j];
    }
  } else if constexpr (W == 16) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      vec low_even, low_odd, high_even, high_odd;
      split(m[j], m[4 + j], low_even, low_odd);
      split(m[8 + j], m[12 + j], high_even, high_odd);
      split(low_even, high_even, m[j], m[8 + j]);
      split(low_odd, high_odd, m[4 + j], m[12 + j]);
    }
  }
}

// One float in every lane, by its bits.
static inline vec broadcast(const float* p) {
#if defined(__AVX512F__)
  vec v = _mm512_set1_ps(*p);
  asm("" : "+v"(v));  // once into a register, not anew in each multiplication that takes it
  return v;
#elif defined(__AVX2__)
  return _mm256_broadcast_ss(p);
#else
  return splat(*p);
#endif
}

// Adds n lanes of R rows times a panel to their sums c[R][kWide].
template <typename P, int R>
static inline void multiply_tile(const float* __restrict a, const float* __restrict b, int64_t n, bool first,
                                 float* __restrict c) {
  vec acc[R][2] = {};
  for (int64_t k = 0; k < n; k++) {
    const vec row[2] = {load(b + k * kWide), load(b + k * kWide + W)};
    __builtin_prefetch(a + R * kDepth + k * R);  // the next rows
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const vec value = broadcast(a + r * kDepth + k);
      acc[r][0] = P::multiply_add(value, row[0], acc[r][0]);
      acc[r][1] = P::multiply_add(value, row[1], acc[r][1]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int v = 0; v < 2; v++) {
      float* to = c + r * kWide + v * W;
      store(to, first ? acc[r][v] : load(to) + acc[r][v]);
    }
}

#if defined(__AMX_TILE__)
// The same for kTileRows or half as many rows by tiles. n is a multiple of W, to which both operands are filled up with
// zeros; rows that are not there are computed from whatever follows, and their sums never read.
template <bool both>
static inline void multiply_tiles(const float* a, const float* b, int64_t n, bool first, float* c) {
  constexpr int64_t of_a = kTileDepth * sizeof(float), of_b = kWide * sizeof(float);
  if (first) {
    zero_tile<0>(), zero_tile<1>();
    if (both) zero_tile<2>(), zero_tile<3>();
  } else {
    load_tile<0>(c, of_b), load_tile<1>(c + W, of_b);
    if (both) load_tile<2>(c + 16 * kWide, of_b), load_tile<3>(c + 16 * kWide + W, of_b);
  }
  for (int64_t k = 0; k < n; k += W) {
    load_tile<6>(b + k * kWide, of_b);
    load_tile<4>(a + k, of_a);
    load_tile<7>(b + k * kWide + W, of_b);
    multiply_bf16_tiles<0, 4, 6>();
    multiply_bf16_tiles<1, 4, 7>();
    if (!both) continue;
    load_tile<5>(a + 16 * kTileDepth + k, of_a);
    multiply_bf16_tiles<2, 5, 6>();
    multiply_bf16_tiles<3, 5, 7>();
  }
  store_tile<0>(c, of_b), store_tile<1>(c + W, of_b);
  if (both) store_tile<2>(c + 16 * kWide, of_b), store_tile<3>(c + 16 * kWide + W, of_b);
}
#endif

template <typename P, int R = kStrip>
static inline void multiply_rows(int64_t rows, const float* a, const float* b, int64_t n, bool first, float* c) {
  if constexpr (R > 1)
    if (rows < R) return multiply_rows<P, R - 1>(rows, a, b, n, first, c);
  multiply_tile<P, R>(a, b, n, first, c);
}

// Rows of a strip times a panel.
template <typename P>
static inline void multiply_strip(int64_t rows, const float* a, const float* b, int64_t n, bool first, float* c) {
#if defined(__AMX_TILE__)
  if constexpr (P::tiles) {
    const int64_t whole = ceil_div(n, W) * W;
    return rows > 16 ? multiply_tiles<true>(a, b, whole, first, c) : multiply_tiles<false>(a, b, whole, first, c);
  }
#endif
  multiply_rows<P>(rows, a, b, n, first, c);
}

// A panel of n lanes from rows: lanes(c, k) are W lanes of column c from lane k on.
template <typename Lanes>
static inline void pack_transposed(int64_t columns, int64_t n, const Lanes& lanes, float* out) {
  for (int v = 0; v < 2; v++)
    for (int64_t k = 0; k < n; k += W) {
      vec m[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; i++) m[i] = v * W + i < columns ? lanes(v * W + i, k) : vec{};
      transpose(m);
#pragma GCC unroll 16
      for (int i = 0; i < W; i++) store(out + (k + i) * kWide + v * W, m[i]);
    }
}

// Lanes of a panel of P.
template <typename P>
constexpr int64_t depth_of = P::tiles ? kTileDepth : kDepth;

// All products of a problem. P has
//   count, rows, N, depth             products, rows of all their A, columns of B, lanes along k
//   first(p), last(p)                 the rows of product p
//   pack_a(row, rows, k, n, out)      n lanes from lane k of up to kPackRows rows, depth_of<P> apart in out
//   pack_b(p, column, columns, k, n, out, spare)   a panel; spare holds another
//   write(p, row, column, columns, sums)
//   multiply_add(a, b, sum), or tiles: lanes are pairs of bf16 for tiles to multiply
template <typename P>
static void gemm(Pool& pool, const P& problem) {
  constexpr int64_t strip = P::tiles ? kTileRows : kStrip, most_lanes = depth_of<P>;
  const int64_t depth = problem.depth, count = problem.count, blocks = ceil_div(depth, most_lanes);
  const int64_t fitting = kMostPacked / (blocks * most_lanes * int64_t(sizeof(float)));
  const int64_t most = fitting < strip ? strip : fitting < kMostRows ? fitting : kMostRows;
  const int64_t pass_rows = ceil_div(problem.rows, ceil_div(problem.rows, most));

  const int64_t panels = ceil_div(problem.N, kWide);
  int64_t width = panels * count / (8 * pool.threads());  // panels of an item, few enough for threads to end together
  width = width < 1 ? 1 : width > kMostPanels ? kMostPanels : width;
  const int64_t items = ceil_div(panels, width);
  constexpr int64_t panel_floats = most_lanes * kWide;
  const int64_t room_rows = P::tiles ? ceil_div(pass_rows, strip) * strip : pass_rows;  // tiles are read and written whole
  pool.reserve_own(size_t(2 * panel_floats + width * room_rows * kWide) * sizeof(float));
  float* packed = static_cast<float*>(
      pool.shared(Pool::kPanels, size_t(blocks * pass_rows + room_rows) * size_t(most_lanes) * sizeof(float)));
  const auto lanes_of = [&](int64_t block) { return block + 1 < blocks ? most_lanes : depth - block * most_lanes; };

  for (int64_t from = 0; from < problem.rows; from += pass_rows) {
    const int64_t to = from + pass_rows < problem.rows ? from + pass_rows : problem.rows;
    parallel(pool, ceil_div(to - from, kPackRows) * blocks, 4, [&](int64_t i, int64_t end, int) {
      for (; i < end; i++) {
        const int64_t row = i / blocks * kPackRows, block = i % blocks, left = to - from - row;
        const int64_t rows = left < kPackRows ? left : kPackRows, n = lanes_of(block);
        float* out = packed + (block * pass_rows + row) * most_lanes;
        problem.pack_a(from + row, rows, block * most_lanes, n, out);
        if (P::tiles && n % W)
          for (int64_t r = 0; r < rows; r++) store_part(out + r * most_lanes + n, vec{}, W - n % W);
      }
    });

    parallel(pool, items * count, 1, [&](int64_t item, int64_t end, int thread) {
      float *panel = static_cast<float*>(pool.own(thread)), *spare = panel + panel_floats, *sums = spare + panel_floats;
      const Tiles tiles;
      for (; item < end; item++) {
        const int64_t p = item / items, j = item % items * width, panels_end = j + width < panels ? j + width : panels;
        const int64_t first = problem.first(p) < from ? from : problem.first(p);
        const int64_t last = problem.last(p) < to ? problem.last(p) : to, rows = last - first;
        if (rows <= 0) continue;
        const int64_t strips = ceil_div(rows, strip);
        for (int64_t block = 0; block < blocks; block++) {
          const int64_t n = lanes_of(block);
          const float* a = packed + (block * pass_rows + first - from) * most_lanes;
          for (int64_t i = j; i < panels_end; i++) {
            const int64_t column = i * kWide, columns = problem.N - column < kWide ? problem.N - column : int64_t(kWide);
            problem.pack_b(p, column, columns, block * most_lanes, n, panel, spare);
            float* c = sums + (i - j) * room_rows * kWide;
            if (P::tiles) memset(panel + n * kWide, 0, size_t(ceil_div(n, W) * W - n) * kWide * sizeof(float));
            for (int64_t s = 0; s < strips; s++) {
              const int64_t r = P::tiles ? s * strip : s * rows / strips;
              const int64_t r_end = !P::tiles ? (s + 1) * rows / strips : r + strip < rows ? r + strip : rows;
              multiply_strip<P>(r_end - r, a + r * most_lanes, panel, n, block == 0, c + r * kWide);
              if (block + 1 == blocks)
                for (int64_t row = r; row < r_end; row++) problem.write(p, first + row, column, columns, c + row * kWide);
            }
          }
        }
      }
    });
  }
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

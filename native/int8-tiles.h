// Products of int8 for many rows of x by tiles of AMX (tiles.h). A tile multiplies a run of 16 rows of x by the same run of
// 16 rows of weights; both have a scale for each run, so its sums go through memory to be scaled and added in float32,
// in the order and with the roundings of micro() (linear-int8.cc): the same bits.
//
// What bounds it (bench/kernels.ts; single parts, one core of Sapphire Rapids): scaling 16 by 16 sums is 48 vector operations,
// 24 cycles; storing them 16; multiplying and loading about 12 to 16, where two tiles of x meet two of weights.

#pragma once

#include "int8-weights.h"

namespace llama4 {
namespace LLAMA4_ISA {

namespace {

#if defined(__AMX_TILE__)

// Columns taken apart at a time: with what tiles have of x and their sums, two registers of rows by them stay in the
// first-level cache.
constexpr int64_t kTileChunk = 256;

// Activations as tiles want them: block b of all rows side by side, integers and scales apart. The distance between the
// same row of two blocks is a quarter of a 4-KiB page, or as much behind a whole one: blocks that are multiplied
// together then lie in different sets of the first-level cache.
struct Planes {
  int64_t apart = 0;  // rows from a block to the next
  int8_t* q = nullptr;
  float *d = nullptr, *sd = nullptr;

  static int64_t apart_of(int64_t rows) { return rows <= 32 ? 32 : (rows - 32 + 127) / 128 * 128 + 32; }
  // A tile reads 16 rows, of which not all need exist.
  static size_t bytes(int64_t rows, int64_t I) { return size_t(I / 32 * apart_of(rows)) * 40 + 1024; }

  void fill(Pool& pool, const Quantized& x) {
    const int64_t blocks = x.I / 32;
    apart = apart_of(x.rows);
    q = static_cast<int8_t*>(pool.shared(Pool::kPanels, bytes(x.rows, x.I)));
    d = reinterpret_cast<float*>(q + blocks * apart * 32 + 1024);
    sd = d + blocks * apart;
    parallel(pool, (x.rows + 15) / 16, 1, [&](int64_t i, int64_t end, int) {
      for (; i < end; i++)
        for (int64_t b = 0; b < blocks; b++)
          for (int64_t t = 16 * i; t < 16 * i + 16 && t < x.rows; t++) {
            const ActBlock& from = *x.at(t, b);
            memcpy(q + (b * apart + t) * 32, from.q, 32);
            d[b * apart + t] = from.d;
            sd[b * apart + t] = from.sd;
          }
    });
  }
};

// Adds to y[n][2 W] (kPanel floats from row to row) what `Runs` runs from `run` on of a chunk give: those of 2 W rows of
// weights by n <= 32 rows of x from row t on. The chunk begins at block `block` of x.
template <int Type, int Runs>
void multiply_runs(const Unpacked<Type> (&w)[2], int64_t run, const Planes& x, int64_t block, int64_t t, int64_t n, bool fresh,
                   float* y) {
  using F = Format<Type>;
  constexpr int64_t run_bytes = F::steps * 4 * W;
  alignas(64) ivec whole[Runs][2][2][16];             // [run][16 rows of x][W rows of weights][row of x]
  const bool both = n > 16;
#pragma GCC unroll 4
  for (int k = 0; k < Runs; k++) {
    const int8_t* q = x.q + ((block + (run + k) / F::runs_of_x) * x.apart + t) * 32 + (run + k) % F::runs_of_x * 4 * F::steps;
    load_tile<4>(q, 32);
    load_tile<6>(w[0].integers + (run + k) * run_bytes, 4 * W);
    zero_tile<0>();
    multiply_int8_tiles<0, 4, 6>();
    load_tile<7>(w[1].integers + (run + k) * run_bytes, 4 * W);
    zero_tile<1>();
    multiply_int8_tiles<1, 4, 7>();
    if (both) {
      load_tile<5>(q + 16 * 32, 32);
      zero_tile<2>();
      multiply_int8_tiles<2, 5, 6>();
      zero_tile<3>();
      multiply_int8_tiles<3, 5, 7>();
    }
    store_tile<0>(whole[k][0][0], 64), store_tile<1>(whole[k][0][1], 64);
    if (both) store_tile<2>(whole[k][1][0], 64), store_tile<3>(whole[k][1][1], 64);
  }
  vec scale[Runs][2], min[Runs][2];
  int64_t at[Runs];  // of a row's scale
#pragma GCC unroll 4
  for (int k = 0; k < Runs; k++) {
    at[k] = (block + (run + k) / F::runs_of_x) * x.apart + t;
    for (int v = 0; v < 2; v++) {
      scale[k][v] = load(w[v].scales + (run + k) * W);
      if (F::minima) min[k][v] = load(w[v].mins + (run + k) * W);
    }
  }
  for (int64_t i = 0; i < n; i++, y += kPanel) {
    vec acc[2] = {fresh ? vec{} : load(y), fresh ? vec{} : load(y + W)};
#pragma GCC unroll 4
    for (int k = 0; k < Runs; k++) {
      const ivec(*sums)[16] = whole[k][i / 16];
      const vec d = splat(x.d[at[k] + i]);
#pragma GCC unroll 2
      for (int v = 0; v < 2; v++) acc[v] += __builtin_convertvector(sums[v][i % 16], vec) * (scale[k][v] * d);
      if (F::minima) {
        const vec sd = splat(x.sd[at[k] + i]);
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++) acc[v] -= min[k][v] * sd;
      }
    }
    store(y, acc[0]), store(y + W, acc[1]);
  }
}

// Rows [first, first + T) of x by a panel of weights, as panel_of() has it.
template <int Type>
void panel_by_tiles(const uint8_t* w, int64_t groups, const uint8_t* next, const Planes& x, int64_t I, int64_t first,
                    int64_t T, float* sums, uint8_t* scratch) {
  constexpr int64_t block = Format<Type>::block, chunk = kTileChunk / block;
  const int64_t blocks = I / block;
  const Tiles tiles(4 * Format<Type>::steps);
  Unpacked<Type> unpacked[2];
  for (int v = 0; v < 2; v++) unpacked[v].open(scratch + v * Unpacked<Type>::bytes);
  for (int64_t v = 0; v < groups; v += 2) {
    Packed<Type> packed[2];
    open_rows(w, groups, blocks, v, next, packed);
    for (int64_t b = 0; b < blocks; b += chunk) {
      const int64_t count = blocks - b < chunk ? blocks - b : chunk, runs = count * Format<Type>::runs;
      for (int i = 0; i < 2; i++) unpacked[i].fill(packed[i], b, count);
      for (int64_t t = 0; t < T; t += 32) {
        const int64_t n = T - t < 32 ? T - t : 32;
        float* y = sums + t * kPanel + v * W;
        int64_t run = 0;
        for (; run + 4 <= runs; run += 4)
          multiply_runs<Type, 4>(unpacked, run, x, b * block / 32, first + t, n, b + run == 0, y);
        if constexpr (Format<Type>::runs % 4 != 0)  // else none is left
          for (; run < runs; run++) multiply_runs<Type, 1>(unpacked, run, x, b * block / 32, first + t, n, b + run == 0, y);
      }
    }
  }
}

#else

struct Planes {
  void fill(Pool&, const Quantized&) {}
};

#endif

}  // namespace

}  // namespace LLAMA4_ISA
}  // namespace llama4

// y[t, o] = Σᵢ bf16(x[t, i]) · bf16(w[o, i]) + b[o]        reference: linear(), whose factors are rounded to bf16 here
//
// Two neighbouring k a lane; sums are float32. The avx512 object alone is compiled with AVX512_BF16, which not every
// such processor has. With tiles, few rows take the weights as they lie in memory for A, 16 rows of them at a time, and
// x for B: the same sums in the same order as those of many rows (gemm.h).

#include "pairs.h"
#include "product.h"

namespace llama4 {
namespace LLAMA4_ISA {

#if defined(__AVX512BF16__)

namespace {

#if defined(__AMX_TILE__)

constexpr int64_t kTileTokens = 16, kColumns = 64;  // rows of weights in an item: four tiles of sums

// Lane k of T tokens at out[k][16], lanes up to a multiple of W.
void pack_tokens(const float* x, int64_t T, int64_t I, float* out) {
  for (int64_t k = 0; 2 * k < I; k += W) {
    vec m[W];
    for (int t = 0; t < W; t++) m[t] = t < T ? Pairs::load(x + t * I, k, I) : vec{};
    transpose(m);
    for (int i = 0; i < W; i++) store(out + (k + i) * kTileTokens, m[i]);
  }
}

// Adds to sum tile G what 16 rows of w from `row` on, of which `rows` exist, give for lanes [k, k + W).
template <int G>
inline void multiply_group(const bf16* w, int64_t rows, int64_t k, int64_t I) {
  constexpr int A = 4 + G % 2;
  const bf16* from = w + G * 16 * I + 2 * k;
  const int64_t n = rows - G * 16;
  if (n >= 16 && 2 * (k + W) <= I) {
    load_tile<A>(from, 2 * I);
  } else {
    alignas(64) vec padded[16] = {};
    for (int64_t r = 0; r < n && r < 16; r++) padded[r] = Pairs::load(from + r * I - 2 * k, k, I);
    load_tile<A>(padded, 64);
  }
  multiply_bf16_tiles<G, A, 6>();
}

// sums[row][token] of up to kColumns rows of w.
void multiply_columns(const bf16* w, int64_t rows, const float* x, int64_t I, float* sums) {
  const int64_t depth = ceil_div(I, 2);
  zero_tile<0>(), zero_tile<1>(), zero_tile<2>(), zero_tile<3>();
  for (int64_t k = 0; k < depth; k += W) {
    // Each step asks for its share, whole runs of a row, of what comes kDepth lanes later: memory likes runs.
    constexpr int64_t line = 32, lines = 2 * kDepth / line, share = kColumns * W / kDepth;  // rows a step
    const int64_t block = k / kDepth * kDepth, step = (k - block) / W;
    const bf16* next = (block + kDepth < depth ? w + 2 * (block + kDepth) : w + kColumns * I) + step * share * I;
    for (int64_t r = 0; r < share; r++)
      for (int64_t i = 0; i < lines; i++) __builtin_prefetch(next + r * I + i * line, 0, 2);
    load_tile<6>(x + k * kTileTokens, 64);
    multiply_group<0>(w, rows, k, I);
    multiply_group<1>(w, rows, k, I);
    multiply_group<2>(w, rows, k, I);
    multiply_group<3>(w, rows, k, I);
  }
  store_tile<0>(sums, 64), store_tile<1>(sums + 256, 64), store_tile<2>(sums + 512, 64), store_tile<3>(sums + 768, 64);
}

void multiply_few_tiles(Pool& pool, const Linear& l) {
  const int64_t items = ceil_div(l.O, kColumns), lanes = ceil_div(ceil_div(l.I, 2), W) * W;
  pool.reserve_own(size_t(lanes * kTileTokens + kColumns * kTileTokens) * sizeof(float));
  parallel(pool, items * l.count, 1, [&](int64_t item, int64_t end, int thread) {
    float *x = static_cast<float*>(pool.own(thread)), *sums = x + lanes * kTileTokens;
    const Tiles tiles;
    for (int64_t before = -1; item < end; item++) {
      const Product& product = l.products[item / items];
      if (product.T > kTileTokens) continue;
      if (item / items != before) pack_tokens(l.x + product.row * l.I, product.T, l.I, x);
      before = item / items;
      const int64_t o = item % items * kColumns, rows = l.O - o < kColumns ? l.O - o : kColumns;
      multiply_columns(static_cast<const bf16*>(product.w) + o * l.I, rows, x, l.I, sums);
      for (int64_t r = 0; r < rows; r += W) {
        vec m[W];
        for (int i = 0; i < W; i++) m[i] = load(sums + (r + i) * kTileTokens);
        transpose(m);
        for (int64_t t = 0; t < product.T; t++) write_sums(l, product.y + t * l.O, o + r, rows - r, m[t]);
      }
    }
  });
}

#endif

}  // namespace

bool has_bf16() {
  static const bool has = __builtin_cpu_supports("avx512bf16");
  return has;
}
void linear_bf16(Pool& pool, const Linear& l) {
#if defined(__AMX_TILE__)
  multiply<Pairs>(pool, l, plain(l.type) == kBF16 ? kTileTokens : 0, multiply_few_tiles);
#else
  multiply<Pairs>(pool, l);
#endif
}

#else

bool has_bf16() { return false; }
void linear_bf16(Pool&, const Linear&) {}

#endif

}  // namespace LLAMA4_ISA
}  // namespace llama4

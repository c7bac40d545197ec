// The token that a random number draws from softmax(logits · scale), cut to its nucleus and to what is not too unlikely;
// the likeliest, of equals the first, where the scale is infinite.        reference: src/engine/sampler.ts
//
// Weights eˣ beside the likeliest, which weighs 1, are float32 to 2 ulp, sums of a block float32 too, and sums over blocks
// double: probabilities are exact to about 10⁻⁷.

#include "kernels.h"
#include "simd.h"

namespace llama4 {
namespace LLAMA4_ISA {

namespace {

constexpr int64_t kBlock = 256;
static_assert(kBlock % W == 0, "blocks are whole registers");

struct Weights {
  float* w;     // zero beyond the vocabulary, to the end of its last block
  float* tops;  // the largest of each block: what is far behind is passed over by blocks
  int64_t blocks;
};

float of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Σ of the weights of a block that are at least `least`.
double block_sum(const Weights& all, int64_t block, float least) {
  if (all.tops[block] < least) return 0;
  const float* w = all.w + block * kBlock;
  vec total{};
  const vec bound = splat(least);
  for (int64_t i = 0; i < kBlock; i += W) {
    const vec x = load(w + i);
    total = total + (x >= bound ? x : vec{});
  }
  return double(sum(total));
}

double sum_from(const Weights& all, float least) {
  double total = 0;
  for (int64_t b = 0; b < all.blocks; b++) total += block_sum(all, b, least);
  return total;
}

// The largest weight w such that all weights of at least w add up to more than `limit`. By halving: the bits of positive
// floats are in the order of their values.
float edge_of(const Weights& all, double limit) {
  uint32_t low = bits_of(__FLT_MIN__), high = bits_of(1) + 1;
  while (high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    (sum_from(all, of_bits(middle)) > limit ? low : high) = middle;
  }
  return of_bits(low);
}

// Of the weights equal to the edge, so many bring the sum above the limit.
int64_t equals_kept(const Weights& all, float edge, double limit) {
  const double before = sum_from(all, of_bits(bits_of(edge) + 1));
  const double kept = (limit - before) / double(edge) + 1;
  return kept < double(all.blocks * kBlock) ? int64_t(kept) : all.blocks * kBlock;
}

// What the weights from `edge` on, of those equal to it the first few, draw for u.
int64_t pick(const Weights& all, float edge, double u) {
  double left = u * sum_from(all, edge);
  int64_t block = 0;
  bool is_inside = false;
  for (int64_t b = 0; b < all.blocks && !is_inside; b++) {
    const double weight = block_sum(all, b, edge);
    if (weight == 0) continue;
    block = b;
    is_inside = left < weight;
    if (!is_inside) left -= weight;
  }
  int64_t token = -1;  // the last one where rounding has eaten the last sliver
  for (int64_t i = block * kBlock; i < (block + 1) * kBlock && (left >= 0 || !is_inside); i++) {
    if (all.w[i] < edge || all.w[i] == 0) continue;
    token = i;
    left -= double(all.w[i]);
  }
  return token;
}

// The largest logit; NaN where one is no number, or infinite, or all are -Infinity.
float top_of(const float* logits, int64_t V) {
  vec tops = splat(logits[0]);
  ivec fine = tops == tops;
  const auto look = [&](vec x) {
    tops = max(x, tops);
    fine &= x < splat(__builtin_inff());
  };
  int64_t i = 0;
  for (; i + W <= V; i += W) look(load(logits + i));
  for (; i < V; i++) look(splat(logits[i]));
  const float top = largest(tops);
  bool all_fine = top > -__builtin_inff();
  for (int lane = 0; lane < W; lane++) all_fine = all_fine && fine[lane];
  return all_fine ? top : __builtin_nanf("");
}

}  // namespace

int64_t draw(Pool& pool, const float* logits, int64_t V, const Draw& how) {
  const float top = top_of(logits, V);
  if (top != top) return -1;
  if (how.scale == __builtin_inff()) {
    int64_t i = 0;
    while (logits[i] != top) i++;
    return i;
  }
  const int64_t blocks = (V + kBlock - 1) / kBlock;
  float* w = static_cast<float*>(pool.shared(Pool::kOperation, size_t(blocks * (kBlock + 1)) * sizeof(float)));
  const Weights all{w, w + blocks * kBlock, blocks};
  const auto weight = [&](vec x) { return exp((x - splat(top)) * splat(how.scale)); };
  each_vec(V, [&](int64_t i) { store(w + i, weight(load(logits + i))); },
           [&](int64_t i, int64_t part) { store(w + i, weight(load_part(logits + i, part))); });
  for (int64_t i = V; i < blocks * kBlock; i++) w[i] = 0;
  for (int64_t b = 0; b < blocks; b++) {
    vec tops{};
    for (int64_t i = 0; i < kBlock; i += W) tops = max(tops, load(w + b * kBlock + i));
    all.tops[b] = largest(tops);
  }
  float edge = how.min_p;
  if (how.top_p < 1) {
    const double limit = how.top_p * sum_from(all, 0);
    const float nucleus = edge_of(all, limit);
    if (nucleus >= edge) {
      edge = nucleus;
      int64_t kept = equals_kept(all, edge, limit);
      for (int64_t i = 0; i < V; i++)
        if (w[i] == edge && --kept < 0) w[i] = 0;
    }
  }
  return pick(all, edge, how.u);
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

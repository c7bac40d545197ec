// y[t, o] = Σ_b dw_b · dx_b · Σᵢ qw[i] · qx[i]        reference: linear(), whose x is rounded to int8 here
//
// Activations: blocks of 32, dx = max|x| / 127, so that each is off by at most dx / 2. Weights are packed (packed.h):
// a register holds four neighbouring elements of W rows, and one instruction multiplies them with the same four of a
// token. Sums inside a block are exact integers; blocks are added in float32 in their order. So a result depends
// neither on the other tokens nor on the threads: bit for bit the same for one token and for many.
//
// A panel is 64 rows of weights, or 128 (panel_rows). For a few tokens its integers are taken apart in registers, on their
// way from memory; for many a chunk of columns at a time stays in a near cache, and where taking it apart is work, that is
// done once. Where there are tiles, these multiply many tokens (int8-tiles.h): the integers are the same, and so is what
// follows from them.

#include <atomic>

#include "int8-tiles.h"
#include "int8-weights.h"
#include "int8.h"

namespace llama4 {
namespace LLAMA4_ISA {

namespace {

constexpr int kVectors = 2;            // registers of rows side by side
constexpr int kTokens = kFewTokens;    // with two registers of rows and 6 of them, 12 sums and 12 results stay in registers
// The same for one token, and with AVX-512 for up to three where a block has one scale: they wait for memory, and with AVX-512
// these are so many streams of it.
constexpr int kOneVectors = 4;
// A token's sums are scaled so many tokens after their last product, which hides its latency. AVX2 has no registers for that.
constexpr int kBehind = W == 16 ? 2 : kTokens;
// Registers of rows that are taken apart together. All of a panel: tokens come into the first-level cache once for them.
constexpr int kApart = W == 16 ? kVectors : kPanel / W;
constexpr int64_t kMostTaken = 512;    // rows that a thread takes at once, for few tokens: more gain nothing, and weigh at the end
constexpr int64_t kMostTokens = 512;   // of a pass over a panel: their sums take 128 KiB
// With AVX2 and more tokens than that, their activations are in no near cache, and are asked for a part ahead.
constexpr int64_t kNearTokens = W == 8 ? 128 : kMostTokens;

// --- a run's integer sums: W rows by one token ---

// Four bytes in every lane.
inline ivec broadcast(const void* p) {
  int32_t four;
  memcpy(&four, p, 4);
#if defined(__AVX512F__)
  return (ivec)_mm512_set1_epi32(four);
#elif defined(__AVX2__)
  return (ivec)_mm256_set1_epi32(four);
#else
  return ivec{} + four;
#endif
}

// What a run's sum begins with, which makes up for the shift of the weights.
template <typename F>
inline ivec start(const ActBlock& x, int half) {
  if constexpr (F::shift < 0 || F::is_signed) return ivec{};
  else if constexpr (F::shift == ActBlock::shift_q4_0) return broadcast(&x.minus_q4_0);
  else if constexpr (F::shift == ActBlock::shift_q6_k) return broadcast(x.minus_q6_k + half);
  else {
    static_assert(F::shift == ActBlock::shift_q8_0_or_q5_k);
    return broadcast(&x.minus_q8_0_or_q5_k);
  }
}

template <typename F>
inline ivec dot(ivec sum, uvec u, ivec x) {
#if defined(__AVX512VNNI__)
  return (ivec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)u, (__m512i)x);
#elif defined(__AVX2__)
  const __m256i pairs = F::is_signed ? _mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)u), _mm256_sign_epi8((__m256i)x, (__m256i)u))
                                     : _mm256_maddubs_epi16((__m256i)u, (__m256i)x);
  sum = F::narrow ? (ivec)_mm256_add_epi16((__m256i)sum, pairs) : sum + (ivec)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  asm("" : "+x"(sum));  // one after the other: GCC 12 would make a tree of a run's sums, and keep its leaves in memory
  return sum;
#else
  for (int k = 0; k < 32; k += 8) sum += (ivec)((u >> k) & 255) * ((x << (24 - k)) >> 24);
  return sum;
#endif
}

template <typename F>
inline ivec finish(ivec sum) {
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
  if (F::narrow) return (ivec)_mm256_madd_epi16((__m256i)sum, _mm256_set1_epi16(1));
#endif
  return sum;
}

// y[n][v] (kPanel floats from token to token) of V registers of rows by N tokens over blocks [from, to) of both; added to
// what is there unless `fresh`. With `ahead`, asks for the same blocks of the next N tokens.
template <typename Weights, int V, int N>
void micro(Weights* w, int64_t from, int64_t to, const ActBlock* acts, int64_t width, bool fresh, bool ahead, float* y) {
  vec acc[V][N];
#pragma GCC unroll 8
  for (int v = 0; v < V; v++)
#pragma GCC unroll 6
    for (int n = 0; n < N; n++) acc[v][n] = fresh ? vec{} : load(y + n * kPanel + v * W);
  // `near` is of token 0, `far` of token 3: the others are once or twice a stride further, which an address can hold. AVX2's
  // tokens are so few that a pointer for each finds a register.
  constexpr bool pointers = W == 8 && N > 1;
  const int64_t stride = width * int64_t(sizeof(ActBlock));
  const char *near = reinterpret_cast<const char*>(acts + from * (Weights::block / 32)), *far = near + 3 * stride;
  for (int64_t b = from; b < to; b++) {
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) w[v].begin(b);
    each_block_of_x<Weights>([&](int base, int first) __attribute__((always_inline)) {
      // Opaque, or GCC makes an address of each token outside the loop, and keeps it in memory.
      asm("" : "+r"(near), "+r"(far));
      [[maybe_unused]] const char* at[N];
      if (pointers)
#pragma GCC unroll 6
        for (int n = 0; n < N; n++) {
          at[n] = near + n * stride;
          asm("" : "+r"(at[n]));
        }
      const auto x = [&](int n) __attribute__((always_inline)) -> const ActBlock& {
        const char* found = pointers ? at[n] : n < 3 ? near + n * stride : far + (n - 3) * stride;
        return *reinterpret_cast<const ActBlock*>(found);
      };
      if (kNearTokens < kMostTokens && ahead)
#pragma GCC unroll 6
        for (int n = 0; n < N; n++) __builtin_prefetch(near + (N + n) * stride, 0, 3);
      const auto add = [&](int r, int half) __attribute__((always_inline)) {
        asm("" : "+r"(near), "+r"(far));  // for each half anew
        const int run = base + r;
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) w[v].ask(run);
        ivec sum[V][N];
#pragma GCC unroll 6
        for (int n = 0; n < N; n++)
#pragma GCC unroll 8
          for (int v = 0; v < V; v++) sum[v][n] = start<Weights>(x(n), half);
        const auto scaled = [&](int n) __attribute__((always_inline)) {
#pragma GCC unroll 8
          for (int v = 0; v < V; v++) {
            const vec whole = __builtin_convertvector(finish<Weights>(sum[v][n]), vec);
            acc[v][n] += whole * (w[v].scale(run) * splat(x(n).d));
            if (Weights::minima) acc[v][n] -= w[v].min(run) * splat(x(n).sd);
          }
        };
#pragma GCC unroll 8
        for (int j = 0; j < Weights::steps; j++) {
          uvec u[V];
#pragma GCC unroll 8
          for (int v = 0; v < V; v++) u[v] = w[v].step(base, r, j);
#pragma GCC unroll 6
          for (int n = 0; n < N; n++) {
            const ivec four = broadcast(x(n).q + 16 * half + 4 * j);
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) sum[v][n] = dot<Weights>(sum[v][n], u[v], four);
            if (j == Weights::steps - 1 && n >= kBehind) scaled(n - kBehind);
          }
        }
#pragma GCC unroll 6
        for (int n = N > kBehind ? N - kBehind : 0; n < N; n++) scaled(n);
      };
      // A loop, even unrolled, keeps AVX2's shifts from being constants (0.66 of the speed); calls cost AVX-512 a fifteenth.
      if constexpr (Weights::unrolled > 1) {
        add(first, 0);
        if (Weights::runs_of_x == 2) add(first + 1, 1);
      } else {
#pragma GCC unroll 2
        for (int half = 0; half < Weights::runs_of_x; half++) add(first + half, half);
      }
      near += sizeof(ActBlock);
      far += sizeof(ActBlock);
    });
  }
#pragma GCC unroll 8
  for (int v = 0; v < V; v++)
#pragma GCC unroll 6
    for (int n = 0; n < N; n++) store(y + n * kPanel + v * W, acc[v][n]);
}

template <typename Weights>
inline void micro(int N, Weights* w, int64_t from, int64_t to, const ActBlock* x, int64_t width, bool fresh, bool ahead,
                  float* y) {
  switch (N) {
    case 1: return micro<Weights, kVectors, 1>(w, from, to, x, width, fresh, ahead, y);
    case 2: return micro<Weights, kVectors, 2>(w, from, to, x, width, fresh, ahead, y);
    case 3: return micro<Weights, kVectors, 3>(w, from, to, x, width, fresh, ahead, y);
    case 4: return micro<Weights, kVectors, 4>(w, from, to, x, width, fresh, ahead, y);
#if defined(__AVX512F__)
    case 5: return micro<Weights, kVectors, 5>(w, from, to, x, width, fresh, ahead, y);
    case 6: return micro<Weights, kVectors, 6>(w, from, to, x, width, fresh, ahead, y);
#endif
  }
}

// The panel's rows by N tokens, V registers at a time.
template <int Type, int V, int N, int64_t Ahead>
void stream_panel(const uint8_t* w, int64_t groups, int64_t blocks, const uint8_t* next, const Quantized& x, int64_t first,
                  float* sums) {
  for (int64_t v = 0; v < groups * kGroup / W; v += V) {
    Packed<Type, Ahead> packed[V];
    open_rows(w, groups, blocks, v, next, packed);
    micro<Packed<Type, Ahead>, V, N>(packed, 0, blocks, x.at(first, 0), x.width, true, false, sums + v * W);
  }
}
template <int Type, int V, int N>
void stream_panel(const uint8_t* w, int64_t groups, int64_t blocks, const uint8_t* next, const Quantized& x, int64_t first,
                  float* sums) {
  // In the first-level cache what all streams together have asked for is in the way of the rest, soonest where little is done with
  // each byte (measured: docs/performance.md, "Streams of memory").
  constexpr int64_t waiting = Format<Type>::runs == 1 ? 4096 : 8192, streams = V * W / kGroup;
  if (asks_first_level) stream_panel<Type, V, N, waiting / streams>(w, groups, blocks, next, x, first, sums);
  else stream_panel<Type, V, N, kAhead>(w, groups, blocks, next, x, first, sums);
}

// sums[t][row of the panel] for T tokens from x's row `first` on. `groups` of the panel's exist. `next` is the panel that
// the thread comes to after this one.
template <int Type>
void panel_of(const uint8_t* w, int64_t groups, const uint8_t* next, const Quantized& x, [[maybe_unused]] const Planes& planes,
              int64_t first, int64_t T, float* sums, uint8_t* scratch) {
#if defined(__AMX_TILE__)
  if (T > kTokens) return panel_by_tiles<Type>(w, groups, next, planes, x.I, first, T, sums, scratch);
#endif
  constexpr int64_t block = Format<Type>::block, chunk = kChunk / block;
  const int64_t blocks = x.I / block, registers = groups * kGroup / W;
  if constexpr (Packed<Type>::in_place) {
    if (T == 2) return stream_panel<Type, kOneVectors, 2>(w, groups, blocks, next, x, first, sums);
    if (T == 3) return stream_panel<Type, kOneVectors, 3>(w, groups, blocks, next, x, first, sums);
  }
  if constexpr (Type == kQ8_0)  // of a long panel
    if (T == 1 && groups > kPanel / kGroup) return stream_panel<Type, 2 * kOneVectors, 1>(w, groups, blocks, next, x, first, sums);
  if (T == 1) return stream_panel<Type, kOneVectors, 1>(w, groups, blocks, next, x, first, sums);
  const int64_t parts = (T + kTokens - 1) / kTokens;  // of about equal size
  const auto part = [&](int64_t p, auto* weights, int64_t v, int64_t from, int64_t to, bool ahead) {
    const int64_t t = p * T / parts, end = (p + 1) * T / parts;
    micro(int(end - t), weights, from, to, x.at(first + t, 0), x.width, from == 0, ahead, sums + t * kPanel + v * W);
  };
  if (Packed<Type>::in_place || parts == 1) {
    for (int64_t v = 0; v < registers; v += kVectors) {
      Packed<Type> packed[kVectors];
      open_rows(w, groups, blocks, v, next, packed);
      for (int64_t b = 0, to; b < blocks; b = to) {
        to = parts == 1 || blocks - b < chunk ? blocks : b + chunk;
        for (int64_t p = 0; p < parts; p++) part(p, packed, v, b, to, false);
      }
    }
    return;
  }
  if constexpr (!Packed<Type>::in_place) {
    for (int64_t v = 0; v < registers; v += kApart) {
      Packed<Type> packed[kApart];
      open_rows(w, groups, blocks, v, next, packed);
      Unpacked<Type> unpacked[kApart];
      for (int i = 0; i < kApart; i++) unpacked[i].open(scratch + i * Unpacked<Type>::bytes);
      const int64_t left = (registers - v + kVectors - 1) / kVectors * kVectors, here = left < kApart ? left : kApart;
      for (int64_t b = 0; b < blocks; b += chunk) {
        const int64_t count = blocks - b < chunk ? blocks - b : chunk;
        for (int64_t i = 0; i < here; i++) {
          unpacked[i].fill(packed[i], b, count);
          unpacked[i].expect(packed[i], b + count, count, blocks, parts);
        }
        for (int64_t p = 0; p < parts; p++)
          for (int64_t i = 0; i < here; i += kVectors)
            part(p, unpacked + i, v + i, b, b + count, i == 0 && T > kNearTokens);
      }
    }
  }
}

void panel(int type, const uint8_t* w, int64_t groups, const uint8_t* next, const Quantized& x, const Planes& planes,
           int64_t first, int64_t T, float* sums, uint8_t* scratch) {
  switch (type) {
    case kQ8_0: return panel_of<kQ8_0>(w, groups, next, x, planes, first, T, sums, scratch);
    case kQ4_0: return panel_of<kQ4_0>(w, groups, next, x, planes, first, T, sums, scratch);
    case kQ4_K: return panel_of<kQ4_K>(w, groups, next, x, planes, first, T, sums, scratch);
    case kQ5_K: return panel_of<kQ5_K>(w, groups, next, x, planes, first, T, sums, scratch);
    case kQ6_K: return panel_of<kQ6_K>(w, groups, next, x, planes, first, T, sums, scratch);
  }
}

constexpr size_t kScratch = kApart * Unpacked<kQ6_K>::bytes;  // the one with the most scales

// Where a panel of rows lies in a packed matrix, `most` rows a panel, and how many rows and groups it has.
struct Panel {
  int64_t row, rows, groups;
  const uint8_t* w;
};
inline Panel panel_at(const uint8_t* w, int type, int64_t O, int64_t I, int64_t most, int64_t index) {
  const Block block = block_of(type);
  const int64_t row = index * most, rows = O - row < most ? O - row : most;
  return {row, rows, (rows + kGroup - 1) / kGroup, w + row * (I / block.elements) * block.bytes};
}

inline int64_t rows_of(const Int8Product& p) { return p.O; }
inline int64_t rows_of(const Int8Gated& p) { return p.F; }
inline bool is_q8_0(const Int8Product& p) { return p.type == kQ8_0; }
inline bool is_q8_0(const Int8Gated& p) { return p.gate_type == kQ8_0 && p.up_type == kQ8_0; }

// Rows of a product's panels: one token of q8_0 on Zen 5 takes eight streams of memory at a time, if enough panels are left for
// every thread. `sums` has room for them: one token has no second row of sums.
template <typename P>
int64_t panel_rows(const P& p, int threads) {
  const bool is_long = W == kGroup && p.T == 1 && is_q8_0(p) && asks_first_level && rows_of(p) >= 4 * threads * kPanel;
  return is_long ? 2 * kPanel : kPanel;
}

// Calls f(place, next place, thread) for every panel of every product. A thread knows its next panel before it works on one, so that it knows what to ask memory for; the last has itself as next.
// For few tokens it takes neighbouring panels, half of an even share of what is left, one in the end: a jump and a locked addition
// for each cost a twentieth. Of many tokens, products have different numbers, so that panels are unlike, and are taken one by one.
template <typename P>
struct Place {
  const P* product;
  int64_t panel;
};
template <typename P, typename F>
void each_panel(Pool& pool, const P* products, int64_t count, const F& f) {
  const auto panels = [&](const P& p) {
    const int64_t rows = panel_rows(p, pool.threads());
    return (rows_of(p) + rows - 1) / rows;
  };
  int64_t total = 0, most = kMostTaken / kPanel;
  for (int64_t i = 0; i < count; i++) {
    total += panels(products[i]);
    const int64_t n = products[i].T > kTokens ? 1 : kMostTaken / panel_rows(products[i], pool.threads());
    most = n < most ? n : most;
  }
  const int64_t threads = pool.threads() < total ? pool.threads() : total;
  struct alignas(64) {  // what all threads write has a line of its own
    std::atomic<int64_t> panels{0};
  } taken;
  parallel(pool, threads, 1, [&](int64_t, int64_t, int thread) {
    int64_t end = 0;  // of the panels that this thread has taken; the counter alone is shared, so its order is enough
    const auto take = [&](int64_t item) {
      if (item < end) return item;
      const int64_t left = (total - taken.panels.load(std::memory_order_relaxed)) / (2 * threads);
      const int64_t n = left < 1 ? 1 : left < most ? left : most;
      const int64_t first = taken.panels.fetch_add(n, std::memory_order_relaxed);
      end = first + n < total ? first + n : total;
      return first;
    };
    Place<P> place{products, 0};
    int64_t item = take(0);
    const auto to = [&](Place<P> from, int64_t by) {
      for (from.panel += by; from.panel >= panels(*from.product); from.product++) from.panel -= panels(*from.product);
      return from;
    };
    if (item < total) place = to(place, item);
    while (item < total) {
      const int64_t following = take(item + 1);
      const Place<P> next = following < total ? to(place, following - item) : place;
      f(place, next, thread);
      item = following;
      place = next;
    }
  });
}

// For the products that tiles take.
template <typename P>
Planes planes_of(Pool& pool, const Quantized& x, const P* products, int64_t count) {
  Planes planes;
  bool any = false;
  for (int64_t i = 0; i < count; i++) any |= kTiles && products[i].T > kTokens;
  if (any) planes.fill(pool, x);
  return planes;
}

// A sum times 2^by: with AVX2 the two that a word holds, each in its 16 bits.
inline int32_t shifted(int32_t sum, int by) {
  const uint32_t bits = uint32_t(sum);
  if (W != 8) return int32_t(bits << by);
  return int32_t(((bits << by) & 0xffff) | ((bits >> 16) << (16 + by)));
}

// An infinity or NaN makes the whole block NaN, so that it is seen in the end.
inline void quantize_block(const float* x, float factor, ActBlock& to) {
  vec most{}, zero{};
  for (int i = 0; i < 32; i += W) {
    const vec v = load(x + i);
    most = max(most, max(v, -v));
    zero += v - v;
  }
  const float scale = largest(most) / 127.0f + sum(zero);
  if (scale != scale) {
    memset(to.q, 0, 32);
    to.d = to.sd = scale;
    to.minus_q4_0 = to.minus_q8_0_or_q5_k = to.minus_q6_k[0] = to.minus_q6_k[1] = 0;
    return;
  }
  const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
  int32_t sums[2], minus[2];  // of the halves
#if defined(__AVX512F__)
  for (int half = 0; half < 2; half++) {
    const __m512i whole = _mm512_cvtps_epi32(_mm512_loadu_ps(x + 16 * half) * splat(inverse));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to.q + 16 * half), _mm512_cvtsepi32_epi8(whole));
    sums[half] = _mm512_reduce_add_epi32(whole);
    minus[half] = -sums[half];
  }
  const int32_t both = minus[0] + minus[1];
#elif defined(__AVX2__)
  __m256i whole[4];
  for (int i = 0; i < 4; i++) whole[i] = _mm256_cvtps_epi32(load(x + 8 * i) * splat(inverse));
  const __m256i fours = _mm256_packs_epi16(_mm256_packs_epi32(whole[0], whole[1]), _mm256_packs_epi32(whole[2], whole[3]));
  const __m256i bytes = _mm256_permutevar8x32_epi32(fours, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to.q), bytes);
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
  __m128i apart[2] = {_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1)};  // Σ of first and of second pairs
  for (int half = 0; half < 2; half++) {
    apart[half] = _mm_add_epi16(apart[half], _mm_shuffle_epi32(apart[half], 0x4e));
    apart[half] = _mm_add_epi16(apart[half], _mm_shuffle_epi32(apart[half], 0xb1));
    sums[half] = _mm_cvtsi128_si32(_mm_madd_epi16(apart[half], _mm_set1_epi16(1)));
    apart[half] = _mm_sub_epi16(_mm_setzero_si128(), apart[half]);
    minus[half] = _mm_cvtsi128_si32(apart[half]);
  }
  const int32_t both = _mm_cvtsi128_si32(_mm_add_epi16(apart[0], apart[1]));
#else
  const vec magic = splat(12582912.0f);  // rounds to the nearest whole number, ties to even
  for (int half = 0; half < 2; half++) {
    ivec total{};
    for (int i = 16 * half; i < 16 * half + 16; i += W) {
      const ivec whole = __builtin_convertvector((load(x + i) * splat(inverse) + magic) - magic, ivec);
      total += whole;
      for (int j = 0; j < W; j++) to.q[i + j] = int8_t(whole[j]);
    }
    sums[half] = 0;
    for (int j = 0; j < W; j++) sums[half] += total[j];
    minus[half] = -sums[half];
  }
  const int32_t both = minus[0] + minus[1];
#endif
  to.d = scale * factor;
  to.sd = scale * factor * float(sums[0] + sums[1]);
  to.minus_q4_0 = shifted(both, ActBlock::shift_q4_0);
  to.minus_q8_0_or_q5_k = shifted(both, ActBlock::shift_q8_0_or_q5_k);
  for (int half = 0; half < 2; half++) to.minus_q6_k[half] = shifted(minus[half], ActBlock::shift_q6_k);
}

}  // namespace

void Quantized::set(int64_t t, int64_t first, const float* x, int64_t n, float scale) const {
  for (int64_t b = 0; b < n / 32; b++) quantize_block(x + 32 * b, scale, *at(t, first / 32 + b));
}

void Quantized::copy(int64_t t, const Quantized& x, int64_t row) const {
  for (int64_t b = 0; b < I / 32; b++) *at(t, b) = *x.at(row, b);
}

// x [rows, I], quantized by all threads.
static Quantized quantized(Pool& pool, const float* x, int64_t rows, int64_t I) {
  const Quantized to(pool.shared(Pool::kActivations, Quantized::bytes(rows, I)), rows, I);
  parallel(pool, rows, 8, [&](int64_t t, int64_t last, int) {
    for (; t < last; t++) to.set(t, 0, x + t * I, I);
  });
  return to;
}

void linear_int8(Pool& pool, const Linear& l) {
  const Quantized x = quantized(pool, l.x, l.N, l.I);
  int64_t total = 0;
  for (int64_t i = 0; i < l.count; i++) total += l.products[i].T;
  float** y = static_cast<float**>(
      pool.shared(Pool::kRows, size_t(total) * sizeof(float*) + size_t(l.count) * sizeof(Int8Product)));
  Int8Product* products = reinterpret_cast<Int8Product*>(y + total);
  for (int64_t i = 0; i < l.count; i++) {
    const Product& p = l.products[i];
    products[i] = {static_cast<const uint8_t*>(p.w), plain(l.type), l.O, p.row, p.T, y, l.b};
    for (int64_t t = 0; t < p.T; t++) *y++ = p.y + t * l.O;
  }
  multiply_int8(pool, x, products, l.count);
}

void three_products(Pool& pool, const ThreeProducts& a) {
  const Quantized x = quantized(pool, a.x, a.T, a.I);
  float** y = static_cast<float**>(pool.shared(Pool::kRows, size_t(3 * a.T) * sizeof(float*)));
  Int8Product products[3];
  for (int i = 0; i < 3; i++, y += a.T) {
    products[i] = {static_cast<const uint8_t*>(a.w[i]), plain(a.type[i]), a.O[i], 0, a.T, y, nullptr};
    for (int64_t t = 0; t < a.T; t++) y[t] = a.y[i] + t * a.O[i];
  }
  multiply_int8(pool, x, products, 3);
}

void multiply_int8(Pool& pool, const Quantized& x, const Int8Product* products, int64_t count) {
  const Planes planes = planes_of(pool, x, products, count);
  pool.reserve_own(size_t(kMostTokens) * kPanel * sizeof(float) + kScratch);
  each_panel(pool, products, count, [&](const Place<Int8Product>& place, const Place<Int8Product>& following, int thread) {
    const Int8Product &p = *place.product, &n = *following.product;
    const Panel at = panel_at(p.w, p.type, p.O, x.I, panel_rows(p, pool.threads()), place.panel);
    const uint8_t* next = panel_at(n.w, n.type, n.O, x.I, panel_rows(n, pool.threads()), following.panel).w;
    float* sums = static_cast<float*>(pool.own(thread));
    uint8_t* scratch = reinterpret_cast<uint8_t*>(sums + kMostTokens * kPanel);
    for (int64_t t = 0; t < p.T; t += kMostTokens) {
      const int64_t T = p.T - t < kMostTokens ? p.T - t : kMostTokens;
      panel(p.type, at.w, at.groups, next, x, planes, p.first + t, T, sums, scratch);
      for (int64_t i = 0; i < T; i++) {
        float* y = p.y[t + i] + at.row;
        if (p.b) for (int64_t r = 0; r < at.rows; r++) y[r] = sums[i * kPanel + r] + p.b[at.row + r];
        else memcpy(y, sums + i * kPanel, size_t(at.rows) * sizeof(float));
      }
    }
  });
}

void multiply_gated_int8(Pool& pool, const Quantized& x, const Int8Gated* products, int64_t count, const Quantized& out) {
  const Planes planes = planes_of(pool, x, products, count);
  pool.reserve_own(size_t(2 * kMostTokens) * kPanel * sizeof(float) + kScratch);
  each_panel(pool, products, count, [&](const Place<Int8Gated>& place, const Place<Int8Gated>& following, int thread) {
    const Int8Gated &p = *place.product, &n = *following.product;
    const int64_t most = panel_rows(p, pool.threads());
    const Panel gate = panel_at(p.gate, p.gate_type, p.F, x.I, most, place.panel);
    const Panel up = panel_at(p.up, p.up_type, p.F, x.I, most, place.panel);
    const uint8_t* next = panel_at(n.gate, n.gate_type, n.F, x.I, panel_rows(n, pool.threads()), following.panel).w;
    float *gates = static_cast<float*>(pool.own(thread)), *ups = gates + kMostTokens * kPanel;
    uint8_t* scratch = reinterpret_cast<uint8_t*>(ups + kMostTokens * kPanel);
    for (int64_t t = 0; t < p.T; t += kMostTokens) {
      const int64_t T = p.T - t < kMostTokens ? p.T - t : kMostTokens;
      panel(p.gate_type, gate.w, gate.groups, up.w, x, planes, p.first + t, T, gates, scratch);
      panel(p.up_type, up.w, up.groups, next, x, planes, p.first + t, T, ups, scratch);
      for (int64_t i = 0; i < T; i++) {
        float *g = gates + i * kPanel, *u = ups + i * kPanel;
        const vec s = splat(p.scales ? p.scales[t + i] : 1);  // gate(s · x) = s · gate(x)
        for (int r = 0; r < gate.rows; r += W) {
          const vec scaled = s * load(g + r);
          store(g + r, scaled * sigmoid(scaled) * (s * load(u + r)));
        }
        out.set(p.first + t + i, gate.row, g, gate.rows);
      }
    }
  });
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

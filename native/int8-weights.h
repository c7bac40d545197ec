// Packed weights (packed.h) as products take them: bytes u of W rows, for a run of elements that share a scale, either on
// their way from memory (Packed) or taken apart beforehand, a chunk of columns at a time (Unpacked).

#pragma once

#include "int8.h"
#include "memory.h"

namespace llama4 {
namespace LLAMA4_ISA {

namespace {

constexpr int kPanel = 4 * kGroup;   // rows
// Columns at a time. Taken apart, they are 16 KiB of two registers of 16 rows, for the first level of caches, or 80 KiB of a
// panel, for the second.
constexpr int64_t kChunk = W == 16 ? 512 : 1280;

inline uvec words(const uint8_t* p) {
  uvec v;
  memcpy(&v, p, sizeof v);
  return v;
}

constexpr int64_t kAhead = 4096;     // bytes between what is read and what is asked for, about

// Asks for a line of the weights.
inline void ask_for(const uint8_t* line) {
  if (asks_first_level) __builtin_prefetch(line, 0, 3);
  else __builtin_prefetch(line, 0, 2);
}

inline vec floats(uvec v) { return __builtin_convertvector((ivec)v, vec); }

template <int Type>
struct Format {
  static constexpr Fields fields = fields_of(Type);
  static constexpr int block = block_of(Type).elements;
  static constexpr int steps = Type == kQ6_K ? 4 : 8;  // of four elements, in a run
  static constexpr int runs = block / (4 * steps);
  static constexpr int runs_of_x = 8 / steps;  // that share a block of x: two halves of it in q6_k
  static constexpr int blocks_of_x = runs / runs_of_x;
  static constexpr bool minima = Type == kQ4_K || Type == kQ5_K;
#if defined(__AVX512VNNI__) || !defined(__AVX2__)
  static constexpr bool is_signed = false, narrow = false;
#else
  // Pairs of products must fit 16 bits: q8_0 is multiplied by its magnitude with the sign moved to x. Of the others whole
  // runs are added in 16 bits, the first and the second pair of each four apart, and so is −Σ q: both factors
  // have their signs in the end, and with 127 for x the most is 16 · 16 or 8 · 32 times that.
  static constexpr bool is_signed = Type == kQ8_0, narrow = Type != kQ8_0;
#endif
  // What is summed is u − 2^shift: the weight, but for types with minima, from which the rest is taken.
  static constexpr int shift = Type == kQ8_0 ? 7 : Type == kQ4_0 ? 3 : Type == kQ6_K ? 5 : Type == kQ5_K && narrow ? 4 : -1;
};

// W rows of a packed group, whose lines are asked for `Ahead` bytes ahead.
template <int Type, int64_t Ahead = kAhead>
struct Packed : Format<Type> {
  using F = Format<Type>;
  // Runs that share bytes. AVX2 needs their shifts to be constants; with AVX-512 products whose code is as long as that were
  // slower (fill() has constants everywhere).
  static constexpr int shared = Type == kQ6_K ? 8 : F::minima ? 2 : 1, unrolled = W == 8 ? shared : 1;
  // A scale for each 32 and AVX-512: taking integers apart again for every few tokens costs less than to keep them apart.
  static constexpr bool in_place = W == kGroup && F::runs == 1;
  int lane;                           // of the first row in its group
  const uint8_t *headers, *integers;  // of that row in block 0
  const uint8_t *at, *ahead;          // the integers of the block that began, and of the one to ask for
  int64_t soon;                       // the block from where on the next group's are asked for
  int64_t headers_on, integers_on;    // bytes from this group's end to the next one's beginning
  vec scales[F::runs], mins[F::minima ? F::runs : 1];

  static constexpr int64_t header_bytes = kGroup * F::fields.header(), integer_bytes = kGroup * 4 * F::fields.integers;
  static constexpr int64_t blocks_ahead = Ahead < integer_bytes ? 1 : (Ahead + integer_bytes / 2) / integer_bytes;

  // `next`: the group that is read after this one, as far as is known.
  void open(const uint8_t* group, int64_t blocks, int first_row, const uint8_t* next) {
    lane = first_row;
    headers = group + 2 * lane;
    integers = group + blocks * header_bytes + 4 * lane;
    soon = blocks - blocks_ahead;
    headers_on = next - group - blocks * header_bytes;
    integers_on = next - group - blocks * integer_bytes;
  }

  template <bool asking = true>
  void begin(int64_t b) {
    at = integers + b * integer_bytes;
    const uint8_t* header = headers + b * header_bytes;
    ahead = at + blocks_ahead * integer_bytes + (b < soon ? 0 : integers_on);
    const uint8_t* ahead_header = header + blocks_ahead * header_bytes + (b < soon ? 0 : headers_on);
    if (asking && asks())
      for (int i = 0; i < header_bytes; i += 64) ask_for(ahead_header + i);
    if constexpr (F::runs == 1) scales[0] = widen(reinterpret_cast<const f16*>(header));
    else take_scales(header);
  }

  // A call of its own: inline, for each register of rows once, it made few tokens by q4_k a tenth slower.
  __attribute__((noinline)) void take_scales(const uint8_t* header) {
    const vec d = widen(reinterpret_cast<const f16*>(header));
    const uint8_t* s = header + 2 * kGroup * F::fields.halves + 2 * lane;  // words, so the lane is 2 bytes a row further
    if constexpr (F::minima) {
      const vec dmin = widen(reinterpret_cast<const f16*>(header + 2 * kGroup));
      const uvec a = words(s), m = words(s + 4 * kGroup), c = words(s + 8 * kGroup);
#pragma GCC unroll 4
      for (int k = 0; k < 4; k++) {
        scales[k] = d * floats((a >> (8 * k)) & 63);
        mins[k] = dmin * floats((m >> (8 * k)) & 63);
        scales[k + 4] = d * floats(((c >> (8 * k)) & 15) | (((a >> (8 * k + 6)) & 3) << 4));
        mins[k + 4] = dmin * floats(((c >> (8 * k + 4)) & 15) | (((m >> (8 * k + 6)) & 3) << 4));
      }
      if constexpr (F::shift >= 0)
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++) mins[k] -= splat(1 << F::shift) * scales[k];
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++)
        scales[i] = d * floats((uvec)((ivec)(words(s + 4 * kGroup * (i >> 2)) << (24 - 8 * (i & 3))) >> 24));
    }
  }

  // The first rows of a group ask for all 16: they share lines.
  bool asks() const { return W >= kGroup || lane == 0; }

  // Asks for a run's share of the block ahead: a whole block's lines at once would wait for each other.
  void ask(int run) const {
    constexpr int lines = F::fields.integers / F::runs;
    if (!asks()) return;
    for (int i = 0; i < lines; i++) ask_for(ahead + 64 * (run * lines + i));
  }

  uvec word(int i) const { return words(at + 4 * kGroup * i); }

  // Of run `base` + `r`.
  uvec step(int base, int r, int j) const { return step_of<unrolled == shared>(base, r, j); }
  // `constant`: base is a multiple of `shared` and r less, known to the compiler, which makes constants of the shifts.
  template <bool constant>
  uvec step_of(int base, int r, int j) const {
    const int of = constant ? r : (base + r) % shared, from = base + r - of;
    if constexpr (Type == kQ8_0) return F::is_signed ? word(j) ^ 0x80808080 : word(j);
    else if constexpr (Type == kQ4_0) return (word(j & 3) >> (j & 4)) & 0x0f0f0f0f;
    else if constexpr (Type == kQ4_K) return (word(4 * from + j) >> (4 * of)) & 0x0f0f0f0f;
    else if constexpr (Type == kQ5_K)
      return ((word(8 + 4 * from + j) >> (4 * of)) & 0x0f0f0f0f) | (((word(j) >> (from + of)) & 0x01010101) << 4);
    else {
      const int quarter = of >> 1, half = 4 * (of & 1) + j;
      const uvec low = word(2 * from + 8 * (quarter & 1) + half) >> (4 * (quarter >> 1));
      return (low & 0x0f0f0f0f) | (((word(32 + from + half) >> (2 * quarter)) & 0x03030303) << 4);
    }
  }
  vec scale(int run) const { return scales[run]; }
  vec min(int run) const { return mins[run]; }
};

// Calls f(base, r) for every run of a block, with r < R known to the compiler.
template <typename Weights, int R, typename F>
inline void each_run(const F& f) {
  for (int base = 0; base < Weights::runs; base += R)
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) f(base, r);
}

// Calls f(base, r) for the first run base + r of each block of x.
template <typename Weights, typename F>
inline void each_block_of_x(const F& f) {
  constexpr int unrolled = Weights::unrolled > Weights::runs_of_x ? Weights::unrolled : Weights::runs_of_x;
  for (int base = 0; base < Weights::runs; base += unrolled)
#pragma GCC unroll 8
    for (int r = 0; r < unrolled; r += Weights::runs_of_x) f(base, r);
}

// W rows of a packed group, a chunk of columns taken apart.
template <int Type>
struct Unpacked : Format<Type> {
  using F = Format<Type>;
  static constexpr int unrolled = 1;
  uint8_t* integers;  // [run][step][4 W]
  float *scales, *mins;  // [run][W]
  int64_t held;   // the first block that is there
  int64_t first;  // run of the block
  const uint8_t *coming, *end;  // the integers that are taken apart next, asked for while these are multiplied:
  int64_t each;                 // so many lines a block of x

  static constexpr int64_t bytes = kChunk * W + 2 * (kChunk / (4 * F::steps)) * W * 4;
  void open(uint8_t* memory) {
    integers = memory;
    scales = reinterpret_cast<float*>(memory + kChunk * W);
    mins = scales + kChunk / (4 * F::steps) * W;
  }
  void begin(int64_t b) { first = (b - held) * F::runs; }
  void ask(int run) {
    if (run % F::runs_of_x != 0) return;
    for (int64_t i = 0; i < each && coming < end; i++, coming += 64) ask_for(coming);
  }
  uvec step(int base, int r, int j) const { return words(integers + ((first + base + r) * F::steps + j) * 4 * W); }
  vec scale(int run) const { return load(scales + (first + run) * W); }
  vec min(int run) const { return load(mins + (first + run) * W); }

  // `next`: the block of w, or behind its last one of the next group, that is taken apart after these; `parts`: how often
  // these are multiplied until then.
  void expect(const Packed<Type>& w, int64_t next, int64_t count, int64_t blocks, int64_t parts) {
    const bool on = next < blocks;
    const uint8_t* headers = w.headers + next * w.header_bytes + (on ? 0 : w.headers_on);
    coming = w.integers + next * w.integer_bytes + (on ? 0 : w.integers_on);
    if (on && count > blocks - next) count = blocks - next;
    end = w.asks() ? coming + count * w.integer_bytes : coming;
    each = (count * w.integer_bytes / 64 - 1) / (parts * count * F::blocks_of_x) + 1;
    if (w.asks())
      for (int64_t i = 0; i < count * w.header_bytes; i += 64) ask_for(headers + i);
  }

  // expect() asks for what comes next; tiles do not call it, so for them it is asked for here.
  void fill(Packed<Type>& w, int64_t block, int64_t blocks) {
    held = block;
    for (int64_t b = 0; b < blocks; b++) {
      w.template begin<kTiles>(block + b);
      each_run<Packed<Type>, Packed<Type>::shared>([&](int base, int r) __attribute__((always_inline)) {
        const int run = base + r;
        const int64_t at = b * F::runs + run;
        if (kTiles) w.ask(run);
        store(scales + at * W, w.scale(run));
        if (F::minima) store(mins + at * W, w.min(run));
#pragma GCC unroll 8
        for (int j = 0; j < F::steps; j++) {
          uvec u = w.template step_of<true>(base, r, j);
#if defined(__AMX_TILE__)
          if (F::shift >= 0) u = (uvec)_mm512_sub_epi8((__m512i)u, _mm512_set1_epi8(char(1 << (F::shift & 31))));  // signed
#endif
          memcpy(integers + (at * F::steps + j) * 4 * W, &u, sizeof u);
        }
      });
    }
  }
};

// V registers of rows of a panel from register v on. Its last group may have no neighbours to fill them with: it is then
// multiplied more than once. After the panel's last ones come the first of the panel at `next`.
template <int Type, int64_t Ahead, int V>
inline void open_rows(const uint8_t* w, int64_t groups, int64_t blocks, int64_t v, const uint8_t* next,
                      Packed<Type, Ahead> (&rows)[V]) {
  const int64_t group_bytes = blocks * kGroup * block_of(Type).bytes;
  const bool last = (v + V) * W >= groups * kGroup;
  for (int i = 0; i < V; i++) {
    const int64_t row = (v + i) * W, group = row / kGroup < groups ? row / kGroup : groups - 1;
    const int64_t after = last ? i * W / kGroup : (row + V * W) / kGroup;
    rows[i].open(w + group * group_bytes, blocks, int(row % kGroup), (last ? next : w) + after * group_bytes);
  }
}

}  // namespace

}  // namespace LLAMA4_ISA
}  // namespace llama4

// y[t, h] = Σ_s softmax_s(q[t, h] · k[s, ⌊h·K/H⌋] / √d) · v[s, …] over the keys that row t sees        reference: attend()
//
// Keys stand in slots (their position, or position mod chunk). They are visited in stretches of kStretch slots, each
// from a fresh maximum, in tiles of at most kTile slots of one block; a stretch's result is then merged with those
// before it. A long context read by few queries is cut between threads at the stretches, so that one query alone, or
// among many, on any number of threads gives the same bits. Working memory: O(T), and kTile keys a thread.

#include "decode.h"
#include "dot.h"
#include "kernels.h"

namespace llama4 {
namespace LLAMA4_ISA {

namespace {

constexpr int64_t kTile = 64, kStretch = 1024;
constexpr int64_t kRows = 32;  // query rows (query × heads that share a key head) that a tile of keys is used for

// What one query row has gathered: its largest score, Σ exp(score − largest), Σ exp(…)·v.
struct Sums {
  float *largest, *total, *mix;  // [rows], [rows], [rows, d]
};

// Working memory of one thread.
struct Room {
  float *q, *keys, *values, *scores;
  Sums stretch, all;
};

int64_t room_floats(int64_t rows, int64_t d) { return rows * d + 2 * kTile * d + rows * kTile + 2 * rows * (d + 2); }

Room room_of(float* at, int64_t rows, int64_t d) {
  Room r;
  const auto take = [&](int64_t n) { float* p = at; at += n; return p; };
  r.q = take(rows * d);
  r.keys = take(kTile * d);
  r.values = take(kTile * d);
  r.scores = take(rows * kTile);
  r.stretch = {take(rows), take(rows), take(rows * d)};
  r.all = {take(rows), take(rows), take(rows * d)};
  return r;
}

constexpr float kNone = -__builtin_inff();

void clear(const Sums& s, int64_t rows, int64_t d) {
  for (int64_t r = 0; r < rows; r++) s.largest[r] = kNone, s.total[r] = 0;
  memset(s.mix, 0, size_t(rows * d) * sizeof(float));
}

// e^(a − b), 0 where a is nothing yet.
inline float ratio(float a, float b) { return a == kNone ? 0.0f : exp(splat(a - b))[0]; }

// to ← to and from together.
void merge(const Sums& to, const Sums& from, int64_t rows, int64_t d) {
  for (int64_t r = 0; r < rows; r++) {
    if (from.largest[r] == kNone) continue;
    const float largest = to.largest[r] > from.largest[r] ? to.largest[r] : from.largest[r];
    const float a = ratio(to.largest[r], largest), b = ratio(from.largest[r], largest);
    to.largest[r] = largest;
    to.total[r] = a * to.total[r] + b * from.total[r];
    for (int64_t i = 0; i < d; i++) to.mix[r * d + i] = a * to.mix[r * d + i] + b * from.mix[r * d + i];
  }
}

// A tile of keys and values as float rows of length d.
struct Tile {
  const float *keys, *values;
  int64_t stride;
};

// Slots [first, first + n), all in one block where there is a cache.
Tile tile_of(const Attend& a, const Segment& s, int64_t head, int64_t first, int64_t n, const Room& room) {
  if (!s.table) {  // slots count the segment's own rows
    const int64_t at = ((s.row + first) * a.K + head) * a.d;
    return {a.k + at, a.v + at, a.K * a.d};
  }
  const int64_t at = ((s.table[first / a.block_size] * a.K + head) * a.block_size + first % a.block_size) * a.d;
  if (a.type == kF32) return {static_cast<float*>(a.keys) + at, static_cast<float*>(a.values) + at, a.d};
  decode_row(a.type, static_cast<uint16_t*>(a.keys) + at, room.keys, n * a.d);
  decode_row(a.type, static_cast<uint16_t*>(a.values) + at, room.values, n * a.d);
  return {room.keys, room.values, a.d};
}

// mix[r] += Σⱼ weights[r][j] · values[j] over R rows and V registers of the head.
template <int R, int V>
inline void mix_tile(const float* weights, const float* values, int64_t stride, int64_t n, float* mix, int64_t d) {
  vec acc[R][V];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) acc[r][v] = load(mix + r * d + v * W);
  for (int64_t j = 0; j < n; j++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) {
      const vec value = load(values + j * stride + v * W);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) acc[r][v] += splat(weights[r * kTile + j]) * value;
    }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) store(mix + r * d + v * W, acc[r][v]);
}

template <int R>
inline void mix_rows(const float* weights, const float* values, int64_t stride, int64_t n, float* mix, int64_t d) {
  int64_t i = 0;
  for (; i + 2 * W <= d; i += 2 * W) mix_tile<R, 2>(weights, values + i, stride, n, mix + i, d);
  for (; i + W <= d; i += W) mix_tile<R, 1>(weights, values + i, stride, n, mix + i, d);
  for (; i < d; i++)
    for (int r = 0; r < R; r++)
      for (int64_t j = 0; j < n; j++)
        mix[r * d + i] += weights[r * kTile + j] * values[j * stride + i];
}

// Scores to weights: row r sees the tile's slots [from, to). Rescales what the row had.
inline void weigh(float* scores, int64_t from, int64_t to, float& largest, float& total, float* mix, int64_t d) {
  float top = largest;
  for (int64_t j = from; j < to; j++) top = scores[j] > top ? scores[j] : top;
  const float keep = ratio(largest, top);
  largest = top;
  if (keep != 1) {
    total *= keep;
    for (int64_t i = 0; i < d; i++) mix[i] *= keep;
  }
  vec sums{};
  for (int64_t j = 0; j < kTile; j += W) {
    vec e = exp(load(scores + j) - splat(top));
    for (int i = 0; i < W; i++)
      if (j + i < from || j + i >= to) e[i] = 0;
    store(scores + j, e);
    sums += e;
  }
  total += sum(sums);
}

// Which query rows a piece of work has: queries [first, first + count) of a segment, all heads of a key head.
struct Queries {
  const Segment* segment;
  int64_t head, first, count;
};

// Slots that query number `query` of a segment sees.
struct Range {
  int64_t from, to;
};
Range seen(const Attend& a, const Segment& s, int64_t query) {
  if (!a.causal) return {0, s.length};
  const int64_t p = s.position + query, start = a.chunk ? p - p % a.chunk : 0;
  if (s.table) return {0, p - start + 1};
  return {start > s.position ? start - s.position : 0, query + 1};
}

// The slots [first, last) for all rows of `queries`, from a fresh maximum, into room.stretch.
void visit(const Attend& a, const Queries& qs, int64_t first, int64_t last, const Room& room) {
  const int64_t group = a.H / a.K, rows = qs.count * group, d = a.d;
  const Segment& s = *qs.segment;
  clear(room.stretch, rows, d);
  const Range low = seen(a, s, qs.first), high = seen(a, s, qs.first + qs.count - 1);
  for (int64_t at = first, n; at < last; at += n) {
    n = kTile - at % kTile;  // tiles begin at multiples of kTile and end with the block
    if (s.table && n > a.block_size - at % a.block_size) n = a.block_size - at % a.block_size;
    if (n > last - at) n = last - at;
    if (at >= high.to || at + n <= low.from) continue;
    const int64_t used = at + n < high.to ? n : high.to - at;  // slots past the last query hold nothing yet
    const Tile tile = tile_of(a, s, qs.head, at, used, room);
    dot_all(tile.keys, tile.stride, used, room.q, d, rows, d,
            [&](int64_t r, int64_t j, float score) { room.scores[r * kTile + j] = score; });
    for (int64_t r = 0; r < rows; r++) {
      const Range range = seen(a, s, qs.first + r / group);
      const int64_t from = range.from > at ? range.from - at : 0, to = range.to < at + used ? range.to - at : used;
      float* scores = room.scores + r * kTile;
      if (from >= to) memset(scores, 0, kTile * sizeof(float));
      else weigh(scores, from, to, room.stretch.largest[r], room.stretch.total[r], room.stretch.mix + r * d, d);
    }
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4)
      mix_rows<4>(room.scores + r * kTile, tile.values, tile.stride, used, room.stretch.mix + r * d, d);
    for (; r < rows; r++)
      mix_rows<1>(room.scores + r * kTile, tile.values, tile.stride, used, room.stretch.mix + r * d, d);
  }
}

// The rows' queries, scaled by 1/√d, next to each other.
void take_queries(const Attend& a, const Queries& qs, float* q) {
  const int64_t group = a.H / a.K, d = a.d;
  const float scale = 1.0f / __builtin_sqrtf(float(d));
  for (int64_t t = 0; t < qs.count; t++)
    for (int64_t g = 0; g < group; g++) {
      const float* from = a.q + ((qs.segment->row + qs.first + t) * a.H + qs.head * group + g) * d;
      for (int64_t i = 0; i < d; i++) q[(t * group + g) * d + i] = from[i] * scale;
    }
}

void give(const Attend& a, const Queries& qs, const Sums& sums) {
  const int64_t group = a.H / a.K, d = a.d;
  for (int64_t t = 0; t < qs.count; t++)
    for (int64_t g = 0; g < group; g++) {
      const int64_t r = t * group + g;
      float* y = a.y + ((qs.segment->row + qs.first + t) * a.H + qs.head * group + g) * d;
      const float inverse = 1.0f / sums.total[r];
      for (int64_t i = 0; i < d; i++) y[i] = sums.mix[r * d + i] * inverse;
    }
}

// The step's keys and values to their slots.
void write_cache(Pool& pool, const Attend& a) {
  for (int64_t i = 0; i < a.count; i++) {
    const Segment& s = a.segments[i];
    parallel(pool, s.length, 16384 / (a.K * a.d) + 1, [&](int64_t t, int64_t last, int) {
      for (; t < last; t++) {
        const int64_t p = s.position + t, slot = a.chunk ? p % a.chunk : p;
        for (int64_t head = 0; head < a.K; head++) {
          const int64_t from = ((s.row + t) * a.K + head) * a.d;
          const int64_t to =
              ((s.table[slot / a.block_size] * a.K + head) * a.block_size + slot % a.block_size) * a.d;
          quantize_rows(a.type, a.k + from, static_cast<uint8_t*>(a.keys) + to * (a.type == kF32 ? 4 : 2), 1, a.d);
          quantize_rows(a.type, a.v + from, static_cast<uint8_t*>(a.values) + to * (a.type == kF32 ? 4 : 2), 1, a.d);
        }
      }
    });
  }
}

}  // namespace

void attend(Pool& pool, const Attend& a) {
  if (a.keys) write_cache(pool, a);
  const int64_t group = a.H / a.K, d = a.d;
  const int64_t queries = kRows / group > 1 ? kRows / group : 1, rows = queries * group;
  pool.reserve_own(size_t(room_floats(rows, d)) * sizeof(float));

  // Work is counted first: pieces of (segment, key head, queries); a segment of one such piece is cut at its stretches.
  const auto pieces = [&](const Segment& s) { return (s.length + queries - 1) / queries; };
  const auto last_slot = [&](const Segment& s) { return seen(a, s, s.length - 1).to; };
  const auto stretches = [&](const Segment& s) {
    return pieces(s) == 1 ? (last_slot(s) + kStretch - 1) / kStretch : 1;
  };
  int64_t items = 0, partial = 0;
  for (int64_t i = 0; i < a.count; i++) {
    const Segment& s = a.segments[i];
    items += pieces(s) * stretches(s) * a.K;
    if (stretches(s) > 1) partial += stretches(s) * a.K;
  }
  // Results of stretches that are merged after all threads are done.
  const int64_t partial_floats = rows * (d + 2);
  float* partials = static_cast<float*>(
      pool.shared(Pool::kOperation, size_t(partial * partial_floats) * sizeof(float) + kTile));
  const auto sums_of = [&](int64_t n) {
    float* at = partials + n * partial_floats;
    return Sums{at, at + rows, at + 2 * rows};
  };

  parallel(pool, items, 1, [&](int64_t item, int64_t end, int thread) {
    const Room room = room_of(static_cast<float*>(pool.own(thread)), rows, d);
    for (; item < end; item++) {
      int64_t rest = item, before = 0;  // before: partial results of earlier segments
      const Segment* s = a.segments;
      for (;; s++) {
        const int64_t own = pieces(*s) * stretches(*s) * a.K;
        if (rest < own) break;
        rest -= own;
        if (stretches(*s) > 1) before += stretches(*s) * a.K;
      }
      const int64_t cuts = stretches(*s);
      const int64_t head = rest / (pieces(*s) * cuts), piece = rest / cuts % pieces(*s), cut = rest % cuts;
      // Late queries see most keys: the longest pieces first.
      const int64_t at = (pieces(*s) - 1 - piece) * queries;
      const Queries qs{s, head, at, s->length - at < queries ? s->length - at : queries};
      take_queries(a, qs, room.q);
      const int64_t last = seen(a, *s, qs.first + qs.count - 1).to;
      if (cuts > 1) {
        Room into = room;
        into.stretch = sums_of(before + head * cuts + cut);
        visit(a, qs, cut * kStretch, last < (cut + 1) * kStretch ? last : (cut + 1) * kStretch, into);
        continue;
      }
      clear(room.all, qs.count * group, d);
      for (int64_t from = seen(a, *s, qs.first).from / kStretch * kStretch; from < last; from += kStretch) {
        visit(a, qs, from, last < from + kStretch ? last : from + kStretch, room);
        merge(room.all, room.stretch, qs.count * group, d);
      }
      give(a, qs, room.all);
    }
  });

  if (!partial) return;
  const Room room = room_of(static_cast<float*>(pool.own(0)), rows, d);
  int64_t before = 0;
  for (int64_t i = 0; i < a.count; i++) {
    const Segment& s = a.segments[i];
    const int64_t cuts = stretches(s);
    if (cuts == 1) continue;
    for (int64_t head = 0; head < a.K; head++) {
      clear(room.all, s.length * group, d);
      for (int64_t cut = 0; cut < cuts; cut++)
        merge(room.all, sums_of(before + head * cuts + cut), s.length * group, d);
      give(a, {&s, head, 0, s.length}, room.all);
    }
    before += cuts * a.K;
  }
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

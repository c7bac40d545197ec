// y[t, h] = Σ_s softmax_s(q[t, h] · k[s, ⌊h·K/H⌋] / √d) · v[s, …] over the keys that row t sees        reference: attend()
//
// Keys stand in slots (kv-blocks.h), which are visited in stretches of about kStretch slots, each from a fresh maximum,
// in tiles of at most kTile slots of one block; a stretch's result is then merged with those before it. A long context
// read by few queries is cut between threads at the stretches. Every sum runs over d, or over the slots, in order: one
// query alone, or among many, on any number of threads gives the same bits. Working memory: O(T), and a tile a thread.

#include "kernels.h"
#include "kv-blocks.h"
#include "simd.h"

namespace llama4 {
namespace LLAMA4_ISA {

namespace {

constexpr int64_t kTile = 64, kStretch = 1024;
constexpr int64_t kRows = 120;  // query rows (query × heads that share a key head) that a tile of keys is used for

// Rows and registers of a block of sums that fit the registers beside the operands: 32 of AVX-512, else 16.
constexpr int R = 6;
#if defined(__AVX512F__)
constexpr int P = 4;
#else
constexpr int P = 2;
#endif

constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// What one query row has gathered: its largest score, Σ exp(score − largest), Σ exp(…)·v.
struct Sums {
  float *largest, *total, *mix;  // [rows], [rows], [rows, width]
};

// Hands out pieces of a block of memory; without one it counts them.
class Pieces {
 public:
  explicit Pieces(void* memory) : at_(static_cast<uint8_t*>(memory)) {}
  template <typename T>
  T* take(int64_t n) {
    T* piece = at_ ? reinterpret_cast<T*>(at_ + bytes_) : nullptr;
    bytes_ += round_up(n * int64_t(sizeof(T)), 64);
    return piece;
  }
  int64_t bytes() const { return bytes_; }

 private:
  uint8_t* at_;
  int64_t bytes_ = 0;
};

Sums sums_in(Pieces memory, int64_t rows, int64_t width) {
  float *largest = memory.take<float>(rows), *total = memory.take<float>(rows);
  return {largest, total, memory.take<float>(rows * width)};
}
int64_t sums_bytes(int64_t rows, int64_t width) { return 2 * round_up(rows * 4, 64) + round_up(rows * width * 4, 64); }

// Working memory of one thread, for `rows` query rows and a tile. The last register of a row of keys or values may
// reach beyond the tile.
struct Room {
  float *q, *keys, *values, *scores, *keep;  // [rows, d], twice [kTile, d], [rows, kTile], [rows]
  ShortRows shorts;                          // q once more, for keys in int8
  Sums stretch, all;
};

Room room_in(Pieces& memory, int64_t rows, int64_t d, int64_t width) {
  Room r;
  const auto sums = [&] { return sums_in(Pieces(memory.take<uint8_t>(sums_bytes(rows, width))), rows, width); };
  r.q = memory.take<float>(rows * d);
  r.keys = memory.take<float>(kTile * d + kPanel);
  r.values = memory.take<float>(kTile * d + kPanel);
  r.scores = memory.take<float>(rows * kTile);
  r.keep = memory.take<float>(rows);
  r.shorts.q = memory.take<int16_t>(rows * d);
  r.shorts.scale = memory.take<float>(rows * (d / 32));
  r.stretch = sums();
  r.all = sums();
  return r;
}

constexpr float kNone = -__builtin_inff();

void clear(const Sums& s, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; r++) s.largest[r] = kNone, s.total[r] = 0;
  memset(s.mix, 0, size_t(rows * width) * sizeof(float));
}

// e^(a − b), 0 where a is nothing yet.
inline float ratio(float a, float b) { return a == kNone ? 0.0f : exp(splat(a - b))[0]; }

// to ← to and from together.
void merge(const Sums& to, const Sums& from, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; r++) {
    if (from.largest[r] == kNone) continue;
    const float largest = to.largest[r] > from.largest[r] ? to.largest[r] : from.largest[r];
    const float a = ratio(to.largest[r], largest), b = ratio(from.largest[r], largest);
    to.largest[r] = largest;
    to.total[r] = a * to.total[r] + b * from.total[r];
    float *x = to.mix + r * width, *y = from.mix + r * width;
    for (int64_t i = 0; i < width; i += W) store(x + i, splat(a) * load(x + i) + splat(b) * load(y + i));
  }
}

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

// Few rows read keys and values from memory as they are stored, and meanwhile ask for what stands `ahead` bytes further,
// the next tile. Many rows have a tile as floats, and ahead is 0.
static inline void fetch(const void* at, int64_t ahead) {
  if (ahead) __builtin_prefetch(static_cast<const uint8_t*>(at) + ahead);
}

// scores[r][lane] = Σᵢ q[r][i] · keys[i][lane] for N rows and M registers of lanes: whole panels, or a part of one.
template <int N, int M, typename T>
inline void score_block(const float* q, int64_t d, const T* keys, int64_t lanes, int64_t ahead, float* scores) {
  vec acc[N][M] = {};
  const T* at[M];
  for (int m = 0; m < M; m++) at[m] = keys + m * W / kPanel * kPanel * d + m * W % kPanel;
  for (int64_t i = 0; i < d; i++) {
    vec k[M];
#pragma GCC unroll 4
    for (int m = 0; m < M; m++) {
      k[m] = widen(at[m] + i * lanes);
      fetch(at[m] + i * lanes, ahead);
    }
#pragma GCC unroll 8
    for (int r = 0; r < N; r++)
#pragma GCC unroll 4
      for (int m = 0; m < M; m++) acc[r][m] += splat(q[r * d + i]) * k[m];
  }
  for (int r = 0; r < N; r++)
    for (int m = 0; m < M; m++) store(scores + r * kTile + m * W, acc[r][m]);
}

// The scores of a tile of n keys for all rows.
template <typename T>
void score_tile(const float* q, int64_t rows, int64_t d, const T* keys, int64_t n, int64_t ahead, float* scores) {
  const int64_t whole = n / kPanel * kPanel;
  for (int64_t r = 0; r < rows; r += R)
    with_rows(rows - r, [&](auto count) {
      constexpr int N = decltype(count)::n;
      int64_t j = 0;
      for (; j + P * W <= whole; j += P * W)
        score_block<N, P>(q + r * d, d, keys + j / kPanel * kPanel * d + j % kPanel, kPanel, ahead, scores + r * kTile + j);
      for (; j < n; j += W) {
        const int64_t lanes = j < whole ? kPanel : n - whole;
        score_block<N, 1>(q + r * d, d, keys + j / kPanel * kPanel * d + j % kPanel, lanes, ahead, scores + r * kTile + j);
      }
    });
}

// The same for a panel of int8 keys and int16 queries: exact integer sums of 32 products, scaled.
template <int N, int M>
inline void score_block_q8(const ShortRows& q, int64_t d, const uint8_t* const* panels, int64_t lanes, int64_t ahead,
                           float* scores) {
  vec acc[N][M] = {};
  for (int64_t b = 0; b < d / 32; b++) {
    const int64_t at = b * 34 * lanes;
    ivec products[N][M] = {};
    for (int64_t i = 0; i < 32; i += 2) {
      ivec k[M];
#pragma GCC unroll 2
      for (int m = 0; m < M; m++) {
        k[m] = widen_pairs(reinterpret_cast<const int8_t*>(panels[m]) + at + 2 * lanes + i * lanes);
        fetch(panels[m] + at + i * lanes, ahead);
      }
#pragma GCC unroll 8
      for (int r = 0; r < N; r++)
#pragma GCC unroll 2
        for (int m = 0; m < M; m++)
          products[r][m] = add_pair_products(products[r][m], splat_pair(q.q + r * d + b * 32 + i), k[m]);
    }
#pragma GCC unroll 2
    for (int m = 0; m < M; m++) {
      const vec scale = widen(reinterpret_cast<const f16*>(panels[m] + at));
#pragma GCC unroll 8
      for (int r = 0; r < N; r++)
        acc[r][m] += __builtin_convertvector(products[r][m], vec) * (scale * splat(q.scale[r * (d / 32) + b]));
    }
  }
  for (int r = 0; r < N; r++)
    for (int m = 0; m < M; m++) store(scores + r * kTile + m * W, acc[r][m]);
}

void score_q8(const ShortRows& q, int64_t rows, int64_t d, const uint8_t* keys, int64_t n, int64_t ahead, float* scores) {
  const int64_t row_bytes = d / 32 * 34, whole = n / kPanel * kPanel;
  // Scales and pairs of elements both take two bytes a key.
  const auto at = [&](int64_t j) { return keys + j / kPanel * kPanel * row_bytes + j % kPanel * 2; };
  for (int64_t r = 0; r < rows; r += R)
    with_rows(rows - r, [&](auto count) {
      constexpr int N = decltype(count)::n;
      const ShortRows part{q.q + r * d, q.scale + r * (d / 32)};
      int64_t j = 0;
      for (; j + P / 2 * W <= whole; j += P / 2 * W) {
        const uint8_t* panels[P / 2];
        for (int m = 0; m < P / 2; m++) panels[m] = at(j + m * W);
        score_block_q8<N, P / 2>(part, d, panels, kPanel, ahead, scores + r * kTile + j);
      }
      for (; j < n; j += W) {
        const uint8_t* panel = at(j);
        score_block_q8<N, 1>(part, d, &panel, j < whole ? kPanel : n - whole, ahead, scores + r * kTile + j);
      }
    });
}

// mix[r] ← keep[r]·mix[r] + Σⱼ weights[r][j] · values[j] over N rows and M registers of the head.
template <int N, int M, typename T>
inline void mix_block(const float* weights, const float* keep, const T* values, int64_t stride, int64_t n, int64_t ahead,
                      float* mix, int64_t width) {
  vec acc[N][M];
  for (int r = 0; r < N; r++)
    for (int m = 0; m < M; m++) acc[r][m] = splat(keep[r]) * load(mix + r * width + m * W);
  for (int64_t j = 0; j < n; j++) {
    vec v[M];
#pragma GCC unroll 4
    for (int m = 0; m < M; m++) {
      v[m] = widen(values + j * stride + m * W);
      fetch(values + j * stride + m * W, ahead);
    }
#pragma GCC unroll 8
    for (int r = 0; r < N; r++)
#pragma GCC unroll 4
      for (int m = 0; m < M; m++) acc[r][m] += splat(weights[r * kTile + j]) * v[m];
  }
  for (int r = 0; r < N; r++)
    for (int m = 0; m < M; m++) store(mix + r * width + m * W, acc[r][m]);
}

template <typename T>
void mix_tile(const float* weights, const float* keep, int64_t rows, const T* values, int64_t stride, int64_t n,
              int64_t ahead, float* mix, int64_t width) {
  for (int64_t r = 0; r < rows; r += R)
    with_rows(rows - r, [&](auto count) {
      constexpr int N = decltype(count)::n;
      const float* w = weights + r * kTile;
      int64_t i = 0;
      for (; i + P * W <= width; i += P * W)
        mix_block<N, P>(w, keep + r, values + i, stride, n, ahead, mix + r * width + i, width);
      for (; i < width; i += W) mix_block<N, 1>(w, keep + r, values + i, stride, n, ahead, mix + r * width + i, width);
    });
}

// A row that sees nothing of a tile.
inline float weigh_nothing(float* scores) {
  memset(scores, 0, kTile * sizeof(float));
  return 1;
}

// Scores of the slots [0, kTile) to weights; the row sees [from, to) of them. Returns what its earlier sums are to be
// multiplied by.
inline float weigh(float* scores, int64_t from, int64_t to, float& top, float& total) {
  for (int64_t j = 0; j < from; j++) scores[j] = kNone;
  for (int64_t j = to; j < kTile; j++) scores[j] = kNone;
  vec tops = load(scores);
  for (int64_t j = W; j < kTile; j += W) tops = max(tops, load(scores + j));
  const float before = top, in_tile = largest(tops);
  top = in_tile > before ? in_tile : before;
  const float keep = top == before ? 1.0f : ratio(before, top);
  vec sums{};
  for (int64_t j = 0; j < kTile; j += W) {
    const vec e = exp(load(scores + j) - splat(top));
    store(scores + j, e);
    sums += e;
  }
  total = total * keep + sum(sums);
  return keep;
}

// Some queries of a segment with all heads of a key head: [first, first + count).
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
  if (a.keys) return {0, p - start + 1};
  return {start > s.position ? start - s.position : 0, query + 1};  // slots count the segment's own rows
}

// The slots [first, last) for all rows of `queries`, from a fresh maximum, into room.stretch.
void visit(const Attend& a, const KVBlocks& kv, const Queries& qs, int64_t first, int64_t last, const Room& room) {
  const int64_t group = a.H / a.K, rows = qs.count * group, d = a.d, width = round_up(d, W);
  const Segment& s = *qs.segment;
  const bool few = rows <= 2 * R;
  clear(room.stretch, rows, width);
  const Range low = seen(a, s, qs.first), high = seen(a, s, qs.first + qs.count - 1);
  if (last > high.to) last = high.to;  // slots past the last query hold nothing yet
  for (int64_t at = first, n; at < last; at += n) {
    const int64_t slot = at % kv.block_size;
    n = least(kTile, kv.block_size - slot);
    if (at + n <= low.from) continue;
    const int64_t used = least(n, last - at), whole = least(n, round_up(used, kPanel));  // a panel begun is read whole
    const int64_t panel = kv.panel(s.table[at / kv.block_size], qs.head, slot);
    const uint8_t *keys = kv.keys + panel, *values = kv.values + panel;
    const int64_t next = at + n, block = next < last ? s.table[next / kv.block_size] : 0;
    const int64_t ahead = few && next < last ? kv.panel(block, qs.head, next % kv.block_size) - panel : 0;
    if (kv.type == kQ8_0) score_q8(room.shorts, rows, d, keys, whole, ahead, room.scores);
    else if (kv.type == kF16 && few) score_tile(room.q, rows, d, reinterpret_cast<const f16*>(keys), whole, ahead, room.scores);
    else score_tile(room.q, rows, d, panel_floats(kv.type, keys, whole, d, room.keys), whole, ahead, room.scores);
    for (int64_t r = 0; r < rows; r++) {
      const Range range = seen(a, s, qs.first + r / group);
      const int64_t from = range.from > at ? least(range.from - at, used) : 0, to = least(range.to - at, used);
      room.keep[r] = from < to ? weigh(room.scores + r * kTile, from, to, room.stretch.largest[r], room.stretch.total[r])
                               : weigh_nothing(room.scores + r * kTile);
    }
    const auto mix = [&](const auto* v, int64_t further) {
      mix_tile(room.scores, room.keep, rows, v, d, used, further, room.stretch.mix, width);
    };
    if (kv.type == kQ8_0) mix(q8_values(values, whole, d, ahead, room.values), 0);
    else if (kv.type == kF16 && few) mix(reinterpret_cast<const f16*>(values), ahead);
    else mix(panel_floats(kv.type, values, used, d, room.values), ahead);
  }
}

// The rows' queries, scaled by 1/√d, next to each other.
void take_queries(const Attend& a, const Queries& qs, bool in_shorts, const Room& room) {
  const int64_t group = a.H / a.K, d = a.d;
  const float scale = 1.0f / __builtin_sqrtf(float(d));
  for (int64_t t = 0; t < qs.count; t++)
    for (int64_t g = 0; g < group; g++) {
      const float* from = a.q + ((qs.segment->row + qs.first + t) * a.H + qs.head * group + g) * d;
      float* to = room.q + (t * group + g) * d;
      for (int64_t i = 0; i < d; i++) to[i] = from[i] * scale;
    }
  if (in_shorts) to_shorts(room.q, qs.count * group * d, room.shorts);
}

void give(const Attend& a, const Queries& qs, const Sums& sums) {
  const int64_t group = a.H / a.K, d = a.d, width = round_up(d, W);
  for (int64_t t = 0; t < qs.count; t++)
    for (int64_t g = 0; g < group; g++) {
      const int64_t r = t * group + g;
      float* y = a.y + ((qs.segment->row + qs.first + t) * a.H + qs.head * group + g) * d;
      const float inverse = 1.0f / sums.total[r];
      for (int64_t i = 0; i < d; i++) y[i] = sums.mix[r * width + i] * inverse;
    }
}

// The step's keys and values to their slots.
void write_step(Pool& pool, const Attend& a, const KVBlocks& kv) {
  pool.reserve_own(size_t(a.d / 32 + 1) * sizeof(Q8_0));
  for (int64_t i = 0; i < a.count; i++) {
    const Segment& s = a.segments[i];
    parallel(pool, s.length, 16384 / (a.K * a.d) + 1, [&](int64_t t, int64_t last, int thread) {
      for (; t < last; t++) {
        const int64_t p = s.position + t, slot = !a.keys ? t : a.chunk ? p % a.chunk : p;
        for (int64_t head = 0; head < a.K; head++) {
          const int64_t from = ((s.row + t) * a.K + head) * a.d;
          write_slot(kv, s.table[slot / kv.block_size], head, slot % kv.block_size, a.k + from, a.v + from,
                     static_cast<Q8_0*>(pool.own(thread)));
        }
      }
    });
  }
}

// How the work on a segment is cut: into `pieces` of its queries; or, of one piece, at its stretches into `cuts` whose
// sums are merged when all threads are done. Items are (piece or cut, key head).
struct Share {
  int64_t pieces, cuts;
  int64_t item, partial, block;  // its first item, first byte of partial sums, first block where there is no cache
};

// What depends on sizes alone.
struct Cut {
  int64_t rows, width;  // most query rows of a piece; their sums' padded length
  int64_t queries;      // most queries of a piece
  int64_t stretch;      // slots
};

// Calls f(segment, share) for each segment; returns where the next one would begin.
template <typename F>
Share share_out(const Attend& a, const Cut& cut, const F& f) {
  const int64_t group = a.H / a.K;
  Share share{};
  for (int64_t i = 0; i < a.count; i++) {
    const Segment& s = a.segments[i];
    share.pieces = (s.length + cut.queries - 1) / cut.queries;
    share.cuts = share.pieces > 1 ? 1 : (seen(a, s, s.length - 1).to + cut.stretch - 1) / cut.stretch;
    f(i, share);
    share.item += share.pieces * share.cuts * a.K;
    if (share.cuts > 1) share.partial += share.cuts * a.K * sums_bytes(s.length * group, cut.width);
    share.block += (s.length + kTile - 1) / kTile;
  }
  return share;
}

}  // namespace

void attend(Pool& pool, const Attend& given) {
  const int64_t group = given.H / given.K, d = given.d;
  const int64_t block_size = given.keys ? given.block_size : kTile;
  const int64_t queries = kRows / group > 1 ? kRows / group : 1;
  const Cut cut{queries * group, round_up(d, W), queries, round_up(kStretch, block_size)};

  // Without a cache the step's keys and values get blocks of their own, for as long as this call takes.
  const Share end = share_out(given, cut, [](int64_t, const Share&) {});
  KVBlocks kv{static_cast<uint8_t*>(given.keys), static_cast<uint8_t*>(given.values), given.type, block_size, given.K, d};
  const int64_t own_blocks = given.keys ? 0 : end.block, own_bytes = own_blocks * given.K * kTile * 4 * d + 64;
  Share* shares;
  Segment* segments;
  int32_t* tables;
  uint8_t *keys, *values, *partials;
  const auto lay_out = [&](Pieces memory) {
    shares = memory.take<Share>(given.count);
    segments = memory.take<Segment>(given.count);
    tables = memory.take<int32_t>(own_blocks);
    keys = memory.take<uint8_t>(own_bytes);
    values = memory.take<uint8_t>(own_bytes);
    partials = memory.take<uint8_t>(end.partial);
    return memory.bytes();
  };
  lay_out(Pieces(pool.shared(Pool::kOperation, size_t(lay_out(Pieces(nullptr))))));
  for (int64_t b = 0; b < own_blocks; b++) tables[b] = int32_t(b);
  Attend a = given;
  a.segments = segments;
  share_out(given, cut, [&](int64_t i, const Share& share) {
    shares[i] = share;
    segments[i] = given.segments[i];
    if (!given.keys) segments[i].table = tables + share.block;
  });
  if (!given.keys) kv = {keys, values, kF32, kTile, given.K, d};
  write_step(pool, a, kv);

  Pieces counted(nullptr);
  room_in(counted, cut.rows, d, cut.width);
  pool.reserve_own(size_t(counted.bytes()));
  const auto room_of = [&](int thread) {
    Pieces memory(pool.own(thread));
    return room_in(memory, cut.rows, d, cut.width);
  };
  const auto partial_of = [&](int64_t i, int64_t head, int64_t n) {
    const int64_t rows = segments[i].length * group;
    return sums_in(Pieces(partials + shares[i].partial + (head * shares[i].cuts + n) * sums_bytes(rows, cut.width)), rows,
                   cut.width);
  };

  parallel(pool, end.item, 1, [&](int64_t item, int64_t last_item, int thread) {
    Room room = room_of(thread);
    const Sums stretch_sums = room.stretch;
    int64_t i = 0;  // the segment: of those whose items begin at or before this one the last
    for (int64_t beyond = a.count; beyond - i > 1;) {
      const int64_t middle = (i + beyond) / 2;
      (shares[middle].item <= item ? i : beyond) = middle;
    }
    for (; item < last_item; item++) {
      while (i + 1 < a.count && shares[i + 1].item <= item) i++;
      const Segment& s = segments[i];
      const Share& share = shares[i];
      const int64_t head = (item - share.item) % a.K, part = (item - share.item) / a.K;
      // Late queries see most keys: the longest pieces first.
      const int64_t piece = share.cuts > 1 ? 0 : share.pieces - 1 - part, each = (s.length + share.pieces - 1) / share.pieces;
      const Queries qs{&s, head, piece * each, least(each, s.length - piece * each)};
      if (qs.count <= 0) continue;
      take_queries(a, qs, kv.type == kQ8_0, room);
      if (share.cuts > 1) {
        room.stretch = partial_of(i, head, part);
        visit(a, kv, qs, part * cut.stretch, (part + 1) * cut.stretch, room);
        room.stretch = stretch_sums;
        continue;
      }
      const int64_t rows = qs.count * group, last = seen(a, s, qs.first + qs.count - 1).to;
      clear(room.all, rows, cut.width);
      for (int64_t from = seen(a, s, qs.first).from / cut.stretch * cut.stretch; from < last; from += cut.stretch) {
        visit(a, kv, qs, from, from + cut.stretch, room);
        merge(room.all, room.stretch, rows, cut.width);
      }
      give(a, qs, room.all);
    }
  });

  if (end.partial == 0) return;
  parallel(pool, a.count * a.K, 1, [&](int64_t n, int64_t last, int thread) {
    const Room room = room_of(thread);
    for (; n < last; n++) {
      const int64_t i = n / a.K, head = n % a.K, rows = segments[i].length * group;
      if (shares[i].cuts == 1) continue;
      clear(room.all, rows, cut.width);
      for (int64_t part = 0; part < shares[i].cuts; part++) merge(room.all, partial_of(i, head, part), rows, cut.width);
      give(a, {&segments[i], head, 0, segments[i].length}, room.all);
    }
  });
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

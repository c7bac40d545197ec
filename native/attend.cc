// y[t, h] = Σ_s softmax_s(q[t, h] · k[s, ⌊h·K/H⌋] / √d) · v[s, …] over the keys that row t sees        reference: attend()
//
// Keys stand in slots (kv-blocks.h), which are visited in stretches of about kStretch slots, each from a fresh maximum,
// in tiles of at most kTile slots of one block; a stretch's result is then merged with those before it. A long context
// read by few queries is cut between threads at the stretches. Every sum runs over d, or over the slots, in order (that of
// the weights by lanes): one query alone, or among many, on any number of threads gives the same bits. Working memory: O(T), and
// a tile a thread.

#include "attend-tile.h"
#include "kernels.h"
#include "kv-blocks.h"
#include "simd.h"

namespace llama4 {
namespace LLAMA4_ISA {

namespace {

constexpr int64_t kStretch = 1024;
constexpr int64_t kRows = 120;  // query rows (query × heads that share a key head) that a tile of keys is used for

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// What one query row has gathered: its largest score, Σ exp(score − largest) in as many parts as a register has lanes,
// Σ exp(…)·v.
struct Sums {
  float *largest, *totals, *mix;  // [rows], [rows, W], [rows, width]
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
  float *largest = memory.take<float>(rows), *totals = memory.take<float>(rows * W);
  return {largest, totals, memory.take<float>(rows * width)};
}
int64_t sums_bytes(int64_t rows, int64_t width) {
  return round_up(rows * 4, 64) + round_up(rows * W * 4, 64) + round_up(rows * width * 4, 64);
}

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
  for (int64_t r = 0; r < rows; r++) s.largest[r] = kNone;
  memset(s.totals, 0, size_t(rows * W) * sizeof(float));
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
    const auto add = [&](float* x, const float* y) { store(x, splat(a) * load(x) + splat(b) * load(y)); };
    add(to.totals + r * W, from.totals + r * W);
    for (int64_t i = 0; i < width; i += W) add(to.mix + r * width + i, from.mix + r * width + i);
  }
}

// The largest of a row's scores that it sees; −∞ in the place of those that it does not see.
inline float largest_seen(float* scores, Range sees) {
  for (int64_t j = 0; j < sees.from; j++) scores[j] = kNone;
  for (int64_t j = sees.to; j < kTile; j++) scores[j] = kNone;
  vec tops = load(scores);
  for (int64_t j = W; j < kTile; j += W) tops = max(tops, load(scores + j));
  return largest(tops);
}

// Scores to weights; returns their sums.
inline vec weigh(float* scores, float top) {
  vec sums{};
#pragma GCC unroll 4
  for (int64_t j = 0; j < kTile; j += W) {
    const vec e = exp(load(scores + j) - splat(top));
    store(scores + j, e);
    sums += e;
  }
  return sums;
}

// Some queries of a segment with all heads of a key head: [first, first + count).
struct Queries {
  const Segment* segment;
  int64_t head, first, count;
};

// Slots that query number `query` of a segment sees.
Range seen(const Attend& a, const Segment& s, int64_t query) {
  if (!a.causal) return {0, s.length};
  const int64_t p = s.position + query, start = a.chunk ? p - p % a.chunk : 0;
  if (a.keys) return {0, p - start + 1};
  return {start > s.position ? start - s.position : 0, query + 1};  // slots count the segment's own rows
}

// Slots [at, at + used) of one block. A panel begun is read whole: `whole` slots.
struct Tile {
  int64_t at, used, whole;
  const uint8_t *keys, *values;
};
Tile tile_at(const KVBlocks& kv, const Segment& s, int64_t head, int64_t at, int64_t last) {
  const int64_t slot = at % kv.block_size, n = least(kTile, kv.block_size - slot), used = least(n, last - at);
  const int64_t panel = kv.panel(s.table[at / kv.block_size], head, slot);
  return {at, used, least(n, round_up(used, kPanel)), kv.keys + panel, kv.values + panel};
}

// The slots of a tile that a query sees, from the tile's first on.
Range seen_of(const Attend& a, const Queries& qs, int64_t query, const Tile& tile) {
  const Range range = seen(a, *qs.segment, qs.first + query);
  const int64_t from = range.from > tile.at ? least(range.from - tile.at, tile.used) : 0;
  const int64_t to = least(range.to - tile.at, tile.used);
  return {from, to > from ? to : from};
}

Next next_of(const KVBlocks& kv, const uint8_t* at) {
  return {at, round_up(least(kTile, kv.block_size) * kv.row_bytes() / 4, 64)};
}

void score(const KVBlocks& kv, const Tile& tile, int64_t rows, const Room& room) {
  const bool few = few_rows(rows);
  const Next next = next_of(kv, few ? tile.values : nullptr);
  const auto tile_of = [&](const auto* keys) { score_tile(room.q, rows, kv.d, keys, tile.whole, next, room.scores); };
  if (kv.type == kQ8_0) score_tile_q8(room.shorts, rows, kv.d, tile.keys, tile.whole, next, room.scores);
  else if (kv.type == kF16 && few) tile_of(reinterpret_cast<const f16*>(tile.keys));
  else tile_of(panel_floats(kv.type, tile.keys, tile.whole, kv.d, room.keys));
}

// The scores of a tile become weights; room.keep: what the rows' earlier sums are to be multiplied by.
// `next`: the keys to ask for meanwhile.
void weigh_tile(const Attend& a, const Queries& qs, const Tile& tile, Next next, const Room& room) {
  const int64_t group = a.H / a.K, rows = qs.count * group;
  float *keep = room.keep, *largest = room.stretch.largest, *totals = room.stretch.totals;
  for (int64_t t = 0; t < qs.count; t++) {
    const Range sees = seen_of(a, qs, t, tile);
    for (int64_t r = t * group; r < (t + 1) * group; r++) keep[r] = largest_seen(room.scores + r * kTile, sees);
  }
  for (int64_t r = 0; r < rows; r += W) {
    const vec before = load(largest + r), top = max(load(keep + r), before);
    store(largest + r, top);
    store(keep + r, top == before ? splat(1.0f) : exp(before - top));
  }
  for (int64_t r = 0; r < rows; r++) {
    next.ask(256 * r, 256);  // a line of each stream, so that memory has something to do meanwhile
    if (largest[r] == kNone) {
      const Range sees = seen_of(a, qs, r / group, tile);
      if (sees.from == sees.to) continue;
      largest[r] = __builtin_nanf("");  // all that it sees is NaN or −∞: so is what follows, whatever comes after
    }
    const vec sums = weigh(room.scores + r * kTile, largest[r]);
    store(totals + r * W, load(totals + r * W) * splat(keep[r]) + sums);
  }
}

// Queries that see the same slots of a tile mix them together. A slot that a query does not see is not touched: a weight
// of 0 would let an infinity through.
void mix(const Attend& a, const KVBlocks& kv, const Queries& qs, const Tile& tile, Next next, const Room& room) {
  const int64_t group = a.H / a.K, d = a.d, width = round_up(d, W);
  const bool few = few_rows(qs.count * group), floats = kv.type == kF32 || (kv.type == kF16 && !few);
  const float* decoded = floats ? panel_floats(kv.type, tile.values, tile.used, d, room.values) : nullptr;
  for (int64_t t = 0, end; t < qs.count; t = end) {
    const Range sees = seen_of(a, qs, t, tile);
    for (end = t + 1; end < qs.count; end++) {
      const Range other = seen_of(a, qs, end, tile);
      if (other.from != sees.from || other.to != sees.to) break;
    }
    if (sees.from == sees.to) continue;
    const int64_t r = t * group, rows = (end - t) * group;
    const float *weights = room.scores + r * kTile, *keep = room.keep + r;
    float* to = room.stretch.mix + r * width;
    const auto mix = [&](const auto* values) { mix_tile(weights, keep, rows, values, d, sees, next, to, width); };
    if (kv.type == kQ8_0) mix_tile_q8(weights, keep, rows, tile.values, d, tile.whole, sees, next, to, width);
    else if (floats) mix(decoded);
    else mix(reinterpret_cast<const f16*>(tile.values));
  }
}

// The slots [first, last) for all rows of `queries`, from a fresh maximum, into room.stretch. `beyond`: the keys that
// this thread reads after them, or nullptr.
void visit(const Attend& a, const KVBlocks& kv, const Queries& qs, int64_t first, int64_t last, const uint8_t* beyond,
           const Room& room) {
  const int64_t group = a.H / a.K, rows = qs.count * group;
  const Segment& s = *qs.segment;
  clear(room.stretch, rows, round_up(a.d, W));
  last = least(last, seen(a, s, qs.first + qs.count - 1).to);  // slots past the last query hold nothing yet
  const int64_t start = seen(a, s, qs.first).from;
  for (int64_t at = first, n; at < last; at += n) {
    n = least(kTile, kv.block_size - at % kv.block_size);
    if (at + n <= start) continue;
    const Tile tile = tile_at(kv, s, qs.head, at, last);
    score(kv, tile, rows, room);
    const uint8_t* keys = at + n < last ? tile_at(kv, s, qs.head, at + n, last).keys : beyond;
    const Next next = next_of(kv, few_rows(rows) ? keys : nullptr);
    weigh_tile(a, qs, tile, next, room);
    mix(a, kv, qs, tile, next, room);
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
      const int64_t row = (qs.segment->row + qs.first + t) * a.H + qs.head * group + g;
      float* y = a.y + row * d;
      const float total = sum(load(sums.totals + r * W)), inverse = 1.0f / total;
      if (a.lse) a.lse[row] = sums.largest[r] + __builtin_logf(total);
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

// One call: its operands, and how it is cut.
struct Work {
  Attend a;
  KVBlocks kv;
  int64_t queries, stretch;  // most queries of a piece; slots of a stretch
  Share* shares;             // [segments]
  Share end;                 // where another segment's would begin
  uint8_t* partials;

  int64_t group() const { return a.H / a.K; }
  int64_t width() const { return round_up(a.d, W); }
};

// Calls f(segment, share) for each segment; returns where the next one would begin.
template <typename F>
Share share_out(const Work& w, const F& f) {
  Share share{};
  for (int64_t i = 0; i < w.a.count; i++) {
    const Segment& s = w.a.segments[i];
    share.pieces = (s.length + w.queries - 1) / w.queries;
    share.cuts = share.pieces > 1 ? 1 : (seen(w.a, s, s.length - 1).to + w.stretch - 1) / w.stretch;
    f(i, share);
    share.item += share.pieces * share.cuts * w.a.K;
    if (share.cuts > 1) share.partial += share.cuts * w.a.K * sums_bytes(s.length * w.group(), w.width());
    share.block += (s.length + kTile - 1) / kTile;
  }
  return share;
}

// Without a cache the step's keys and values get blocks of their own, for as long as the call takes.
Work lay_out(Pool& pool, const Attend& given) {
  const bool cached = given.keys != nullptr;
  const int64_t group = given.H / given.K, block_size = cached ? given.block_size : kTile;
  Work w{};
  w.a = given;
  w.queries = kRows / group > 1 ? kRows / group : 1;
  w.stretch = round_up(kStretch, block_size);
  w.end = share_out(w, [](int64_t, const Share&) {});
  const int64_t blocks = cached ? 0 : w.end.block, bytes = blocks * given.K * kTile * 4 * given.d + kPoolSlack;
  Segment* segments;
  int32_t* tables;
  uint8_t *keys, *values;
  const auto place = [&](Pieces memory) {
    w.shares = memory.take<Share>(given.count);
    segments = memory.take<Segment>(given.count);
    tables = memory.take<int32_t>(blocks);
    keys = memory.take<uint8_t>(bytes);
    values = memory.take<uint8_t>(bytes);
    w.partials = memory.take<uint8_t>(w.end.partial);
    return memory.bytes();
  };
  place(Pieces(pool.shared(Pool::kOperation, size_t(place(Pieces(nullptr))))));
  for (int64_t b = 0; b < blocks; b++) tables[b] = int32_t(b);
  share_out(w, [&](int64_t i, const Share& share) {
    w.shares[i] = share;
    segments[i] = given.segments[i];
    if (!cached) segments[i].table = tables + share.block;
  });
  w.a.segments = segments;
  if (cached) keys = static_cast<uint8_t*>(given.keys), values = static_cast<uint8_t*>(given.values);
  w.kv = {keys, values, cached ? given.type : kF32, block_size, given.K, given.d};
  return w;
}

// Some queries with the slots [first, last), which are one of several cuts or all that they see.
struct Item {
  Queries queries;
  int64_t first, last;
  int64_t segment, cut;
};

Item item_at(const Work& w, int64_t n) {
  int64_t i = 0;  // the segment: of those whose items begin at or before this one the last
  for (int64_t beyond = w.a.count; beyond - i > 1;) {
    const int64_t middle = (i + beyond) / 2;
    (w.shares[middle].item <= n ? i : beyond) = middle;
  }
  const Segment& s = w.a.segments[i];
  const Share& share = w.shares[i];
  const int64_t head = (n - share.item) % w.a.K, part = (n - share.item) / w.a.K;
  if (share.cuts > 1) return {{&s, head, 0, s.length}, part * w.stretch, (part + 1) * w.stretch, i, part};
  // Late queries see most keys: the longest pieces first.
  const int64_t piece = share.pieces - 1 - part, each = (s.length + share.pieces - 1) / share.pieces;
  const Queries qs{&s, head, piece * each, least(each, s.length - piece * each)};
  const int64_t from = seen(w.a, s, qs.first).from, to = seen(w.a, s, qs.first + qs.count - 1).to;
  return {qs, from / w.stretch * w.stretch, to, i, 0};
}

Sums partial_of(const Work& w, int64_t segment, int64_t head, int64_t cut) {
  const Share& share = w.shares[segment];
  const int64_t rows = w.a.segments[segment].length * w.group(), bytes = sums_bytes(rows, w.width());
  return sums_in(Pieces(w.partials + share.partial + (head * share.cuts + cut) * bytes), rows, w.width());
}

const uint8_t* first_keys(const Work& w, const Item& item) {
  return tile_at(w.kv, *item.queries.segment, item.queries.head, item.first, item.last).keys;
}

void reserve_rooms(Pool& pool, const Work& w) {
  Pieces counted(nullptr);
  room_in(counted, w.queries * w.group(), w.a.d, w.width());
  pool.reserve_own(size_t(counted.bytes()));
}
Room room_of(Pool& pool, const Work& w, int thread) {
  Pieces memory(pool.own(thread));
  return room_in(memory, w.queries * w.group(), w.a.d, w.width());
}

// Leaves the results of an item, or of a cut the sums. `beyond`: as in visit().
void attend_item(const Work& w, const Item& item, const uint8_t* beyond, Room room) {
  const Queries& qs = item.queries;
  take_queries(w.a, qs, w.kv.type == kQ8_0, room);
  if (w.shares[item.segment].cuts > 1) {
    room.stretch = partial_of(w, item.segment, qs.head, item.cut);
    return visit(w.a, w.kv, qs, item.first, item.last, beyond, room);
  }
  const int64_t rows = qs.count * w.group();
  clear(room.all, rows, w.width());
  for (int64_t from = item.first; from < item.last; from += w.stretch) {
    visit(w.a, w.kv, qs, from, from + w.stretch, beyond, room);
    merge(room.all, room.stretch, rows, w.width());
  }
  give(w.a, qs, room.all);
}

void attend_items(Pool& pool, const Work& w) {
  parallel(pool, w.end.item, 1, [&](int64_t n, int64_t last, int thread) {
    const Room room = room_of(pool, w, thread);
    for (Item item = item_at(w, n), next{}; n < last; n++, item = next) {
      next = n + 1 < last ? item_at(w, n + 1) : Item{};
      if (item.queries.count <= 0) continue;
      attend_item(w, item, next.queries.count > 0 ? first_keys(w, next) : nullptr, room);
    }
  });
}

void merge_cuts(Pool& pool, const Work& w) {
  parallel(pool, w.a.count * w.a.K, 1, [&](int64_t n, int64_t last, int thread) {
    const Room room = room_of(pool, w, thread);
    for (; n < last; n++) {
      const int64_t i = n / w.a.K, head = n % w.a.K, length = w.a.segments[i].length, rows = length * w.group();
      if (w.shares[i].cuts == 1) continue;
      clear(room.all, rows, w.width());
      for (int64_t cut = 0; cut < w.shares[i].cuts; cut++) merge(room.all, partial_of(w, i, head, cut), rows, w.width());
      give(w.a, {&w.a.segments[i], head, 0, length}, room.all);
    }
  });
}

}  // namespace

void attend(Pool& pool, const Attend& given) {
  const Work w = lay_out(pool, given);
  write_step(pool, w.a, w.kv);
  reserve_rooms(pool, w);
  attend_items(pool, w);
  if (w.end.partial > 0) merge_cuts(pool, w);
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

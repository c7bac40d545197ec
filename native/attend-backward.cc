// With p = exp(q·k/√d − lse), D = Σ dy·y and ds = p·(dy·v − D):
// dv = Σ p·dy, dk = Σ ds·q/√d, dq = Σ ds·k/√d        reference: attendBackward() of src/backends/reference/backward.ts
//
// After Dao et al. 2022, "FlashAttention": scores are computed again from the rows' lse, tile by tile, and nothing of
// [T, T] is built. A tile is kTile keys by kTile rows (query × heads that share the key head). Work is shared out by
// pieces of a segment's keys, cut by its length alone; what later pieces add to dq is gathered beside it and added in
// order, so that a result does not depend on the threads.

#include <initializer_list>

#include "attend-tile.h"
#include "gemm.h"
#include "kernels.h"
#include "simd.h"

namespace llama4 {
namespace LLAMA4_ISA {

namespace {

constexpr int64_t kPiece = 1024;      // keys that one thread takes, at least, where they are cut
constexpr int64_t kMostPieces = 4;    // of a segment, each with a dq of its own

// The keys [first, last) of a segment, with the rows that see them: of the queries [begin, end).
struct Piece {
  const Segment* segment;
  int64_t first, last, begin, end;
  int64_t part;  // 0: adds to dq itself; else to a buffer of the segment's
};

// The piece number n of a segment; `last` is 0 when there is none.
Piece piece_of(const AttendBackward& a, const Segment& s, int64_t n) {
  if (a.causal && a.chunk) {  // whole chunks: nobody outside sees them
    const int64_t start = s.position % a.chunk, first = n ? n * a.chunk - start : 0;
    if (first >= s.length) return {};
    const int64_t last = least((n + 1) * a.chunk - start, s.length);
    return {&s, first, last, first, last, 0};
  }
  const int64_t pieces = least(kMostPieces, (s.length + kPiece - 1) / kPiece);
  if (n >= pieces) return {};
  const int64_t tiles = (s.length + kTile - 1) / kTile;
  const int64_t first = n * tiles / pieces * kTile, last = least((n + 1) * tiles / pieces * kTile, s.length);
  return {&s, first, last, a.causal ? first : 0, s.length, n};
}

template <typename F>
void each_piece(const AttendBackward& a, const F& f) {
  for (int64_t s = 0; s < a.count; s++)
    for (int64_t n = 0;; n++) {
      const Piece piece = piece_of(a, a.segments[s], n);
      if (piece.last == 0) break;
      f(piece);
    }
}

// Working memory of a thread: rows of a tile, and the tile's products.
struct Room {
  float *q, *dy;                 // [kTile, d], q scaled by 1/√d
  float *keys, *values;          // panels of attend-tile.h: [kTile / kPanel, d, kPanel]
  float* scaled;                 // keys / √d [kTile, d]
  float *p, *ds, *p_back, *ds_back;  // [rows, kTile]; transposed [kTile, rows]
  float *dq, *dk, *dv;           // [kTile, width]
  float* ones;                   // [kTile]

  static constexpr int64_t kSlack = 16;  // registers of a last row reach beyond it
  static int64_t floats(int64_t d, int64_t width) { return 5 * (kTile * d + kSlack) + 4 * kTile * kTile + 3 * kTile * width + kTile; }
  Room(float* at, int64_t d, int64_t width) {
    const auto take = [&](int64_t n) { return at += n, at - n; };
    for (float** x : {&q, &dy, &keys, &values, &scaled}) *x = take(kTile * d + kSlack);
    for (float** x : {&p, &ds, &p_back, &ds_back}) *x = take(kTile * kTile);
    for (float** x : {&dq, &dk, &dv}) *x = take(kTile * width);
    ones = take(kTile);
    for (int64_t i = 0; i < kTile; i++) ones[i] = 1;
  }
};

void to_panels(const float* x, int64_t stride, int64_t n, int64_t d, float* panels) {
  for (int64_t j = 0; j < kTile; j++) {
    float* to = panels + j / kPanel * kPanel * d + j % kPanel;
    for (int64_t i = 0; i < d; i++) to[i * kPanel] = j < n ? x[j * stride + i] : 0;
  }
}

// [kTile, kTile]; rows from `rows` on are not read, and become 0.
void transpose_tile(const float* x, int64_t rows, float* y) {
  for (int64_t r = 0; r < kTile; r += W)
    for (int64_t c = 0; c < kTile; c += W) {
      vec m[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; i++) m[i] = r + i < rows ? load(x + (r + i) * kTile + c) : vec{};
      transpose(m);
#pragma GCC unroll 16
      for (int i = 0; i < W; i++) store(y + (c + i) * kTile + r, m[i]);
    }
}

struct Work {
  const AttendBackward& a;
  const float* D;  // [T, H]
  int64_t group, width;
  float scale;

  // Row r of a segment's rows, of query r / group.
  int64_t row(const Piece& piece, int64_t head, int64_t r) const {
    return (piece.segment->row + r / group) * a.H + head * group + r % group;
  }
};

// p and ds of the rows [r, r + rows) and the keys [j, j + n): 0 where a row does not see a key.
void weigh(const Work& w, const Piece& piece, int64_t head, int64_t r, int64_t rows, int64_t j, int64_t n, const Room& room) {
  for (int64_t i = 0; i < rows; i++) {
    const int64_t row = w.row(piece, head, r + i), query = (r + i) / w.group;
    const int64_t seen = w.a.causal ? least(n, query + 1 - j) : n;  // keys of the tile; pieces keep to chunks
    float *p = room.p + i * kTile, *ds = room.ds + i * kTile;
    const vec lse = splat(w.a.lse[row]), D = splat(w.D[row]);
    for (int64_t k = 0; k < kTile; k += W) {
      if (k >= seen) {
        store(p + k, vec{}), store(ds + k, vec{});
        continue;
      }
      vec weights = exp(load(p + k) - lse);
      for (int64_t l = seen - k; l < W; l++) weights[l] = 0;
      store(p + k, weights);
      store(ds + k, weights * (load(ds + k) - D));
    }
  }
}

void visit(const Work& w, const Piece& piece, int64_t head, float* dq, const Room& room) {
  const AttendBackward& a = w.a;
  const int64_t d = a.d, width = w.width;
  for (int64_t j = piece.first; j < piece.last; j += kTile) {
    const int64_t n = least(kTile, piece.last - j), from = ((piece.segment->row + j) * a.K + head) * d, stride = a.K * d;
    to_panels(a.k + from, stride, n, d, room.keys);
    to_panels(a.v + from, stride, n, d, room.values);
    for (int64_t k = 0; k < n; k++)
      for (int64_t i = 0; i < d; i++) room.scaled[k * d + i] = a.k[from + k * stride + i] * w.scale;
    memset(room.dk, 0, size_t(kTile * width) * sizeof(float));
    memset(room.dv, 0, size_t(kTile * width) * sizeof(float));
    const int64_t end = piece.end * w.group;
    for (int64_t r = (a.causal ? j : piece.begin) * w.group; r < end; r += kTile) {
      const int64_t rows = least(kTile, end - r);
      for (int64_t i = 0; i < rows; i++) {
        const int64_t row = w.row(piece, head, r + i);
        for (int64_t e = 0; e < d; e++) room.q[i * d + e] = a.q[row * d + e] * w.scale;
        memcpy(room.dy + i * d, a.dy + row * d, size_t(d) * sizeof(float));
        memcpy(room.dq + i * width, dq + row * d, size_t(d) * sizeof(float));
      }
      const Next nothing{};
      score_tile(room.q, rows, d, static_cast<const float*>(room.keys), kTile, nothing, room.p);
      score_tile(room.dy, rows, d, static_cast<const float*>(room.values), kTile, nothing, room.ds);
      weigh(w, piece, head, r, rows, j, n, room);
      mix_tile(room.ds, room.ones, rows, static_cast<const float*>(room.scaled), d, {0, n}, nothing, room.dq, width);
      transpose_tile(room.p, rows, room.p_back);
      transpose_tile(room.ds, rows, room.ds_back);
      mix_tile(room.p_back, room.ones, n, static_cast<const float*>(room.dy), d, {0, rows}, nothing, room.dv, width);
      mix_tile(room.ds_back, room.ones, n, static_cast<const float*>(room.q), d, {0, rows}, nothing, room.dk, width);
      for (int64_t i = 0; i < rows; i++)
        memcpy(dq + w.row(piece, head, r + i) * d, room.dq + i * width, size_t(d) * sizeof(float));
    }
    for (int64_t k = 0; k < n; k++) {
      memcpy(a.dk + from + k * stride, room.dk + k * width, size_t(d) * sizeof(float));
      memcpy(a.dv + from + k * stride, room.dv + k * width, size_t(d) * sizeof(float));
    }
  }
}

}  // namespace

void attend_backward(Pool& pool, const AttendBackward& a) {
  const int64_t rows = a.T * a.H, d = a.d, whole = rows * d, width = (d + W - 1) / W * W;
  int64_t pieces = 0, parts = 1;  // parts: of dq
  each_piece(a, [&](const Piece& piece) {
    pieces++;
    if (piece.part >= parts) parts = piece.part + 1;
  });
  const size_t floats = size_t(rows + (parts - 1) * whole);
  Piece* list = static_cast<Piece*>(pool.shared(Pool::kOperation, size_t(pieces) * sizeof(Piece) + floats * sizeof(float)));
  float *D = reinterpret_cast<float*>(list + pieces), *beside = D + rows;
  each_piece(a, [&](const Piece& piece) { *list++ = piece; });
  list -= pieces;

  // dq and its further parts start at 0, as do keys that stand in no segment.
  parallel(pool, whole, 65536, [&](int64_t first, int64_t last, int) {
    const size_t bytes = size_t(last - first) * sizeof(float);
    memset(a.dq + first, 0, bytes);
    for (int64_t part = 1; part < parts; part++) memset(beside + (part - 1) * whole + first, 0, bytes);
  });
  memset(a.dk, 0, size_t(a.T * a.K * d) * sizeof(float));
  memset(a.dv, 0, size_t(a.T * a.K * d) * sizeof(float));
  parallel(pool, rows, 16384 / d + 1, [&](int64_t row, int64_t last, int) {
    for (; row < last; row++) {
      const float *y = a.y + row * d, *dy = a.dy + row * d;
      vec s{};
      each_vec(d, [&](int64_t i) { s += load(y + i) * load(dy + i); },
               [&](int64_t i, int64_t part) { s += load_part(y + i, part) * load_part(dy + i, part); });
      D[row] = sum(s);
    }
  });

  const Work w{a, D, a.H / a.K, width, 1.0f / __builtin_sqrtf(float(d))};
  pool.reserve_own(size_t(Room::floats(d, width)) * sizeof(float));
  parallel(pool, pieces * a.K, 1, [&](int64_t item, int64_t last, int thread) {
    const Room room(static_cast<float*>(pool.own(thread)), d, width);
    for (; item < last; item++) {
      const Piece& piece = list[item / a.K];
      visit(w, piece, item % a.K, piece.part ? beside + (piece.part - 1) * whole : a.dq, room);
    }
  });
  if (parts > 1)
    parallel(pool, whole, 16384, [&](int64_t i, int64_t last, int) {
      for (; i < last; i++)
        for (int64_t part = 1; part < parts; part++) a.dq[i] += beside[(part - 1) * whole + i];
    });
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

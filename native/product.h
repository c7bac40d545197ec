// y[t, o] = Σᵢ x[t, i] · w[o, i] + b[o], where A is x and B is wᵀ: many rows by gemm.h; few, kFewRows here, by dot.h,
// which reads each weight once from memory and packs nothing. Lanes says what a lane holds (linear.cc, pairs.h).

#pragma once

#include "decode.h"
#include "dot.h"
#include "packed.h"

namespace llama4 {
namespace LLAMA4_ISA {

// W sums of a row of y, plus the bias: of the first n columns, from column o on.
static inline void write_sums(const Linear& l, float* y, int64_t o, int64_t n, vec sums) {
  if (n >= W) store(y + o, l.b ? sums + load(l.b + o) : sums);
  else if (n > 0) store_part(y + o, l.b ? sums + load_part(l.b + o, n) : sums, n);
}

template <typename Lanes>
struct ManyRows {
  static constexpr bool tiles = Lanes::tiles;
  const Linear& l;
  const int64_t few, count, rows, N, depth;  // products of up to `few` rows are left out
  const int type;
  const Block block;

  ManyRows(const Linear& l, int64_t few)
      : l(l), few(few), count(l.count), rows(l.N), N(l.O), depth(ceil_div(l.I, Lanes::kElements)), type(plain(l.type)),
        block(block_of(type)) {}

  int64_t first(int64_t p) const { return l.products[p].row; }
  int64_t last(int64_t p) const { return first(p) + (l.products[p].T > few ? l.products[p].T : 0); }

  void pack_a(int64_t row, int64_t rows, int64_t k, int64_t n, float* out) const {
    for (int64_t end = row + rows; row < end; row++, out += depth_of<Lanes>)
      for (int64_t i = 0; i < n; i += W) store(out + i, Lanes::load(l.x + row * l.I, k + i, l.I));
  }

  void pack_b(int64_t p, int64_t o, int64_t columns, int64_t k, int64_t n, float* out, float* spare) const {
    const int64_t row_bytes = l.I / block.elements * block.bytes, at = k * Lanes::kElements;
    const uint8_t* from = static_cast<const uint8_t*>(l.products[p].w) + o * row_bytes;
    if (Lanes::as_stored(type, from, [&](const auto* w) {
          pack_transposed(columns, n, [&](int64_t c, int64_t i) { return Lanes::load(w + c * l.I, k + i, l.I); }, out);
        }))
      return;
    from += at / block.elements * block.bytes;
    for (int64_t c = 0; c < columns; c++) decode_row(type, from + c * row_bytes, spare + c * depth_of<Lanes>, n);
    pack_transposed(columns, n, [&](int64_t c, int64_t i) { return Lanes::load(spare + c * depth_of<Lanes>, i, n); }, out);
  }

  void write(int64_t p, int64_t row, int64_t o, int64_t columns, const float* sums) const {
    float* y = l.products[p].y + (row - l.products[p].row) * l.O;
    write_sums(l, y, o, columns, load(sums));
    write_sums(l, y, o + W, columns - W, load(sums + W));
  }

  static vec multiply_add(vec a, vec b, vec sum) { return Lanes::multiply_add(a, b, sum); }
};

// Products of up to kFewRows rows.
template <typename Lanes>
static void multiply_few(Pool& pool, const Linear& l) {
  constexpr int64_t kColumns = 64;  // of an item
  const int type = plain(l.type);
  const Block block = block_of(type);
  const int64_t row_bytes = l.I / block.elements * block.bytes, items = ceil_div(l.O, kColumns);
  pool.reserve_own(size_t(kColumns) * size_t(l.I) * sizeof(float));  // decoded weights, or rows of x as lanes
  parallel(pool, items * l.count, 1, [&](int64_t item, int64_t end, int thread) {
    float* room = static_cast<float*>(pool.own(thread));
    const float* x = nullptr;
    for (int64_t before = -1; item < end; item++) {
      const Product& product = l.products[item / items];
      if (product.T > kFewRows) continue;
      if (item / items != before) x = Lanes::rows(l.x + product.row * l.I, product.T, l.I, room);
      before = item / items;
      const int64_t o = item % items * kColumns, columns = l.O - o < kColumns ? l.O - o : kColumns;
      const uint8_t* from = static_cast<const uint8_t*>(product.w) + o * row_bytes;
      const auto multiply = [&](const auto* w) {
        dot_rows<Lanes>(product.T, w, columns, x, l.I, [&](int c, int64_t column, vec sums) {
          write_sums(l, product.y + c * l.O, o + column, l.O - o - column, sums);
        });
      };
      if (Lanes::as_stored(type, from, multiply)) continue;
      if constexpr (Lanes::kElements == 1) {
        for (int64_t c = 0; c < columns; c++) decode_row(type, from + c * row_bytes, room + c * l.I, l.I);
        multiply(static_cast<const float*>(room));
      }
    }
  });
}

// multiply_few(pool, l) takes the products of up to `few` rows.
template <typename Lanes, typename Few>
static void multiply(Pool& pool, const Linear& l, int64_t few, const Few& multiply_few) {
  bool is_few = false, is_many = false;
  for (int64_t p = 0; p < l.count; p++) (l.products[p].T > few ? is_many : is_few) = true;
  if (is_few) multiply_few(pool, l);
  if (is_many) gemm(pool, ManyRows<Lanes>(l, few));
}

template <typename Lanes>
static void multiply(Pool& pool, const Linear& l) {
  multiply<Lanes>(pool, l, kFewRows, multiply_few<Lanes>);
}

// x and weights of float32 or bf16, both rounded to bf16, and sums in float32: where has_bf16() says so.
bool has_bf16();
void linear_bf16(Pool& pool, const Linear& l);

}  // namespace LLAMA4_ISA
}  // namespace llama4

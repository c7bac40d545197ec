// Quantized matrices as the integer kernels want them. Rows are taken in groups of 16, and a group's blocks are laid
// out word by word: where a row's block holds words w0 w1 w2 …, the group holds w0 of its 16 rows, then w1 of its 16
// rows, and so on, so that one register takes the same four neighbouring elements of every row.
//
//   group   | block 0's scales | block 1's scales | … || block 0's integers | block 1's integers | …
//   scales  | d of 16 rows (16 bits each) | dmin of 16 rows | words of 6- and 8-bit scales, 16 rows each |
//   integers| word 0 of 16 rows | word 1 of 16 rows | …
//
// The bytes of a group are those of its rows, moved; q8_0's are also shifted to unsigned (q + 128). A last group with
// fewer rows is filled up with zeros.

#pragma once

#include "formats.h"

namespace llama4 {

constexpr int kGroup = 16;           // rows
constexpr int kPacked = 1 << 10;     // added to a type's id: its matrices are packed
constexpr bool is_packed(int type) { return (type & kPacked) != 0; }
constexpr int kRounded = 1 << 11;    // added to float32's or bf16's id: both factors of a product may be rounded to bf16
constexpr bool is_rounded(int type) { return (type & kRounded) != 0; }
constexpr int plain(int type) { return type & ~(kPacked | kRounded); }

// What lies where in a block: 16-bit scales, words of small scales, words of integers.
struct Fields {
  int halves_at, halves, scales_at, scales, integers_at, integers;
  uint32_t flip;  // of an integer word
  constexpr int header() const { return 2 * halves + 4 * scales; }  // bytes of a row's block
};

constexpr bool can_pack(int type) {
  return type == kQ8_0 || type == kQ4_0 || type == kQ4_K || type == kQ5_K || type == kQ6_K;
}

constexpr Fields fields_of(int type) {
  switch (type) {
    case kQ8_0: return {0, 1, 2, 0, 2, 8, 0x80808080};
    case kQ4_0: return {0, 1, 2, 0, 2, 4, 0};
    case kQ4_K: return {0, 2, 4, 3, 16, 32, 0};
    case kQ5_K: return {0, 2, 4, 3, 16, 40, 0};
    case kQ6_K: return {208, 1, 192, 4, 0, 48, 0};
    default: return {};
  }
}

constexpr int64_t packed_rows(int64_t rows) { return (rows + kGroup - 1) / kGroup * kGroup; }

namespace LLAMA4_ISA {

// Words of four rows, of which each has `n` (a multiple of four) from in + r * stride on, side by side at `out`.
static inline void pack_words(const uint8_t* in, int64_t stride, int n, uint32_t flip, uint8_t* out) {
  typedef uint32_t Four __attribute__((vector_size(16)));
  for (int i = 0; i < n; i += 4) {
    Four row[4];
    for (int r = 0; r < 4; r++) memcpy(&row[r], in + r * stride + 4 * i, 16);
    const Four a = __builtin_shufflevector(row[0], row[1], 0, 4, 1, 5), b = __builtin_shufflevector(row[2], row[3], 0, 4, 1, 5);
    const Four c = __builtin_shufflevector(row[0], row[1], 2, 6, 3, 7), d = __builtin_shufflevector(row[2], row[3], 2, 6, 3, 7);
    const Four word[4] = {__builtin_shufflevector(a, b, 0, 1, 4, 5) ^ flip, __builtin_shufflevector(a, b, 2, 3, 6, 7) ^ flip,
                          __builtin_shufflevector(c, d, 0, 1, 4, 5) ^ flip, __builtin_shufflevector(c, d, 2, 3, 6, 7) ^ flip};
    for (int k = 0; k < 4; k++) memcpy(out + 4 * kGroup * (i + k), &word[k], 16);
  }
}

// `rows` <= 16 rows of `blocks` blocks, each row `stride` bytes after the other, to one group.
template <int Type>
static inline void pack_group(const uint8_t* in, int64_t stride, int rows, int64_t blocks, uint8_t* out) {
  constexpr Fields f = fields_of(Type);
  constexpr int64_t block_bytes = block_of(Type).bytes;
  uint8_t *header = out, *integers = out + blocks * kGroup * f.header();
  if (rows < kGroup) memset(out, 0, size_t(blocks * kGroup * block_bytes));
  for (int64_t b = 0; b < blocks; b++) {
    uint8_t* scales = header + 2 * kGroup * f.halves;
    for (int r = 0; r < rows; r++) {
      const uint8_t* from = in + r * stride + b * block_bytes;
      for (int i = 0; i < f.halves; i++) memcpy(header + 2 * (kGroup * i + r), from + f.halves_at + 2 * i, 2);
      for (int i = 0; i < f.scales; i++) memcpy(scales + 4 * (kGroup * i + r), from + f.scales_at + 4 * i, 4);
      if (r % 4 == 0 && r + 4 <= rows)
        pack_words(from + f.integers_at, stride, f.integers, f.flip, integers + 4 * r);
      else if (r >= rows / 4 * 4)
        for (int i = 0; i < f.integers; i++) {
          const uint32_t word = u32_of(from + f.integers_at + 4 * i) ^ f.flip;
          memcpy(integers + 4 * (kGroup * i + r), &word, 4);
        }
    }
    header += kGroup * f.header();
    integers += kGroup * 4 * f.integers;
  }
}

// Rows of `blocks` blocks, one after the other, to groups.
static inline void pack_rows(int type, const uint8_t* in, int64_t rows, int64_t blocks, uint8_t* out) {
  const int64_t row_bytes = blocks * block_of(type).bytes;
  for (int64_t r = 0; r < rows; r += kGroup) {
    const int n = int(rows - r < kGroup ? rows - r : kGroup);
    const uint8_t* from = in + r * row_bytes;
    uint8_t* to = out + r * row_bytes;
    switch (type) {
      case kQ8_0: pack_group<kQ8_0>(from, row_bytes, n, blocks, to); break;
      case kQ4_0: pack_group<kQ4_0>(from, row_bytes, n, blocks, to); break;
      case kQ4_K: pack_group<kQ4_K>(from, row_bytes, n, blocks, to); break;
      case kQ5_K: pack_group<kQ5_K>(from, row_bytes, n, blocks, to); break;
      case kQ6_K: pack_group<kQ6_K>(from, row_bytes, n, blocks, to); break;
    }
  }
}

// Block b of row r of a group, as it was.
static inline void unpack_block(int type, const uint8_t* group, int64_t blocks, int r, int64_t b, uint8_t* out) {
  const Fields f = fields_of(type);
  const uint8_t *header = group + b * kGroup * f.header(), *scales = header + 2 * kGroup * f.halves;
  const uint8_t* integers = group + blocks * kGroup * f.header() + b * kGroup * 4 * f.integers;
  for (int i = 0; i < f.halves; i++) memcpy(out + f.halves_at + 2 * i, header + 2 * (kGroup * i + r), 2);
  for (int i = 0; i < f.scales; i++) memcpy(out + f.scales_at + 4 * i, scales + 4 * (kGroup * i + r), 4);
  for (int i = 0; i < f.integers; i++) {
    const uint32_t word = u32_of(integers + 4 * (kGroup * i + r)) ^ f.flip;
    memcpy(out + f.integers_at + 4 * i, &word, 4);
  }
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

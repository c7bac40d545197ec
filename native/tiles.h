// The tile registers of AMX: eight matrices of 16 rows of 64 bytes, and an instruction that adds the product of two to a
// third. A tile of A holds 16 rows; one of B holds, in each row, the same four bytes along k of 16 columns: two bf16 or
// four int8 (Intel 64 and IA-32 Architectures Software Developer's Manual, LDTILECFG, TDPBF16PS, TDPBSSD). Only the amx
// objects see this; what runs on them and on others is written with kTiles.

#pragma once

#include <cstdint>

namespace llama4 {
namespace LLAMA4_ISA {

#if defined(__AMX_TILE__)

constexpr bool kTiles = true;

// Tiles as this thread has them while the object lives: 0 … 3 are sums, 4 and 5 A, 6 and 7 B. `depth` is how many bytes
// along k a row of A has, at most 64; B has a row for four of them. Releasing them spares the system their 8 KiB at
// every switch of threads.
class Tiles {
 public:
  explicit Tiles(int depth = 64) {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; i++) config.row_bytes[i] = 64, config.rows[i] = 16;
    for (int i = 4; i < 6; i++) config.row_bytes[i] = uint16_t(depth);
    for (int i = 6; i < 8; i++) config.rows[i] = uint8_t(depth / 4);
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~Tiles() { asm volatile("tilerelease"); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

template <int Tile>
__attribute__((always_inline)) static inline void load_tile(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(Tile) : "memory");
}
template <int Tile>
__attribute__((always_inline)) static inline void store_tile(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(Tile) : "memory");
}
template <int Tile>
__attribute__((always_inline)) static inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(Tile));
}
template <int Sum, int A, int B>
__attribute__((always_inline)) static inline void multiply_bf16_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(A), "i"(B));
}
// Signed by signed.
template <int Sum, int A, int B>
__attribute__((always_inline)) static inline void multiply_int8_tiles() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(A), "i"(B));
}

#else

constexpr bool kTiles = false;

struct Tiles {
  Tiles() {}
};

#endif

}  // namespace LLAMA4_ISA
}  // namespace llama4

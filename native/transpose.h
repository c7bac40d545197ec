// out[column][row] = in[row][column], for elements of 1, 2, 4 or 8 bytes.

#pragma once

#include <string.h>

#include <cstdint>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace llama4 {

struct Transposition {
  int64_t rows, columns;  // of in
  const uint8_t* in;
  int64_t in_stride;  // bytes between its rows
  uint8_t* out;
  int64_t out_stride;  // bytes between the places of neighbouring columns
};

#if defined(__SSE2__)
template <size_t Bytes, bool High>
inline __m128i interleave(__m128i a, __m128i b) {
  if constexpr (Bytes == 1) return High ? _mm_unpackhi_epi8(a, b) : _mm_unpacklo_epi8(a, b);
  else if constexpr (Bytes == 2) return High ? _mm_unpackhi_epi16(a, b) : _mm_unpacklo_epi16(a, b);
  else if constexpr (Bytes == 4) return High ? _mm_unpackhi_epi32(a, b) : _mm_unpacklo_epi32(a, b);
  else return High ? _mm_unpackhi_epi64(a, b) : _mm_unpacklo_epi64(a, b);
}
#endif

// A square of a cache line each way.
template <typename T, int64_t kSide = 64 / sizeof(T)>
void transpose_square(const T (&square)[kSide][kSide], uint8_t* out, int64_t stride) {
#if defined(__SSE2__)
  // Registers of 16 bytes hold n elements; n registers are transposed by log2 n rounds that interleave the first
  // half of them with the second. Lines that are written whole and not read soon go past the cache.
  constexpr int n = 16 / sizeof(T);
  const bool stream = ((reinterpret_cast<uintptr_t>(out) | uintptr_t(stride)) & 15) == 0;
  for (int64_t c = 0; c < kSide; c += n) {
    __m128i line[4][n];
#pragma GCC unroll 4
    for (int quarter = 0; quarter < 4; quarter++) {
      __m128i v[n], next[n];
#pragma GCC unroll 16
      for (int i = 0; i < n; i++) v[i] = _mm_load_si128(reinterpret_cast<const __m128i*>(&square[n * quarter + i][c]));
#pragma GCC unroll 4
      for (int round = 1; round < n; round *= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < n / 2; i++) {
          next[2 * i] = interleave<sizeof(T), false>(v[i], v[i + n / 2]);
          next[2 * i + 1] = interleave<sizeof(T), true>(v[i], v[i + n / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < n; i++) v[i] = next[i];
      }
#pragma GCC unroll 16
      for (int i = 0; i < n; i++) line[quarter][i] = v[i];
    }
    for (int i = 0; i < n; i++) {
      __m128i* to = reinterpret_cast<__m128i*>(out + (c + i) * stride);
      for (int quarter = 0; quarter < 4; quarter++) {
        if (stream) _mm_stream_si128(to + quarter, line[quarter][i]);
        else _mm_storeu_si128(to + quarter, line[quarter][i]);
      }
    }
  }
#else
  for (int64_t c = 0; c < kSide; c++) {
    T column[kSide];
    for (int64_t r = 0; r < kSide; r++) column[r] = square[r][c];
    memcpy(out + c * stride, column, 64);
  }
#endif
}

template <typename T>
void transpose_elements(const Transposition& t) {
  constexpr int64_t kSide = 64 / sizeof(T);
  for (int64_t r0 = 0; r0 < t.rows; r0 += kSide)
    for (int64_t c0 = 0; c0 < t.columns; c0 += kSide) {
      const int64_t columns = kSide < t.columns - c0 ? kSide : t.columns - c0;
      const int64_t rows = kSide < t.rows - r0 ? kSide : t.rows - r0;
      const uint8_t* from = t.in + r0 * t.in_stride + c0 * int64_t(sizeof(T));
      uint8_t* place = t.out + c0 * t.out_stride + r0 * int64_t(sizeof(T));
      // Rows are often a power of two apart, where a cache holds few of them: each line is fetched once, into here.
      alignas(64) T square[kSide][kSide];
      if (columns == kSide && rows == kSide) {
        for (int64_t r = 0; r < kSide; r++) {
          memcpy(square[r], from + r * t.in_stride, 64);
          __builtin_prefetch(from + r * t.in_stride + 256);
        }
        transpose_square(square, place, t.out_stride);
        continue;
      }
      for (int64_t r = 0; r < rows; r++) memcpy(square[r], from + r * t.in_stride, size_t(columns) * sizeof(T));
      for (int64_t c = 0; c < columns; c++) {
        T column[kSide];
        for (int64_t r = 0; r < rows; r++) column[r] = square[r][c];
        memcpy(place + c * t.out_stride, column, size_t(rows) * sizeof(T));
      }
    }
#if defined(__SSE2__)
  _mm_sfence();  // other threads may read what was streamed
#endif
}

inline void transpose(int64_t element_bytes, const Transposition& t) {
  switch (element_bytes) {
    case 1: return transpose_elements<uint8_t>(t);
    case 2: return transpose_elements<uint16_t>(t);
    case 4: return transpose_elements<uint32_t>(t);
    default: return transpose_elements<uint64_t>(t);
  }
}

}  // namespace llama4

// A step that ran once, kept to run again with other numbers at the same places: the tokens that its first lookup read,
// what its places' tensors hold, and who attends where.

#pragma once

#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kernels.h"

namespace llama4 {

// Every one in [0, end).
inline void check_indices(const int32_t* indices, int64_t count, int64_t end) {
  for (int64_t i = 0; i < count; i++)
    if (indices[i] < 0 || indices[i] >= end)
      throw std::range_error("native: index " + std::to_string(indices[i]) + "; expected 0 to " + std::to_string(end - 1));
}

// Who attends where, with the block tables behind the segments: the same for all layers of a kind.
struct Places {
  // What the segments were checked against.
  int64_t T = 0, chunk = 0, blocks = 0, block_size = 1;
  std::vector<int32_t> flat, tables;
  std::vector<Segment> segments;

  bool is_alike(const Places& other) const {
    return T == other.T && chunk == other.chunk && blocks == other.blocks && block_size == other.block_size &&
           flat == other.flat && tables == other.tables;
  }

  // `numbers`: four a segment, row, length, position and where its table begins in `indices`; `cached`: there are tables.
  void set(std::vector<int32_t> numbers, std::vector<int32_t> indices, bool cached) {
    flat = std::move(numbers);
    tables = std::move(indices);
    segments.clear();
    check_indices(tables.data(), int64_t(tables.size()), blocks);
    for (size_t i = 0; i + 4 <= flat.size(); i += 4) {
      const int64_t row = flat[i], length = flat[i + 1], position = flat[i + 2], table = flat[i + 3];
      if (row < 0 || length < 1 || position < 0 || row + length > T)
        throw std::range_error("native: a segment covers rows outside the step");
      const int64_t last = chunk ? position % chunk + length - 1 : position + length - 1;
      if (cached && (table < 0 || table + last / block_size >= int64_t(tables.size())))
        throw std::range_error("native: the block table of a sequence ends before slot " + std::to_string(last));
      segments.push_back({row, length, position, cached ? tables.data() + table : nullptr});
    }
  }
};

struct Recording {
  const void* engine;  // whose calls they are
  std::vector<std::function<void()>> calls;
  std::map<int64_t, std::shared_ptr<Places>> places;  // by chunk, 0 for none
  bool is_whole = true;  // false once there was a call that cannot be run again
};

}  // namespace llama4

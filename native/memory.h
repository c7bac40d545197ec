// Large aligned memory, shared with JavaScript as ArrayBuffers.

#pragma once

#include <cstddef>

namespace llama4 {

constexpr size_t kAlignment = 64;  // a cache line, and the widest vector

// Zero-filled by the system when first touched; nullptr when there is not enough. Large blocks ask for huge pages.
void* map_memory(size_t bytes);
void unmap_memory(void* memory, size_t bytes);

// Whether lines of memory that are read soon are better asked for in the first-level cache than in the second: on most cores
// the second has more misses under way, but Zen 5 reads a tenth faster so (measured). How far ahead, and in how many streams, was
// measured on Zen 5 too.
extern const bool asks_first_level;

// Grows and never shrinks, so that steady work allocates nothing. The content is lost when it grows.
class Scratch {
 public:
  ~Scratch();
  void* reserve(size_t bytes);  // throws when the system refuses: not for the pool's workers, whom nobody would catch
 private:
  void* memory_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace llama4

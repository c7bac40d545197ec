#include "memory.h"

#include <sys/mman.h>

#include <stdexcept>
#include <string>

namespace llama4 {

namespace {
constexpr size_t kHugePage = size_t(2) << 20;
size_t whole_pages(size_t bytes) { return (bytes + 4095) & ~size_t(4095); }
}  // namespace

void* map_memory(size_t bytes) {
  const size_t size = whole_pages(bytes ? bytes : 1);
  // MAP_NORESERVE is not given: a refusal now is better than a kill later.
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
#ifdef MADV_HUGEPAGE
  // Below 16 huge pages the rounding up of resident memory weighs more than the saved page-table walks.
  if (size >= 16 * kHugePage) madvise(memory, size, MADV_HUGEPAGE);
#endif
  return memory;
}

void unmap_memory(void* memory, size_t bytes) { munmap(memory, whole_pages(bytes ? bytes : 1)); }

Scratch::~Scratch() {
  if (memory_) unmap_memory(memory_, bytes_);
}

void* Scratch::reserve(size_t bytes) {
  if (bytes <= bytes_) return memory_;
  if (memory_) unmap_memory(memory_, bytes_);
  bytes_ = 0;
  const size_t more = bytes + bytes / 4;
  memory_ = map_memory(more);
  if (!memory_) throw std::runtime_error("native: the system refused " + std::to_string(more) + " bytes of working memory");
  bytes_ = more;
  return memory_;
}

}  // namespace llama4

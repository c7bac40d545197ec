#include "memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace llama4 {

static bool is_zen5_or_later() {
#if defined(__x86_64__)
  unsigned a, b, c, d;
  if (!__get_cpuid(0, &a, &b, &c, &d) || b != signature_AMD_ebx) return false;
  return __get_cpuid(1, &a, &b, &c, &d) && (a >> 8 & 15) + (a >> 20 & 255) >= 0x1a;  // family
#else
  return false;
#endif
}

const bool asks_first_level = is_zen5_or_later();

namespace {
constexpr size_t kHugePage = size_t(2) << 20;
size_t whole_pages(size_t bytes) { return (bytes + 4095) & ~size_t(4095); }
}  // namespace

void* map_memory(size_t bytes) {
  const size_t size = whole_pages(bytes ? bytes : 1);
  // MAP_NORESERVE is not given: a refusal now is better than a kill later.
  const size_t slack = size >= kHugePage ? kHugePage : 0;
  int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#ifdef MAP_POPULATE
  // Small blocks, of activations, are written to their end: their pages come at once, not fault by fault.
  if (!slack) flags |= MAP_POPULATE;
#endif
  void* memory = mmap(nullptr, size + slack, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  if (!slack) return memory;
  // Begins at a huge page. Weights on small pages are read at less than half the speed (13 against 31 GB/s measured).
  // The last part of a huge page stays small, so that no memory is resident beyond what was asked for.
  char* start = static_cast<char*>(memory);
  const size_t head = (kHugePage - reinterpret_cast<uintptr_t>(start) % kHugePage) % kHugePage;
  if (head) munmap(start, head);
  if (head < slack) munmap(start + head + size, slack - head);
  memory = start + head;
#ifdef MADV_HUGEPAGE
  madvise(memory, size / kHugePage * kHugePage, MADV_HUGEPAGE);
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

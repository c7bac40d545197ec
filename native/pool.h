// Threads that share out a range of work items.

#pragma once

#include <cstddef>
#include <cstdint>

namespace llama4 {

class Pool {
 public:
  // `threads` includes the caller of run().
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return threads_; }

  // Calls work(context, item, thread) for every item of [0, items), each once, on any thread, and returns when all are
  // done. Items are claimed one by one: a thread that another process displaced holds up at most the item it works on
  // (of a product by few tokens: the panels that it has taken, linear-int8.cc).
  // items < 2^20; one caller at a time.
  void run(int64_t items, void (*work)(void* context, int64_t item, int thread), void* context);

  // Working memory inside an operation: blocks for all threads, by purpose, and one for each thread. Asking again may
  // move the block and lose what it held.
  enum Purpose { kOperation, kRows, kActivations, kHidden, kPanels, kPurposes };
  void* shared(Purpose purpose, size_t bytes);
  void reserve_own(size_t bytes);
  void* own(int thread) const;

 private:
  struct State;
  State* state_;
  const int threads_;
};

}  // namespace llama4

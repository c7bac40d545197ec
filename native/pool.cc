#include "pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "memory.h"

namespace llama4 {

namespace {

// A thread that finds no work looks for this long before it parks: longer than the pause between two operations of a
// decode step (JavaScript takes a few microseconds), short enough to leave the core to others.
constexpr auto kSpin = std::chrono::microseconds(50);

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Calls ready() until it is true (true) or kSpin has passed (false).
template <typename Ready>
bool spin(Ready ready) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; i++) {
      if (ready()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

// epoch (24 bits) | items (20) | next item (20) in one word, so that a late thread cannot claim an item of another run.
constexpr int kItemBits = 20;
constexpr uint64_t kItemMask = (uint64_t(1) << kItemBits) - 1;
inline uint64_t next_of(uint64_t ticket) { return ticket & kItemMask; }
inline uint64_t items_of(uint64_t ticket) { return (ticket >> kItemBits) & kItemMask; }
inline bool exhausted(uint64_t ticket) { return next_of(ticket) >= items_of(ticket); }

}  // namespace

struct Pool::State {
  alignas(64) std::atomic<uint64_t> ticket{0};
  alignas(64) std::atomic<int64_t> done{0};
  // Written before the ticket is published, read after an item was claimed: the run cannot end in between.
  void (*work)(void*, int64_t, int) = nullptr;
  void* context = nullptr;
  uint64_t epoch = 0;

  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<int> parked{0};
  std::atomic<bool> closing{false};

  std::vector<std::thread> workers;
  Scratch shared[kPurposes];
  std::vector<Scratch> own;

  void help(int thread) {
    uint64_t ticket = this->ticket.load();
    while (!exhausted(ticket)) {
      if (!this->ticket.compare_exchange_weak(ticket, ticket + 1)) continue;
      work(context, int64_t(next_of(ticket)), thread);
      done.fetch_add(1);
      ticket = this->ticket.load();
    }
  }

  void serve(int thread) {
    const auto called = [this] { return closing.load() || !exhausted(ticket.load()); };
    while (!closing.load()) {
      help(thread);
      if (spin(called)) continue;
      std::unique_lock<std::mutex> lock(mutex);
      parked.fetch_add(1);
      wake.wait(lock, called);
      parked.fetch_sub(1);
    }
  }
};

Pool::Pool(int threads) : state_(new State), threads_(threads) {
  state_->own = std::vector<Scratch>(size_t(threads));
  for (int i = 1; i < threads; i++) state_->workers.emplace_back([this, i] { state_->serve(i); });
}

Pool::~Pool() {
  state_->closing.store(true);
  { std::lock_guard<std::mutex> lock(state_->mutex); }
  state_->wake.notify_all();
  for (std::thread& worker : state_->workers) worker.join();
  delete state_;
}

void Pool::run(int64_t items, void (*work)(void*, int64_t, int), void* context) {
  if (items <= 0) return;
  if (threads_ == 1 || items == 1) {
    for (int64_t i = 0; i < items; i++) work(context, i, 0);
    return;
  }
  State& s = *state_;
  s.work = work;
  s.context = context;
  s.done.store(0);
  s.epoch = (s.epoch + 1) & 0xffffff;
  s.ticket.store((s.epoch << (2 * kItemBits)) | (uint64_t(items) << kItemBits));
  if (s.parked.load() > 0) {
    { std::lock_guard<std::mutex> lock(s.mutex); }
    s.wake.notify_all();
  }
  s.help(0);
  const auto finished = [&] { return s.done.load() == items; };
  while (!spin(finished)) std::this_thread::yield();  // another thread is in its last item, perhaps displaced
}

void* Pool::shared(Purpose purpose, size_t bytes) { return state_->shared[purpose].reserve(bytes); }

void Pool::reserve_own(size_t bytes) {
  for (Scratch& scratch : state_->own) scratch.reserve(bytes);
}

void* Pool::own(int thread) const { return state_->own[size_t(thread)].reserve(0); }

}  // namespace llama4

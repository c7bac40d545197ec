// read(paths, units, scatters, buffers, onEvent): see src/backends/native/addon.ts. The plan (what is read where, in
// what order) is made there; here a few threads take the units in order, read each in large calls and put it in place.

#define NAPI_VERSION 8
#include "reader.h"

#include "packed.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "transpose.h"

namespace llama4 {

namespace {

constexpr int kThreads = 16;  // reads in flight: most wait for the disk while two or three put blocks in place
constexpr int64_t kBytesOfThread = int64_t(8) << 20;  // less is not worth the fresh memory of a block
constexpr int64_t kPage = 4096;  // offsets, lengths and addresses past the page cache are multiples of it

// `bytes` of a file from `offset`. rows = 0: they go to the one scatter as they are. Else they are `rows` rows, each
// `row_bytes` after the other. With a type they are packed (packed.h) to the one scatter; without, they are elements,
// of which each scatter takes a range of columns, as rows that stand together or transposed to columns that do.
struct Unit {
  int64_t file, offset, bytes, first_scatter, scatters, rows, row_bytes, element_bytes, type;
};
constexpr int kUnitNumbers = 9;

struct Scatter {
  int64_t buffer, offset;              // where the first element goes
  int64_t column_bytes, columns;       // from the row's start; how many
  int64_t column_stride, row_stride;   // bytes between the places of neighbouring columns, and rows; one is an element's
};
constexpr int kScatterNumbers = 6;

struct File {
  std::string path;
  int descriptor = -1;
  int direct = -1;  // past the page cache; -1 where the file system cannot
};

// Huge pages: past the page cache a disk takes a request in as many pieces as its memory has pages.
uint8_t* whole_pages(int64_t bytes) {
  constexpr size_t kHugePage = size_t(2) << 20;
  const size_t size = (size_t(bytes) + kHugePage - 1) / kHugePage * kHugePage;
  void* memory = nullptr;
  if (posix_memalign(&memory, kHugePage, size) != 0) return nullptr;
#ifdef MADV_HUGEPAGE
  madvise(memory, size, MADV_HUGEPAGE);
#endif
  return static_cast<uint8_t*>(memory);
}

// Whether the page cache holds most of the pages of [offset, offset + bytes); offset is a whole page.
bool cached(const File& file, int64_t offset, int64_t bytes) {
#ifdef __linux__
  void* pages = mmap(nullptr, size_t(bytes), PROT_READ, MAP_SHARED, file.descriptor, off_t(offset));
  if (pages == MAP_FAILED) return true;
  std::vector<unsigned char> held(size_t((bytes + kPage - 1) / kPage));
  const bool known = mincore(pages, size_t(bytes), held.data()) == 0;
  munmap(pages, size_t(bytes));
  size_t count = 0;
  for (const unsigned char page : held) count += page & 1;
  return !known || count * 2 > held.size();
#else
  return true;
#endif
}

struct Reading {
  std::vector<File> files;
  std::vector<Unit> units;
  std::vector<Scatter> scatters;
  std::vector<uint8_t*> buffers;
  int64_t largest = 0;  // bytes of the largest unit

  std::atomic<size_t> next{0};
  std::atomic<int64_t> done{0};
  std::atomic<int> running{0};
  std::shared_ptr<std::atomic<bool>> cancelled = std::make_shared<std::atomic<bool>>(false);
  std::mutex mutex;
  std::string error;  // the first one

  std::vector<std::thread> threads;
  napi_threadsafe_function notify = nullptr;
  napi_ref buffers_alive = nullptr;

  void fail(const std::string& sentence) {
    std::lock_guard<std::mutex> lock(mutex);
    if (error.empty()) error = sentence;
    cancelled->store(true);
  }

  void fetch(const File& file, int64_t offset, uint8_t* to, int64_t bytes) {
    for (int64_t got = 0; got < bytes && !cancelled->load();) {
      const ssize_t n = pread(file.descriptor, to + got, size_t(bytes - got), off_t(offset + got));
      if (n > 0) got += n;
      else if (n == 0)
        fail(file.path + ": wanted " + std::to_string(bytes) + " bytes at offset " + std::to_string(offset) + ", got " +
             std::to_string(got) + ": the file ends there");
      else if (errno != EINTR)
        fail(file.path + ": reading " + std::to_string(bytes) + " bytes at offset " + std::to_string(offset) + ": " +
             strerror(errno));
    }
  }

  // The same past the page cache, into whole pages of `block`: where the bytes begin there, or nullptr when they must
  // be fetched after all. The page cache would take as much fresh memory as the weights do, which costs more than the
  // copy from the block; what it holds already is faster there than on any disk.
  const uint8_t* fetch_direct(const File& file, int64_t offset, int64_t bytes, uint8_t* block) {
    const int64_t start = offset / kPage * kPage, end = offset + bytes;
    if (file.direct < 0 || cached(file, start, end - start)) return nullptr;
    const int64_t length = (end - start + kPage - 1) / kPage * kPage;
    for (int64_t got = 0; start + got < end && !cancelled->load();) {
      const ssize_t n = pread(file.direct, block + got, size_t(length - got), off_t(start + got));
      if (n < 0 && errno == EINTR) continue;
      if (n > 0) got += n;
      if (start + got < end && (n <= 0 || n % kPage)) return nullptr;  // refused, or the end of the file
    }
    return block + (offset - start);
  }

  void place(const Unit& unit, const uint8_t* in, const Scatter& to) {
    uint8_t* out = buffers[size_t(to.buffer)] + to.offset;
    if (to.row_stride == unit.element_bytes)
      return transpose(unit.element_bytes,
                       {unit.rows, to.columns, in + to.column_bytes, unit.row_bytes, out, to.column_stride});
    for (int64_t row = 0; row < unit.rows; row++)
      memcpy(out + row * to.row_stride, in + row * unit.row_bytes + to.column_bytes,
             size_t(to.columns * unit.element_bytes));
  }

  void work() {
    const std::unique_ptr<uint8_t, void (*)(void*)> owner(whole_pages(largest + 2 * kPage), free);
    uint8_t* block = owner.get();
    if (!block) fail("native: the system refused " + std::to_string(largest) + " bytes to read into");
    for (size_t i; !cancelled->load() && (i = next.fetch_add(1)) < units.size();) {
      const Unit& unit = units[i];
      const File& file = files[size_t(unit.file)];
      const Scatter* to = &scatters[size_t(unit.first_scatter)];
      const uint8_t* bytes = fetch_direct(file, unit.offset, unit.bytes, block);
      if (unit.rows == 0) {
        uint8_t* out = buffers[size_t(to->buffer)] + to->offset;
        if (bytes) memcpy(out, bytes, size_t(unit.bytes));
        else fetch(file, unit.offset, out, unit.bytes);
      } else {
        if (!bytes) fetch(file, unit.offset, block, unit.bytes);
        const uint8_t* in = bytes ? bytes : block;
        const int type = int(unit.type);
        if (type && !cancelled->load())
          baseline::pack_rows(type, in, unit.rows, unit.row_bytes / block_of(type).bytes,
                              buffers[size_t(to->buffer)] + to->offset);
        else for (int64_t s = 0; s < unit.scatters && !cancelled->load(); s++) place(unit, in, to[s]);
      }
      if (cancelled->load()) break;
      done.fetch_add(unit.bytes);
      napi_call_threadsafe_function(notify, nullptr, napi_tsfn_nonblocking);
    }
    if (running.fetch_sub(1) == 1) napi_call_threadsafe_function(notify, this, napi_tsfn_blocking);
  }

  ~Reading() {
    for (const File& file : files) {
      if (file.descriptor >= 0) ::close(file.descriptor);
      if (file.direct >= 0) ::close(file.direct);
    }
  }
};

// A thread of Node that ends in the middle of a reading waits for the reads in flight: its buffers are about to go.
void stop(void* data) {
  Reading* reading = static_cast<Reading*>(data);
  reading->cancelled->store(true);
  for (std::thread& thread : reading->threads)
    if (thread.joinable()) thread.join();
}

// On the JavaScript thread: onEvent(done, finished, error).
void report(napi_env env, napi_value on_event, void* context, void* last) {
  Reading* reading = static_cast<Reading*>(context);
  if (!env) return;  // the environment is being torn down; stop() has joined the threads
  napi_value arguments[3], receiver;
  napi_get_undefined(env, &receiver);
  napi_create_double(env, double(reading->done.load()), &arguments[0]);
  napi_get_boolean(env, last != nullptr, &arguments[1]);
  napi_get_null(env, &arguments[2]);
  if (last) {
    stop(reading);
    if (!reading->error.empty())
      napi_create_string_utf8(env, reading->error.data(), reading->error.size(), &arguments[2]);
    napi_remove_env_cleanup_hook(env, stop, reading);
    napi_delete_reference(env, reading->buffers_alive);
    napi_release_threadsafe_function(reading->notify, napi_tsfn_release);  // its finalizer deletes the reading
  }
  napi_call_function(env, receiver, on_event, 3, arguments, nullptr);
}

std::vector<int64_t> whole_numbers(napi_env env, napi_value array) {
  napi_typedarray_type type;
  size_t length;
  void* data;
  if (napi_get_typedarray_info(env, array, &type, &length, &data, nullptr, nullptr) != napi_ok || type != napi_float64_array)
    throw std::range_error("native: read needs Float64Arrays");
  std::vector<int64_t> numbers(length);
  for (size_t i = 0; i < length; i++) {
    const double number = static_cast<double*>(data)[i];
    if (!(number >= 0 && number <= 0x1p52)) throw std::range_error("native: read got a number outside 0 to 2^52");
    numbers[i] = int64_t(number);
  }
  return numbers;
}

void check(const Reading& reading, const Unit& unit, const std::vector<size_t>& lengths) {
  const auto expect = [](bool ok) {
    if (!ok) throw std::range_error("native: a reading plan points outside its files or buffers");
  };
  const auto times = [&](int64_t a, int64_t b) {
    int64_t n;
    expect(!__builtin_mul_overflow(a, b, &n) && n <= int64_t(1) << 52);
    return n;
  };
  expect(unit.file < int64_t(reading.files.size()));
  expect(unit.scatters >= 1 && unit.first_scatter + unit.scatters <= int64_t(reading.scatters.size()));
  if (unit.type) {
    expect(unit.type < kPacked && can_pack(int(unit.type)) && unit.scatters == 1 && unit.rows >= 1);
    expect(unit.row_bytes >= 1 && unit.row_bytes % block_of(int(unit.type)).bytes == 0);
    const Scatter& to = reading.scatters[size_t(unit.first_scatter)];
    expect(times(unit.rows, unit.row_bytes) == unit.bytes && to.buffer < int64_t(lengths.size()));
    expect(times(packed_rows(unit.rows), unit.row_bytes) <= int64_t(lengths[size_t(to.buffer)]) - to.offset);
    return;
  }
  const int64_t e = unit.element_bytes;
  if (unit.rows) expect(e == 1 || e == 2 || e == 4 || e == 8);
  for (int64_t s = 0; s < unit.scatters; s++) {
    const Scatter& to = reading.scatters[size_t(unit.first_scatter + s)];
    expect(to.buffer < int64_t(lengths.size()));
    const int64_t room = int64_t(lengths[size_t(to.buffer)]);
    if (!unit.rows) {
      expect(unit.scatters == 1 && unit.bytes <= room - to.offset);
      continue;
    }
    expect(to.columns >= 1 && (to.column_stride == e || to.row_stride == e));
    const int64_t width = to.column_bytes + times(to.columns, e);
    expect(times(unit.rows - 1, unit.row_bytes) + width <= unit.bytes);
    expect(to.offset + times(to.columns - 1, to.column_stride) + times(unit.rows - 1, to.row_stride) + e <= room);
  }
}

}  // namespace

napi_value start_reading(napi_env env, napi_callback_info info) {
  size_t count = 5;
  napi_value arguments[5];
  napi_get_cb_info(env, info, &count, arguments, nullptr, nullptr);
  std::unique_ptr<Reading> reading(new Reading);
  try {
    if (count < 5) throw std::range_error("native: read needs five arguments");
    uint32_t files = 0, buffers = 0;
    napi_get_array_length(env, arguments[0], &files);
    napi_get_array_length(env, arguments[3], &buffers);
    for (uint32_t i = 0; i < files; i++) {
      napi_value path;
      size_t length = 0;
      napi_get_element(env, arguments[0], i, &path);
      if (napi_get_value_string_utf8(env, path, nullptr, 0, &length) != napi_ok)
        throw std::range_error("native: read needs paths");
      File file;
      file.path.resize(length);
      napi_get_value_string_utf8(env, path, file.path.data(), length + 1, &length);
      file.descriptor = ::open(file.path.c_str(), O_RDONLY | O_CLOEXEC);
      if (file.descriptor < 0) throw std::range_error(file.path + ": " + strerror(errno));
#ifdef POSIX_FADV_SEQUENTIAL
      posix_fadvise(file.descriptor, 0, 0, POSIX_FADV_SEQUENTIAL);  // doubles the kernel's read-ahead
#endif
#ifdef O_DIRECT
      file.direct = ::open(file.path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
#endif
      reading->files.push_back(file);
    }
    std::vector<size_t> lengths;
    for (uint32_t i = 0; i < buffers; i++) {
      napi_value buffer;
      void* data;
      size_t length;
      napi_get_element(env, arguments[3], i, &buffer);
      if (napi_get_arraybuffer_info(env, buffer, &data, &length) != napi_ok)
        throw std::range_error("native: read needs ArrayBuffers");
      reading->buffers.push_back(static_cast<uint8_t*>(data));
      lengths.push_back(length);
    }
    const std::vector<int64_t> units = whole_numbers(env, arguments[1]), scatters = whole_numbers(env, arguments[2]);
    for (size_t i = 0; i + kScatterNumbers <= scatters.size(); i += kScatterNumbers)
      reading->scatters.push_back({scatters[i], scatters[i + 1], scatters[i + 2], scatters[i + 3], scatters[i + 4],
                                   scatters[i + 5]});
    for (size_t i = 0; i + kUnitNumbers <= units.size(); i += kUnitNumbers) {
      const int64_t* n = &units[i];
      reading->units.push_back({n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8]});
      const Unit& unit = reading->units.back();
      check(*reading, unit, lengths);
      if (unit.bytes > reading->largest) reading->largest = unit.bytes;
    }
    napi_value name;
    napi_create_string_utf8(env, "llama4 reader", NAPI_AUTO_LENGTH, &name);
    const auto drop = [](napi_env, void*, void* context) { delete static_cast<Reading*>(context); };
    if (napi_create_threadsafe_function(env, arguments[4], nullptr, name, 0, 1, nullptr, drop, reading.get(), report,
                                        &reading->notify) != napi_ok)
      throw std::range_error("native: read needs a function to call");
  } catch (const std::exception& error) {
    napi_throw_range_error(env, nullptr, error.what());
    return nullptr;
  }
  Reading* r = reading.release();  // now owned by the thread-safe function
  napi_create_reference(env, arguments[3], 1, &r->buffers_alive);
  napi_add_env_cleanup_hook(env, stop, r);
  napi_value handle;
  napi_create_external(env, new std::shared_ptr<std::atomic<bool>>(r->cancelled), [](napi_env, void* data, void*) {
    delete static_cast<std::shared_ptr<std::atomic<bool>>*>(data);
  }, nullptr, &handle);
  int64_t bytes = 0;
  for (const Unit& unit : r->units) bytes += unit.bytes;
  const int threads = int(std::min<int64_t>(kThreads, bytes / kBytesOfThread + 1));
  r->running.store(threads);
  for (int i = 0; i < threads; i++) r->threads.emplace_back([r] { r->work(); });
  return handle;
}

napi_value cancel_reading(napi_env env, napi_callback_info info) {
  size_t count = 1;
  napi_value handle, result;
  void* data = nullptr;
  napi_get_cb_info(env, info, &count, &handle, nullptr, nullptr);
  if (count == 1 && napi_get_value_external(env, handle, &data) == napi_ok)
    static_cast<std::shared_ptr<std::atomic<bool>>*>(data)->get()->store(true);
  napi_get_undefined(env, &result);
  return result;
}

}  // namespace llama4

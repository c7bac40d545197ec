// One call of the addon: its arguments, each checked as it is taken, and the engine that it runs on. Included by addon.cc.

#pragma once

#define NAPI_VERSION 8
#include <node_api.h>

#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kernels.h"
#include "packed.h"
#include "recording.h"

namespace llama4 {
namespace {

struct Engine {
  Pool pool;
  const Kernels* kernels;
  std::unique_ptr<Recording> recording;  // while a step is recorded

  // Runs a call of a step, and again with every later run of its recording.
  template <typename F>
  void run(F f) {
    f();
    if (recording) recording->calls.push_back(std::move(f));
  }
};

constexpr int64_t kMost = int64_t(1) << 52;  // elements or bytes; sums of a few of them cannot overflow

int64_t product(std::initializer_list<int64_t> factors) {
  int64_t n = 1;
  for (const int64_t factor : factors)
    if (__builtin_mul_overflow(n, factor, &n) || n > kMost) throw std::range_error("native: sizes are too large to multiply");
  return n;
}

int64_t bytes_of(int type, int64_t rows, int64_t columns) {
  const Block block = block_of(plain(type));
  if (block.elements == 0 || (is_packed(type) && !can_pack(plain(type))) || 
      (is_rounded(type) && plain(type) != kBF16 && plain(type) != kF32))
    throw std::range_error("native: " + std::to_string(type) + " is no known type of weights");
  if (columns % block.elements)
    throw std::range_error("native: a row has " + std::to_string(columns) + " elements; expected a multiple of " +
                           std::to_string(block.elements));
  return product({is_packed(type) ? packed_rows(rows) : rows, columns / block.elements, block.bytes});
}

// The arguments of one call, taken in order.
class Call {
 public:
  Call(napi_env env, napi_callback_info info) : env(env) {
    napi_get_cb_info(env, info, &count_, args_, nullptr, nullptr);
    if (count_ > kMostArgs) count_ = kMostArgs;
  }

  const napi_env env;

  napi_value value() {
    if (next_ >= count_) throw std::range_error("native: " + std::to_string(count_) + " arguments; expected more");
    return args_[next_++];
  }

  double number() {
    double result;
    if (napi_get_value_double(env, value(), &result) != napi_ok) wrong("a number");
    return result;
  }

  int64_t size() {
    const double result = number();
    if (!(result >= 0) || result > double(kMost) || double(int64_t(result)) != result) wrong("a whole number from 0");
    return int64_t(result);
  }

  int type() { return int(size()); }

  bool flag() {
    bool result;
    if (napi_get_value_bool(env, value(), &result) != napi_ok) wrong("true or false");
    return result;
  }

  std::string text() {
    const napi_value v = value();
    size_t length = 0;
    if (napi_get_value_string_utf8(env, v, nullptr, 0, &length) != napi_ok) wrong("a string");
    std::string result(length, '\0');
    napi_get_value_string_utf8(env, v, result.data(), length + 1, &length);
    return result;
  }

  // `need` bytes of a buffer from an offset: two arguments.
  uint8_t* bytes(int64_t need) {
    void* data;
    size_t length;
    if (napi_get_arraybuffer_info(env, value(), &data, &length) != napi_ok) wrong("an ArrayBuffer");
    const int64_t offset = size();
    if (offset > int64_t(length) || need > int64_t(length) - offset)
      throw std::range_error("native: argument " + std::to_string(next_ - 1) + " needs " + std::to_string(need) +
                             " bytes from " + std::to_string(offset) + "; its buffer has " + std::to_string(length));
    return static_cast<uint8_t*>(data) + offset;
  }

  float* floats(int64_t need) { return reinterpret_cast<float*>(bytes(product({need, 4}))); }

  // As floats(), or nullptr for null.
  float* floats_or_null(int64_t need) {
    napi_valuetype type = napi_undefined;
    if (next_ < count_) napi_typeof(env, args_[next_], &type);
    if (type != napi_null) return floats(need);
    next_ += 2;
    return nullptr;
  }

  // A Float32Array of at least one element.
  struct Floats {
    const float* data;
    int64_t length;
  };
  Floats float_array() {
    napi_typedarray_type type;
    size_t length;
    void* data;
    if (napi_get_typedarray_info(env, value(), &type, &length, &data, nullptr, nullptr) != napi_ok ||
        type != napi_float32_array || length == 0)
      wrong("a Float32Array with elements");
    return {static_cast<float*>(data), int64_t(length)};
  }

  struct Ints {
    const int32_t* data;
    int64_t length;
  };
  Ints ints() {
    napi_typedarray_type type;
    size_t length;
    void* data;
    if (napi_get_typedarray_info(env, value(), &type, &length, &data, nullptr, nullptr) != napi_ok || type != napi_int32_array)
      wrong("an Int32Array");
    return {static_cast<int32_t*>(data), int64_t(length)};
  }

  // As ints(), every one in [0, end).
  Ints indices(int64_t end) {
    const Ints all = ints();
    check_indices(all.data, all.length, end);
    return all;
  }

  std::vector<int32_t> copied_ints() {
    const Ints all = ints();
    return {all.data, all.data + all.length};
  }

  // The engine for what a recording does not keep: with such a call in it, it is none.
  Engine& engine() {
    Engine& engine = step_engine();
    if (engine.recording) engine.recording->is_whole = false;
    return engine;
  }

  // The engine for a call that goes through Engine::run, with all that it needs.
  Engine& step_engine() {
    void* pointer = nullptr;
    if (napi_get_value_external(env, value(), &pointer) != napi_ok) wrong("an engine");
    Engine* engine = *static_cast<Engine**>(pointer);
    if (!engine) throw std::range_error("native: the backend is closed");
    engine_ = engine;
    return *engine;
  }

  // A recording without this call is none.
  void failed() {
    if (engine_ && engine_->recording) engine_->recording->is_whole = false;
  }

  napi_value undefined() {
    napi_value result;
    napi_get_undefined(env, &result);
    return result;
  }

 private:
  static constexpr size_t kMostArgs = 32;
  [[noreturn]] void wrong(const char* expected) {
    throw std::range_error("native: argument " + std::to_string(next_) + " is not " + expected);
  }
  size_t count_ = kMostArgs, next_ = 0;
  napi_value args_[kMostArgs];
  Engine* engine_ = nullptr;
};

template <napi_value (*F)(Call&)>
napi_value enter(napi_env env, napi_callback_info info) {
  Call call(env, info);
  try {
    return F(call);
  } catch (const std::exception& error) {
    call.failed();
    napi_throw_range_error(env, nullptr, error.what());
    return nullptr;
  }
}

}  // namespace
}  // namespace llama4

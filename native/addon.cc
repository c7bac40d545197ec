// The border: calls on plain buffers, no policy. src/backends/native/addon.ts is its only description.
//
// Sizes come first, then buffers, each as an ArrayBuffer and the byte where the numbers begin. Every extent is checked
// against its buffer, every index against its table, before a kernel sees it (call.h).

#include "call.h"

#include <sys/mman.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cmath>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "packed.h"
#include "reader.h"
#include "recording.h"
#include "transpose.h"

namespace llama4 {

namespace baseline { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }
namespace amx { extern const Kernels kernels; }

namespace {

struct Isa {
  const char* name;
  const Kernels* kernels;
};

#if defined(__x86_64__)
// Whether there are tiles, and the system lets this process use them: Linux wants to be asked once, since they make each
// thread's state 8 KiB larger (Documentation/arch/x86/xstate.rst).
bool has_tiles() {
#if defined(__linux__)
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a, b, c, d;
  constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25, kBf16 = 1u << 22;
  const bool has = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kTile) && (d & kInt8) && (d & kBf16);
  return has && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}
#endif

// What this processor has, best first. The features are those that scripts/build-native.mjs compiles for.
std::vector<Isa> isas() {
  std::vector<Isa> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool has512 = has2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vnni");
  if (has512 && __builtin_cpu_supports("avx512bf16") && has_tiles()) found.push_back({"amx", &amx::kernels});
  if (has512) found.push_back({"avx512", &avx512::kernels});
  if (has2) found.push_back({"avx2", &avx2::kernels});
#endif
  found.push_back({"baseline", &baseline::kernels});
  return found;
}

napi_value list_isas(Call& call) {
  const std::vector<Isa> found = isas();
  napi_value list;
  napi_create_array_with_length(call.env, found.size(), &list);
  for (size_t i = 0; i < found.size(); i++) {
    napi_value name;
    napi_create_string_utf8(call.env, found[i].name, NAPI_AUTO_LENGTH, &name);
    napi_set_element(call.env, list, uint32_t(i), name);
  }
  return list;
}

napi_value open(Call& call) {
  const int64_t threads = call.size();
  const std::string name = call.text();
  if (threads < 1 || threads > 1024)
    throw std::range_error("native: " + std::to_string(threads) + " threads; expected 1 to 1024");
  for (const Isa& isa : isas()) {
    if (name != isa.name) continue;
    Engine** engine = new Engine*(new Engine{Pool(int(threads)), isa.kernels, nullptr});
    napi_value external;
    napi_create_external(call.env, engine, [](napi_env, void* data, void*) {
      delete *static_cast<Engine**>(data);
      delete static_cast<Engine**>(data);
    }, nullptr, &external);
    return external;
  }
  throw std::range_error("native: this processor lacks the instruction set " + name);
}

napi_value close(Call& call) {
  void* pointer = nullptr;
  napi_get_value_external(call.env, call.value(), &pointer);
  Engine** engine = static_cast<Engine**>(pointer);
  if (engine) {
    delete *engine;
    *engine = nullptr;
  }
  return call.undefined();
}

struct Mapping {
  void* memory;
  size_t bytes;
};

// Node makes external buffers up to this size only; larger ones come from its own allocator, which maps them too.
constexpr int64_t kLargestExternal = (int64_t(1) << 32) - 4096;

napi_value allocate(Call& call) {
  const int64_t bytes = call.size();
  napi_value buffer = nullptr;
  if (bytes > kLargestExternal) {
    void* memory = nullptr;
    if (napi_create_arraybuffer(call.env, size_t(bytes), &memory, &buffer) != napi_ok) {
      napi_value pending;
      napi_get_and_clear_last_exception(call.env, &pending);
      throw std::range_error("native: the system refused " + std::to_string(bytes) + " bytes");
    }
#ifdef MADV_HUGEPAGE
    uint8_t* page = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory) + 4095) & ~uintptr_t(4095));
    madvise(page, size_t(bytes) - 4096, MADV_HUGEPAGE);
#endif
    return buffer;
  }
  void* memory = map_memory(size_t(bytes));
  if (!memory) throw std::range_error("native: the system refused " + std::to_string(bytes) + " bytes");
  const auto free = [](napi_env, void*, void* hint) {
    Mapping* mapping = static_cast<Mapping*>(hint);
    unmap_memory(mapping->memory, mapping->bytes);
    delete mapping;
  };
  Mapping* mapping = new Mapping{memory, size_t(bytes)};
  if (napi_create_external_arraybuffer(call.env, memory, size_t(bytes), free, mapping, &buffer) != napi_ok) {
    free(call.env, memory, mapping);
    throw std::range_error("native: Node refused a buffer of " + std::to_string(bytes) + " bytes");
  }
  return buffer;
}

// Detaches a buffer of allocate(): its memory is given back now, its addresses when Node lets go of them.
napi_value release(Call& call) {
  const napi_value buffer = call.value();
  void* memory;
  size_t bytes;
  if (napi_get_arraybuffer_info(call.env, buffer, &memory, &bytes) != napi_ok)
    throw std::range_error("native: release needs an ArrayBuffer");
  if (bytes > 0 && int64_t(bytes) <= kLargestExternal) madvise(memory, bytes, MADV_DONTNEED);
  napi_detach_arraybuffer(call.env, buffer);
  return call.undefined();
}

napi_value linear(Call& call) {
  Engine& engine = call.step_engine();
  const int64_t T = call.size(), I = call.size(), O = call.size();
  Linear l{};
  l.type = call.type();
  l.x = call.floats(product({T, I}));
  const uint8_t* w = call.bytes(bytes_of(l.type, O, I));
  l.b = call.floats_or_null(O);
  const Product only{0, T, w, call.floats(product({T, O}))};
  l.N = T;
  l.count = T > 0 && I > 0 ? 1 : 0;
  l.I = I;
  l.O = O;
  engine.run([&engine, l, only]() mutable {
    l.products = &only;
    engine.kernels->linear(engine.pool, l);
  });
  return call.undefined();
}

// Three products of packed matrices: for each O, type, w and y.
napi_value three_products(Call& call) {
  Engine& engine = call.step_engine();
  ThreeProducts a{};
  a.T = call.size(), a.I = call.size();
  if (a.I < 1) throw std::range_error("native: threeProducts needs I of at least 1");
  a.x = call.floats(product({a.T, a.I}));
  for (int i = 0; i < 3; i++) {
    a.O[i] = call.size();
    a.type[i] = call.type();
    if (!is_packed(a.type[i])) throw std::range_error("native: threeProducts takes packed matrices");
    a.w[i] = call.bytes(bytes_of(a.type[i], a.O[i], a.I));
    a.y[i] = call.floats(product({a.T, a.O[i]}));
  }
  if (a.T > 0) engine.run([&engine, a] { engine.kernels->three_products(engine.pool, a); });
  return call.undefined();
}

// `count` of them, one after the other: three types, then the matrices.
Gated gated(Call& call, int64_t count, int64_t F, int64_t D) {
  Gated g{};
  g.gate_type = call.type(), g.up_type = call.type(), g.down_type = call.type();
  g.gate = call.bytes(product({count, bytes_of(g.gate_type, F, D)}));
  g.up = call.bytes(product({count, bytes_of(g.up_type, F, D)}));
  g.down = call.bytes(product({count, bytes_of(g.down_type, D, F)}));
  return g;
}

Gated packed_gated(Call& call, int64_t F, int64_t D) {
  const Gated g = gated(call, 1, F, D);
  if (!is_packed(g.gate_type) || !is_packed(g.up_type) || !is_packed(g.down_type))
    throw std::range_error("native: a feed-forward of one pass takes packed matrices");
  return g;
}

// With or without a shared expert behind the other arguments.
napi_value experts(Call& call) {
  Engine& engine = call.step_engine();
  Experts a{};
  a.T = call.size(), a.D = call.size(), a.F = call.size(), a.E = call.size(), a.top_k = call.size();
  if (a.D < 1 || a.F < 1 || a.E < 1 || a.top_k < 1)
    throw std::range_error("native: experts needs D, F, E and topK of at least 1");
  a.x = call.floats(product({a.T, a.D}));
  a.bank = gated(call, a.E, a.F, a.D);
  const Call::Ints chosen = call.ints();
  if (chosen.length != product({a.T, a.top_k}))
    throw std::range_error("native: " + std::to_string(chosen.length) + " choices of experts; expected one for each row and k");
  a.chosen = chosen.data;
  a.scores = call.floats(chosen.length);
  a.y = call.floats(product({a.T, a.D}));
  if (call.flag()) {
    if (!is_packed(a.bank.gate_type) || !is_packed(a.bank.up_type) || !is_packed(a.bank.down_type))
      throw std::range_error("native: a shared expert goes with packed ones");
    a.shared = packed_gated(call, a.F, a.D);
    a.has_shared = true;
  }
  if (a.T > 0)
    engine.run([&engine, a, chosen] {
      check_indices(chosen.data, chosen.length, a.E);
      engine.kernels->experts(engine.pool, a);
    });
  return call.undefined();
}

napi_value feed_forward(Call& call) {
  Engine& engine = call.step_engine();
  Experts a{};
  a.T = call.size(), a.D = call.size(), a.F = call.size();
  if (a.D < 1 || a.F < 1) throw std::range_error("native: feedForward needs D and F of at least 1");
  a.x = call.floats(product({a.T, a.D}));
  a.y = call.floats(product({a.T, a.D}));
  a.shared = packed_gated(call, a.F, a.D);
  a.has_shared = true;
  if (a.T > 0) engine.run([&engine, a] { engine.kernels->experts(engine.pool, a); });
  return call.undefined();
}

// These places, or, in a recording, those of the layers before that attend alike: a later run gives all of them others.
std::shared_ptr<Places> shared_places(Engine& engine, Places&& places, bool can_repeat) {
  std::shared_ptr<Places> own = std::make_shared<Places>(std::move(places));
  if (!engine.recording) return own;
  Recording& recording = *engine.recording;
  const std::shared_ptr<Places>& shared = recording.places.emplace(own->chunk, own).first->second;
  if (can_repeat && shared->is_alike(*own)) return shared;
  recording.is_whole = false;
  return own;
}

// segments: four numbers each, row, length, position and where its table begins in `tables`.
napi_value attend(Call& call) {
  Engine& engine = call.step_engine();
  Attend a{};
  Places places;
  const int64_t T = places.T = call.size();
  a.H = call.size(), a.K = call.size(), a.d = call.size();
  a.chunk = places.chunk = call.size();
  a.causal = call.flag();
  const bool cached = call.flag();
  places.blocks = call.size();
  a.block_size = places.block_size = call.size();
  a.type = call.type();
  if (a.H < 1 || a.K < 1 || a.H % a.K || a.d < 1)
    throw std::range_error("native: attend needs H and d of at least 1 and K a divisor of H");
  if (cached && ((a.type != kF32 && a.type != kF16 && a.type != kQ8_0) || a.block_size < 1))
    throw std::range_error("native: a cache holds f32, f16 or q8_0 in blocks of at least one slot");
  a.q = call.floats(product({T, a.H, a.d}));
  a.k = call.floats(product({T, a.K, a.d}));
  a.v = call.floats(product({T, a.K, a.d}));
  std::vector<int32_t> flat = call.copied_ints(), tables = call.copied_ints();
  if (cached) {
    const int64_t layer = bytes_of(a.type, product({places.blocks, a.block_size, a.K}), a.d) + kPoolSlack;
    a.keys = call.bytes(layer);
    a.values = call.bytes(layer);
  } else {
    for (int i = 0; i < 4; i++) call.value();
  }
  a.y = call.floats(product({T, a.H, a.d}));
  a.lse = call.floats_or_null(product({T, a.H}));
  places.set(std::move(flat), std::move(tables), cached);
  const std::shared_ptr<Places> shared = shared_places(engine, std::move(places), cached && !a.lse);
  engine.run([&engine, a, shared]() mutable {
    a.segments = shared->segments.data();
    a.count = int64_t(shared->segments.size());
    engine.kernels->attend(engine.pool, a);
  });
  return call.undefined();
}

Norm norm_of(Call& call) {
  Norm a{};
  a.rows = call.size(), a.n = call.size(), a.eps = float(call.number());
  a.x = call.floats(product({a.rows, a.n}));
  a.w = call.floats_or_null(a.n);
  a.b = call.floats_or_null(a.n);
  a.y = call.floats(product({a.rows, a.n}));
  return a;
}

napi_value rms_norm(Call& call) {
  Engine& engine = call.step_engine();
  const Norm a = norm_of(call);
  if (a.n > 0) engine.run([&engine, a] { engine.kernels->rms_norm(engine.pool, a); });
  return call.undefined();
}

napi_value layer_norm(Call& call) {
  Engine& engine = call.engine();
  const Norm a = norm_of(call);
  if (!a.w || !a.b) throw std::range_error("native: layerNorm needs a weight and a bias");
  if (a.n > 0) engine.kernels->layer_norm(engine.pool, a);
  return call.undefined();
}

napi_value rope(Call& call) {
  Engine& engine = call.step_engine();
  const int64_t T = call.size(), H = call.size(), d = call.size();
  if (d % 2) throw std::range_error("native: rope turns pairs; " + std::to_string(d) + " elements of a head are odd");
  const float *x = call.floats(product({T, H, d})), *rotations = call.floats(product({T, d}));
  float* y = call.floats(product({T, H, d}));
  if (H > 0 && d > 0) engine.run([=, &engine] { engine.kernels->rope(engine.pool, x, rotations, T, H, d, y); });
  return call.undefined();
}

napi_value add(Call& call) {
  Engine& engine = call.step_engine();
  const int64_t n = call.size();
  const float *a = call.floats(n), *b = call.floats(n);
  float* y = call.floats(n);
  engine.run([=, &engine] { engine.kernels->add(engine.pool, a, b, n, y); });
  return call.undefined();
}

napi_value swiglu(Call& call) {
  Engine& engine = call.step_engine();
  const int64_t n = call.size();
  const float *gate = call.floats(n), *up = call.floats(n);
  float* y = call.floats(n);
  engine.run([=, &engine] { engine.kernels->swiglu(engine.pool, gate, up, n, y); });
  return call.undefined();
}

napi_value gelu(Call& call) {
  Engine& engine = call.engine();
  const int64_t n = call.size();
  const float* x = call.floats(n);
  engine.kernels->gelu(engine.pool, x, n, call.floats(n));
  return call.undefined();
}

// An Int32Array of shape and strides, one axis after the other; `reach` is the number of elements it touches.
Walk walk_of(Call& call, int64_t& elements, int64_t& reach) {
  const Call::Ints numbers = call.ints();
  Walk walk{};
  walk.rank = int(numbers.length / 2);
  if (walk.rank < 1 || walk.rank > kMaxRank)
    throw std::range_error("native: a tensor of " + std::to_string(walk.rank) + " axes; expected 1 to 8");
  elements = reach = 1;
  for (int axis = 0; axis < walk.rank; axis++) {
    const int64_t extent = walk.shape[axis] = numbers.data[2 * axis], stride = walk.strides[axis] = numbers.data[2 * axis + 1];
    if (extent < 0 || stride < 0) throw std::range_error("native: negative extents");
    elements = product({elements, extent});
    if (extent > 0) reach += product({extent - 1, stride});
  }
  return walk;
}

napi_value mul(Call& call) {
  Engine& engine = call.step_engine();
  int64_t n, reach;
  const Walk walk = walk_of(call, n, reach);
  const float *a = call.floats(n), *b = call.floats(n ? reach : 0);
  float* y = call.floats(n);
  if (n > 0) engine.run([=, &engine] { engine.kernels->mul(engine.pool, a, b, walk, y); });
  return call.undefined();
}

napi_value gather(Call& call) {
  Engine& engine = call.engine();
  int64_t n, reach;
  const Walk walk = walk_of(call, n, reach);
  const float* x = call.floats(n ? reach : 0);
  float* y = call.floats(n);
  if (n > 0) engine.kernels->gather(engine.pool, x, walk, y);
  return call.undefined();
}

napi_value rows(Call& call) {
  Engine& engine = call.step_engine();
  const int64_t count = call.size(), width = call.size();
  const int type = call.type();
  const uint8_t* table = call.bytes(bytes_of(type, count, width));
  const Call::Ints at = call.ints();
  float* y = call.floats(product({at.length, width}));
  engine.run([=, &engine] {
    check_indices(at.data, at.length, count);
    engine.kernels->rows(engine.pool, type, table, width, at.data, at.length, y);
  });
  return call.undefined();
}

// Rows of blocks to packed.h's layout.
napi_value pack(Call& call) {
  const int64_t count = call.size(), columns = call.size();
  const int type = call.type();
  if (!can_pack(type)) throw std::range_error("native: type " + std::to_string(type) + " is not packed");
  const uint8_t* in = call.bytes(bytes_of(type, count, columns));
  baseline::pack_rows(type, in, count, columns / block_of(type).elements, call.bytes(bytes_of(type | kPacked, count, columns)));
  return call.undefined();
}

napi_value splice(Call& call) {
  Engine& engine = call.engine();
  const int64_t count = call.size(), width = call.size();
  const float* x = call.floats(product({count, width}));
  const Call::Ints at = call.indices(count);
  const float* from = call.floats(product({at.length, width}));
  engine.kernels->splice(engine.pool, x, count, width, from, at.data, at.length, call.floats(product({count, width})));
  return call.undefined();
}

napi_value route(Call& call) {
  Engine& engine = call.step_engine();
  const int64_t T = call.size(), E = call.size(), top_k = call.size();
  if (top_k < 1 || top_k > E) throw std::range_error("native: route needs 1 to " + std::to_string(E) + " choices");
  const float* logits = call.floats(product({T, E}));
  const Call::Ints chosen = call.ints();
  if (chosen.length != product({T, top_k})) throw std::range_error("native: route needs room for every choice");
  float* scores = call.floats(chosen.length);
  engine.run([=, &engine] {
    engine.kernels->route(engine.pool, logits, T, E, top_k, const_cast<int32_t*>(chosen.data), scores);
  });
  return call.undefined();
}

Call::Ints targets_of(Call& call, int64_t T, int64_t V) {
  if (V < 1) throw std::range_error("native: crossEntropy needs a vocabulary of at least 1");
  const Call::Ints targets = call.ints();
  if (targets.length != T) throw std::range_error("native: crossEntropy needs one target a row");
  for (int64_t i = 0; i < T; i++)
    if (targets.data[i] >= V) throw std::range_error("native: a target is outside the vocabulary");
  return targets;
}

napi_value cross_entropy(Call& call) {
  Engine& engine = call.engine();
  const int64_t T = call.size(), V = call.size();
  const float* logits = call.floats(product({T, V}));
  const Call::Ints targets = targets_of(call, T, V);
  engine.kernels->cross_entropy(engine.pool, logits, targets.data, T, V, call.floats(1));
  return call.undefined();
}

napi_value draw(Call& call) {
  Engine& engine = call.engine();
  const Call::Floats logits = call.float_array();
  Draw how{};
  how.scale = float(call.number());
  how.top_p = call.number();
  how.min_p = float(call.number());
  how.u = call.number();
  if (!(how.scale > 0 && how.top_p >= 0 && how.min_p >= 0 && how.min_p <= 1 && how.u >= 0 && how.u < 1))
    throw std::range_error("native: draw needs a scale above 0, topP from 0, minP from 0 to 1 and u in [0, 1)");
  napi_value token;
  napi_create_int64(call.env, engine.kernels->draw(engine.pool, logits.data, logits.length, how), &token);
  return token;
}

// --- the way back: src/tensor/backward.ts ---

// Begins of the groups of N rows.
Call::Ints starts_of(Call& call, int64_t N) {
  const Call::Ints starts = call.indices(N + 1);
  for (int64_t e = 0; e + 1 < starts.length; e++)
    if (starts.data[e] > starts.data[e + 1]) throw std::range_error("native: groups of rows must not go back");
  if (starts.length < 2 || starts.data[0] != 0 || starts.data[starts.length - 1] != N)
    throw std::range_error("native: groups must cover every row");
  return starts;
}

napi_value grouped_linear(Call& call) {
  Engine& engine = call.engine();
  const int64_t N = call.size(), I = call.size(), O = call.size();
  Linear l{};
  l.type = call.type();
  if (is_packed(l.type)) throw std::range_error("native: groupedLinear takes matrices that are not packed");
  l.x = call.floats(product({N, I}));
  const Call::Ints starts = starts_of(call, N);
  const int64_t E = starts.length - 1, matrix = bytes_of(l.type, O, I);
  const uint8_t* bank = call.bytes(product({E, matrix}));
  float* y = call.floats(product({N, O}));
  std::vector<Product> products;
  for (int64_t e = 0; e < E && I > 0; e++)
    if (const int64_t first = starts.data[e], count = starts.data[e + 1] - first; count > 0)
      products.push_back({first, count, bank + e * matrix, y + first * O});
  l.N = N, l.I = I, l.O = O;
  l.products = products.data();
  l.count = int64_t(products.size());
  if (l.count > 0) engine.kernels->linear(engine.pool, l);
  return call.undefined();
}

// dy, starts, then w and dx, or x and dw.
napi_value linear_back(Call& call, bool by_weight) {
  Engine& engine = call.engine();
  const int64_t N = call.size(), I = call.size(), O = call.size();
  LinearBackward a{};
  a.dy = call.floats(product({N, O}));
  const Call::Ints starts = starts_of(call, N);
  a.starts = starts.data;
  a.E = starts.length - 1, a.I = I, a.O = O;
  a.rounded = call.flag();
  const int64_t bank = product({a.E, O, I}), rows = product({N, I});
  a.factor = call.floats(by_weight ? rows : bank);
  a.result = call.floats(by_weight ? bank : rows);
  if (I > 0 && O > 0) (by_weight ? engine.kernels->linear_weight : engine.kernels->linear_input)(engine.pool, a);
  return call.undefined();
}
napi_value linear_input(Call& call) { return linear_back(call, false); }
napi_value linear_weight(Call& call) { return linear_back(call, true); }

NormBackward norm_backward_of(Call& call) {
  NormBackward a{};
  a.rows = call.size(), a.n = call.size(), a.eps = float(call.number());
  a.x = call.floats(product({a.rows, a.n}));
  a.w = call.floats_or_null(a.n);
  a.dy = call.floats(product({a.rows, a.n}));
  a.dx = call.floats(product({a.rows, a.n}));
  a.dw = call.floats_or_null(a.n);
  a.db = call.floats_or_null(a.n);
  return a;
}

napi_value rms_norm_backward(Call& call) {
  Engine& engine = call.engine();
  const NormBackward a = norm_backward_of(call);
  if (a.db) throw std::range_error("native: rmsNorm has no bias");
  if (a.n > 0) engine.kernels->rms_norm_backward(engine.pool, a);
  return call.undefined();
}

napi_value layer_norm_backward(Call& call) {
  Engine& engine = call.engine();
  const NormBackward a = norm_backward_of(call);
  if (!a.w || !a.dw || !a.db) throw std::range_error("native: layerNorm needs a weight, and room for three gradients");
  if (a.n > 0) engine.kernels->layer_norm_backward(engine.pool, a);
  return call.undefined();
}

napi_value swiglu_backward(Call& call) {
  Engine& engine = call.engine();
  const int64_t n = call.size();
  const float *gate = call.floats(n), *up = call.floats(n), *dy = call.floats(n);
  float *d_gate = call.floats(n), *d_up = call.floats(n);
  engine.kernels->swiglu_backward(engine.pool, gate, up, dy, n, d_gate, d_up);
  return call.undefined();
}

napi_value gelu_backward(Call& call) {
  Engine& engine = call.engine();
  const int64_t n = call.size();
  const float *x = call.floats(n), *dy = call.floats(n);
  engine.kernels->gelu_backward(engine.pool, x, dy, n, call.floats(n));
  return call.undefined();
}

napi_value attend_backward(Call& call) {
  Engine& engine = call.engine();
  AttendBackward a{};
  a.T = call.size(), a.H = call.size(), a.K = call.size(), a.d = call.size();
  a.chunk = call.size();
  a.causal = call.flag();
  if (a.H < 1 || a.K < 1 || a.H % a.K || a.d < 1)
    throw std::range_error("native: attendBackward needs H and d of at least 1 and K a divisor of H");
  const int64_t queries = product({a.T, a.H, a.d}), keys = product({a.T, a.K, a.d});
  a.q = call.floats(queries), a.k = call.floats(keys), a.v = call.floats(keys);
  a.y = call.floats(queries), a.lse = call.floats(product({a.T, a.H})), a.dy = call.floats(queries);
  Places places;
  places.T = a.T;
  places.set(call.copied_ints(), {}, false);
  a.dq = call.floats(queries), a.dk = call.floats(keys), a.dv = call.floats(keys);
  a.segments = places.segments.data();
  a.count = int64_t(places.segments.size());
  engine.kernels->attend_backward(engine.pool, a);
  return call.undefined();
}

// Sizes, logits and choices.
struct Chosen {
  int64_t T, E, top_k;
  const float* logits;
  const int32_t* experts;
};
Chosen chosen_of(Call& call) {
  Chosen c{};
  c.T = call.size(), c.E = call.size(), c.top_k = call.size();
  if (c.top_k < 1 || c.E < 1) throw std::range_error("native: scores need an expert and a choice");
  c.logits = call.floats(product({c.T, c.E}));
  const Call::Ints chosen = call.indices(c.E);
  if (chosen.length != product({c.T, c.top_k})) throw std::range_error("native: scores need every row's choices");
  c.experts = chosen.data;
  return c;
}

napi_value scores(Call& call) {
  Engine& engine = call.engine();
  const Chosen c = chosen_of(call);
  engine.kernels->scores(engine.pool, c.logits, c.experts, c.T, c.E, c.top_k, call.floats(product({c.T, c.top_k})));
  return call.undefined();
}

napi_value scores_backward(Call& call) {
  Engine& engine = call.engine();
  const Chosen c = chosen_of(call);
  const float* dy = call.floats(product({c.T, c.top_k}));
  float* dx = call.floats(product({c.T, c.E}));
  engine.kernels->scores_backward(engine.pool, c.logits, c.experts, dy, c.T, c.E, c.top_k, dx);
  return call.undefined();
}

napi_value cross_entropy_backward(Call& call) {
  Engine& engine = call.engine();
  const int64_t T = call.size(), V = call.size();
  const float* logits = call.floats(product({T, V}));
  const Call::Ints targets = targets_of(call, T, V);
  const float* dy = call.floats(1);
  engine.kernels->cross_entropy_backward(engine.pool, logits, targets.data, dy, T, V, call.floats(product({T, V})));
  return call.undefined();
}

// T, E, the two weights, the shares in an ArrayBuffer of doubles, the logits; back also dy.
napi_value router_loss_of(Call& call, bool back) {
  Engine& engine = call.engine();
  const int64_t T = call.size(), E = call.size();
  RouterLoss loss{};
  loss.balance = call.number(), loss.z = call.number();
  loss.shares = reinterpret_cast<const double*>(call.bytes(product({E, 8})));
  const float* logits = call.floats(product({T, E}));
  if (T < 1 || E < 1) throw std::range_error("native: routerLoss needs a row and an expert");
  if (back) {
    const float* dy = call.floats(1);
    engine.kernels->router_loss_backward(engine.pool, logits, loss, dy, T, E, call.floats(product({T, E})));
  } else {
    engine.kernels->router_loss(engine.pool, logits, loss, T, E, call.floats(1));
  }
  return call.undefined();
}
napi_value router_loss(Call& call) { return router_loss_of(call, false); }
napi_value router_loss_backward(Call& call) { return router_loss_of(call, true); }

napi_value scatter_rows(Call& call) {
  Engine& engine = call.engine();
  const int64_t n = call.size(), width = call.size();
  const Call::Ints at = call.indices(n);
  const float* x = call.floats(product({at.length, width}));
  engine.kernels->scatter_rows(engine.pool, x, width, at.data, at.length, n, call.floats(product({n, width})));
  return call.undefined();
}

napi_value sum_axes(Call& call) {
  Engine& engine = call.engine();
  int64_t n, sums, reach_kept, reach_summed;
  const Walk kept = walk_of(call, n, reach_kept), summed = walk_of(call, sums, reach_summed);
  const float* x = call.floats(n && sums ? reach_kept + reach_summed - 1 : 0);
  float* y = call.floats(n);
  if (n > 0) engine.kernels->sum_axes(engine.pool, x, kept, summed, y);
  return call.undefined();
}

napi_value set_codebooks(Call& call) {
  static int8_t tables[kIqTablesLength];  // a copy: the thread that hands them over may end before others
  static std::once_flag once;              // and others may be reading them by now
  const uint8_t* given = call.bytes(kIqTablesLength);
  std::call_once(once, [&] {
    memcpy(tables, given, kIqTablesLength);
    set_iq_tables(tables);
  });
  return call.undefined();
}

// Rows of one type to another, on all threads; the index of the first element that the type cannot hold, or −1.
napi_value recode(Call& call) {
  Engine& engine = call.engine();
  const int from = call.type(), to = call.type();
  const int64_t count = call.size(), columns = call.size();
  const int64_t in_bytes = bytes_of(from, 1, columns), out_bytes = bytes_of(to, 1, columns);
  const uint8_t* in = call.bytes(product({count, in_bytes}));
  uint8_t* out = call.bytes(product({count, out_bytes}));
  if (count >= 1 << 20) throw std::range_error("native: too many rows to recode at once");
  std::vector<int64_t> bad(size_t(count), -1);
  engine.pool.reserve_own(size_t(columns) * sizeof(float));
  auto work = [&](int64_t row, int thread) {
    float* x = static_cast<float*>(engine.pool.own(thread));
    if (!engine.kernels->to_f32_row(from, in + row * in_bytes, x, columns)) bad[size_t(row)] = -2;
    else bad[size_t(row)] = engine.kernels->quantize_rows(to, x, out + row * out_bytes, 1, columns);
  };
  engine.pool.run(count, [](void* w, int64_t row, int thread) { (*static_cast<decltype(work)*>(w))(row, thread); }, &work);
  double first = -1;
  for (int64_t row = 0; row < count && first == -1; row++) {
    if (bad[size_t(row)] == -2) throw std::range_error("native: nothing recodes type " + std::to_string(from) + " to " + std::to_string(to));
    if (bad[size_t(row)] >= 0) first = double(row * columns + bad[size_t(row)]);
  }
  napi_value result;
  napi_create_double(call.env, first, &result);
  return result;
}

napi_value transpose(Call& call) {
  Engine& engine = call.engine();
  const int64_t element = call.size(), rows = call.size(), columns = call.size();
  if (element != 1 && element != 2 && element != 4 && element != 8)
    throw std::range_error("native: transpose moves elements of 1, 2, 4 or 8 bytes, not " + std::to_string(element));
  if (rows == 0 || columns == 0) return call.undefined();
  // `count` lines, `stride` bytes apart, of `length` elements
  const auto span = [&](int64_t count, int64_t stride, int64_t length) {
    const int64_t line = product({length, element});
    if (stride < line) throw std::range_error("native: transpose: lines of " + std::to_string(line) + " bytes overlap");
    return product({count - 1, stride}) + line;
  };
  const int64_t in_stride = call.size(), out_stride = call.size();
  const uint8_t* in = call.bytes(span(rows, in_stride, columns));
  uint8_t* out = call.bytes(span(columns, out_stride, rows));
  // Each item writes whole cache lines, but for those at the edges.
  const int64_t high = 256 / element, wide = 4096 / element;
  const int64_t across = (columns + wide - 1) / wide, items = product({(rows + high - 1) / high, across});
  if (items >= 1 << 20) throw std::range_error("native: too many elements to transpose at once");
  auto work = [&](int64_t item) {
    const int64_t r = item / across * high, c = item % across * wide;
    llama4::transpose(element, {std::min(high, rows - r), std::min(wide, columns - c), in + r * in_stride + c * element,
                                in_stride, out + c * out_stride + r * element, out_stride});
  };
  engine.pool.run(items, [](void* w, int64_t item, int) { (*static_cast<decltype(work)*>(w))(item); }, &work);
  return call.undefined();
}

napi_value adam_w(Call& call) {
  Engine& engine = call.engine();
  AdamW a{};
  a.n = call.size();
  a.w = call.floats(a.n), a.g = call.floats(a.n), a.m = call.floats(a.n), a.v = call.floats(a.n);
  const double rate = call.number(), beta1 = call.number(), beta2 = call.number(), eps = call.number();
  const double decay = call.number(), step = call.number();
  a.scale = float(call.number());
  a.beta1 = float(beta1), a.rest1 = float(1 - beta1), a.beta2 = float(beta2), a.rest2 = float(1 - beta2);
  a.keep = float(1 - rate * decay), a.step = float(rate / (1 - std::pow(beta1, step)));
  a.root = float(1 / std::sqrt(1 - std::pow(beta2, step))), a.eps = float(eps);
  engine.kernels->adam_w(engine.pool, a);
  return call.undefined();
}

napi_value blend(Call& call) {
  Engine& engine = call.engine();
  const int64_t n = call.size();
  float* x = call.floats(n);
  const float* y = call.floats(n);
  const float a = float(call.number()), b = float(call.number());
  engine.kernels->blend(engine.pool, x, y, n, a, b);
  return call.undefined();
}

napi_value sum_squares(Call& call) {
  Engine& engine = call.engine();
  const int64_t n = call.size();
  const float* x = call.floats(n);
  napi_value result;
  napi_create_double(call.env, engine.kernels->sum_squares(engine.pool, x, n), &result);
  return result;
}

napi_value probe(Call& call) {
  Engine& engine = call.engine();
  const int64_t bytes = call.size();
  uint8_t* memory = call.bytes(bytes);
  const Peaks peaks = engine.kernels->probe(engine.pool, memory, bytes);
  const double numbers[] = {peaks.dram_read, peaks.int8_ops, peaks.f32_flops, peaks.bf16_flops};
  napi_value list;
  napi_create_array_with_length(call.env, 4, &list);
  for (uint32_t i = 0; i < 4; i++) {
    napi_value number;
    napi_create_double(call.env, numbers[i], &number);
    napi_set_element(call.env, list, i, number);
  }
  return list;
}

// --- a step that runs again ---

constexpr napi_type_tag kRecordingTag = {0x6c6c616d61342e74, 0x7265636f7264696e};

napi_value start_recording(Call& call) {
  Engine& engine = call.step_engine();
  engine.recording = std::make_unique<Recording>();
  engine.recording->engine = &engine;
  return call.undefined();
}

// What ran since, or null where it cannot be run again.
napi_value end_recording(Call& call) {
  Engine& engine = call.step_engine();
  const std::unique_ptr<Recording> recording = std::move(engine.recording);
  napi_value result;
  napi_get_null(call.env, &result);
  if (!recording || !recording->is_whole) return result;
  const auto free = [](napi_env, void* data, void*) { delete static_cast<Recording*>(data); };
  Recording* kept = new Recording(std::move(*recording));
  if (napi_create_external(call.env, kept, free, nullptr, &result) != napi_ok) {
    delete kept;
    throw std::range_error("native: the system refused memory for a recording");
  }
  napi_type_tag_object(call.env, result, &kRecordingTag);  // without it, replay refuses the recording
  return result;
}

// For each kind of layer: its chunk, segments and tables.
napi_value replay(Call& call) {
  const Engine& engine = call.engine();
  const napi_value handle = call.value();
  void* pointer = nullptr;
  bool is_recording = false;
  napi_check_object_type_tag(call.env, handle, &kRecordingTag, &is_recording);
  if (!is_recording || napi_get_value_external(call.env, handle, &pointer) != napi_ok)
    throw std::range_error("native: replay needs a recording");
  Recording& recording = *static_cast<Recording*>(pointer);
  if (recording.engine != &engine) throw std::range_error("native: a recording runs on the engine that made it");
  for (auto& [chunk, places] : recording.places) {
    if (call.size() != chunk) throw std::range_error("native: replay needs every kind of layers, in the order of their chunks");
    std::vector<int32_t> flat = call.copied_ints(), tables = call.copied_ints();
    places->set(std::move(flat), std::move(tables), true);
  }
  for (const std::function<void()>& run : recording.calls) run();
  return call.undefined();
}

napi_value init(napi_env env, napi_value exports) {
#define EXPORT(name, function) {name, nullptr, enter<function>, nullptr, nullptr, nullptr, napi_default, nullptr}
  const napi_property_descriptor properties[] = {
      EXPORT("isas", list_isas), EXPORT("open", open), EXPORT("close", close), EXPORT("allocate", allocate),
      EXPORT("release", release), EXPORT("setCodebooks", set_codebooks), EXPORT("recode", recode), EXPORT("transpose", transpose),
      EXPORT("probe", probe), EXPORT("linear", linear), EXPORT("experts", experts), EXPORT("feedForward", feed_forward), EXPORT("threeProducts", three_products), EXPORT("pack", pack), EXPORT("attend", attend),
      EXPORT("rmsNorm", rms_norm), EXPORT("layerNorm", layer_norm), EXPORT("rope", rope), EXPORT("add", add),
      EXPORT("mul", mul), EXPORT("swiglu", swiglu), EXPORT("gelu", gelu), EXPORT("gather", gather),
      EXPORT("rows", rows), EXPORT("splice", splice), EXPORT("route", route), EXPORT("crossEntropy", cross_entropy), EXPORT("draw", draw),
      EXPORT("startRecording", start_recording), EXPORT("endRecording", end_recording), EXPORT("replay", replay),
      EXPORT("adamW", adam_w), EXPORT("blend", blend), EXPORT("sumSquares", sum_squares),
      EXPORT("groupedLinear", grouped_linear), EXPORT("linearInput", linear_input), EXPORT("linearWeight", linear_weight),
      EXPORT("rmsNormBackward", rms_norm_backward), EXPORT("layerNormBackward", layer_norm_backward),
      EXPORT("swigluBackward", swiglu_backward), EXPORT("geluBackward", gelu_backward),
      EXPORT("attendBackward", attend_backward), EXPORT("scores", scores), EXPORT("scoresBackward", scores_backward),
      EXPORT("crossEntropyBackward", cross_entropy_backward), EXPORT("routerLoss", router_loss),
      EXPORT("routerLossBackward", router_loss_backward), EXPORT("scatterRows", scatter_rows), EXPORT("sumAxes", sum_axes),
      {"cancel", nullptr, cancel_reading, nullptr, nullptr, nullptr, napi_default, nullptr},
      {"read", nullptr, start_reading, nullptr, nullptr, nullptr, napi_default, nullptr},
  };
#undef EXPORT
  napi_define_properties(env, exports, sizeof properties / sizeof *properties, properties);
  return exports;
}

}  // namespace
}  // namespace llama4

NAPI_MODULE_INIT() { return llama4::init(env, exports); }

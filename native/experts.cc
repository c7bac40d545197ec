// y[t] = Σₖ down_e(swiglu(gate_e(s·x[t]), up_e(s·x[t]))) with e, s the k-th choice of row t        reference: experts()
//
// Rows are grouped by expert, so that each expert's weights are read once; all products of a kind are one run of the
// pool. Sums over k keep the order of the choices.

#include "int8.h"
#include "kernels.h"
#include "simd.h"

namespace llama4 {
namespace LLAMA4_ISA {

namespace {

// Choices grouped by expert: choice i stands at place[i]; expert e's are [start[e], start[e + 1]).
struct Groups {
  int64_t *place, *start;
  static size_t bytes(int64_t n, int64_t E) { return size_t(n + E + 2) * sizeof(int64_t); }
  Groups(void* memory, const int32_t* chosen, int64_t n, int64_t E)
      : place(static_cast<int64_t*>(memory)), start(place + n) {
    // Counted two experts late: start[e + 1] is e's next free place while places are given, and then the end of e.
    for (int64_t e = 0; e < E + 2; e++) start[e] = 0;
    for (int64_t i = 0; i < n; i++) start[chosen[i] + 2]++;
    for (int64_t e = 1; e < E + 2; e++) start[e] += start[e - 1];
    for (int64_t i = 0; i < n; i++) place[i] = start[chosen[i] + 1]++;
  }
  int64_t count(int64_t e) const { return start[e + 1] - start[e]; }
};

void add_choices(Pool& pool, const float* down, const int64_t* place, int64_t T, int64_t D, int64_t top_k, float* y) {
  parallel(pool, T, 16384 / D + 1, [&](int64_t t, int64_t last, int) {
    for (; t < last; t++) {
      float* to = y + t * D;
      memcpy(to, down + place[t * top_k] * D, size_t(D) * sizeof(float));
      for (int64_t k = 1; k < top_k; k++) {
        const float* from = down + place[t * top_k + k] * D;
        for (int64_t j = 0; j < D; j++) to[j] += from[j];
      }
    }
  });
}

// All matrices packed: x is quantized once for all experts, gate, up and swiglu are one pass that quantizes its result.
void experts_int8(Pool& pool, const Experts& a) {
  const int64_t n = a.T * a.top_k, D = a.D, F = a.F;
  const Quantized x = quantized(pool, a.x, a.T, D, a.id, *a.held);
  const size_t hidden_bytes = Quantized::bytes(n, F);
  uint8_t* rows = static_cast<uint8_t*>(pool.shared(Pool::kHidden, hidden_bytes + Quantized::bytes(n, D)));
  const Quantized hidden(rows, n, F), grouped(rows + hidden_bytes, n, D);
  const size_t floats = a.top_k > 1 ? size_t(n) * size_t(D) : 0;
  const size_t bytes = Groups::bytes(n, a.E) + size_t(n) * (sizeof(float*) + sizeof(float)) +
                       size_t(a.E) * (sizeof(Int8Gated) + sizeof(Int8Product)) + floats * sizeof(float);
  uint8_t* memory = static_cast<uint8_t*>(pool.shared(Pool::kOperation, bytes));
  const Groups groups(memory, a.chosen, n, a.E);
  float** to = reinterpret_cast<float**>(memory + Groups::bytes(n, a.E));
  Int8Gated* gated = reinterpret_cast<Int8Gated*>(to + n);
  Int8Product* downs = reinterpret_cast<Int8Product*>(gated + a.E);
  float *scales = reinterpret_cast<float*>(downs + a.E), *down = scales + n;
  for (int64_t i = 0; i < n; i++) {
    const int64_t place = groups.place[i];
    scales[place] = a.scores[i];
    to[place] = a.top_k > 1 ? down + place * D : a.y + i * D;
  }
  parallel(pool, n, 65536 / D + 1, [&](int64_t i, int64_t last, int) {
    for (; i < last; i++) grouped.copy(groups.place[i], x, i / a.top_k);
  });
  const auto matrix = [&](const void* bank, int type, int64_t e, int64_t rows, int64_t columns) {
    const Block block = block_of(type);
    return static_cast<const uint8_t*>(bank) + e * packed_rows(rows) * (columns / block.elements) * block.bytes;
  };
  const int gate_type = plain(a.gate_type), up_type = plain(a.up_type), down_type = plain(a.down_type);
  int64_t used = 0;
  for (int64_t e = 0; e < a.E; e++) {
    const int64_t first = groups.start[e], count = groups.count(e);
    if (count == 0) continue;
    gated[used] = {matrix(a.gate, gate_type, e, F, D), matrix(a.up, up_type, e, F, D), gate_type, up_type, F,
                   first, count, scales + first};
    downs[used++] = {matrix(a.down, down_type, e, D, F), down_type, D, first, count, to + first, nullptr};
  }
  multiply_gated_int8(pool, grouped, gated, used, hidden);
  multiply_int8(pool, hidden, downs, used);
  if (a.top_k > 1) add_choices(pool, down, groups.place, a.T, D, a.top_k, a.y);
}

}  // namespace

void feed_forward(Pool& pool, const FeedForward& a) {
  const Quantized x = quantized(pool, a.x, a.T, a.D, a.id, *a.held);
  const Quantized hidden(pool.shared(Pool::kHidden, Quantized::bytes(a.T, a.F)), a.T, a.F);
  float** to = static_cast<float**>(pool.shared(Pool::kOperation, size_t(a.T) * sizeof(float*)));
  for (int64_t t = 0; t < a.T; t++) to[t] = a.y + t * a.D;
  const auto matrix = [](const void* w) { return static_cast<const uint8_t*>(w); };
  const Int8Gated gated{matrix(a.gate), matrix(a.up), plain(a.gate_type), plain(a.up_type), a.F, 0, a.T, nullptr};
  const Int8Product down{matrix(a.down), plain(a.down_type), a.D, 0, a.T, to, nullptr};
  multiply_gated_int8(pool, x, &gated, 1, hidden);
  multiply_int8(pool, hidden, &down, 1);
}

void experts(Pool& pool, const Experts& a) {
  if (is_packed(a.gate_type) && is_packed(a.up_type) && is_packed(a.down_type)) return experts_int8(pool, a);
  const int64_t n = a.T * a.top_k, D = a.D, F = a.F;
  const auto matrix_bytes = [](int type, int64_t rows, int64_t columns) {
    const Block block = block_of(plain(type));
    return (is_packed(type) ? packed_rows(rows) : rows) * (columns / block.elements * block.bytes);
  };
  // x in groups [n, D], gate and up [n, F], down [n, D]; products; where choice i stands in the groups; group starts.
  const size_t floats = size_t(n) * size_t(2 * D + 2 * F);
  const size_t bytes = floats * sizeof(float) + size_t(2 * a.E) * sizeof(Product) + Groups::bytes(n, a.E);
  float* grouped = static_cast<float*>(pool.shared(Pool::kOperation, bytes));
  float *gate = grouped + n * D, *up = gate + n * F, *down = up + n * F;
  Product* products = reinterpret_cast<Product*>(down + n * D);
  const Groups groups(products + 2 * a.E, a.chosen, n, a.E);

  parallel(pool, n, 16384 / D + 1, [&](int64_t i, int64_t last, int) {
    for (; i < last; i++) {
      const float *x = a.x + i / a.top_k * D, s = a.scores[i];
      float* to = grouped + groups.place[i] * D;
      for (int64_t j = 0; j < D; j++) to[j] = s * x[j];
    }
  });

  // One product for each expert that has rows; matrix e of a bank starts at e times its bytes.
  const auto collect = [&](Product* to, const void* bank, int64_t bytes, float* y, int64_t out) {
    int64_t count = 0;
    for (int64_t e = 0; e < a.E; e++)
      if (groups.count(e) > 0)
        to[count++] = {groups.start[e], groups.count(e), static_cast<const uint8_t*>(bank) + e * bytes,
                       y + groups.start[e] * out};
    return count;
  };
  const int64_t used = collect(products, a.gate, matrix_bytes(a.gate_type, F, D), gate, F);
  collect(products + used, a.up, matrix_bytes(a.up_type, F, D), up, F);
  Held held;  // a packed matrix among others quantizes its rows over those held
  *a.held = {};
  if (a.gate_type == a.up_type) {
    linear(pool, {grouped, n, products, 2 * used, D, F, a.gate_type, nullptr, 0, &held});
  } else {
    linear(pool, {grouped, n, products, used, D, F, a.gate_type, nullptr, 0, &held});
    linear(pool, {grouped, n, products + used, used, D, F, a.up_type, nullptr, 0, &held});
  }
  swiglu(pool, gate, up, n * F, gate);
  collect(products, a.down, matrix_bytes(a.down_type, D, F), down, D);
  linear(pool, {gate, n, products, used, F, D, a.down_type, nullptr, 1, &held});

  add_choices(pool, down, groups.place, a.T, D, a.top_k, a.y);
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

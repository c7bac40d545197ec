// y[t] = shared(x[t]) + Σₖ down_e(swiglu(gate_e(s·x[t]), up_e(s·x[t]))) with e, s the k-th choice of row t
// reference: experts()
//
// Rows are grouped by expert, so that each expert's weights are read once; all products of a kind, the shared expert's
// among them, are one run of the pool. Sums over k keep the order of the choices.

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

// y[t] = Σₖ down[place of choice k of row t], added to what is there if it is `beside` that.
void add_choices(Pool& pool, float* down, const int64_t* place, int64_t T, int64_t D, int64_t top_k, bool beside, float* y) {
  parallel(pool, T, 16384 / D + 1, [&](int64_t t, int64_t last, int) {
    for (; t < last; t++) {
      float *sum = down + place[t * top_k] * D, *to = y + t * D;
      for (int64_t k = 1; k < top_k; k++) {
        const float* from = down + place[t * top_k + k] * D;
        for (int64_t j = 0; j < D; j++) sum[j] += from[j];
      }
      if (beside) for (int64_t j = 0; j < D; j++) to[j] += sum[j];
      else memcpy(to, sum, size_t(D) * sizeof(float));
    }
  });
}

inline bool all_packed(const Gated& g) { return is_packed(g.gate_type) && is_packed(g.up_type) && is_packed(g.down_type); }

// All matrices packed: x is quantized once for all experts; gate, up and swiglu are one pass that quantizes its result.
// Choices come first among the rows, by expert, and after them x for the shared expert.
void experts_int8(Pool& pool, const Experts& a) {
  const int64_t T = a.T, D = a.D, F = a.F, n = T * a.top_k;
  const bool shared = a.has_shared, direct = a.top_k == 1 && !shared;  // direct: an expert's rows are y's
  const size_t hidden_bytes = Quantized::bytes(n + T, F);
  uint8_t* rows = static_cast<uint8_t*>(pool.shared(Pool::kHidden, hidden_bytes + Quantized::bytes(n + T, D)));
  const Quantized hidden(rows, n + T, F), x(rows + hidden_bytes, n + T, D);
  const size_t floats = direct ? 0 : size_t(n) * size_t(D);
  const size_t bytes = Groups::bytes(n, a.E) + size_t(n + T) * sizeof(float*) + size_t(n) * sizeof(float) +
                       size_t(a.E + 1) * (sizeof(Int8Gated) + sizeof(Int8Product)) + floats * sizeof(float);
  uint8_t* memory = static_cast<uint8_t*>(pool.shared(Pool::kOperation, bytes));
  const Groups groups(memory, a.chosen, n, a.E);
  float** to = reinterpret_cast<float**>(memory + Groups::bytes(n, a.E));
  Int8Gated* gated = reinterpret_cast<Int8Gated*>(to + n + T);
  Int8Product* downs = reinterpret_cast<Int8Product*>(gated + a.E + 1);
  float *scales = reinterpret_cast<float*>(downs + a.E + 1), *down = scales + n;
  for (int64_t i = 0; i < n; i++) {
    const int64_t place = groups.place[i];
    scales[place] = a.scores[i];
    to[place] = direct ? a.y + i * D : down + place * D;
  }
  for (int64_t t = 0; t < T; t++) to[n + t] = a.y + t * D;
  parallel(pool, T, 8, [&](int64_t t, int64_t last, int) {
    for (; t < last; t++) {
      x.set(n + t, 0, a.x + t * D, D);
      for (int64_t i = t * a.top_k; i < (t + 1) * a.top_k; i++) x.copy(groups.place[i], x, n + t);
    }
  });
  int64_t used = 0;
  const auto use = [&](const Gated& g, int64_t e, int64_t first, int64_t count, const float* by) {
    const auto matrix = [&](const void* bank, int type, int64_t rows, int64_t columns) {
      const Block block = block_of(plain(type));
      return static_cast<const uint8_t*>(bank) + e * packed_rows(rows) * (columns / block.elements) * block.bytes;
    };
    gated[used] = {matrix(g.gate, g.gate_type, F, D), matrix(g.up, g.up_type, F, D), plain(g.gate_type), plain(g.up_type),
                   F, first, count, by};
    downs[used++] = {matrix(g.down, g.down_type, D, F), plain(g.down_type), D, first, count, to + first, nullptr};
  };
  if (shared) use(a.shared, 0, n, T, nullptr);
  for (int64_t e = 0; e < a.E; e++)
    if (groups.count(e) > 0) use(a.bank, e, groups.start[e], groups.count(e), scales + groups.start[e]);
  multiply_gated_int8(pool, x, gated, used, hidden);
  multiply_int8(pool, hidden, downs, used);
  if (n > 0 && !direct) add_choices(pool, down, groups.place, T, D, a.top_k, shared, a.y);
}

}  // namespace

void experts(Pool& pool, const Experts& a) {
  if (all_packed(a.has_shared ? a.shared : a.bank)) return experts_int8(pool, a);
  const auto& [bank_gate, bank_up, bank_down, gate_type, up_type, down_type] = a.bank;
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
  const int64_t used = collect(products, bank_gate, matrix_bytes(gate_type, F, D), gate, F);
  collect(products + used, bank_up, matrix_bytes(up_type, F, D), up, F);
  if (gate_type == up_type) {
    linear(pool, {grouped, n, products, 2 * used, D, F, gate_type, nullptr});
  } else {
    linear(pool, {grouped, n, products, used, D, F, gate_type, nullptr});
    linear(pool, {grouped, n, products + used, used, D, F, up_type, nullptr});
  }
  swiglu(pool, gate, up, n * F, gate);
  collect(products, bank_down, matrix_bytes(down_type, D, F), down, D);
  linear(pool, {gate, n, products, used, F, D, down_type, nullptr});

  add_choices(pool, down, groups.place, a.T, D, a.top_k, false, a.y);
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

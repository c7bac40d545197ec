// What every kernel takes. All activations are float32, row-major; `Type` is that of the weights (formats.h).
// Sizes were checked at the border. T tokens · I in · O out · D dim · H heads · K key/value heads · d head dim.

#pragma once

#include "formats.h"
#include "pool.h"

namespace llama4 {

// y[T, O] = x[T, I] · w[O, I]ᵀ (+ b[O]): one of several products that share x, I, O and the type.
struct Product {
  int64_t row, T;  // rows of x
  const void* w;
  float* y;
};

struct Linear {
  const float* x;  // [N, I]
  int64_t N;
  const Product* products;
  int64_t count;
  int64_t I, O;
  int type;        // packed (packed.h): activations are rounded to blocks of 32 int8; rounded: to bf16
  const float* b;  // or nullptr
};

// y[T, O] = x[T, I] · w[O, I]ᵀ for each of three packed matrices.
struct ThreeProducts {
  const float* x;
  int64_t T, I;
  const void* w[3];
  int type[3];
  int64_t O[3];
  float* y[3];
};

struct Norm {
  const float *x, *w, *b;  // w may be nullptr
  int64_t rows, n;
  float eps;
  float* y;
};

constexpr int kMaxRank = 8;

// y[i] = x[walk(i)] over `shape` with the strides of x in elements.
struct Walk {
  int rank;
  int64_t shape[kMaxRank], strides[kMaxRank];
};

struct Segment {
  int64_t row, length, position;
  const int32_t* table;  // blocks of this sequence, or nullptr without a cache
};

// A register of the last panel of a pool may be read this far beyond it.
constexpr int64_t kPoolSlack = 64;

struct Attend {
  const float *q, *k, *v;  // [T, H, d], [T, K, d]
  float* y;                // [T, H, d]
  float* lse;              // [T, H]: log Σ exp(scores) of each row, or nullptr
  int64_t H, K, d;
  const Segment* segments;
  int64_t count;
  int64_t chunk;  // 0: none
  bool causal;
  // One layer of a pool (kv-blocks.h), or nullptr.
  void *keys, *values;
  int type;  // kF32, kF16 or kQ8_0
  int64_t block_size;
};

// down · swiglu(gate · x, up · x): gate and up [F, D], down [D, F]; or a bank of them.
struct Gated {
  const void *gate, *up, *down;
  int gate_type, up_type, down_type;
};

// Of each row's experts, and of the one that all rows share, if there is one: then all are packed.
struct Experts {
  const float* x;        // [T, D]
  const int32_t* chosen; // [T, top_k]
  const float* scores;   // [T, top_k]
  Gated bank, shared;
  bool has_shared;
  int64_t T, D, F, E, top_k;  // top_k 0: the shared one alone
  float* y;  // [T, D]
};

// One step of AdamW over n numbers; what depends on the step alone was worked out by the caller.
struct AdamW {
  float* w;
  const float* g;
  float *m, *v;
  int64_t n;
  float scale, beta1, rest1, beta2, rest2;  // rest = 1 − β
  float keep, step, root, eps;  // 1 − rate·decay, rate / (1 − β₁ᵗ), 1 / √(1 − β₂ᵗ)
};

// Products of float32 with matrix e of a bank for rows [starts[e], starts[e + 1]), back: by x, dx = dy · w, or by w,
// dw = dyᵀ · x.
struct LinearBackward {
  const float* dy;      // [N, O]
  const float* factor;  // w [E, O, I] or x [N, I]
  float* result;        // dx [N, I] or dw [E, O, I]
  const int32_t* starts;
  int64_t E, I, O;
  bool rounded;  // both factors may be rounded to bf16
};

struct NormBackward {
  const float *x, *w, *dy;  // w may be nullptr
  int64_t rows, n;
  float eps;
  float *dx, *dw, *db;  // dw may be nullptr; db only of layerNorm
};

struct AttendBackward {
  const float *q, *k, *v, *y, *lse, *dy;
  float *dq, *dk, *dv;
  int64_t T, H, K, d;
  const Segment* segments;
  int64_t count;
  int64_t chunk;  // 0: none
  bool causal;
};

// The weights of routerLoss's two parts, and each expert's share of the choices.
struct RouterLoss {
  const double* shares;
  double balance, z;
};

// How a token is drawn from logits; top_p 1 and min_p 0 leave all in.
struct Draw {
  float scale;  // of the logits, 1 / temperature; infinite: the likeliest
  double top_p;
  float min_p;
  double u;  // in [0, 1)
};

struct Peaks {
  double dram_read, int8_ops, f32_flops, bf16_flops;  // bytes or operations a second, all threads
};

struct Kernels {
  void (*linear)(Pool&, const Linear&);
  void (*experts)(Pool&, const Experts&);
  void (*three_products)(Pool&, const ThreeProducts&);
  void (*attend)(Pool&, const Attend&);
  void (*rms_norm)(Pool&, const Norm&);
  void (*layer_norm)(Pool&, const Norm&);
  void (*rope)(Pool&, const float* x, const float* rotations, int64_t T, int64_t H, int64_t d, float* y);
  void (*add)(Pool&, const float* a, const float* b, int64_t n, float* y);
  void (*mul)(Pool&, const float* a, const float* b, const Walk& walk_b, float* y);
  void (*swiglu)(Pool&, const float* gate, const float* up, int64_t n, float* y);
  void (*gelu)(Pool&, const float* x, int64_t n, float* y);
  void (*gather)(Pool&, const float* x, const Walk& walk, float* y);
  // Rows `at` of a table of any type as floats.
  void (*rows)(Pool&, int type, const void* table, int64_t width, const int32_t* at, int64_t n, float* y);
  void (*splice)(Pool&, const float* x, int64_t rows, int64_t width, const float* from, const int32_t* at, int64_t n,
                 float* y);
  void (*route)(Pool&, const float* logits, int64_t T, int64_t E, int64_t top_k, int32_t* chosen, float* scores);
  void (*cross_entropy)(Pool&, const float* logits, const int32_t* targets, int64_t T, int64_t V, float* y);
  void (*adam_w)(Pool&, const AdamW&);
  void (*blend)(Pool&, float* x, const float* y, int64_t n, float a, float b);
  double (*sum_squares)(Pool&, const float* x, int64_t n);
  void (*linear_input)(Pool&, const LinearBackward&);
  void (*linear_weight)(Pool&, const LinearBackward&);
  void (*rms_norm_backward)(Pool&, const NormBackward&);
  void (*layer_norm_backward)(Pool&, const NormBackward&);
  void (*swiglu_backward)(Pool&, const float* gate, const float* up, const float* dy, int64_t n, float* d_gate, float* d_up);
  void (*gelu_backward)(Pool&, const float* x, const float* dy, int64_t n, float* dx);
  void (*attend_backward)(Pool&, const AttendBackward&);
  void (*scores)(Pool&, const float* logits, const int32_t* chosen, int64_t T, int64_t E, int64_t top_k, float* y);
  void (*scores_backward)(Pool&, const float* logits, const int32_t* chosen, const float* dy, int64_t T, int64_t E,
                          int64_t top_k, float* dx);
  void (*cross_entropy_backward)(Pool&, const float* logits, const int32_t* targets, const float* dy, int64_t T, int64_t V,
                                 float* dx);
  void (*router_loss)(Pool&, const float* logits, const RouterLoss&, int64_t T, int64_t E, float* y);
  void (*router_loss_backward)(Pool&, const float* logits, const RouterLoss&, const float* dy, int64_t T, int64_t E,
                               float* dx);
  void (*scatter_rows)(Pool&, const float* x, int64_t width, const int32_t* at, int64_t m, int64_t n, float* y);
  // y over the walk `kept` = Σ over the walk `summed` of x; both have the strides of x.
  void (*sum_axes)(Pool&, const float* x, const Walk& kept, const Walk& summed, float* y);
  // -1 where a logit is NaN or infinite, or all are -Infinity.
  int64_t (*draw)(Pool&, const float* logits, int64_t V, const Draw&);
  Peaks (*probe)(Pool&, void* memory, int64_t bytes);
  int64_t (*quantize_rows)(int type, const float* x, uint8_t* out, int64_t rows, int64_t columns);
  bool (*to_f32_row)(int type, const void* in, float* out, int64_t n);
};

namespace LLAMA4_ISA {

void linear(Pool&, const Linear&);
void experts(Pool&, const Experts&);
void three_products(Pool&, const ThreeProducts&);
void attend(Pool&, const Attend&);
void rms_norm(Pool&, const Norm&);
void layer_norm(Pool&, const Norm&);
void rope(Pool&, const float* x, const float* rotations, int64_t T, int64_t H, int64_t d, float* y);
void add(Pool&, const float* a, const float* b, int64_t n, float* y);
void mul(Pool&, const float* a, const float* b, const Walk& walk_b, float* y);
void swiglu(Pool&, const float* gate, const float* up, int64_t n, float* y);
void gelu(Pool&, const float* x, int64_t n, float* y);
void gather(Pool&, const float* x, const Walk& walk, float* y);
void rows(Pool&, int type, const void* table, int64_t width, const int32_t* at, int64_t n, float* y);
void splice(Pool&, const float* x, int64_t rows, int64_t width, const float* from, const int32_t* at, int64_t n,
            float* y);
void route(Pool&, const float* logits, int64_t T, int64_t E, int64_t top_k, int32_t* chosen, float* scores);
void cross_entropy(Pool&, const float* logits, const int32_t* targets, int64_t T, int64_t V, float* y);
void adam_w(Pool&, const AdamW&);
void blend(Pool&, float* x, const float* y, int64_t n, float a, float b);
double sum_squares(Pool&, const float* x, int64_t n);
void linear_input(Pool&, const LinearBackward&);
void linear_weight(Pool&, const LinearBackward&);
void rms_norm_backward(Pool&, const NormBackward&);
void layer_norm_backward(Pool&, const NormBackward&);
void swiglu_backward(Pool&, const float* gate, const float* up, const float* dy, int64_t n, float* d_gate, float* d_up);
void gelu_backward(Pool&, const float* x, const float* dy, int64_t n, float* dx);
void attend_backward(Pool&, const AttendBackward&);
void scores(Pool&, const float* logits, const int32_t* chosen, int64_t T, int64_t E, int64_t top_k, float* y);
void scores_backward(Pool&, const float* logits, const int32_t* chosen, const float* dy, int64_t T, int64_t E,
                        int64_t top_k, float* dx);
void cross_entropy_backward(Pool&, const float* logits, const int32_t* targets, const float* dy, int64_t T, int64_t V,
                               float* dx);
void router_loss(Pool&, const float* logits, const RouterLoss&, int64_t T, int64_t E, float* y);
void router_loss_backward(Pool&, const float* logits, const RouterLoss&, const float* dy, int64_t T, int64_t E,
                             float* dx);
void scatter_rows(Pool&, const float* x, int64_t width, const int32_t* at, int64_t m, int64_t n, float* y);
void sum_axes(Pool&, const float* x, const Walk& kept, const Walk& summed, float* y);
int64_t draw(Pool&, const float* logits, int64_t V, const Draw&);
Peaks probe(Pool&, void* memory, int64_t bytes);
int64_t quantize_rows(int type, const float* x, uint8_t* out, int64_t rows, int64_t columns);
bool to_f32_row(int type, const void* in, float* out, int64_t n);

extern const Kernels kernels;

}  // namespace LLAMA4_ISA
}  // namespace llama4

// For each row the top_k experts with the largest logits, best first, ties to the lower expert, and the sigmoid of
// their logits.        reference: route()
// What training has beside it: scores() of choices made otherwise, routerLoss(), and their ways back, in
// src/backends/reference/backward.ts.

#include "kernels.h"
#include "simd.h"

namespace llama4 {
namespace LLAMA4_ISA {

void route(Pool& pool, const float* logits, int64_t T, int64_t E, int64_t top_k, int32_t* chosen, float* scores) {
  parallel(pool, T, 4096 / (E * top_k) + 1, [&](int64_t t, int64_t last, int) {
    for (; t < last; t++) {
      const float* row = logits + t * E;
      int32_t* best = chosen + t * top_k;
      for (int64_t k = 0; k < top_k; k++) {
        int32_t next = -1;
        for (int32_t e = 0; e < E; e++) {
          bool taken = false;
          for (int64_t j = 0; j < k; j++) taken |= best[j] == e;
          if (!taken && (next < 0 || row[e] > row[next])) next = e;
        }
        best[k] = next;
        scores[t * top_k + k] = sigmoid(splat(row[next]))[0];
      }
    }
  });
}

void scores(Pool& pool, const float* logits, const int32_t* chosen, int64_t T, int64_t E, int64_t top_k, float* y) {
  parallel(pool, T * top_k, 4096, [&](int64_t i, int64_t last, int) {
    for (; i < last; i++) y[i] = sigmoid(splat(logits[i / top_k * E + chosen[i]]))[0];
  });
}

void scores_backward(Pool& pool, const float* logits, const int32_t* chosen, const float* dy, int64_t T, int64_t E,
                     int64_t top_k, float* dx) {
  parallel(pool, T, 4096 / E + 1, [&](int64_t t, int64_t last, int) {
    memset(dx + t * E, 0, size_t((last - t) * E) * sizeof(float));
    for (int64_t i = t * top_k; i < last * top_k; i++) {
      const int64_t at = i / top_k * E + chosen[i];
      const float s = sigmoid(splat(logits[at]))[0];
      dx[at] = dy[i] * s * (1 - s);
    }
  });
}

namespace {
// softmax of a row, and log Σ exp.
double soften(const float* row, int64_t E, double* p) {
  double top = row[0], total = 0;
  for (int64_t e = 1; e < E; e++) top = row[e] > top ? row[e] : top;
  for (int64_t e = 0; e < E; e++) total += p[e] = __builtin_exp(row[e] - top);
  for (int64_t e = 0; e < E; e++) p[e] /= total;
  return top + __builtin_log(total);
}
}  // namespace

// (balance · E · Σₑ sharesₑ·p[t, e] + z · lse[t]²) averaged over t.
void router_loss(Pool& pool, const float* logits, const RouterLoss& loss, int64_t T, int64_t E, float* y) {
  double* rows = static_cast<double*>(pool.shared(Pool::kOperation, size_t(T) * sizeof(double)));
  pool.reserve_own(size_t(E) * sizeof(double));
  parallel(pool, T, 1024 / E + 1, [&](int64_t t, int64_t last, int thread) {
    double* p = static_cast<double*>(pool.own(thread));
    for (; t < last; t++) {
      const double lse = soften(logits + t * E, E, p);
      double mean = 0;
      for (int64_t e = 0; e < E; e++) mean += loss.shares[e] * p[e];
      rows[t] = loss.balance * double(E) * mean + loss.z * lse * lse;
    }
  });
  double total = 0;
  for (int64_t t = 0; t < T; t++) total += rows[t];
  *y = float(total / double(T));
}

void router_loss_backward(Pool& pool, const float* logits, const RouterLoss& loss, const float* dy, int64_t T, int64_t E,
                          float* dx) {
  pool.reserve_own(size_t(E) * sizeof(double));
  parallel(pool, T, 1024 / E + 1, [&](int64_t t, int64_t last, int thread) {
    double* p = static_cast<double*>(pool.own(thread));
    for (; t < last; t++) {
      const double lse = soften(logits + t * E, E, p);
      double mean = 0;
      for (int64_t e = 0; e < E; e++) mean += loss.shares[e] * p[e];
      for (int64_t e = 0; e < E; e++) {
        const double slope = loss.balance * double(E) * (loss.shares[e] - mean) + 2 * loss.z * lse;
        dx[t * E + e] = float(double(*dy) * p[e] * slope / double(T));
      }
    }
  });
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

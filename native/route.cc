// For each row the top_k experts with the largest logits, best first, ties to the lower expert, and the sigmoid of
// their logits.        reference: route()

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

}  // namespace LLAMA4_ISA
}  // namespace llama4

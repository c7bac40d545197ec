// (y[2j], y[2j+1]) = (x[2j]·cos − x[2j+1]·sin, x[2j]·sin + x[2j+1]·cos)        reference: rope()

#include "kernels.h"
#include "simd.h"

namespace llama4 {
namespace LLAMA4_ISA {

void rope(Pool& pool, const float* x, const float* rotations, int64_t T, int64_t H, int64_t d, float* y) {
  parallel(pool, T, 16384 / (H * d) + 1, [&](int64_t t, int64_t last, int) {
    for (; t < last; t++)
      for (int64_t h = 0; h < H; h++) {
        const float *in = x + (t * H + h) * d, *turn = rotations + t * d;
        float* out = y + (t * H + h) * d;
        for (int64_t i = 0; i < d; i += 2) {
          const float a = in[i], b = in[i + 1], cos = turn[i], sin = turn[i + 1];
          out[i] = a * cos - b * sin;
          out[i + 1] = a * sin + b * cos;
        }
      }
  });
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

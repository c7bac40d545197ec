#include "kernels.h"

namespace llama4 {
namespace LLAMA4_ISA {

const Kernels kernels = {linear, experts, feed_forward, attend, rms_norm, layer_norm,    rope,  add,           mul,       swiglu,
                         gelu,   gather,  rows,   splice,   route,         cross_entropy, adam_w,        blend, sum_squares,   probe, quantize_rows, to_f32_row};

}  // namespace LLAMA4_ISA
}  // namespace llama4

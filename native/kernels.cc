#include "kernels.h"

namespace llama4 {
namespace LLAMA4_ISA {

const Kernels kernels = {
    linear, experts, three_products, attend, rms_norm, layer_norm, rope, add, mul, swiglu, gelu, gather, rows, splice, route,
    cross_entropy,
    // a step of training
    adam_w, blend, sum_squares,
    // back
    linear_input, linear_weight, rms_norm_backward, layer_norm_backward, swiglu_backward, gelu_backward, attend_backward,
    scores, scores_backward, cross_entropy_backward, router_loss, router_loss_backward, scatter_rows, sum_axes,
    // beside the operations
    draw, probe, quantize_rows, to_f32_row};

}  // namespace LLAMA4_ISA
}  // namespace llama4

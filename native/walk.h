// Rows of a strided walk: every axis but the last.

#pragma once

#include "kernels.h"

namespace llama4 {
namespace LLAMA4_ISA {

static inline int64_t rows_of(const Walk& walk) {
  int64_t rows = 1;
  for (int axis = 0; axis < walk.rank - 1; axis++) rows *= walk.shape[axis];
  return rows;
}

// Where row number `row` begins, in elements.
static inline int64_t row_offset(const Walk& walk, int64_t row) {
  int64_t offset = 0;
  for (int axis = walk.rank - 2; axis >= 0; axis--) {
    offset += row % walk.shape[axis] * walk.strides[axis];
    row /= walk.shape[axis];
  }
  return offset;
}

}  // namespace LLAMA4_ISA
}  // namespace llama4

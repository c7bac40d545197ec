// Strided walks for the border: extent and stride of each axis, outermost first; axes that act as one are joined.

import type { Shape } from "../../tensor/tensor.ts";

type Axis = [extent: number, stride: number];

/** How b is read while a's elements are visited in order: stride 0 where b has an extent of 1. */
export function multiplyWalk(a: Shape, b: Shape): Int32Array {
  const strides = stridesOf(b);
  return joined(a.map((extent, i) => [extent, b[i] === 1 ? 0 : strides[i]!]));
}

/** How x is read while the elements of its permutation are visited in order. */
export function permuteWalk(x: Shape, order: readonly number[]): Int32Array {
  const strides = stridesOf(x);
  return joined(order.map((axis) => [x[axis]!, strides[axis]!]));
}

/** How x is read for the elements of `shape`, and for those that are added to each: the axes where `shape` has 1. */
export function sumWalks(x: Shape, shape: Shape): [kept: Int32Array, summed: Int32Array] {
  const axes = stridesOf(x).map((stride, i): Axis => [x[i]!, stride]);
  return [joined(axes.filter((_, i) => shape[i] === x[i])), joined(axes.filter((_, i) => shape[i] !== x[i]))];
}

function stridesOf(shape: Shape): number[] {
  const strides = new Array<number>(shape.length);
  let stride = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    strides[axis] = stride;
    stride *= shape[axis]!;
  }
  return strides;
}

function joined(axes: readonly Axis[]): Int32Array {
  const out: Axis[] = [];
  for (const [extent, stride] of axes) {
    const before = out[out.length - 1];
    if (extent === 1) continue;
    if (before && before[1] === stride * extent) {
      before[0] *= extent;
      before[1] = stride;
    } else out.push([extent, stride]);
  }
  if (out.length === 0) out.push([1, 1]);
  return Int32Array.from(out.flat());
}

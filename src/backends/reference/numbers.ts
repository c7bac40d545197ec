// What the reference's operations and their gradients share.

import type { Segment, Span } from "../../tensor/backend.ts";
import { elementCount, type Tensor } from "../../tensor/tensor.ts";

export type Numbers = Float32Array | Float64Array;

export function numbers(x: Tensor): Numbers {
  return x.data as Numbers; // only this backend made it
}

/** Matrix e of a stack `[E, out, in]`. */
export function matrix(stack: Tensor, e: number): Tensor {
  const shape = stack.shape.slice(1);
  const size = elementCount(shape);
  return { ...stack, shape, data: numbers(stack).subarray(e * size, (e + 1) * size) };
}

export function dot(a: Numbers, i: number, b: Numbers, j: number, n: number): number {
  let sum = 0;
  for (let k = 0; k < n; k++) sum += a[i + k]! * b[j + k]!;
  return sum;
}

export function sigmoid(x: number): number {
  return 1 / (1 + Math.exp(-x));
}

/** Of scores, the weights `exp(score) / Σ exp(…)`. */
export function softmax(scores: readonly number[]): number[] {
  const top = scores.reduce((a, b) => Math.max(a, b), -Infinity);
  const weights = scores.map((score) => Math.exp(score - top));
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight) => weight / sum);
}

/** The step's rows that token t of the segment sees without a cache, [first, last]. */
export function seenRows(segment: Segment, t: number, { chunk, causal = true }: Span): [first: number, last: number] {
  const p = segment.position + t;
  const first = chunk ? p - (p % chunk) : 0;
  const from = causal ? Math.max(first - segment.position, 0) : 0;
  return [segment.row + from, segment.row + (causal ? t : segment.length - 1)];
}

/** Where b's element stands that meets a's element i: a's coordinates, axes of b's extent 1 left out. */
export function broadcastIndex(a: readonly number[], b: readonly number[], i: number): number {
  let j = 0;
  let rest = i;
  let stride = 1;
  for (let axis = a.length - 1; axis >= 0; axis--) {
    const coordinate = rest % a[axis]!;
    rest = Math.floor(rest / a[axis]!);
    if (b[axis] !== 1) j += coordinate * stride;
    stride *= b[axis]!;
  }
  return j;
}

/** The error function: its Taylor series where that converges fast, the continued fraction of erfc beyond; to 1e-14. */
export function erf(x: number): number {
  if (x < 0) return -erf(-x);
  if (x > 6) return 1;
  if (x < 2.5) {
    let term = x;
    let sum = x;
    for (let n = 1; Math.abs(term) > 1e-17; n++) {
      term *= (-x * x) / n;
      sum += term / (2 * n + 1);
    }
    return (2 / Math.sqrt(Math.PI)) * sum;
  }
  let tail = 0; // erfc(x) = exp(-x²)/√π · 1/(x + (1/2)/(x + 1/(x + (3/2)/(x + …))))
  for (let n = 60; n > 0; n--) tail = n / 2 / (x + tail);
  return 1 - Math.exp(-x * x) / Math.sqrt(Math.PI) / (x + tail);
}

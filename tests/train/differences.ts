// Finite differences: what a gradient must equal.

import type { Backend } from "../../src/tensor/backend.ts";
import type { Shape, Tensor } from "../../src/tensor/tensor.ts";
import { Tape } from "../../src/train/tape.ts";
import { numbers, reference } from "../backends/drawn.ts";

export interface Point {
  readonly name: string;
  readonly shape: Shape;
  readonly data: Float64Array;
}

export const pointOf = (name: string, shape: Shape, seed: number, scale = 1): Point => ({
  name,
  shape,
  data: Float64Array.from(
    numbers(
      shape.reduce((a, b) => a * b, 1),
      seed,
    ),
    (x) => scale * x,
  ),
});

export type Loss = (tensors: readonly Tensor[]) => Tensor | Promise<Tensor>;

const norm = (x: Float64Array) => Math.sqrt(x.reduce((sum, v) => sum + v * v, 0));
const tensorOf = ({ data, shape }: Point) => reference.from(data, shape);

/** The tape's gradients of a loss at the points: in f64, unless of another backend. */
export async function gradientsAt(
  points: readonly Point[],
  loss: Loss,
  options = {},
  backend: Backend = reference,
): Promise<Float64Array[]> {
  const tape = new Tape(backend, options);
  const watched = tape.watch(points.map(({ data, shape }) => backend.from(data, shape)));
  const gradients = tape.gradients(await loss(watched), watched);
  return Promise.all(gradients.map(async (g) => Float64Array.from(await backend.read(g))));
}

/** How far gradients are from others: the length of the difference as a share of theirs, at the worst tensor. */
export function distance(found: readonly Float64Array[], expected: readonly Float64Array[]): number {
  return Math.max(...found.map((g, i) => norm(g.map((x, j) => x - expected[i]![j]!)) / norm(expected[i]!)));
}

/**
 * Every point's gradient against central differences of the loss: along a direction in which each element adds to the
 * change, along a random one and by one element alone. Returns the largest difference, as a share of what was expected, or
 * of what a gradient of this size gives along a direction of this length.
 */
export async function compare(points: readonly Point[], loss: Loss, options = {}): Promise<number> {
  const gradients = await gradientsAt(points, loss, options);
  const tensors = points.map(tensorOf);
  let worst = 0;
  for (const [i, point] of points.entries()) {
    const g = gradients[i]!;
    const n = g.length;
    const random = numbers(n, 77 + i);
    const size = norm(g) / Math.sqrt(n);
    if (!(size > 0)) throw new Error(`${point.name} has no gradient`);
    const directions = [g.map((x, j) => Math.sign(x) * (0.5 + random[j]! ** 2)), Float64Array.from(random)];
    const one = new Float64Array(n);
    one[Math.floor(n / 3)] = 1;
    directions.push(one);
    for (const direction of directions) {
      const h = 1e-4 / norm(direction);
      const lossAt = async (step: number) => {
        const moved = tensorOf({ ...point, data: point.data.map((x, j) => x + step * direction[j]!) });
        const at = await loss(tensors.map((tensor, k) => (k === i ? moved : tensor)));
        return (await reference.read(at))[0]!;
      };
      const slope = ((await lossAt(h)) - (await lossAt(-h))) / (2 * h);
      const expected = g.reduce((sum, x, j) => sum + x * direction[j]!, 0);
      worst = Math.max(worst, Math.abs(slope - expected) / Math.max(Math.abs(expected), size * norm(direction)));
    }
  }
  return worst;
}

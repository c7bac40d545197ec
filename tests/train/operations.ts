// Each operation as a function of tensors that can be differentiated, and the whole model: what gradients are tried on.

import type { Llama4Config } from "../../src/model/config.ts";
import {
  add,
  attend,
  crossEntropy,
  embed,
  exactLinear,
  experts,
  feedForward,
  gelu,
  layerNorm,
  linear,
  mul,
  permute,
  qkv,
  reshape,
  rmsNorm,
  rope,
  route,
  rows,
  splice,
  swiglu,
} from "../../src/tensor/ops.ts";
import { elementCount, type Tensor } from "../../src/tensor/tensor.ts";
import { numbers } from "../backends/drawn.ts";
import { type Loss, type Point, pointOf } from "./differences.ts";
import { lossOf, weights } from "./small-model.ts";

/** A scalar that depends on every element differently: Σ c·y, with y's own square mixed in. */
export function weigh(y: Tensor): Tensor {
  const n = elementCount(y.shape);
  const flat = reshape(y, [1, n]);
  const c = y.backend.from(numbers(n, 99), [1, n]);
  return reshape(exactLinear(add(flat, mul(flat, flat)), c), []);
}

const at = (...rows: number[]) => Int32Array.from(rows);
const segments = [
  { row: 0, length: 7, position: 0, sequence: 0 },
  { row: 7, length: 4, position: 0, sequence: 1 },
];

// biome-ignore format: a table, whose cases are compared by eye: each keeps to one row
export const operations: Record<string, { shapes: number[][]; y: (...x: Tensor[]) => Tensor | Promise<Tensor> }> = {
  embed: { shapes: [[5, 3]], y: (x) => embed(x!, at(4, 0, 4, 2)) },
  linear: { shapes: [[4, 3], [5, 3]], y: (x, w) => linear(x!, w!) },
  exactLinear: { shapes: [[4, 3], [5, 3]], y: (x, w) => exactLinear(x!, w!) },
  qkv: { shapes: [[4, 3], [5, 3], [5, 3], [5, 3]], y: (x, ...w) => qkv(x!, w[0]!, w[1]!, w[2]!).reduce((a, b) => mul(a, b)) },
  "linear with a bias": { shapes: [[4, 3], [5, 3], [5]], y: (x, w, b) => linear(x!, w!, b) },
  add: { shapes: [[4, 3], [4, 3]], y: (a, b) => add(a!, b!) },
  "add of one tensor to itself": { shapes: [[4, 3]], y: (a) => add(a!, a!) },
  "mul by as many": { shapes: [[4, 3], [4, 3]], y: (a, b) => mul(a!, b!) },
  "mul by a column": { shapes: [[4, 3, 2], [4, 1, 1]], y: (a, b) => mul(a!, b!) },
  "mul by a row": { shapes: [[4, 3, 2], [1, 3, 2]], y: (a, b) => mul(a!, b!) },
  "mul by one number": { shapes: [[4, 3], [1, 1]], y: (a, b) => mul(a!, b!) },
  rmsNorm: { shapes: [[4, 3], [3]], y: (x, w) => rmsNorm(x!, w!, 1e-2) },
  "rmsNorm without a weight": { shapes: [[4, 2, 3]], y: (x) => rmsNorm(x!, null, 1e-2) },
  layerNorm: { shapes: [[4, 3], [3], [3]], y: (x, w, b) => layerNorm(x!, w!, b!, 1e-2) },
  swiglu: { shapes: [[4, 3], [4, 3]], y: (g, u) => swiglu(g!, u!) },
  gelu: { shapes: [[4, 9]], y: (x) => gelu(x!) },
  feedForward: { shapes: [[4, 3], [5, 3], [5, 3], [3, 5]], y: (x, g, u, d) => feedForward(x!, g!, u!, d!) },
  rope: { shapes: [[3, 2, 4]], y: (x) => rope(x!, x!.backend.from(numbers(12, 5), [3, 2, 2])) },
  "attend, causal": { shapes: [[11, 4, 3], [11, 2, 3], [11, 2, 3]], y: (q, k, v) => attend(q!, k!, v!, { segments }) },
  "attend, in chunks": { shapes: [[11, 4, 3], [11, 2, 3], [11, 2, 3]], y: (q, k, v) => attend(q!, k!, v!, { segments, chunk: 3 }) },
  "attend, not causal": { shapes: [[11, 2, 3], [11, 2, 3], [11, 2, 3]], y: (q, k, v) => attend(q!, k!, v!, { segments, causal: false }) },
  "route, top 1": { shapes: [[6, 4]], y: (logits) => route(logits!, 1).scores },
  "route, top 3": { shapes: [[6, 4]], y: (logits) => route(logits!, 3).scores },
  reshape: { shapes: [[4, 3]], y: (x) => reshape(x!, [2, 6]) },
  permute: { shapes: [[4, 3, 2]], y: (x) => permute(x!, [2, 0, 1]) },
  rows: { shapes: [[4, 3]], y: (x) => rows(x!, at(3, 1, 3)) },
  splice: { shapes: [[5, 3], [3, 3]], y: (x, r) => splice(x!, r!, at(4, 1, 2)) },
  "splice of one row twice": { shapes: [[5, 3], [3, 3]], y: (x, r) => splice(x!, r!, at(4, 1, 4)) },
  crossEntropy: { shapes: [[5, 4]], y: (x) => crossEntropy(x!, at(3, -1, 0, 2, -7)) },
};
for (const topK of [1, 2])
  operations[`experts, top ${topK}, scores and all`] = {
    shapes: [
      [6, 3],
      [6, 4],
      [4, 5, 3],
      [4, 5, 3],
      [4, 3, 5],
    ],
    y: (x, logits, gate, up, down) => experts(x!, { gate: gate!, up: up!, down: down! }, route(logits!, topK)),
  };
operations["experts beside a shared one"] = {
  shapes: [
    [6, 3],
    [6, 4],
    [4, 5, 3],
    [4, 5, 3],
    [4, 3, 5],
    [5, 3],
    [5, 3],
    [3, 5],
  ],
  y: (x, logits, ...w) => {
    const [gate, up, down, sharedGate, sharedUp, sharedDown] = w as [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor];
    const shared = { gate: sharedGate, up: sharedUp, down: sharedDown };
    return experts(x!, { gate, up, down }, route(logits!, 1), shared);
  },
};

/** The arguments of an operation, and the loss that hangs on its result. */
export function pointsOf(name: string): { readonly points: Point[]; readonly loss: Loss } {
  const { shapes, y } = operations[name]!;
  const points = shapes.map((shape, i) => pointOf(`${name}, argument ${i}`, shape, 10 + i, 2));
  return { points, loss: async (x) => weigh(await y(...x)) };
}

/** The model's weights as points, and its loss as a function of them. */
export function modelPoints(c: Llama4Config): { points: Point[]; loss: Loss } {
  const points: Point[] = [];
  weights(c, (shape, name) => {
    points.push(pointOf(name, shape, points.length + 1, shape.length === 1 ? 1 : 0.7));
    return points.length - 1;
  });
  const loss: Loss = (tensors) => {
    let next = 0;
    return lossOf(
      weights(c, () => tensors[next++]!),
      c,
    );
  };
  return { points, loss };
}

// The tape against finite differences in f64: each operation alone, and the whole model.

import { describe, expect, it } from "vitest";
import { openReference } from "../../src/backends/reference/reference.ts";
import type { Llama4Config } from "../../src/model/config.ts";
import { mapParameters, mapVision } from "../../src/model/parameters.ts";
import type { Backend } from "../../src/tensor/backend.ts";
import {
  add,
  attend,
  crossEntropy,
  embed,
  experts,
  feedForward,
  gelu,
  layerNorm,
  linear,
  mul,
  permute,
  reshape,
  rmsNorm,
  rope,
  route,
  rows,
  splice,
  swiglu,
} from "../../src/tensor/ops.ts";
import { elementCount, type Shape, type Tensor } from "../../src/tensor/tensor.ts";
import { Tape, type TapeOptions } from "../../src/train/tape.ts";
import { numbers, reference } from "../backends/drawn.ts";
import { compare, type Loss, type Point, pointOf } from "./differences.ts";
import { config, lossOf, weights } from "./small-model.ts";

/** A scalar that depends on every element differently: Σ c·y, with y's own square mixed in. */
function weigh(y: Tensor): Tensor {
  const n = elementCount(y.shape);
  const flat = reshape(y, [1, n]);
  const c = y.backend.from(numbers(n, 99), [1, n]);
  return reshape(linear(add(flat, mul(flat, flat)), c), []);
}

const tolerance = 1e-6; // central differences in f64 over 2e-4, whose own error this is: 3.5e-7 at the worst tensor
const at = (...rows: number[]) => Int32Array.from(rows);
const segments = [
  { row: 0, length: 7, position: 0, sequence: 0 },
  { row: 7, length: 4, position: 0, sequence: 1 },
];

// biome-ignore format: a row a case
const operations: Record<string, { shapes: number[][]; y: (...x: Tensor[]) => Tensor | Promise<Tensor> }> = {
  embed: { shapes: [[5, 3]], y: (x) => embed(x!, at(4, 0, 4, 2)) },
  linear: { shapes: [[4, 3], [5, 3]], y: (x, w) => linear(x!, w!) },
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

describe("each operation's gradients equal finite differences", () => {
  it.each(Object.keys(operations))("%s", async (name) => {
    const { shapes, y } = operations[name]!;
    const points = shapes.map((shape, i) => pointOf(`${name}, argument ${i}`, shape, 10 + i, 2));
    expect(await compare(points, async (x) => weigh(await y(...x)))).toBeLessThan(tolerance);
  });
});

/** The model's weights as points, and its loss as a function of them. */
function model(c: Llama4Config): { points: Point[]; loss: Loss } {
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

describe("the gradients of the whole model equal finite differences", () => {
  it.each([
    ["top 1", {}],
    ["top 2, tied", { topK: 2, tied: true }],
    ["top 2, no norm of q and k, recomputed", { topK: 2, qkNorm: false }, { recompute: true }],
  ] as [string, Partial<Llama4Config>, TapeOptions?][])("%s", async (_, change, options) => {
    const { points, loss } = model({ ...config, ...change });
    expect(await compare(points, loss, options)).toBeLessThan(tolerance);
  });
});

const make = (b: Backend) => (shape: Shape, name: string) =>
  b.from(numbers(elementCount(shape), name.length * 31 + name.charCodeAt(0)), shape);

describe("a tape", () => {
  it("computes what its backend computes, bit for bit", async () => {
    const c = { ...config, topK: 2 };
    const tree = weights(c, make(reference));
    const tape = new Tape(reference);
    const loss = await lossOf(tape.watch(tree), c);
    expect(await tape.read(loss)).toEqual(await reference.read(await lossOf(tree, c)));
    tape.gradients(loss, []);
    expect(await tape.read(loss)).toEqual(await reference.read(await lossOf(tree, c))); // the loss stays
  });

  it("gives the same bits with activations recomputed, and step after step", async () => {
    const tree = weights(config, make(reference));
    const results = [];
    for (const recompute of [false, true]) {
      const tape = new Tape(reference, { recompute });
      const watched = tape.watch(tree);
      for (let step = 0; step < 2; step++) {
        const gradients = tape.gradients(await lossOf(watched, config), watched);
        const all: Tensor[] = [];
        mapParameters(gradients.text, (g) => all.push(g));
        mapVision(gradients.vision, (g) => all.push(g));
        results.push(await Promise.all(all.map((g) => reference.read(g))));
      }
    }
    for (const result of results.slice(1)) expect(result).toEqual(results[0]);
  });

  it("watches a tensor once, however often it stands in the tree", () => {
    const tape = new Tape(reference);
    const x = reference.from(Float32Array.of(1, 2, 3, 4), [2, 2]);
    const watched = tape.watch({ a: x, more: [x, 7, null, "text"] });
    expect(watched.a).toBe(watched.more[0]);
    const g = tape.gradients(weigh(linear(watched.a, watched.a)), watched);
    expect(g.a).toBe(g.more[0]);
    expect(g.more.slice(1)).toEqual([7, null, "text"]);
  });

  it("gives zeros where the loss does not depend, and nothing by constants", async () => {
    const tape = new Tape(reference);
    const [x, y, z] = [1, 2, 3].map((seed) => reference.from(numbers(6, seed), [2, 3]));
    const watched = tape.watch({ x: x!, y: y! });
    const fixed = tape.constant(z!);
    const g = tape.gradients(weigh(linear(watched.x, fixed)), watched);
    expect(await reference.read(g.y)).toEqual(new Float64Array(6));
    expect((await reference.read(g.x)).every((v) => v !== 0)).toBe(true);
    expect(() => tape.gradients(weigh(mul(watched.x, fixed)), [fixed])).toThrow(
      "a tensor [2, 3] is not watched by this tape",
    );
  });

  it("hands gradients over in memory of their own", async () => {
    const tape = new Tape(reference);
    const [a, b] = [1, 2].map((seed) => reference.from(numbers(6, seed), [2, 3]));
    const watched = tape.watch([a!, b!]);
    const [ga, gb] = tape.gradients(weigh(add(watched[0]!, watched[1]!)), watched);
    expect(ga!.data).not.toBe(gb!.data);
    expect(await reference.read(ga!)).toEqual(await reference.read(gb!));
  });

  it("says what is wrong", async () => {
    const { backward: _, ...without } = { ...reference, name: "plain" } as Backend;
    expect(() => new Tape(without)).toThrow('the tape\'s backend "plain" knows no way back');
    const tape = new Tape(reference);
    const x = tape.watch(reference.from(numbers(6, 1), [2, 3]));
    expect(() => tape.gradients(x, x)).toThrow(
      "the loss is [2, 3] of tape of reference; expected a scalar of this tape",
    );
    expect(() => tape.watch(openReference().from(numbers(1, 1), [1]))).toThrow(
      "a tensor of reference; expected one of",
    );
    const loss = weigh(gelu(x));
    const inside = gelu(x);
    tape.gradients(loss, x);
    expect(() => tape.gradients(loss, x)).toThrow("walked back before");
    await expect(tape.read(inside)).rejects.toThrow("read it before");
    expect(() => tape.kvPool()).toThrow("no KV cache");
  });
});

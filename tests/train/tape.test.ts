// The tape against finite differences in f64: each operation alone, and the whole model.

import { describe, expect, it } from "vitest";
import { openReference } from "../../src/backends/reference/reference.ts";
import type { Llama4Config } from "../../src/model/config.ts";
import { mapParameters, mapVision } from "../../src/model/parameters.ts";
import type { Backend } from "../../src/tensor/backend.ts";
import { add, gelu, linear, mul } from "../../src/tensor/ops.ts";
import { elementCount, type Shape, type Tensor } from "../../src/tensor/tensor.ts";
import { Tape, type TapeOptions } from "../../src/train/tape.ts";
import { numbers, reference } from "../backends/drawn.ts";
import { compare } from "./differences.ts";
import { modelPoints, operations, pointsOf, weigh } from "./operations.ts";
import { config, lossOf, weights } from "./small-model.ts";

const tolerance = 1e-6; // central differences in f64 over 2e-4, whose own error this is: 3.5e-7 at the worst tensor
describe("each operation's gradients equal finite differences", () => {
  it.each(Object.keys(operations))("%s", async (name) => {
    const { points, loss } = pointsOf(name);
    expect(await compare(points, loss)).toBeLessThan(tolerance);
  });
});

describe("the gradients of the whole model equal finite differences", () => {
  it.each([
    ["top 1", {}],
    ["top 2, tied", { topK: 2, tied: true }],
    ["top 2, no norm of q and k, recomputed", { topK: 2, qkNorm: false }, { recompute: true }],
  ] as [string, Partial<Llama4Config>, TapeOptions?][])("%s", async (_, change, options) => {
    const { points, loss } = modelPoints({ ...config, ...change });
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

// Adapters beside frozen weights: the same loss as with them merged, and gradients that finite differences give.

import { describe, expect, it } from "vitest";
import { openNative } from "../../src/backends/native/backend.ts";
import { openReference } from "../../src/backends/reference/reference.ts";
import { slots } from "../../src/model/parameters.ts";
import type { TrainingBackend } from "../../src/tensor/backend.ts";
import { elementCount, type Tensor } from "../../src/tensor/tensor.ts";
import { mapWeights } from "../../src/train/leaves.ts";
import {
  adapterLeaves,
  beginAdapters,
  type LoraAdapter,
  mergedWeight,
  missingSlots,
  withAdapters,
} from "../../src/train/lora.ts";
import { Tape } from "../../src/train/tape.ts";
import { haveAddon } from "../addon.ts";
import { numbers } from "../backends/drawn.ts";
import { config, lossOf, type Weights, weights } from "./small-model.ts";

const b = openReference({ precision: "f64" }) as TrainingBackend;
const base = weights(config, (shape, name) =>
  b.from(Float64Array.from(numbers(elementCount(shape), name.length + shape.length)), shape),
) as Weights<Tensor>;
const options = { rank: 2, alpha: 3, slots };
const scale = options.alpha / options.rank;

/** Adapters of which nothing is 0. */
const begun = (): LoraAdapter[] =>
  beginAdapters(b, base.text, options, 1).map(({ b: bs, ...rest }, i) => ({
    ...rest,
    b: bs.map(({ shape }, j) => b.from(Float64Array.from(numbers(elementCount(shape), 10 * i + j)), shape)),
  }));

const merge = (weight: Tensor, a: Tensor, change: Tensor) => mergedWeight(b, weight, a, change, scale);
const mergedLoss = async (adapters: readonly LoraAdapter[]) =>
  (await b.read(await lossOf(withAdapters(base, adapters, merge) as Weights<Tensor>, config)))[0]!;

function onTape(adapters: readonly LoraAdapter[], recompute = false) {
  const tape = new Tape(b, { recompute });
  const change = (weight: Tensor, a: Tensor, change: Tensor) => tape.changed(weight, { a, b: change, scale });
  const tree = withAdapters(base, adapters, change, (weight) => tape.constant(weight));
  return { tape, tree: tree as Weights<Tensor> };
}

describe("adapters", () => {
  it("begin as the model without them, the same for the same seed", async () => {
    const fresh = beginAdapters(b, base.text, options, 1);
    const plain = (await b.read(await lossOf(base, config)))[0]!;
    const { tape, tree } = onTape(fresh);
    expect((await tape.read(await lossOf(tree, config)))[0]).toBeCloseTo(plain, 12);
    const again = beginAdapters(b, base.text, options, 1);
    expect(await b.read(again[3]!.a)).toEqual(await b.read(fresh[3]!.a));
    const other = beginAdapters(b, base.text, options, 2);
    expect(await b.read(other[3]!.a)).not.toEqual(await b.read(fresh[3]!.a));
  });

  it.each([false, true])("beside the weights give the loss of merged ones, recomputed: %s", async (recompute) => {
    const adapters = begun();
    const { tape, tree } = onTape(adapters, recompute);
    const loss = await lossOf(tree, config);
    expect((await tape.read(loss))[0]).toBeCloseTo(await mergedLoss(adapters), 10);
  });

  it("have the gradients that finite differences of the merged model give", async () => {
    const adapters = begun();
    const { tape, tree } = onTape(adapters);
    const leaves = adapterLeaves(adapters);
    const gradients = tape.gradients(
      await lossOf(tree, config),
      leaves.map(({ weight }) => tape.watch(weight)),
    );
    let seen = 0;
    for (const [i, { weight, name }] of leaves.entries()) {
      const g = Float64Array.from(await b.read(gradients[i]!));
      const values = (await b.read(weight)).slice();
      const at = g.reduce((best, x, j) => (Math.abs(x) > Math.abs(g[best]!) ? j : best), 0);
      if (g[at] === 0) continue; // an expert that no token chose
      seen++;
      const lossAt = async (h: number) => {
        const moved = b.from(
          values.map((x, j) => (j === at ? x + h : x)),
          weight.shape,
        );
        const swap = (x: Tensor) => (x === weight ? moved : x);
        return mergedLoss(adapters.map((one) => ({ ...one, a: swap(one.a), b: one.b.map(swap) })));
      };
      const h = 1e-5;
      const slope = ((await lossAt(h)) - (await lossAt(-h))) / (2 * h);
      expect(Math.abs(slope - g[at]!), name).toBeLessThan(1e-6 * Math.abs(g[at]!) + 1e-9);
    }
    expect(seen).toBe(leaves.length);
  });

  it.skipIf(!haveAddon)("have the reference's loss and gradients in native code", async () => {
    const native = openNative({ activations: "f32", threads: 2 });
    const copied = async (x: Tensor) => native.from(await b.read(x), x.shape);
    const adapters = begun();
    const there: LoraAdapter[] = [];
    for (const { a, b: bs, ...rest } of adapters)
      there.push({ ...rest, a: await copied(a), b: await Promise.all(bs.map(copied)) });
    const copies = new Map<Tensor, Tensor>();
    const all: Tensor[] = [];
    mapWeights(base, (x) => all.push(x));
    for (const x of all) copies.set(x, await copied(x));
    const frozen = mapWeights(base, (x) => copies.get(x)!) as Weights<Tensor>;
    const results: { loss: number; gradients: ArrayLike<number>[] }[] = [];
    for (const [backend, weights, own] of [
      [b, base, adapters],
      [native, frozen, there],
    ] as const) {
      const tape = new Tape(backend);
      const change = (weight: Tensor, a: Tensor, change: Tensor) => tape.changed(weight, { a, b: change, scale });
      const tree = withAdapters(weights, own, change, (weight) => tape.constant(weight)) as Weights<Tensor>;
      const loss = await lossOf(tree, config);
      const watched = adapterLeaves(own).map(({ weight }) => tape.watch(weight));
      const value = (await tape.read(loss))[0]!;
      const gradients = tape.gradients(loss, watched);
      results.push({ loss: value, gradients: await Promise.all(gradients.map((g) => backend.read(g))) });
      const merge = (weight: Tensor, a: Tensor, change: Tensor) => mergedWeight(backend, weight, a, change, scale);
      const merged = await backend.read(await lossOf(withAdapters(weights, own, merge) as Weights<Tensor>, config));
      expect(merged[0]).toBeCloseTo(value, 4);
    }
    const [expected, got] = results as [(typeof results)[0], (typeof results)[0]];
    expect(got.loss).toBeCloseTo(expected.loss, 4);
    for (const [i, g] of expected.gradients.entries()) {
      const size = Math.sqrt(Array.from(g).reduce((sum, x) => sum + x * x, 0));
      const far = Math.sqrt(Array.from(g).reduce((sum, x, j) => sum + (x - got.gradients[i]![j]!) ** 2, 0));
      expect(far).toBeLessThan(2e-4 * size); // float32, through four layers
    }
    native.close();
  });

  it("are named by layer and slot; a slot that no layer has is told", () => {
    const names = adapterLeaves(begun()).map(({ name }) => name);
    expect(new Set(names).size).toBe(names.length);
    expect(names).toContain("text.layers.1.gateUp.loraB.up");
    expect(names).toContain("text.layers.0.w2.loraA");
    expect(names).not.toContain("text.layers.0.gateUp.loraA"); // a dense layer
    expect(missingSlots(["wq", "down"], [{ rope: true, chunked: true, moe: false }])).toEqual(["down"]);
  });
});

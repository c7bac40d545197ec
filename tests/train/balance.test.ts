// Routers that share the work out: the losses' gradients, the biases, what is counted.

import { describe, expect, it } from "vitest";
import { forward, type Step } from "../../src/model/transformer.ts";
import type { Backend } from "../../src/tensor/backend.ts";
import { crossEntropy, route } from "../../src/tensor/ops.ts";
import { elementCount, type Shape } from "../../src/tensor/tensor.ts";
import { Balance, type BalanceOptions } from "../../src/train/balance.ts";
import { Tape } from "../../src/train/tape.ts";
import { numbers, reference } from "../backends/drawn.ts";
import { config, lossOf, segments, tokens, weights } from "./small-model.ts";

const [T, E] = [40, 5];

/** Logits that favour the first experts. */
const skewed = (seed: number) => numbers(T * E, seed).map((x, i) => 2 * x - 0.6 * (i % E));

function routing(options: Partial<BalanceOptions>, topK = 2) {
  const balance = new Balance({ nExperts: E, method: { kind: "none" }, zLoss: 0, ...options });
  const tape = new Tape(reference, { router: balance });
  return {
    balance,
    tape,
    choose(logits: Float32Array) {
      balance.begin();
      const routes = route(tape.from(logits, [T, E]), topK);
      tape.clear();
      return routes.experts;
    },
  };
}

describe("the routers' losses", () => {
  it("have the gradients that finite differences give", async () => {
    const { tape, balance } = routing({ method: { kind: "loss", weight: 0.7 }, zLoss: 0.3 });
    const data = Float64Array.from(skewed(1));
    const zero = crossEntropy(tape.from(new Float32Array(1), [1, 1]), new Int32Array(1)); // log 1
    balance.begin();
    const x = tape.watch(reference.from(data, [T, E]));
    const { experts } = route(x, 2);
    const shares = new Float64Array(E);
    for (const e of experts) shares[e]! += 1 / experts.length;
    const lossAt = async (values: Float64Array) => {
      const all = { shares, balance: 0.7, z: 0.3 };
      return (await reference.read(reference.backward!.routerLoss(reference.from(values, [T, E]), all)))[0]!;
    };
    const loss = balance.loss(zero);
    expect((await tape.read(loss))[0]).toBeCloseTo(await lossAt(data), 12);
    const g = await reference.read(tape.gradients(loss, x));
    for (const i of [0, 7, 63, T * E - 1]) {
      const moved = (h: number) => data.map((v, j) => (j === i ? v + h : v));
      const slope = ((await lossAt(moved(1e-5))) - (await lossAt(moved(-1e-5)))) / 2e-5;
      expect(Math.abs(slope - g[i]!)).toBeLessThan(1e-6 * Math.abs(g[i]!) + 1e-10);
    }
  });

  it("balance 1 where the load and the logits are even", async () => {
    const even = reference.from(new Float32Array(T * E), [T, E]);
    const shares = new Float64Array(E).fill(1 / E);
    const loss = reference.backward!.routerLoss(even, { shares, balance: 1, z: 0 });
    expect((await reference.read(loss))[0]).toBeCloseTo(1, 12);
  });

  it.each([false, true])("reach every router of the model, recomputed: %s", async (recompute) => {
    const balance = new Balance({ nExperts: 3, method: { kind: "loss", weight: 1 }, zLoss: 1 });
    const tape = new Tape(reference, { router: balance, recompute });
    const make = (b: Backend) => (shape: Shape, name: string) =>
      b.from(numbers(elementCount(shape), name.length), shape);
    const p = tape.watch(weights(config, make(reference)));
    balance.begin();
    const task = await lossOf(p, config);
    const loss = balance.loss(task);
    expect((await tape.read(loss))[0]!).toBeGreaterThan((await tape.read(task))[0]! + 2); // two layers, each 1 or more
    const g = tape.gradients(loss, p);
    for (const { ffn } of g.text.layers)
      if ("router" in ffn) expect((await reference.read(ffn.router)).includes(0)).toBe(false);
  });
});

const sum = (numbers: readonly number[]) => numbers.reduce((a, b) => a + b, 0);

describe("biases", () => {
  it("even the load out without touching the scores", async () => {
    const { balance, tape, choose } = routing({ method: { kind: "bias", rate: 0.02 } });
    const first = choose(skewed(1));
    const busiest = (choices: readonly number[]) => Math.max(...choices) / sum(choices);
    expect(busiest(balance.loads()[0]!)).toBeGreaterThan(0.3);
    for (let update = 0; update < 300; update++) {
      balance.update();
      for (let step = 0; step < 2; step++) choose(skewed(update % 7)); // counted over an accumulation
    }
    const [load] = balance.loads();
    expect(sum(load!)).toBe(2 * T * 2); // no choice is dropped
    expect(busiest(load!)).toBeLessThan(0.25);
    expect(Math.min(...load!) / sum(load!)).toBeGreaterThan(0.12);
    balance.begin();
    const logits = skewed(1);
    const routes = route(tape.from(logits, [T, E]), 2);
    expect(routes.experts).not.toEqual(first);
    const scores = await tape.read(routes.scores);
    for (const [i, e] of routes.experts.entries())
      expect(scores[i]).toBeCloseTo(1 / (1 + Math.exp(-logits[Math.floor(i / 2) * E + e]!)), 6);
  });

  it("faded away leave what is exported: the plain choice", () => {
    const { balance, choose } = routing({ method: { kind: "bias", rate: 0.3 } });
    const plain = route(reference.from(skewed(3), [T, E]), 2).experts;
    for (let update = 0; update < 20; update++) {
      choose(skewed(3));
      balance.update();
    }
    expect(choose(skewed(3))).not.toEqual(plain);
    balance.fade(0);
    expect(choose(skewed(3))).toEqual(plain);
    expect(() => balance.fade(2)).toThrow("the biases' share is 2; expected 0 to 1");
  });

  it("stand still while they fade, so that what is left of them falls with the share, and are whole again after", () => {
    const { balance, choose } = routing({ method: { kind: "bias", rate: 0.3 } });
    for (let update = 0; update < 20; update++) {
      choose(skewed(3));
      balance.update();
    }
    const [whole] = balance.state();
    const withAll = choose(skewed(5));
    for (let left = 19; left >= 0; left--) {
      balance.fade(left / 20);
      balance.begin();
      expect([...(balance.bias() ?? new Float64Array(E))]).toEqual(whole!.map((b) => (left / 20) * b + 0)); // no -0
      choose(skewed(3));
      balance.update();
      expect(balance.loads()[0]).toEqual([0, 0, 0, 0, 0]);
    }
    expect(balance.state()).toEqual([whole]);
    balance.fade(1); // a longer run goes on
    expect(choose(skewed(5))).toEqual(withAll);
    balance.update();
    expect(balance.state()).not.toEqual([whole]);
  });

  it("go through a checkpoint", () => {
    const before = routing({ method: { kind: "bias", rate: 0.1 } });
    before.choose(skewed(4));
    before.balance.update();
    const after = routing({ method: { kind: "bias", rate: 0.1 } });
    after.balance.restore(before.balance.state());
    expect(after.choose(skewed(5))).toEqual(before.choose(skewed(5)));
    expect(() => after.balance.restore([[1, 2]])).toThrow("are 2; expected one for each of 5 experts");
  });
});

it("a pass that is only looked at chooses by the biases as training does", async () => {
  const balance = new Balance({ nExperts: 3, method: { kind: "bias", rate: 0.1 }, zLoss: 0 });
  const drawn = weights(config, (shape, name) => reference.from(numbers(elementCount(shape), name.length), shape));
  const wanted = tokens.map((_, row) => row);
  const plain = (choose?: Step["choose"]) =>
    forward(drawn.text, config, { tokens, segments, wanted, ...(choose && { choose }) });
  expect(balance.choosing(reference, config)).toBeUndefined();
  balance.restore([
    [9, 0, 0],
    [0, 0, 9],
  ]);
  const tape = new Tape(reference, { router: balance });
  balance.begin();
  const trained = await tape.read(await forward(tape.watch(drawn.text), config, { tokens, segments, wanted }));
  expect(balance.loads()).toEqual([
    [24, 0, 0],
    [0, 0, 24],
  ]);
  tape.clear();
  expect(await reference.read(await plain(balance.choosing(reference, config)))).toEqual(trained);
  expect(await reference.read(await plain())).not.toEqual(trained);
});

it("loads are counted for each layer, and anew after an update", () => {
  const { balance, tape } = routing({}, 1);
  balance.begin();
  route(tape.from(skewed(1), [T, E]), 1);
  route(tape.from(numbers(T * E, 2), [T, E]), 3);
  const [one, two] = balance.loads();
  expect(sum(one!)).toBe(T);
  expect(sum(two!)).toBe(3 * T);
  balance.update();
  expect(balance.loads()[0]).toEqual([0, 0, 0, 0, 0]);
});

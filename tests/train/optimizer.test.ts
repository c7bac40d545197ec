import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { openNative } from "../../src/backends/native/backend.ts";
import { openReference } from "../../src/backends/reference/reference.ts";
import { linear } from "../../src/tensor/ops.ts";
import { orthogonalised } from "../../src/train/muon.ts";
import { Optimizer, type OptimizerOptions } from "../../src/train/optimizer.ts";
import { rateAt } from "../../src/train/schedule.ts";
import { haveAddon } from "../addon.ts";
import { numbers } from "../backends/drawn.ts";

const b = openReference({ precision: "f64" });
const options: OptimizerOptions = {
  ...{ kind: "adamw", beta1: 0.9, beta2: 0.95, eps: 1e-8, decay: 0, clip: 1, visionRate: 0.5, average: 0 },
};
const leaf = (name: string, ...shape: number[]) => ({
  name,
  weight: b.from(
    numbers(
      shape.reduce((x, y) => x * y),
      7,
    ),
    shape,
  ),
});

describe("the optimizer", () => {
  it.each(["adamw", "muon"] as const)("finds the least squares with %s", async (kind) => {
    const weight = leaf("text.layers.0.wq", 6, 5);
    const goal = await b.read(b.from(numbers(30, 8), [6, 5]));
    const optimizer = new Optimizer(b, [weight], { ...options, kind });
    const distance = async () => {
      const w = await b.read(weight.weight);
      return Math.hypot(...w.map((x, i) => x - goal[i]!));
    };
    const before = await distance();
    for (let step = 0; step < 300; step++) {
      const w = await b.read(weight.weight);
      await optimizer.step(
        [
          b.from(
            Float64Array.from(w, (x, i) => x - goal[i]!),
            [6, 5],
          ),
        ],
        0.05 * (1 - step / 300),
      );
    }
    expect(await distance()).toBeLessThan(0.05 * before);
  });

  it("leaves a weight without a gradient as it is, with its moments; its average comes nearer", async () => {
    const weights = [leaf("vision.proj", 2, 3), leaf("text.output", 2, 2)];
    const optimizer = new Optimizer(b, weights, { ...options, decay: 0.1, average: 0.5 });
    const all = async () =>
      Promise.all([...weights, ...optimizer.state()].map(async ({ name, weight }) => [name, await b.read(weight)]));
    const ones = ({ shape }: { shape: readonly number[] }) => b.from(new Float64Array(6).fill(1), shape);
    await optimizer.step([ones(weights[0]!.weight), b.from(new Float64Array(4).fill(1), [2, 2])], 0.1);
    const before = await all();
    await optimizer.step([undefined, b.from(new Float64Array(4).fill(1), [2, 2])], 0.1);
    for (const [i, [name, numbers]] of (await all()).entries())
      if (/^(mean\.|square\.)?vision/.test(name as string)) expect(numbers).toEqual(before[i]![1]);
      else expect(numbers).not.toEqual(before[i]![1]);
  });

  it("makes up for young moments by the steps that a weight took, and not by all", async () => {
    const weights = [leaf("vision.proj", 1, 1), leaf("text.output", 1, 1)];
    const optimizer = new Optimizer(b, weights, { ...options, visionRate: 1 });
    const one = () => b.from(Float64Array.of(1), [1, 1]);
    const [before] = await b.read(weights[0]!.weight);
    for (let step = 0; step < 9; step++) await optimizer.step([undefined, one()], 0.1);
    await optimizer.step([one(), one()], 0.1);
    expect((await b.read(weights[0]!.weight))[0]).toBeCloseTo(before! - 0.1, 7); // a first step is as long as the rate
    expect(optimizer.updates).toEqual([1, 10]);
  });

  it("scales gradients down to the largest norm, over all weights, and leaves smaller ones", async () => {
    const moved = async (size: number, clip: number) => {
      const weights = [leaf("text.norm", 3), leaf("text.output", 2, 2)];
      const optimizer = new Optimizer(b, weights, { ...options, eps: 1e7, clip }); // so large that steps follow the gradient
      const gradients = weights.map(({ weight }) =>
        b.from(Float64Array.from(weight.shape.length > 1 ? [size, 0, 0, 0] : [0, size, 0]), weight.shape),
      );
      const norm = await optimizer.step(gradients, 1);
      expect(norm).toBeCloseTo(size * Math.SQRT2, 12);
      const after = await b.read(weights[0]!.weight);
      return 1e7 * (numbers(3, 7)[1]! - after[1]!);
    };
    expect(await moved(10, 1)).toBeCloseTo((await moved(10, 0)) / (10 * Math.SQRT2), 5);
    expect(await moved(0.1, 1)).toBeCloseTo(await moved(0.1, 0), 12);
  });

  it("decays matrices only, and moves the vision encoder at its own rate", async () => {
    const weights = [leaf("text.norm", 4), leaf("text.output", 2, 2), leaf("vision.projector", 2, 2)];
    const before = await Promise.all(weights.map(({ weight }) => b.read(weight)));
    const optimizer = new Optimizer(b, weights, { ...options, decay: 0.5 });
    await optimizer.step(
      weights.map(({ weight }) => b.from(new Float64Array(4), weight.shape)),
      0.1,
    );
    const after = await Promise.all(weights.map(({ weight }) => b.read(weight)));
    expect(after[0]).toEqual(before[0]);
    for (const [i, x] of before[1]!.entries()) expect(after[1]![i]).toBeCloseTo(x * (1 - 0.1 * 0.5), 12);
    for (const [i, x] of before[2]!.entries()) expect(after[2]![i]).toBeCloseTo(x * (1 - 0.05 * 0.5), 12);
  });

  it("refuses gradients that are no numbers, names the weight, and changes nothing", async () => {
    const weights = [leaf("text.norm", 3), leaf("text.output", 2, 2)];
    const optimizer = new Optimizer(b, weights, options);
    const bad = [b.from(new Float64Array(3), [3]), b.from(Float64Array.of(1, Number.NaN, 1, 1), [2, 2])];
    const before = await b.read(weights[0]!.weight);
    await expect(optimizer.step(bad, 0.1)).rejects.toThrow(/gradient of text.output is no number at step 1/);
    expect(await b.read(weights[0]!.weight)).toEqual(before);
    expect(optimizer.steps).toBe(0);
  });

  it.each(["adamw", "muon"] as const)("goes on from its state to the bit: %s", async (kind) => {
    const run = async (resumeAt: number) => {
      let weights = [
        leaf("text.layers.0.wq", 4, 3),
        leaf("text.layers.0.ffn.experts.gate", 2, 3, 4),
        leaf("text.norm", 3),
      ];
      let optimizer = new Optimizer(b, weights, { ...options, kind, average: 0.9 });
      for (let step = 0; step < 6; step++) {
        if (step === resumeAt) {
          const copy = async ({ name, weight }: (typeof weights)[0]) => ({
            name,
            weight: b.from(await b.read(weight), weight.shape),
          });
          const state = await Promise.all(optimizer.state().map(copy));
          const { updates } = optimizer;
          weights = await Promise.all(weights.map(copy));
          optimizer = new Optimizer(b, weights, { ...options, kind, average: 0.9 });
          optimizer.restore({ steps: step, updates }, new Map(state.map(({ name, weight }) => [name, weight])));
        }
        await optimizer.step(
          weights
            .map(({ weight }, i) =>
              b.from(
                numbers(
                  weight.shape.reduce((x, y) => x * y),
                  100 * step + i,
                ),
                weight.shape,
              ),
            )
            .map((gradient, i) => (i === 0 && step < 2 ? undefined : gradient)),
          0.01,
        );
      }
      return Promise.all([...weights.map(({ weight }) => weight), ...optimizer.averages()].map((x) => b.read(x)));
    };
    expect(await run(3)).toEqual(await run(-1));
  });

  it("keeps an average that trails the weights", async () => {
    const weight = leaf("text.norm", 1);
    const optimizer = new Optimizer(b, [weight], { ...options, average: 0.5 });
    const start = (await b.read(weight.weight))[0]!;
    for (let i = 0; i < 50; i++) await optimizer.step([b.from(Float64Array.of(1), [1])], 0.1);
    const [w, average] = [(await b.read(weight.weight))[0]!, (await b.read(optimizer.averages()[0]!))[0]!];
    expect(w).toBeCloseTo(start - 5, 6);
    expect(average).toBeCloseTo(w + 0.1, 6); // a share of a half trails by one step
  });
});

describe("five steps", () => {
  // As scripts/golden/optimizers.py draws weights and gradients.
  const drawn = (seed: number, n: number) => {
    let x = seed;
    return Float64Array.from({ length: n }, () => {
      x = (Math.imul(1664525, x) + 1013904223) >>> 0;
      return (x >>> 24) / 127.5 - 1;
    });
  };
  const golden = JSON.parse(readFileSync(join(import.meta.dirname, "../golden/optimizers.json"), "utf8"));
  const shapes = Object.entries<number[]>(golden.shapes);
  const backends = {
    // torch clips by norm + 1e-6, and that is all that differs in float64
    reference: { open: () => openReference({ precision: "f64" }), tolerance: 2e-6 },
    // what float32 rounds, through five rounds of Newton–Schulz in Muon
    ...(haveAddon && { native: { open: () => openNative({ activations: "f32", threads: 2 }), tolerance: 2e-5 } }),
  };

  it.each(Object.keys(backends).flatMap((name) => [["adamw", name] as const, ["muon", name] as const]))(
    "of %s leave the weights where torch.optim leaves them: %s",
    async (kind, name) => {
      const { open, tolerance } = backends[name as keyof typeof backends]!;
      const b = open();
      const size = (shape: readonly number[]) => shape.reduce((x, y) => x * y);
      const leaves = shapes.map(([name, shape], i) => ({ name, weight: b.from(drawn(i + 1, size(shape)), shape) }));
      const optimizer = new Optimizer(b, leaves, { ...golden.options, kind, visionRate: 1, average: 0 });
      for (const [step, rate] of (golden.rates as number[]).entries()) {
        const gradients = shapes.map(([, shape], i) => {
          const numbers = drawn(100 * (step + 1) + i, size(shape));
          return b.from(step === 3 ? numbers.map((x) => 0.1 * x) : numbers, shape);
        });
        expect(await optimizer.step(gradients, rate)).toBeCloseTo(golden[kind].norms[step], 5);
      }
      for (const { name, weight } of leaves) {
        const expected: number[] = golden[kind].weights[name];
        for (const [i, x] of (await b.read(weight)).entries())
          expect(Math.abs(x - expected[i]!), `${name}[${i}]`).toBeLessThan(tolerance);
      }
      b.close();
    },
  );
});

describe("Muon's orthogonalisation", () => {
  it.each([
    [5, 9],
    [9, 5],
    [6, 6],
  ])("of a %d × %d matrix leaves singular values near 1", async (O, I) => {
    const x = orthogonalised(b, b.from(numbers(O * I, 3), [O, I]));
    const square = await b.read(
      O > I
        ? linear(b.from(transposed(await b.read(x), O, I), [I, O]), b.from(transposed(await b.read(x), O, I), [I, O]))
        : linear(x, x),
    );
    const r = Math.min(O, I);
    for (let i = 0; i < r; i++) {
      expect(square[i * r + i]).toBeGreaterThan(0.4);
      expect(square[i * r + i]).toBeLessThan(1.5);
    }
    expect(Math.abs(square[1]!)).toBeLessThan(0.4);
  });
});

function transposed(x: ArrayLike<number>, O: number, I: number): Float64Array {
  return Float64Array.from({ length: O * I }, (_, at) => x[(at % O) * I + Math.floor(at / O)]!);
}

describe("the rate", () => {
  it("warms up, stays, and decays", () => {
    const wsd = { kind: "wsd", steps: 100, warmup: 10, decay: 20, final: 0.1 } as const;
    expect([0, 4, 9, 10, 79, 80].map((step) => rateAt(wsd, step))).toEqual([0.1, 0.5, 1, 1, 1, 1]);
    expect(rateAt(wsd, 90)).toBeCloseTo(0.55, 12);
    expect(rateAt(wsd, 100)).toBeCloseTo(0.1, 12);
  });

  it("follows half a cosine", () => {
    const cosine = { kind: "cosine", steps: 110, warmup: 10, decay: 0, final: 0.1 } as const;
    expect(rateAt(cosine, 9)).toBe(1);
    expect(rateAt(cosine, 60)).toBeCloseTo(0.55, 12);
    expect(rateAt(cosine, 110)).toBeCloseTo(0.1, 12);
  });

  it("never leaves [0, 1] and has no jump beyond a warm-up's step", () => {
    for (const kind of ["wsd", "cosine"] as const) {
      const rates = Array.from({ length: 200 }, (_, step) =>
        rateAt({ kind, steps: 200, warmup: 20, decay: 50, final: 0 }, step),
      );
      for (const [i, rate] of rates.entries()) {
        expect(rate).toBeGreaterThanOrEqual(0);
        expect(rate).toBeLessThanOrEqual(1);
        if (i > 0) expect(Math.abs(rate - rates[i - 1]!)).toBeLessThan(0.051);
      }
    }
  });
});

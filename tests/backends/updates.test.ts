// What changes weights in place: the native kernels against the reference in f64, and AdamW against what it must give.

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type NativeBackend, openNative } from "../../src/backends/native/backend.ts";
import { openReference } from "../../src/backends/reference/reference.ts";
import type { TrainingBackend } from "../../src/tensor/backend.ts";
import { onEachIsa } from "../addon.ts";
import { difference, numbers } from "./drawn.ts";

const how = { rate: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, decay: 0.1, scale: 0.7 };
const reference = openReference({ precision: "f64" });

/** Weights and moments after some steps with drawn gradients. */
async function trained(b: TrainingBackend, n: number, steps: number) {
  const [w, m, v] = [b.from(numbers(n, 1), [n]), b.from(new Float32Array(n), [n]), b.from(new Float32Array(n), [n])];
  for (let step = 1; step <= steps; step++) b.adamW(w, b.from(numbers(n, 10 + step), [n]), m, v, { ...how, step });
  return Promise.all([w, m, v].map((x) => b.read(x)));
}

onEachIsa(
  (isa) => `updates by native on ${isa} = reference`,
  (isa) => {
    let native: NativeBackend;
    beforeAll(() => {
      native = openNative({ threads: 2, activations: "f32", isa });
    });
    afterAll(() => native.close());

    it.each([1, 17, 1000, 70_001])("adamW over %d numbers", async (n) => {
      const [got, expected] = await Promise.all([trained(native, n, 5), trained(reference, n, 5)]);
      for (const [i, x] of got.entries()) expect(difference(x, expected[i]!)).toBeLessThan(2e-6);
    });

    it.each([1, 33, 50_001])("blend and sumSquares of %d numbers", async (n) => {
      const results = await Promise.all(
        [native, reference].map(async (b: TrainingBackend) => {
          const [x, y] = [b.from(numbers(n, 3), [n]), b.from(numbers(n, 4), [n])];
          b.blend(x, y, 0.3, -1.7);
          return { x: await b.read(x), sum: b.sumSquares(y) };
        }),
      );
      expect(difference(results[0]!.x, results[1]!.x)).toBeLessThan(1e-6);
      expect(Math.abs(results[0]!.sum / results[1]!.sum - 1)).toBeLessThan(1e-6);
    });

    it("numbers do not depend on the number of threads", async () => {
      const one = openNative({ threads: 1, activations: "f32", isa });
      expect(await trained(one, 70_001, 3)).toEqual(await trained(native, 70_001, 3));
      const sums = [one, native].map((b) => b.sumSquares(b.from(numbers(70_001, 5), [70_001])));
      expect(sums[0]).toBe(sums[1]);
      one.close();
    });

    it("a weight that is not f32 is refused", async () => {
      const bytes = new Uint8Array(8);
      const source = { name: "memory", byteLength: 8, read: async () => bytes };
      const [half] = await native.load([{ name: "w", dtype: "bf16", shape: [2, 2], source, offset: 0 }]);
      expect(() => native.blend(half!, half!, 1, 1)).toThrow(/bf16 cannot be changed in place/);
    });
  },
);

describe("AdamW", () => {
  it("with a constant gradient moves by the rate alone, whatever the gradient's size, and shrinks by rate · decay", async () => {
    // m̂ = g and v̂ = g² at every step, by the corrections for the zeros that the moments began with.
    const [w, m, v] = [
      [2, -3, 0.5],
      [0, 0, 0],
      [0, 0, 0],
    ].map((x) => reference.from(Float64Array.from(x), [3]));
    const g = reference.from(Float64Array.of(1e-3, -40, 7), [3]);
    const expected = [2, -3, 0.5];
    for (let step = 1; step <= 20; step++) {
      reference.adamW(w!, g, m!, v!, { ...how, scale: 1, eps: 0, step });
      for (const [i, sign] of [1, -1, 1].entries()) expected[i] = expected[i]! * (1 - 0.01 * 0.1) - 0.01 * sign;
    }
    const got = await reference.read(w!);
    for (const [i, x] of got.entries()) expect(x).toBeCloseTo(expected[i]!, 12);
  });

  it("gives the numbers of two steps written out by hand", async () => {
    // w 1, g 0.5 then −1, rate 0.1, β 0.9 and 0.99, ε 0.1, decay 0.2:
    // 1: m 0.05, v 0.0025, m̂ 0.5, v̂ 0.25, w = 0.98 − 0.1·0.5/0.6 = 0.896666…
    // 2: m −0.055, v 0.012475, m̂ −0.055/0.19, v̂ 0.012475/0.0199, w = 0.896666…·0.98 + 0.1·(0.055/0.19)/(√v̂ + 0.1)
    const [w, m, v] = [1, 0, 0].map((x) => reference.from(Float64Array.of(x), [1]));
    const step = (g: number, n: number) =>
      reference.adamW(w!, reference.from(Float64Array.of(g), [1]), m!, v!, {
        ...{ rate: 0.1, beta1: 0.9, beta2: 0.99, eps: 0.1, decay: 0.2, scale: 1, step: n },
      });
    step(0.5, 1);
    expect((await reference.read(w!))[0]).toBeCloseTo(0.98 - 0.05 / 0.6, 14);
    step(-1, 2);
    const second = (0.98 - 0.05 / 0.6) * 0.98 + (0.1 * (0.055 / 0.19)) / (Math.sqrt(0.012475 / 0.0199) + 0.1);
    expect((await reference.read(w!))[0]).toBeCloseTo(second, 14);
  });
});

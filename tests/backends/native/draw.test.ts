// Tokens drawn by the kernel: what a full sort in doubles gives for the same number, to the 10⁻⁶ that float32 weights allow.

import fc from "fast-check";
import { afterAll, beforeAll, expect, it } from "vitest";
import { type NativeBackend, openNative } from "../../../src/backends/native/backend.ts";
import { uniform } from "../../../src/engine/random.ts";
import { Sampler, type Sampling } from "../../../src/engine/sampler.ts";
import type { Draw } from "../../../src/tensor/backend.ts";
import { onEachIsa } from "../../addon.ts";

const CLOSE = 1e-6;

/** The numbers that draw this token, [from, to), by the rules as the papers write them; undefined where it is cut off. */
function drawnBy(token: number, logits: Float32Array, { temperature, topP, minP }: Draw): [number, number] | undefined {
  const max = logits.reduce((a, b) => Math.max(a, b));
  const weights = Array.from(logits, (logit) => Math.exp((logit - max) / temperature));
  const total = weights.reduce((a, b) => a + b, 0);
  const kept = new Float64Array(weights.length);
  let before = 0;
  for (const i of [...weights.keys()].sort((a, b) => weights[b]! - weights[a]! || a - b)) {
    if (before <= topP * total && weights[i]! >= minP) kept[i] = weights[i]!;
    before += weights[i]!;
  }
  if (kept[token] === 0) return undefined;
  const sum = kept.reduce((a, b) => a + b, 0);
  const from = kept.subarray(0, token).reduce((a, b) => a + b, 0) / sum;
  return [from, from + kept[token]! / sum];
}

onEachIsa(
  (isa) => `a token drawn by native on ${isa}`,
  (isa) => {
    let native: NativeBackend;
    beforeAll(() => {
      native = openNative({ threads: 2, isa });
    });
    afterAll(() => native.close());

    it("is the one that a full sort gives for its random number, of any number of logits", () => {
      const shapes = fc.record({
        length: fc.integer({ min: 1, max: 3000 }),
        spread: fc.constantFrom(0, 0.01, 1, 5, 100),
        // Few equals, or many. Not finer: weights nearer than the kernel's 2 ulp may change places at the nucleus's edge, where a
        // sort in doubles keeps the other one (seen once in 100,000: 1,751 logits within 0.01).
        step: fc.constantFrom(2 ** -16, 0.5),
        forbidden: fc.constantFrom(0, 0.3),
      });
      const options = fc.record({
        temperature: fc.constantFrom(0.01, 0.6, 1, 2),
        topP: fc.constantFrom(0, 0.3137, 0.8917, 0.9991, 1), // no fraction of 3000
        minP: fc.constantFrom(0, 0.01, 0.4, 1),
        seed: fc.nat(),
      });
      fc.assert(
        fc.property(shapes, options, ({ length, spread, step, forbidden }, { seed, ...how }) => {
          const logits = Float32Array.from({ length }, (_, i) => {
            if (i > 0 && uniform(seed + 1, i) < forbidden) return -Infinity;
            const logit = spread * (uniform(seed + 2, i) + uniform(seed + 3, i) - 1);
            return step * Math.round(logit / step);
          });
          const u = uniform(seed, 0);
          const token = native.draw!(logits, how, u)!;
          // where the cut falls between two tokens by less than the weights are exact to, either is right
          const cuts = [how.topP, how.topP - CLOSE, how.topP + CLOSE].map((topP) => ({ ...how, topP }));
          const minima = cuts.flatMap((cut) => [cut, { ...cut, minP: how.minP * (1 - CLOSE) }]);
          const ranges = minima
            .flatMap((cut) => [drawnBy(token, logits, cut) ?? []])
            .filter((range) => range.length > 0);
          expect(ranges.some(([from, to]) => u > from! - CLOSE && u < to! + CLOSE)).toBe(true);
        }),
        { numRuns: 500 },
      );
    });

    it("is the sampler's choice, as its own loops make it, and where they refuse it does", () => {
      const logits = Float32Array.from({ length: 700 }, (_, i) => 6 * (uniform(5, i) + uniform(6, i) - 1));
      const samplings: Sampling[] = [
        {},
        { temperature: 0 },
        { temperature: 1, topP: 1 },
        { temperature: 1.3, topP: 0.5, minP: 0.1 },
        { topK: 20 },
        { temperature: 2, repetitionPenalty: 1.5, logitBias: { 3: 8 } },
        { logprobs: 2 },
      ];
      const said = (sampling: Sampling, backend?: Pick<NativeBackend, "draw">) => {
        const sampler = new Sampler(sampling, [1, 2, 3], logits.length, undefined, backend);
        return Array.from({ length: 40 }, () => sampler.sample(logits.slice()));
      };
      for (const sampling of samplings)
        for (let seed = 0; seed < 5; seed++)
          expect(said({ ...sampling, seed }, native)).toEqual(said({ ...sampling, seed }));
      logits[13] = Number.NaN;
      for (const sampling of samplings) {
        const refused = () => said(sampling, native);
        expect(refused).toThrow("the weights are broken: logit 13 is NaN; expected numbers, get the checkpoint anew");
      }
    });

    it("comes as often as its probability says", () => {
      const logits = Float32Array.from({ length: 5 }, (_, i) => Math.log(i + 1));
      const counts = new Float64Array(5);
      const n = 30_000;
      for (let i = 0; i < n; i++) counts[native.draw!(logits, { temperature: 1, topP: 1, minP: 0 }, (i + 0.5) / n)!]!++;
      for (const [i, count] of counts.entries()) expect(Math.abs(count - ((i + 1) / 15) * n)).toBeLessThan(2);
    });

    it("at temperature 0 is the likeliest, the lowest id among equals", () => {
      const greedy = { temperature: 0, topP: 0.9, minP: 0 };
      for (const n of [1, 3, 16, 17, 300, 4096]) {
        const logits = Float32Array.from({ length: n }, (_, i) => -Math.abs(i - Math.floor(n / 3)));
        expect(native.draw!(logits, greedy, 0.5)).toBe(Math.floor(n / 3));
        expect(native.draw!(new Float32Array(n), greedy, 0.999)).toBe(0);
      }
    });

    it("is none where a logit is NaN or infinite, or all are forbidden, wherever it stands", () => {
      for (const how of [
        { temperature: 0, topP: 1, minP: 0 },
        { temperature: 0.6, topP: 0.9, minP: 0 },
      ])
        for (const n of [1, 5, 16, 40, 1000])
          for (const at of [0, n >> 1, n - 1]) {
            const logits = new Float32Array(n);
            logits[at] = Number.NaN;
            expect(native.draw!(logits, how, 0.5)).toBeUndefined();
            logits[at] = Infinity;
            expect(native.draw!(logits, how, 0.5)).toBeUndefined();
            expect(native.draw!(logits.fill(-Infinity), how, 0.5)).toBeUndefined();
          }
    });

    it("is left to others where the logits are doubles, and refused for numbers that make no sense", () => {
      const how = { temperature: 1, topP: 1, minP: 0 };
      expect(native.draw!(new Float64Array(3), how, 0)).toBeUndefined();
      const refusal = "draw needs a scale above 0, topP from 0, minP from 0 to 1 and u in [0, 1)";
      expect(() => native.draw!(new Float32Array(3), how, 1)).toThrow(refusal);
      expect(() => native.draw!(new Float32Array(3), { ...how, temperature: Number.NaN }, 0)).toThrow(refusal);
      expect(() => native.draw!(new Float32Array(0), how, 0)).toThrow("is not a Float32Array with elements");
    });
  },
);

// Stretched rotation frequencies as GGUF says them, by a divisor for each, and as config.json does, by a rule.

import type { Llama4Config, RopeScaling } from "../model/config.ts";
import { CheckpointError } from "../tensor/errors.ts";

/** The numbers of `rope_freqs.weight`, or undefined where frequencies are not divided. */
export function ropeFreqs(c: Llama4Config): Float32Array | undefined {
  if (c.ropeDivisors) return Float32Array.from(c.ropeDivisors);
  return c.ropeScaling && Float32Array.from(divisors(c.ropeScaling, c.ropeTheta, c.headDim));
}

// The quotient of plain and stretched frequency (specification §3.4; the model's own rule stands in model/rope.ts).
function divisors(s: RopeScaling, theta: number, headDim: number): number[] {
  return Array.from({ length: headDim / 2 }, (_, j) => {
    const wavelength = 2 * Math.PI * theta ** ((2 * j) / headDim);
    if (wavelength < s.originalContext / s.highFreqFactor) return 1;
    if (wavelength > s.originalContext / s.lowFreqFactor) return s.factor;
    if (s.highFreqFactor === s.lowFreqFactor) return 1;
    const t = (s.originalContext / wavelength - s.lowFreqFactor) / (s.highFreqFactor - s.lowFreqFactor);
    return 1 / ((1 - t) / s.factor + t);
  });
}

/** The llama3 scaling with these divisors: published models have low 1 and high 1 or 4, contexts are powers of 2. */
export function scalingOf(wanted: readonly number[], theta: number, headDim: number): RopeScaling {
  const factor = Math.max(...wanted);
  for (const highFreqFactor of [1, 4])
    for (const originalContext of [8192, ...Array.from({ length: 25 }, (_, i) => 2 ** i)]) {
      const scaling = { factor, lowFreqFactor: 1, highFreqFactor, originalContext };
      if (divisors(scaling, theta, headDim).every((d, j) => Math.abs(d - wanted[j]!) <= 1e-5 * d)) return scaling;
    }
  throw new CheckpointError(
    "the rope divisors follow no llama3 scaling, and config.json has no other word for them; keep the model as GGUF",
  );
}

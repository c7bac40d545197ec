// Rotary positions (Su et al. 2021, arXiv:2104.09864) with Llama 3's stretching of long wavelengths; specification §3.4.
// T tokens in the step · d head dim

import type { Llama4Config } from "./config.ts";

/** The d/2 frequencies, in radians a position. */
export function ropeFrequencies(c: Llama4Config): Float64Array {
  const pairs = c.headDim / 2;
  return Float64Array.from({ length: pairs }, (_, j) => {
    const frequency = c.ropeTheta ** (-j / pairs);
    if (c.ropeDivisors) return frequency / c.ropeDivisors[j]!;
    return c.ropeScaling ? stretched(frequency, c.ropeScaling) : frequency;
  });
}

// Wavelengths beyond the original context turn `factor` times slower; those well inside it are left; a ramp in between.
function stretched(frequency: number, s: NonNullable<Llama4Config["ropeScaling"]>): number {
  const turns = (s.originalContext * frequency) / (2 * Math.PI); // over the original context
  if (turns > s.highFreqFactor) return frequency;
  if (turns < s.lowFreqFactor) return frequency / s.factor;
  const ramp =
    s.highFreqFactor === s.lowFreqFactor ? 1 : (turns - s.lowFreqFactor) / (s.highFreqFactor - s.lowFreqFactor);
  return ((1 - ramp) * frequency) / s.factor + ramp * frequency;
}

/**
 * (cos, sin) of every pair's angle at the given positions: `[T, d/2, 2]`. Angles are f64: an f32 product is off by up to
 * 0.7 rad at 10M. In a chunked layer only differences inside a chunk matter, so `p mod chunk` turns the same.
 */
export function ropeRotations(c: Llama4Config, positions: Int32Array, chunked: boolean): Float64Array {
  const frequencies = ropeFrequencies(c);
  const out = new Float64Array(positions.length * frequencies.length * 2);
  let at = 0;
  for (const position of positions) {
    const p = chunked ? position % c.attentionChunk : position;
    for (const frequency of frequencies) {
      out[at++] = Math.cos(p * frequency);
      out[at++] = Math.sin(p * frequency);
    }
  }
  return out;
}

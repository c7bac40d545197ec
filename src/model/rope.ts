// Rotary positions (Su et al. 2021, arXiv:2104.09864) with Llama 3's stretching of long wavelengths; specification §3.4.
// T tokens in the step · d head dim

import type { Llama4Config, VisionConfig } from "./config.ts";

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
 * `frequencies` `[d/2]` are those of ropeFrequencies(), which a caller of many steps works out once.
 */
export function ropeRotations(
  c: Llama4Config,
  positions: Int32Array,
  chunked: boolean,
  frequencies: Float64Array,
): Float64Array {
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

/**
 * (cos, sin) for every token of a tile, `[G² + 1, d/2, 2]`: the first half of the pairs turns with the patch's column,
 * the second with its row, both counted from 1; the class token, last, does not turn (specification §6).
 */
export function tileRotations({ dim, nHeads, imageSize, patchSize, ropeTheta }: VisionConfig): Float64Array {
  const pairs = dim / nHeads / 2;
  const side = imageSize / patchSize;
  const out = new Float64Array((side ** 2 + 1) * pairs * 2);
  let at = 0;
  for (let patch = 0; patch <= side ** 2; patch++) {
    const [column, row] = patch === side ** 2 ? [0, 0] : [(patch % side) + 1, Math.floor(patch / side) + 1];
    for (let pair = 0; pair < pairs; pair++) {
      const half = pair % (pairs / 2);
      const angle = (pair < pairs / 2 ? column : row) * ropeTheta ** ((-2 * half) / pairs);
      out[at++] = Math.cos(angle);
      out[at++] = Math.sin(angle);
    }
  }
  return out;
}

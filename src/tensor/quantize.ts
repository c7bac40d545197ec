// float32 to the formats that `convert` writes. native/quantize.cc does the same operations in the same order and
// gives the same bytes, therefore every intermediate here is rounded to float32 by `f`.
//
// Q8_0, Q4_0, Q4_1, Q5_0, Q5_1: GGUF's reference rule, scale from the extremes (tests/golden/gguf).
// Q4_K, Q5_K, Q6_K: any encoder is valid; ours looks for the scales with the least weighted squared error. The weights
// favour large elements a little (2·rms + |x|, Q6_K x² + mean x²), so that both the plain error and the error weighted
// as llama.cpp weighs it come out below llama.cpp's.

import { type DType, dtypes, f16ToF32, f32ToBf16, f32ToF16 } from "./dtype.ts";
import { RequestError } from "./errors.ts";

/** The dtypes that `quantize` writes. */
export type QuantizableDType =
  | "f32"
  | "bf16"
  | "f16"
  | "q8_0"
  | "q4_0"
  | "q4_1"
  | "q5_0"
  | "q5_1"
  | "q4_k"
  | "q5_k"
  | "q6_k";

type Encoder = (x: Float32Array, bytes: Uint8Array) => void;

const f = Math.fround;

const encoders: Readonly<Record<QuantizableDType, Encoder>> = {
  f32: (x, bytes) => new DataView(bytes.buffer, bytes.byteOffset).setFloat32(0, x[0]!, true),
  bf16: (x, bytes) => setU16(bytes, 0, f32ToBf16(x[0]!)),
  f16: (x, bytes) => setU16(bytes, 0, f32ToF16(x[0]!)),
  q8_0: encodeQ80,
  q4_0: (x, bytes) => encodeSymmetric(x, bytes, 4),
  q5_0: (x, bytes) => encodeSymmetric(x, bytes, 5),
  q4_1: (x, bytes) => encodeFromMin(x, bytes, 4),
  q5_1: (x, bytes) => encodeFromMin(x, bytes, 5),
  q4_k: encodeQ4K,
  q5_k: encodeQ5K,
  q6_k: encodeQ6K,
};

/** True for the dtypes that `quantize` writes. */
export function isQuantizable(dtype: DType): dtype is QuantizableDType {
  return Object.hasOwn(encoders, dtype);
}

/**
 * Encodes `values`, whole rows, as `dtype` into `out`.
 *
 * Throws RequestError for an element that the dtype cannot hold: beyond float16's ±65,504, infinite or NaN
 * (f32 and bf16 hold anything).
 */
export function quantize(dtype: QuantizableDType, values: Float32Array, out: Uint8Array): void {
  const { blockElements, blockBytes } = dtypes[dtype];
  const blocks = values.length / blockElements;
  if (!Number.isInteger(blocks) || blocks * blockBytes !== out.length)
    throw new RangeError(
      `quantize: ${values.length} values and room for ${out.length} bytes of ${dtype}; ` +
        `expected ${blockBytes} bytes for each ${blockElements}`,
    );
  if (dtype !== "f32" && dtype !== "bf16") {
    const bad = values.findIndex((value) => !(Math.abs(value) < 65520)); // 65,520 rounds to infinity
    if (bad >= 0)
      throw new RequestError(`element ${bad} is ${values[bad]}, which ${dtype} cannot hold; use bf16 or f32`);
  }
  const encode = encoders[dtype];
  for (let b = 0; b < blocks; b++)
    encode(
      values.subarray(b * blockElements, (b + 1) * blockElements),
      out.subarray(b * blockBytes, (b + 1) * blockBytes),
    );
}

function setU16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value;
  bytes[at + 1] = value >> 8;
}

// --- simple blocks ---

// d = max|x|/127, q half away from zero; the division uses the unrounded d.
function encodeQ80(x: Float32Array, bytes: Uint8Array): void {
  const d = f(largest(x.map(Math.abs)) / 127);
  const inverse = reciprocal(d);
  setU16(bytes, 0, f32ToF16(d));
  for (let i = 0; i < 32; i++) {
    const v = f(x[i]! * inverse);
    const magnitude = Math.floor(Math.abs(v) + 0.5); // exact: this sum is in double precision
    bytes[2 + i] = v < 0 ? -magnitude : magnitude;
  }
}

// Q4_0, Q5_0: the element of the largest magnitude becomes −8 or −16 times d.
function encodeSymmetric(x: Float32Array, bytes: Uint8Array, bits: 4 | 5): void {
  const zero = 2 ** (bits - 1);
  let extreme = x[0]!;
  for (const value of x) if (Math.abs(value) > Math.abs(extreme)) extreme = value;
  const d = f(extreme / -zero);
  setU16(bytes, 0, f32ToF16(d));
  packSimple(x, 0, reciprocal(d), zero + 0.5, bits, bytes.subarray(2));
}

// Q4_1, Q5_1: d and m from the least and the largest element.
function encodeFromMin(x: Float32Array, bytes: Uint8Array, bits: 4 | 5): void {
  const min = least(x) + 0; // never −0
  const d = f(f(largest(x) - min) / (2 ** bits - 1));
  setU16(bytes, 0, f32ToF16(d));
  setU16(bytes, 2, f32ToF16(min));
  packSimple(x, min, reciprocal(d), 0.5, bits, bytes.subarray(4));
}

// q = ⌊(x − offset)·inverse + bias⌋, at most all ones; fifth bits first, then nibbles.
function packSimple(
  x: Float32Array,
  offset: number,
  inverse: number,
  bias: number,
  bits: 4 | 5,
  bytes: Uint8Array,
): void {
  const nibbles = bytes.subarray(bits === 5 ? 4 : 0);
  bytes.fill(0);
  for (let i = 0; i < 32; i++) {
    const q = Math.min(Math.trunc(f(f(f(x[i]! - offset) * inverse) + bias)), 2 ** bits - 1);
    nibbles[i & 15]! |= (q & 15) << (i < 16 ? 0 : 4);
    if (bits === 5) bytes[i >> 3]! |= (q >> 4) << (i & 7);
  }
}

// 0 where it would overflow; d is 0 in float16 too then.
function reciprocal(d: number): number {
  return Math.abs(d) > f(1e-38) ? f(1 / d) : 0;
}

function largest(x: Float32Array): number {
  return x.reduce((a, b) => Math.max(a, b));
}

function least(x: Float32Array): number {
  return x.reduce((a, b) => Math.min(a, b));
}

// To the nearest whole number, ties to even, for |v| < 2²²: the sum's spacing is 1.
function roundEven(v: number): number {
  return f(f(v + 12582912) - 12582912);
}

function clamp(v: number, low: number, high: number): number {
  return Math.min(Math.max(v, low), high);
}

// Sum of 16 numbers as a tree, the order in which wide registers add.
function treeSum(p: Float32Array): number {
  for (const step of [8, 4, 2, 1]) for (let j = 0; j < step; j++) p[j]! += p[j + step]!;
  return p[0]!;
}

// --- Q4_K and Q5_K ---

// A candidate is tried for each of these, side by side in native code.
const lanes = 16;

// First guesses for a sub-block: q = round((x − low)·(levels + stretch)/range + shift).
const stretch = [-2, -2, -1.5, -1.5, -1, -1, -0.5, -0.5, 0, 0, 0.25, 0.25, 0.5, 0.5, 1, 1];
const shift = [0, -0.5, 0, -0.5, 0, -0.5, 0, -0.5, 0, -0.5, 0, -0.5, 0, -0.5, 0, -0.5];

// Neighbours of the rounded (scale, min) that are tried with their real errors.
const scaleStep = [0, 0, 0, 0, 0, -1, -1, -1, -1, -1, 1, 1, 1, 1, 1, 2];
const minStep = [0, -1, 1, -2, 2, 0, -1, 1, -2, 2, 0, -1, 1, -2, 2, 1];

// One sub-block of 32: x, its weights, and t = x − low with low = min(0, least x).
interface SubBlock {
  readonly x: Float32Array;
  readonly w: Float32Array;
  readonly t: Float32Array;
  readonly low: number;
  readonly range: number;
  readonly sumW: number;
  readonly sumWt: number;
}

interface Fit {
  readonly d: number;
  readonly c: number;
  readonly gain: number;
}

// Rounds with (inverse, shift), then finds for those q the scale d and offset c of t ≈ d·q + c that minimise
// Σ w·(t − d·q − c)², under c ≤ −low (a block's min cannot be negative). `gain` is by how much that sum is less than
// Σ w·t²; −1, and d the whole range, where there is no solution.
function fit({ w, t, low, range, sumW, sumWt }: SubBlock, levels: number, inverse: number, shift: number): Fit {
  let q1 = 0; // Σ w·q
  let q2 = 0; // Σ w·q²
  let qt = 0; // Σ w·q·t
  for (let i = 0; i < 32; i++) {
    const q = clamp(roundEven(f(f(t[i]! * inverse) + shift)), 0, levels);
    const wq = f(w[i]! * q);
    q1 = f(q1 + wq);
    q2 = f(q2 + f(wq * q));
    qt = f(qt + f(wq * t[i]!));
  }
  const determinant = f(f(sumW * q2) - f(q1 * q1));
  const numerator = f(f(sumW * qt) - f(q1 * sumWt));
  let d = f(numerator / determinant);
  let c = f(f(sumWt - f(d * q1)) / sumW);
  // 1e-5: below, q is as good as constant and the determinant rounding error.
  if (!(determinant > f(f(1e-5) * f(sumW * q2)) && numerator > 0 && f(c + low) <= 0)) {
    d = f(f(qt + f(low * q1)) / q2);
    c = -low;
  }
  if (!(d > 0 && d <= range)) return { d: range, c, gain: -1 };
  const ofD = f(d * f(f(f(qt + qt) - f(d * q2)) - f(f(c + c) * q1)));
  return { d, c, gain: f(ofD + f(c * f(f(sumWt + sumWt) - f(c * sumW)))) };
}

// The best real (scale, min ≥ 0) found for a sub-block: 16 guesses, each improved once.
function search(x: Float32Array, w: Float32Array, levels: number): { scale: number; min: number } {
  const low = Math.min(least(x), 0);
  const range = f(largest(x) - low);
  if (!(range > f(1e-30))) return { scale: 0, min: -low };
  const t = x.map((value) => value - low);
  const sum = new Float32Array(16);
  const sumW = treeSum(sum.map((_, j) => w[j]! + w[j + 16]!));
  const sumWt = treeSum(sum.map((_, j) => f(w[j]! * t[j]!) + f(w[j + 16]! * t[j + 16]!)));
  const sub: SubBlock = { x, w, t, low, range, sumW, sumWt };
  const perRange = f(1 / range);

  let best: Fit = { d: f(range / levels), c: 0, gain: 0 };
  for (let lane = 0; lane < lanes; lane++) {
    const guess = fit(sub, levels, f(f(levels + stretch[lane]!) * perRange), shift[lane]!);
    const again = f(1 / guess.d);
    const improved = fit(sub, levels, again, f(-guess.c * again));
    const better = improved.gain > guess.gain ? improved : guess;
    if (better.gain > best.gain) best = better;
  }
  return { scale: best.d, min: -f(best.c + low) };
}

// Around (scale, min) in units of (d, dmin): the whole numbers 0–63 with the least Σ w·(value − x)².
function settle(
  { x, w }: Pick<SubBlock, "x" | "w">,
  levels: number,
  [d, dmin]: readonly [number, number],
  [scale, min]: readonly [number, number],
): { scale: number; min: number } {
  let best = { scale: 0, min: 0 };
  let leastError = Number.POSITIVE_INFINITY;
  for (let lane = 0; lane < lanes; lane++) {
    const sc = clamp(scale + scaleStep[lane]!, 0, 63);
    const mn = clamp(min + minStep[lane]!, 0, 63);
    const step = f(d * sc);
    const offset = f(dmin * mn);
    const inverse = step > 0 ? f(1 / step) : 0;
    let error = 0;
    for (let i = 0; i < 32; i++) {
      const q = clamp(roundEven(f(f(x[i]! + offset) * inverse)), 0, levels);
      const r = f(f(f(step * q) - offset) - x[i]!);
      error = f(error + f(w[i]! * f(r * r)));
    }
    if (error < leastError) {
      best = { scale: sc, min: mn };
      leastError = error;
    }
  }
  return best;
}

// A super-block of 256: d, dmin and the packed scales into the block's first 16 bytes; returns every q.
function encodeAffine(x: Float32Array, bytes: Uint8Array, levels: number): Uint8Array {
  const subBlocks = Array.from({ length: 8 }, (_, k) => {
    const part = x.subarray(32 * k, 32 * k + 32);
    const squares = new Float32Array(16).map((_, j) => f(part[j]! * part[j]!) + f(part[j + 16]! * part[j + 16]!));
    const twiceRms = f(2 * f(Math.sqrt(f(treeSum(squares) / 32))));
    const w = part.map((value) => twiceRms + Math.abs(value));
    return { x: part, w, ...search(part, w, levels) };
  });
  const maxScale = Math.max(0, ...subBlocks.map(({ scale }) => scale));
  const maxMin = Math.max(0, ...subBlocks.map(({ min }) => min));
  const halfD = f32ToF16(f(maxScale / 63));
  const halfDmin = f32ToF16(f(maxMin / 63));
  setU16(bytes, 0, halfD);
  setU16(bytes, 2, halfDmin);
  const d = f16ToF32(halfD);
  const dmin = f16ToF32(halfDmin);

  const s = bytes.subarray(4, 16).fill(0);
  const q = new Uint8Array(256);
  for (const [k, sub] of subBlocks.entries()) {
    const { scale, min } = settle(sub, levels, [d, dmin], [inUnits(sub.scale, d), inUnits(sub.min, dmin)]);
    const step = f(d * scale);
    const offset = f(dmin * min);
    const inverse = step > 0 ? f(1 / step) : 0;
    for (let i = 0; i < 32; i++) q[32 * k + i] = clamp(roundEven(f(f(sub.x[i]! + offset) * inverse)), 0, levels);
    if (k < 4) {
      s[k] = scale;
      s[k + 4] = min;
    } else {
      s[k - 4]! |= (scale >> 4) << 6;
      s[k]! |= (min >> 4) << 6;
      s[k + 4] = (scale & 15) | ((min & 15) << 4);
    }
  }
  return q;
}

function inUnits(value: number, unit: number): number {
  return unit > 0 ? clamp(roundEven(f(value / unit)), 0, 63) : 0;
}

function encodeQ4K(x: Float32Array, bytes: Uint8Array): void {
  packRuns(encodeAffine(x, bytes, 15), bytes.subarray(16));
}

function encodeQ5K(x: Float32Array, bytes: Uint8Array): void {
  const q = encodeAffine(x, bytes, 31);
  for (let l = 0; l < 32; l++) {
    let fifths = 0;
    for (let k = 0; k < 8; k++) fifths |= (q[32 * k + l]! >> 4) << k;
    bytes[16 + l] = fifths;
  }
  packRuns(q, bytes.subarray(48));
}

// Low nibbles of two runs of 32 to a byte.
function packRuns(q: Uint8Array, qs: Uint8Array): void {
  for (let i = 0; i < 128; i++) {
    const low = 2 * i - (i & 31); // 64·⌊i/32⌋ + i mod 32
    qs[i] = (q[low]! & 15) | (q[low + 32]! << 4);
  }
}

// --- Q6_K ---

// d is chosen so that the largest element is 30.5 steps of the scale 127: most blocks do best with their extreme
// within −32 … 31, not at its end.
const reach = 30.5;

const magnitudeStep = [0, -1, 1, -2, 2, -3, 3, -4, 4, -5, 5, -6, 6, -7, 7, -8];

// The signed scale of 16 elements with the least Σ w·(value − x)², among 16 magnitudes around `magnitude` and both
// signs (q reaches −32 but only +31).
function settle16(x: Float32Array, w: Float32Array, d: number, magnitude: number): number {
  let best = 0;
  let leastError = Number.POSITIVE_INFINITY;
  for (const sign of [1, -1])
    for (const magnitudeChange of magnitudeStep) {
      const scale = sign * clamp(magnitude + magnitudeChange, 0, 127);
      const step = f(d * scale);
      const inverse = step !== 0 ? f(1 / step) : 0;
      let error = 0;
      for (let i = 0; i < 16; i++) {
        const q = clamp(roundEven(f(x[i]! * inverse)), -32, 31);
        const r = f(f(step * q) - x[i]!);
        error = f(error + f(w[i]! * f(r * r)));
      }
      if (error < leastError) {
        best = scale;
        leastError = error;
      }
    }
  return best;
}

function encodeQ6K(x: Float32Array, bytes: Uint8Array): void {
  const magnitudes = x.map(Math.abs);
  const halfD = f32ToF16(f(largest(magnitudes) / f(reach * 127)));
  setU16(bytes, 208, halfD);
  const d = f16ToF32(halfD);

  const q = new Uint8Array(256);
  for (let k = 0; k < 16; k++) {
    const part = x.subarray(16 * k, 16 * k + 16);
    const most = largest(magnitudes.subarray(16 * k, 16 * k + 16));
    const squares = part.map((value) => value * value);
    const mean = f(treeSum(squares.slice()) / 16);
    const w = squares.map((square) => square + mean);
    const scale = d > 0 ? settle16(part, w, d, clamp(roundEven(f(most / f(reach * d))), 0, 127)) : 0;
    const step = f(d * scale);
    const inverse = step !== 0 ? f(1 / step) : 0;
    bytes[192 + k] = scale;
    for (let i = 0; i < 16; i++) q[16 * k + i] = clamp(roundEven(f(part[i]! * inverse)), -32, 31) + 32;
  }
  for (let i = 0; i < 64; i++) {
    const [n, l] = [i >> 5, i & 31];
    const run = (j: number): number => q[128 * n + 32 * j + l]!;
    bytes[64 * n + l] = (run(0) & 15) | ((run(2) & 15) << 4);
    bytes[64 * n + 32 + l] = (run(1) & 15) | ((run(3) & 15) << 4);
    bytes[128 + i] = (run(0) >> 4) | ((run(1) >> 4) << 2) | ((run(2) >> 4) << 4) | ((run(3) >> 4) << 6);
  }
}

// Numbers and stored weights drawn by a seeded generator, and how far a backend's results may be from the reference's.

import { expect } from "vitest";
import { openReference } from "../../src/backends/reference/reference.ts";
import type { Backend } from "../../src/tensor/backend.ts";
import { type DType, dtypes, f32ToBf16, f32ToF16, isQuantized, rowBytes } from "../../src/tensor/dtype.ts";
import { isQuantizable, quantize } from "../../src/tensor/quantize.ts";
import { elementCount, type Shape, type Tensor, type TensorView } from "../../src/tensor/tensor.ts";

/** Numbers in (-1, 1) from a seed (mulberry32). */
export function numbers(n: number, seed: number): Float32Array {
  let state = (seed * 2654435761) >>> 0;
  return Float32Array.from({ length: n }, () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 31 - 1;
  });
}

export function integers(n: number, below: number, seed: number): Int32Array {
  return Int32Array.from(numbers(n, seed), (x) => Math.floor(((x + 1) / 2) * below));
}

/** Matrix e of a bank of them. */
export function slice(view: TensorView, e: number): TensorView {
  const [, rows, columns] = view.shape as [number, number, number];
  return { ...view, shape: [rows, columns], offset: view.offset + e * rows * rowBytes(view.dtype, columns) };
}

/** Largest difference, as a share of the largest expected magnitude. */
export function difference(got: ArrayLike<number>, expected: ArrayLike<number>): number {
  expect(got.length).toBe(expected.length);
  let most = 0;
  let size = 1e-30;
  for (let i = 0; i < got.length; i++) {
    const d = Math.abs(got[i]! - expected[i]!);
    if (!(d <= most)) most = d; // a NaN stays
    size = Math.max(size, Math.abs(expected[i]!));
  }
  return most / size;
}

/** Root mean square of the differences, as a share of that of the expected numbers. */
export function spread(got: ArrayLike<number>, expected: ArrayLike<number>): number {
  let errors = 0;
  let squares = 0;
  for (let i = 0; i < expected.length; i++) {
    errors += (got[i]! - expected[i]!) ** 2;
    squares += expected[i]! ** 2;
  }
  return Math.sqrt(errors / squares);
}

/** Where the floats' d, m, dmin of a block lie; other bytes may be anything. */
const halves: Partial<Record<DType, readonly number[]>> = {
  ...{ q4_0: [0], q4_1: [0, 2], q5_0: [0], q5_1: [0, 2], q8_0: [0], q2_k: [80, 82], q3_k: [108], q4_k: [0, 2] },
  ...{ q5_k: [0, 2], q6_k: [208], iq1_s: [0], iq2_xxs: [0], iq2_xs: [0], iq2_s: [0], iq3_xxs: [0], iq3_s: [0] },
  ...{ iq4_nl: [0], iq4_xs: [0], tq1_0: [52], tq2_0: [64] },
};

/** Rows of any dtype: what its quantizer makes of random numbers, or random blocks with sensible scales. */
export function stored(dtype: DType, shape: Shape, seed: number): Uint8Array {
  const columns = shape[shape.length - 1]!;
  const n = elementCount(shape);
  const values = numbers(n, seed);
  const bytes = new Uint8Array((n / columns) * rowBytes(dtype, columns));
  if (isQuantizable(dtype)) {
    quantize(dtype, values, bytes);
    return bytes;
  }
  const view = new DataView(bytes.buffer);
  if (!isQuantized(dtype)) {
    const write: Partial<Record<DType, (i: number) => void>> = {
      f64: (i) => view.setFloat64(8 * i, values[i]!, true),
      i64: (i) => view.setBigInt64(8 * i, BigInt(Math.round(values[i]! * 100)), true),
      i32: (i) => view.setInt32(4 * i, values[i]! * 100, true),
      i16: (i) => view.setInt16(2 * i, values[i]! * 100, true),
      i8: (i) => view.setInt8(i, values[i]! * 100),
      f8_e4m3: (i) => view.setUint8(i, Math.abs(values[i]!) * 64 + (values[i]! < 0 ? 128 : 0)),
      f16: (i) => view.setUint16(2 * i, f32ToF16(values[i]!), true),
      bf16: (i) => view.setUint16(2 * i, f32ToBf16(values[i]!), true),
      f32: (i) => view.setFloat32(4 * i, values[i]!, true),
    };
    for (let i = 0; i < n; i++) write[dtype]!(i);
    return bytes;
  }
  bytes.set(integers(bytes.length, 256, seed + 1));
  const { blockBytes } = dtypes[dtype];
  for (let b = 0; b < bytes.length; b += blockBytes) {
    for (const at of halves[dtype] ?? []) view.setUint16(b + at, f32ToF16(0.01 + 0.01 * values[b % n]! ** 2), true);
    if (dtype === "mxfp4") bytes[b] = 120; // 2⁻⁸
    // iq1_m's d is the four upper nibbles of its scales: 0x2000, 2⁻⁷
    if (dtype === "iq1_m")
      for (let t = 0; t < 4; t++) bytes[b + 49 + 2 * t] = (bytes[b + 49 + 2 * t]! & 15) | (t === 3 ? 32 : 0);
  }
  return bytes;
}

export function viewOf(dtype: DType, shape: Shape, bytes: Uint8Array): TensorView {
  const source = {
    name: "memory",
    byteLength: bytes.length,
    read: async (offset: number, length: number) => bytes.slice(offset, offset + length),
  };
  return { name: "w", dtype, shape, source, offset: 0 };
}

export type Body = (b: Backend) => Tensor | Promise<Tensor>;

/** The specification, in double precision. */
export const reference = openReference({ precision: "f64" });

/** Runs a backend and the reference; the difference must stay below the tolerance, a share of the largest number. */
export async function agree(native: Backend, body: Body, tolerance: number): Promise<void> {
  const [got, expected] = await Promise.all([native, reference].map(async (b) => b.read(await body(b))));
  expect(difference(got!, expected!)).toBeLessThanOrEqual(tolerance);
}

/** Sums of n products in float32: errors grow like √n · 2⁻²⁴ of Σ|x·w|, in these tests below 2e-6 of the largest result. */
export const sums = 4e-6;

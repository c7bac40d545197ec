// What an element may be stored as, how many bytes that takes, and the conversions of the 16- and 8-bit floats.
// Sizes and ids: GGUF's type table and the safetensors header. Block layouts are drawn in block-formats.ts and i-quants.ts.

import { CheckpointError } from "./errors.ts";

export type DType =
  | "f64"
  | "f32"
  | "f16"
  | "bf16"
  | "f8_e4m3"
  | "i64"
  | "i32"
  | "i16"
  | "i8"
  | "q4_0"
  | "q4_1"
  | "q5_0"
  | "q5_1"
  | "q8_0"
  | "q2_k"
  | "q3_k"
  | "q4_k"
  | "q5_k"
  | "q6_k"
  | "iq1_s"
  | "iq1_m"
  | "iq2_xxs"
  | "iq2_xs"
  | "iq2_s"
  | "iq3_xxs"
  | "iq3_s"
  | "iq4_nl"
  | "iq4_xs"
  | "tq1_0"
  | "tq2_0"
  | "mxfp4";

/** How a dtype is stored: `blockElements` elements in `blockBytes` bytes, and what the two file formats call it. */
export interface DTypeLayout {
  readonly blockElements: number;
  readonly blockBytes: number;
  readonly ggmlType?: number;
  readonly safetensors?: string;
}

export const dtypes: Readonly<Record<DType, DTypeLayout>> = {
  f64: { blockElements: 1, blockBytes: 8, ggmlType: 28, safetensors: "F64" },
  f32: { blockElements: 1, blockBytes: 4, ggmlType: 0, safetensors: "F32" },
  f16: { blockElements: 1, blockBytes: 2, ggmlType: 1, safetensors: "F16" },
  bf16: { blockElements: 1, blockBytes: 2, ggmlType: 30, safetensors: "BF16" },
  f8_e4m3: { blockElements: 1, blockBytes: 1, safetensors: "F8_E4M3" },
  i64: { blockElements: 1, blockBytes: 8, ggmlType: 27, safetensors: "I64" },
  i32: { blockElements: 1, blockBytes: 4, ggmlType: 26, safetensors: "I32" },
  i16: { blockElements: 1, blockBytes: 2, ggmlType: 25, safetensors: "I16" },
  i8: { blockElements: 1, blockBytes: 1, ggmlType: 24, safetensors: "I8" },
  q4_0: { blockElements: 32, blockBytes: 18, ggmlType: 2 },
  q4_1: { blockElements: 32, blockBytes: 20, ggmlType: 3 },
  q5_0: { blockElements: 32, blockBytes: 22, ggmlType: 6 },
  q5_1: { blockElements: 32, blockBytes: 24, ggmlType: 7 },
  q8_0: { blockElements: 32, blockBytes: 34, ggmlType: 8 },
  q2_k: { blockElements: 256, blockBytes: 84, ggmlType: 10 },
  q3_k: { blockElements: 256, blockBytes: 110, ggmlType: 11 },
  q4_k: { blockElements: 256, blockBytes: 144, ggmlType: 12 },
  q5_k: { blockElements: 256, blockBytes: 176, ggmlType: 13 },
  q6_k: { blockElements: 256, blockBytes: 210, ggmlType: 14 },
  iq1_s: { blockElements: 256, blockBytes: 50, ggmlType: 19 },
  iq1_m: { blockElements: 256, blockBytes: 56, ggmlType: 29 },
  iq2_xxs: { blockElements: 256, blockBytes: 66, ggmlType: 16 },
  iq2_xs: { blockElements: 256, blockBytes: 74, ggmlType: 17 },
  iq2_s: { blockElements: 256, blockBytes: 82, ggmlType: 22 },
  iq3_xxs: { blockElements: 256, blockBytes: 98, ggmlType: 18 },
  iq3_s: { blockElements: 256, blockBytes: 110, ggmlType: 21 },
  iq4_nl: { blockElements: 32, blockBytes: 18, ggmlType: 20 },
  iq4_xs: { blockElements: 256, blockBytes: 136, ggmlType: 23 },
  tq1_0: { blockElements: 256, blockBytes: 54, ggmlType: 34 },
  tq2_0: { blockElements: 256, blockBytes: 66, ggmlType: 35 },
  mxfp4: { blockElements: 32, blockBytes: 17, ggmlType: 39 },
};

// Types that a GGUF file may name and that nothing here reads; for error messages.
const ggmlNamesOnly: Readonly<Record<number, string>> = {
  9: "q8_1",
  15: "q8_k",
  40: "nvfp4",
  41: "q1_0",
  42: "q2_0",
};

const entries = Object.entries(dtypes) as [DType, DTypeLayout][]; // the keys of a Record<DType, …> are DTypes
const byGgmlType: ReadonlyMap<number, DType> = new Map(
  entries.flatMap(([dtype, { ggmlType }]) => (ggmlType === undefined ? [] : [[ggmlType, dtype] as const])),
);
const bySafetensors: ReadonlyMap<string, DType> = new Map(
  entries.flatMap(([dtype, { safetensors }]) => (safetensors === undefined ? [] : [[safetensors, dtype] as const])),
);

/** The dtype that a GGUF tensor info's type id names, or undefined if nothing here reads it. */
export function dtypeOfGgml(id: number): DType | undefined {
  return byGgmlType.get(id);
}

/** The dtype that a safetensors header's `dtype` names, or undefined if nothing here reads it. */
export function dtypeOfSafetensors(name: string): DType | undefined {
  return bySafetensors.get(name);
}

/** A word for a GGUF type id, readable here or not: "q4_k", "nvfp4", "type 36". */
export function ggmlTypeName(id: number): string {
  return byGgmlType.get(id) ?? ggmlNamesOnly[id] ?? `type ${id}`;
}

/** True if elements come in blocks with scales, so that bytes must be dequantized before they mean anything. */
export function isQuantized(dtype: DType): boolean {
  return dtypes[dtype].blockElements > 1;
}

/** Bytes of one row; rows never share a block. Throws CheckpointError if blocks do not divide the row. */
export function rowBytes(dtype: DType, columns: number): number {
  const { blockElements, blockBytes } = dtypes[dtype];
  if (columns % blockElements !== 0)
    throw new CheckpointError(`${dtype}: a row has ${columns} elements; expected a multiple of ${blockElements}`);
  return (columns / blockElements) * blockBytes;
}

// One float seen as its bits. Written and read within one function, never across a call.
const f32Box = new Float32Array(1);
const bitsBox = new Uint32Array(f32Box.buffer);

/** bfloat16 bits to float: the upper half of a float32. */
export function bf16ToF32(bits: number): number {
  bitsBox[0] = bits << 16;
  return f32Box[0]!;
}

/** Float to bfloat16 bits, ties to even; NaN stays NaN and becomes quiet. */
export function f32ToBf16(value: number): number {
  f32Box[0] = value;
  const bits = bitsBox[0]!;
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >>> 16) | 0x40;
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

/** float16 bits to float: sign, 5-bit exponent (bias 15), 10-bit fraction. */
export function f16ToF32(bits: number): number {
  const exponent = (bits >>> 10) & 31;
  const fraction = bits & 0x3ff;
  let magnitude: number; // float32 bits without the sign
  if (exponent === 0) {
    const value = fraction * 2 ** -24; // subnormal or zero
    return bits & 0x8000 ? -value : value;
  }
  if (exponent === 31) magnitude = 0x7f800000 | (fraction << 13);
  else magnitude = ((exponent + 112) << 23) | (fraction << 13);
  bitsBox[0] = ((bits & 0x8000) << 16) | magnitude;
  return f32Box[0]!;
}

/** Float to float16 bits, ties to even; beyond 65,519 it is infinite, below 2⁻²⁵ zero; NaN stays NaN. */
export function f32ToF16(value: number): number {
  f32Box[0] = value;
  const bits = bitsBox[0]!;
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00 | ((magnitude >>> 13) & 0x3ff);
  if (magnitude >= 0x477ff000) return sign | 0x7c00; // 65,520 rounds up to 2¹⁶
  if (magnitude >= 0x38800000) {
    // 2⁻¹⁴ and more: drop 13 bits of fraction, a carry runs into the exponent
    return sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13);
  }
  f32Box[0] = Math.abs(value) + 0.5; // float32 near 0.5 has a spacing of 2⁻²⁴, float16's subnormals: this addition rounds
  return sign | (bitsBox[0]! - 0x3f000000);
}

/** 8-bit float E4M3 (bias 7, no infinities, ±448 the largest, S.1111.111 is NaN) to float. */
export function f8E4m3ToF32(bits: number): number {
  const exponent = (bits >>> 3) & 15;
  const fraction = bits & 7;
  if (exponent === 15 && fraction === 7) return Number.NaN;
  const value = exponent === 0 ? fraction * 2 ** -9 : (8 + fraction) * 2 ** (exponent - 10);
  return bits & 0x80 ? -value : value;
}

/** Float to E4M3 bits, ties to even; what rounds past 448 becomes NaN, as in PyTorch's float8_e4m3fn. */
export function f32ToF8E4m3(value: number): number {
  f32Box[0] = value;
  const bits = bitsBox[0]!;
  const sign = (bits >>> 24) & 0x80;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x43e80000) return sign | 0x7f; // 464, half-way between 448 and the next step, still rounds to 448
  if (magnitude >= 0x3c800000) {
    // 2⁻⁶ and more
    return sign | ((magnitude - 0x3c000000 + 0x7ffff + ((magnitude >>> 20) & 1)) >>> 20);
  }
  f32Box[0] = Math.abs(value) + 16384; // spacing 2⁻⁹, that of E4M3's subnormals
  return sign | (bitsBox[0]! - 0x46800000);
}

/** Decodes `bits.length` bfloat16 values into `out`. */
export function decodeBf16(bits: Uint16Array, out: Float32Array): void {
  const outBits = new Uint32Array(out.buffer, out.byteOffset, bits.length);
  for (let i = 0; i < bits.length; i++) outBits[i] = bits[i]! << 16;
}

/** Encodes `values.length` floats as bfloat16. */
export function encodeBf16(values: Float32Array, out: Uint16Array): void {
  for (let i = 0; i < values.length; i++) out[i] = f32ToBf16(values[i]!);
}

/** Decodes `bits.length` float16 values into `out`. */
export function decodeF16(bits: Uint16Array, out: Float32Array): void {
  for (let i = 0; i < bits.length; i++) out[i] = f16ToF32(bits[i]!);
}

/** Encodes `values.length` floats as float16. */
export function encodeF16(values: Float32Array, out: Uint16Array): void {
  for (let i = 0; i < values.length; i++) out[i] = f32ToF16(values[i]!);
}

/** Decodes `bits.length` E4M3 values into `out`. */
export function decodeF8E4m3(bits: Uint8Array, out: Float32Array): void {
  for (let i = 0; i < bits.length; i++) out[i] = f8E4m3ToF32(bits[i]!);
}

/** Encodes `values.length` floats as E4M3. */
export function encodeF8E4m3(values: Float32Array, out: Uint8Array): void {
  for (let i = 0; i < values.length; i++) out[i] = f32ToF8E4m3(values[i]!);
}

// The quantized formats of GGUF, each defined once: the bytes of a block and the values they stand for.
// Simple blocks (32 elements) and k-quants (256) are here, the codebook formats in i-quants.ts.
// Layouts give byte offsets; d, m, dmin are float16, everything is little-endian. A byte's low four bits
// are its low nibble. Every value is one float32 rounding of the exact product, so any order of
// multiplication, with or without fused multiply-add, gives the same bits.

import { bf16ToF32, type DType, dtypes, f8E4m3ToF32, f16ToF32, isQuantized } from "./dtype.ts";
import { iq1M, iq1S, iq2S, iq2Xs, iq2Xxs, iq3S, iq3Xxs, iq4Nl, iq4Xs, mxfp4 } from "./i-quants.ts";

/** Writes one block's values to `out` from element `o` on; the block's bytes begin at `at`. */
export type BlockDecoder = (bytes: Uint8Array, at: number, out: Float32Array, o: number) => void;

/** Decodes `bytes` of any dtype into `out`; they must hold the same number of elements. */
export function dequantize(dtype: DType, bytes: Uint8Array, out: Float32Array): void {
  const { blockElements, blockBytes } = dtypes[dtype];
  const blocks = bytes.length / blockBytes;
  if (!Number.isInteger(blocks) || blocks * blockElements !== out.length)
    throw new RangeError(
      `dequantize: ${bytes.length} bytes of ${dtype} and room for ${out.length} values; ` +
        `expected ${blockBytes} bytes for each ${blockElements}`,
    );
  if (isQuantized(dtype)) {
    const decode = blockDecoders[dtype as QuantizedDType];
    for (let b = 0; b < blocks; b++) decode(bytes, b * blockBytes, out, b * blockElements);
  } else {
    plainDecoders[dtype as PlainDType](new DataView(bytes.buffer, bytes.byteOffset, bytes.length), out);
  }
}

type PlainDType = "f64" | "f32" | "f16" | "bf16" | "f8_e4m3" | "i64" | "i32" | "i16" | "i8";
export type QuantizedDType = Exclude<DType, PlainDType>;

// A DataView reads any alignment: a safetensors file's tensors may begin at odd bytes.
const plainDecoders: Record<PlainDType, (bytes: DataView, out: Float32Array) => void> = {
  f64: each((bytes, i) => bytes.getFloat64(8 * i, true)),
  f32: each((bytes, i) => bytes.getFloat32(4 * i, true)),
  f16: each((bytes, i) => f16ToF32(bytes.getUint16(2 * i, true))),
  bf16: each((bytes, i) => bf16ToF32(bytes.getUint16(2 * i, true))),
  f8_e4m3: each((bytes, i) => f8E4m3ToF32(bytes.getUint8(i))),
  i64: each((bytes, i) => Number(bytes.getBigInt64(8 * i, true))),
  i32: each((bytes, i) => bytes.getInt32(4 * i, true)),
  i16: each((bytes, i) => bytes.getInt16(2 * i, true)),
  i8: each((bytes, i) => bytes.getInt8(i)),
};

function each(read: (bytes: DataView, i: number) => number): (bytes: DataView, out: Float32Array) => void {
  return (bytes, out) => {
    for (let i = 0; i < out.length; i++) out[i] = read(bytes, i);
  };
}

/** The float16 at byte `at`. */
export function half(bytes: Uint8Array, at: number): number {
  return f16ToF32(bytes[at]! | (bytes[at + 1]! << 8));
}

/** A byte read as signed. */
function signed(byte: number): number {
  return (byte << 24) >> 24;
}

//  Q8_0   0 d | 2 q[32] signed                                             y[i] = d·q[i]
function q80(bytes: Uint8Array, at: number, out: Float32Array, o: number): void {
  const d = half(bytes, at);
  for (let i = 0; i < 32; i++) out[o + i] = d * signed(bytes[at + 2 + i]!);
}

//  Q4_0   0 d | 2 qs[16]: low nibbles elements 0–15, high 16–31            y = d·(q − 8)
function q40(bytes: Uint8Array, at: number, out: Float32Array, o: number): void {
  const d = half(bytes, at);
  for (let i = 0; i < 16; i++) {
    const pair = bytes[at + 2 + i]!;
    out[o + i] = d * ((pair & 15) - 8);
    out[o + i + 16] = d * ((pair >> 4) - 8);
  }
}

//  Q4_1   0 d | 2 m | 4 qs[16] as Q4_0                                     y = d·q + m
function q41(bytes: Uint8Array, at: number, out: Float32Array, o: number): void {
  const d = half(bytes, at);
  const m = half(bytes, at + 2);
  for (let i = 0; i < 16; i++) {
    const pair = bytes[at + 4 + i]!;
    out[o + i] = d * (pair & 15) + m;
    out[o + i + 16] = d * (pair >> 4) + m;
  }
}

//  Q5_0   0 d | 2 qh[4]: bit i is element i's fifth bit | 6 qs[16] as Q4_0  y = d·(q − 16)
function q50(bytes: Uint8Array, at: number, out: Float32Array, o: number): void {
  const d = half(bytes, at);
  for (let i = 0; i < 32; i++) out[o + i] = d * (fiveBits(bytes, at + 2, i) - 16);
}

//  Q5_1   0 d | 2 m | 4 qh[4] | 8 qs[16] as Q5_0                           y = d·q + m
function q51(bytes: Uint8Array, at: number, out: Float32Array, o: number): void {
  const d = half(bytes, at);
  const m = half(bytes, at + 2);
  for (let i = 0; i < 32; i++) out[o + i] = d * fiveBits(bytes, at + 4, i) + m;
}

// Element i of qh[4] qs[16], where qh begins at `at`.
function fiveBits(bytes: Uint8Array, at: number, i: number): number {
  const pair = bytes[at + 4 + (i & 15)]!;
  const fifth = (bytes[at + (i >> 3)]! >> (i & 7)) & 1;
  return (i < 16 ? pair & 15 : pair >> 4) | (fifth << 4);
}

//  Eight scales and eight minima of 6 bits in s[12], Q4_K's and Q5_K's:
//    s[0–3]   bits 0–5 scale 0–3,  bits 6–7 upper bits of scale 4–7
//    s[4–7]   bits 0–5 min 0–3,    bits 6–7 upper bits of min 4–7
//    s[8–11]  low nibble of scale 4–7 | low nibble of min 4–7
function scale6(bytes: Uint8Array, s: number, k: number): number {
  return k < 4 ? bytes[s + k]! & 63 : (bytes[s + k + 4]! & 15) | ((bytes[s + k - 4]! >> 6) << 4);
}

function min6(bytes: Uint8Array, s: number, k: number): number {
  return k < 4 ? bytes[s + k + 4]! & 63 : (bytes[s + k + 4]! >> 4) | ((bytes[s + k]! >> 6) << 4);
}

//  Q4_K   0 d | 2 dmin | 4 s[12] | 16 qs[128]
//         Sub-block k = 0–7 of 32: bytes qs[32·⌊k/2⌋ + l], low nibble for even k, high for odd.
//         y = d·scale_k·q − dmin·min_k
function q4K(bytes: Uint8Array, at: number, out: Float32Array, o: number): void {
  const d = half(bytes, at);
  const dmin = half(bytes, at + 2);
  for (let k = 0; k < 8; k++) {
    const scale = d * scale6(bytes, at + 4, k);
    const min = dmin * min6(bytes, at + 4, k);
    for (let l = 0; l < 32; l++) {
      const q = (bytes[at + 16 + 32 * (k >> 1) + l]! >> (4 * (k & 1))) & 15;
      out[o + 32 * k + l] = scale * q - min;
    }
  }
}

//  Q5_K   0 d | 2 dmin | 4 s[12] | 16 qh[32] | 48 qs[128]
//         As Q4_K, with bit k of qh[l] as the fifth bit of sub-block k's element l.
function q5K(bytes: Uint8Array, at: number, out: Float32Array, o: number): void {
  const d = half(bytes, at);
  const dmin = half(bytes, at + 2);
  for (let k = 0; k < 8; k++) {
    const scale = d * scale6(bytes, at + 4, k);
    const min = dmin * min6(bytes, at + 4, k);
    for (let l = 0; l < 32; l++) {
      const low = (bytes[at + 48 + 32 * (k >> 1) + l]! >> (4 * (k & 1))) & 15;
      const fifth = (bytes[at + 16 + l]! >> k) & 1;
      out[o + 32 * k + l] = scale * (low | (fifth << 4)) - min;
    }
  }
}

//  The other k-quants lay a half block (128) out as four runs j = 0–3 of 32 elements l that share bytes.

//  Q6_K   0 ql[128] | 128 qh[64] | 192 scales[16] signed | 208 d
//         Half n, run j: byte ql[64n + 32·(j & 1) + l], low nibble for j < 2, high above; bits 2j–2j+1 of
//         qh[32n + l] are the upper two. One scale for each 16 elements.   y = d·scale·(q − 32)
function q6K(bytes: Uint8Array, at: number, out: Float32Array, o: number): void {
  const d = half(bytes, at + 208);
  for (let i = 0; i < 256; i++) {
    const n = i >> 7;
    const j = (i >> 5) & 3;
    const l = i & 31;
    const low = (bytes[at + 64 * n + 32 * (j & 1) + l]! >> (4 * (j >> 1))) & 15;
    const high = (bytes[at + 128 + 32 * n + l]! >> (2 * j)) & 3;
    out[o + i] = d * signed(bytes[at + 192 + (i >> 4)]!) * ((low | (high << 4)) - 32);
  }
}

//  Q3_K   0 hmask[32] | 32 qs[64] | 96 s[12] | 108 d
//         q = bits 2j–2j+1 of qs[32n + l], less 4 where bit 4n + j of hmask[l] is not set.
//         Scale k = 0–15: low four bits in s[k & 7] (low nibble for k < 8), upper two in s[8 + k mod 4] at
//         bit 2·⌊k/4⌋; less 32.                                            y = d·scale·q
function q3K(bytes: Uint8Array, at: number, out: Float32Array, o: number): void {
  const d = half(bytes, at + 108);
  const s = at + 96;
  for (let i = 0; i < 256; i++) {
    const n = i >> 7;
    const j = (i >> 5) & 3;
    const l = i & 31;
    const k = i >> 4;
    const low = (bytes[s + (k & 7)]! >> (4 * (k >> 3))) & 15;
    const high = (bytes[s + 8 + (k & 3)]! >> (2 * (k >> 2))) & 3;
    const quarter = (bytes[at + 32 + 32 * n + l]! >> (2 * j)) & 3;
    const q = quarter - ((bytes[at + l]! >> (4 * n + j)) & 1 ? 0 : 4);
    out[o + i] = d * ((low | (high << 4)) - 32) * q;
  }
}

//  Q2_K   0 s[16]: scale in the low nibble, min in the high | 16 qs[64] | 80 d | 82 dmin
//         q = bits 2j–2j+1 of qs[32n + l]                                  y = d·scale·q − dmin·min
function q2K(bytes: Uint8Array, at: number, out: Float32Array, o: number): void {
  const d = half(bytes, at + 80);
  const dmin = half(bytes, at + 82);
  for (let i = 0; i < 256; i++) {
    const s = bytes[at + (i >> 4)]!;
    const q = (bytes[at + 16 + 32 * (i >> 7) + (i & 31)]! >> (2 * ((i >> 5) & 3))) & 3;
    out[o + i] = d * (s & 15) * q - dmin * (s >> 4);
  }
}

//  TQ2_0  0 qs[64] | 64 d                                                  y = d·(q − 1)
//         q = bits 2j–2j+1 of qs[32n + l], the runs of Q6_K
function tq20(bytes: Uint8Array, at: number, out: Float32Array, o: number): void {
  const d = half(bytes, at + 64);
  for (let i = 0; i < 256; i++) {
    const q = (bytes[at + 32 * (i >> 7) + (i & 31)]! >> (2 * ((i >> 5) & 3))) & 3;
    out[o + i] = d * (q - 1);
  }
}

//  TQ1_0  0 qs[48] | 48 qh[4] | 52 d                                       y = d·(digit − 1)
//         A byte is a fraction of 256 with five ternary digits (four in qh), the first the most significant.
//         Elements 0–159: digit ⌊i/32⌋ of qs[i mod 32]; 160–239: digit ⌊r/16⌋ of qs[32 + r mod 16], r = i − 160;
//         240–255: digit ⌊r/4⌋ of qh[r mod 4], r = i − 240.
function tq10(bytes: Uint8Array, at: number, out: Float32Array, o: number): void {
  const d = half(bytes, at + 52);
  for (let i = 0; i < 160; i++) out[o + i] = d * (ternary(bytes[at + (i & 31)]!, i >> 5) - 1);
  for (let i = 0; i < 80; i++) out[o + 160 + i] = d * (ternary(bytes[at + 32 + (i & 15)]!, i >> 4) - 1);
  for (let i = 0; i < 16; i++) out[o + 240 + i] = d * (ternary(bytes[at + 48 + (i & 3)]!, i >> 2) - 1);
}

// Digit `place` of byte/256 in base 3: multiply the places before it away, keep the fraction, take the next.
function ternary(byte: number, place: number): number {
  return (((byte * 3 ** place) & 255) * 3) >> 8;
}

const blockDecoders: Readonly<Record<QuantizedDType, BlockDecoder>> = {
  q4_0: q40,
  q4_1: q41,
  q5_0: q50,
  q5_1: q51,
  q8_0: q80,
  q2_k: q2K,
  q3_k: q3K,
  q4_k: q4K,
  q5_k: q5K,
  q6_k: q6K,
  iq1_s: iq1S,
  iq1_m: iq1M,
  iq2_xxs: iq2Xxs,
  iq2_xs: iq2Xs,
  iq2_s: iq2S,
  iq3_xxs: iq3Xxs,
  iq3_s: iq3S,
  iq4_nl: iq4Nl,
  iq4_xs: iq4Xs,
  tq1_0: tq10,
  tq2_0: tq20,
  mxfp4,
};

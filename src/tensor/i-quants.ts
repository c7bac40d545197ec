// The formats of GGUF whose values come from a codebook: one decoder for each, in the manner of block-formats.ts.
// A block has 256 elements in 8 sub-blocks k of 32; those of codebook rows are cut into 4 groups l of 8.
// IQ4_NL and MXFP4 have 32 elements. Layouts give byte offsets; d is float16, everything is little-endian.

import { f16ToF32 } from "./dtype.ts";
import {
  iq1S as gridIq1S,
  iq2S as gridIq2S,
  iq2Xs as gridIq2Xs,
  iq2Xxs as gridIq2Xxs,
  iq3S as gridIq3S,
  iq3Xxs as gridIq3Xxs,
  iq4Levels,
  mxfp4Levels,
} from "./iq-grids.ts";

//  IQ4_NL   0 d | 2 qs[16]: low nibbles elements 0–15, high 16–31          y = d·level[nibble]
export function iq4Nl(bytes: Uint8Array, at: number, out: Float32Array, o: number): void {
  nibbles(bytes, at + 2, iq4Levels, f16ToF32(u16(bytes, at)), out, o);
}

//  MXFP4    0 e | 1 qs[16] as IQ4_NL                                       y = 2^(e − 128)·level[nibble]
export function mxfp4(bytes: Uint8Array, at: number, out: Float32Array, o: number): void {
  nibbles(bytes, at + 1, mxfp4Levels, 2 ** (bytes[at]! - 128), out, o);
}

//  IQ4_XS   0 d | 2 u16 high: two bits a sub-block | 4 low[4]: a nibble a sub-block | 8 qs[128]: 16 bytes a sub-block
//           scale_k = (low | high << 4) − 32                               y = d·scale_k·level[nibble]
export function iq4Xs(bytes: Uint8Array, at: number, out: Float32Array, o: number): void {
  const d = f16ToF32(u16(bytes, at));
  const upper = u16(bytes, at + 2);
  for (let k = 0; k < 8; k++) {
    const scale = nibble(bytes, at + 4, k) | (((upper >> (2 * k)) & 3) << 4);
    nibbles(bytes, at + 8 + 16 * k, iq4Levels, d * (scale - 32), out, o + 32 * k);
  }
}

//  IQ2_XXS  0 d | 2 eight bytes a sub-block: row[4], u32 a
//           a: bits 28–31 scale, bits 7l–7l+6 signs of group l            y = d·(scale + ½)/4·±grid[row][j]
export function iq2Xxs(bytes: Uint8Array, at: number, out: Float32Array, o: number): void {
  const d = f16ToF32(u16(bytes, at));
  for (let k = 0; k < 8; k++) {
    const sub = at + 2 + 8 * k;
    const a = u32(bytes, sub + 4);
    const scale = (d * (0.5 + (a >>> 28))) / 4;
    for (let l = 0; l < 4; l++)
      signedRow(gridIq2Xxs, 8 * bytes[sub + l]!, 8, evenSigns(a >>> (7 * l)), scale, out, o + 32 * k + 8 * l);
  }
}

//  IQ2_XS   0 d | 2 u16 w[32]: bits 0–8 row, 9–15 signs | 66 s[8]: a nibble for each 16 elements
//                                                                          y = d·(s + ½)/4·±grid[row][j]
export function iq2Xs(bytes: Uint8Array, at: number, out: Float32Array, o: number): void {
  const d = f16ToF32(u16(bytes, at));
  for (let g = 0; g < 32; g++) {
    const w = u16(bytes, at + 2 + 2 * g);
    const scale = (d * (0.5 + nibble(bytes, at + 66, g >> 1))) / 4;
    signedRow(gridIq2Xs, 8 * (w & 511), 8, evenSigns(w >> 9), scale, out, o + 8 * g);
  }
}

//  IQ2_S    0 d | 2 row[32]: low eight bits | 34 signs[32] | 66 high[8]: two bits a group | 74 s[8] as IQ2_XS
export function iq2S(bytes: Uint8Array, at: number, out: Float32Array, o: number): void {
  const d = f16ToF32(u16(bytes, at));
  for (let g = 0; g < 32; g++) {
    const row = bytes[at + 2 + g]! | (((bytes[at + 66 + (g >> 2)]! >> (2 * (g & 3))) & 3) << 8);
    const scale = (d * (0.5 + nibble(bytes, at + 74, g >> 1))) / 4;
    signedRow(gridIq2S, 8 * row, 8, bytes[at + 34 + g]!, scale, out, o + 8 * g);
  }
}

//  IQ3_XXS  0 d | 2 row[64]: one for each 4 elements | 66 u32 a[8] as IQ2_XXS's
//                                                                          y = d·(scale + ½)/2·±grid[row][j]
export function iq3Xxs(bytes: Uint8Array, at: number, out: Float32Array, o: number): void {
  const d = f16ToF32(u16(bytes, at));
  for (let k = 0; k < 8; k++) {
    const a = u32(bytes, at + 66 + 4 * k);
    const scale = (d * (0.5 + (a >>> 28))) / 2;
    for (let l = 0; l < 4; l++) {
      const rows = at + 2 + 8 * k + 2 * l;
      const signs = evenSigns(a >>> (7 * l));
      signedRow(gridIq3Xxs, 4 * bytes[rows]!, 4, signs, scale, out, o + 32 * k + 8 * l);
      signedRow(gridIq3Xxs, 4 * bytes[rows + 1]!, 4, signs >> 4, scale, out, o + 32 * k + 8 * l + 4);
    }
  }
}

//  IQ3_S    0 d | 2 row[64]: low eight bits | 66 high[8]: bit 0–7 for the eight rows of a sub-block
//           74 signs[32] | 106 s[4]: a nibble a sub-block                  y = d·(1 + 2s)·±grid[row][j]
export function iq3S(bytes: Uint8Array, at: number, out: Float32Array, o: number): void {
  const d = f16ToF32(u16(bytes, at));
  for (let r = 0; r < 64; r++) {
    const k = r >> 3;
    const row = bytes[at + 2 + r]! | (((bytes[at + 66 + k]! >> (r & 7)) & 1) << 8);
    const signs = bytes[at + 74 + (r >> 1)]! >> (4 * (r & 1));
    signedRow(gridIq3S, 4 * row, 4, signs, d * (1 + 2 * nibble(bytes, at + 106, k)), out, o + 4 * r);
  }
}

//  IQ1_S    0 d | 2 row[32]: low eight bits | 34 u16 h[8]: bits 3l–3l+2 upper bits of row l, 12–14 s, 15 shift down
//           δ = ∓⅛                                                         y = d·(2s + 1)·(grid[row][j] + δ)
export function iq1S(bytes: Uint8Array, at: number, out: Float32Array, o: number): void {
  const d = f16ToF32(u16(bytes, at));
  for (let k = 0; k < 8; k++) {
    const h = u16(bytes, at + 34 + 2 * k);
    const scale = d * (2 * ((h >> 12) & 7) + 1);
    const shift = h & 0x8000 ? -0.125 : 0.125;
    for (let l = 0; l < 4; l++) {
      const row = bytes[at + 2 + 4 * k + l]! | (((h >> (3 * l)) & 7) << 8);
      shiftedRow(8 * row, shift, scale, out, o + 32 * k + 8 * l);
    }
  }
}

//  IQ1_M    0 row[32]: low eight bits | 32 high[16]: a nibble a group: upper three bits of the row, shift down
//           48 u16 S[4]: bits 12–15 of S[t] are bits 4t–4t+3 of the float16 d; bits 0–11 four 3-bit scales,
//           one for each 16 elements                                       y = d·(2s + 1)·(grid[row][j] + δ)
export function iq1M(bytes: Uint8Array, at: number, out: Float32Array, o: number): void {
  let bits = 0;
  for (let t = 0; t < 4; t++) bits |= (u16(bytes, at + 48 + 2 * t) >> 12) << (4 * t);
  const d = f16ToF32(bits);
  for (let g = 0; g < 32; g++) {
    const s = (u16(bytes, at + 48 + 2 * (g >> 3)) >> (3 * ((g >> 1) & 3))) & 7;
    const high = nibble(bytes, at + 32, g);
    const row = bytes[at + g]! | ((high & 7) << 8);
    shiftedRow(8 * row, high & 8 ? -0.125 : 0.125, d * (2 * s + 1), out, o + 8 * g);
  }
}

function nibbles(bytes: Uint8Array, at: number, levels: Int8Array, scale: number, out: Float32Array, o: number): void {
  for (let i = 0; i < 16; i++) {
    const pair = bytes[at + i]!;
    out[o + i] = scale * levels[pair & 15]!;
    out[o + i + 16] = scale * levels[pair >> 4]!;
  }
}

// Bit j of `signs` set: element j is negative.
function signedRow(
  grid: Int8Array,
  start: number,
  width: number,
  signs: number,
  scale: number,
  out: Float32Array,
  o: number,
): void {
  for (let j = 0; j < width; j++) out[o + j] = scale * ((signs >> j) & 1 ? -grid[start + j]! : grid[start + j]!);
}

function shiftedRow(start: number, shift: number, scale: number, out: Float32Array, o: number): void {
  for (let j = 0; j < 8; j++) out[o + j] = scale * (gridIq1S[start + j]! + shift);
}

// Seven stored signs; the eighth makes the number of negative ones even.
function evenSigns(bits: number): number {
  const seven = bits & 127;
  let parity = seven ^ (seven >> 4);
  parity ^= parity >> 2;
  parity ^= parity >> 1;
  return seven | ((parity & 1) << 7);
}

function nibble(bytes: Uint8Array, at: number, index: number): number {
  return (bytes[at + (index >> 1)]! >> (4 * (index & 1))) & 15;
}

function u16(bytes: Uint8Array, at: number): number {
  return bytes[at]! | (bytes[at + 1]! << 8);
}

function u32(bytes: Uint8Array, at: number): number {
  return (u16(bytes, at) | (u16(bytes, at + 2) << 16)) >>> 0;
}

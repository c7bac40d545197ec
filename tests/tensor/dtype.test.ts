import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  bf16ToF32,
  type DType,
  decodeBf16,
  decodeF8E4m3,
  decodeF16,
  dtypeOfGgml,
  dtypeOfSafetensors,
  dtypes,
  encodeBf16,
  encodeF8E4m3,
  encodeF16,
  f8E4m3ToF32,
  f16ToF32,
  f32ToBf16,
  f32ToF8E4m3,
  f32ToF16,
  ggmlTypeName,
  rowBytes,
} from "../../src/tensor/dtype.ts";
import { storedBytes } from "../../src/tensor/tensor.ts";

describe("small floats", () => {
  const formats = [
    { name: "f16", patterns: 1 << 16, decode: f16ToF32, encode: f32ToF16, sign: 0x8000, largest: 65504 },
    { name: "bf16", patterns: 1 << 16, decode: bf16ToF32, encode: f32ToBf16, sign: 0x8000, largest: 2 ** 127 },
    { name: "f8_e4m3", patterns: 256, decode: f8E4m3ToF32, encode: f32ToF8E4m3, sign: 0x80, largest: 448 },
  ];
  for (const { name, patterns, decode, encode, sign, largest } of formats) {
    test(`${name}: every bit pattern returns to itself`, () => {
      for (let bits = 0; bits < patterns; bits++) {
        const value = decode(bits);
        if (Number.isNaN(value)) expect(decode(encode(value))).toBeNaN();
        else if (encode(value) !== bits) expect(encode(value), `${name} ${bits}`).toBe(bits);
      }
    });

    test(`${name}: a float goes to the nearest value, a tie to the even one`, () => {
      fc.assert(
        fc.property(fc.float({ min: -largest, max: largest, noNaN: true }), (x) => {
          const bits = encode(x);
          const chosen = Math.abs(decode(bits) - x);
          for (const other of [bits - 1, bits + 1]) {
            if ((other & (sign - 1)) === sign - 1 || (other ^ bits) & sign) continue; // the neighbour has the other sign
            const distance = Math.abs(decode(other) - x);
            expect(distance < chosen || (distance === chosen && bits & 1)).toBeFalsy();
          }
        }),
        { numRuns: 20_000 },
      );
    });
  }

  test("what is too large becomes infinite, or NaN where there is no infinity", () => {
    expect([65519.99609375, 65520, -1e10].map((x) => f16ToF32(f32ToF16(x)))).toEqual([
      65504,
      Number.POSITIVE_INFINITY,
      Number.NEGATIVE_INFINITY,
    ]);
    expect(bf16ToF32(f32ToBf16(3.4e38))).toBe(Number.POSITIVE_INFINITY);
    expect([464, -464].map((x) => f8E4m3ToF32(f32ToF8E4m3(x)))).toEqual([448, -448]);
    expect(f8E4m3ToF32(f32ToF8E4m3(464.5))).toBeNaN();
  });

  test("arrays convert as their elements do", () => {
    const values = Float32Array.of(0, -0, 1, -1.1, Math.PI, 1e-7, 448, Number.NaN);
    const bits = new Uint16Array(values.length);
    const back = new Float32Array(values.length);
    encodeBf16(values, bits);
    decodeBf16(bits, back);
    expect([...back]).toEqual(Array.from(values, (x) => bf16ToF32(f32ToBf16(x))));
    encodeF16(values, bits);
    decodeF16(bits, back);
    expect([...back]).toEqual(Array.from(values, (x) => f16ToF32(f32ToF16(x))));
    const bytes = new Uint8Array(values.length);
    encodeF8E4m3(values, bytes);
    decodeF8E4m3(bytes, back);
    expect([...back]).toEqual(Array.from(values, (x) => f8E4m3ToF32(f32ToF8E4m3(x))));
  });
});

test("ids and names lead back to their dtype", () => {
  for (const [dtype, { ggmlType, safetensors }] of Object.entries(dtypes)) {
    if (ggmlType !== undefined) expect(dtypeOfGgml(ggmlType)).toBe(dtype as DType);
    if (safetensors !== undefined) expect(dtypeOfSafetensors(safetensors)).toBe(dtype as DType);
  }
  expect(dtypeOfGgml(40)).toBeUndefined();
  expect([12, 40, 36].map(ggmlTypeName)).toEqual(["q4_k", "nvfp4", "type 36"]);
});

test("rows take whole blocks", () => {
  expect(rowBytes("bf16", 588)).toBe(1176);
  expect(rowBytes("q4_k", 5120)).toBe(2880);
  expect(() => rowBytes("q4_k", 1408)).toThrow("q4_k: a row has 1408 elements; expected a multiple of 256");
  expect(storedBytes({ dtype: "q4_k", shape: [3, 2, 5120] })).toBe(6 * 2880);
  expect(storedBytes({ dtype: "f32", shape: [] })).toBe(4);
  expect(storedBytes({ dtype: "q4_k", shape: [3, 0] })).toBe(0);
});

import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { dequantize } from "../../src/tensor/block-formats.ts";
import { decodeBf16, dtypes } from "../../src/tensor/dtype.ts";
import { isQuantizable, type QuantizableDType, quantize } from "../../src/tensor/quantize.ts";
import { fromBase64, fromHex } from "./bytes.ts";

interface SimpleGolden {
  readonly x: number[];
  readonly cases: readonly { type: string; bytes_hex: string }[];
}

interface KQuantGolden {
  readonly cases: readonly ({ name: string; bf16: string } & Record<"q4_k" | "q5_k" | "q6_k", string>)[];
}

const read = (name: string): unknown =>
  JSON.parse(readFileSync(new URL(`../golden/gguf/${name}`, import.meta.url), "utf8"));

function encoded(dtype: QuantizableDType, x: Float32Array): Uint8Array {
  const { blockElements, blockBytes } = dtypes[dtype];
  const bytes = new Uint8Array((x.length / blockElements) * blockBytes);
  quantize(dtype, x, bytes);
  return bytes;
}

function decoded(dtype: QuantizableDType, bytes: Uint8Array, length: number): Float32Array {
  const y = new Float32Array(length);
  dequantize(dtype, bytes, y);
  return y;
}

describe("quantize gives the reference's bytes", () => {
  const { x, cases } = read("quantize_golden.json") as SimpleGolden;
  for (const { type, bytes_hex } of cases)
    test(type, () => {
      const dtype = type.toLowerCase() as QuantizableDType;
      expect(encoded(dtype, Float32Array.from(x))).toEqual(fromHex(bytes_hex));
    });
});

// llama.cpp weighs the errors of its search: by rms + |x| within 32 elements, in Q6_K by x².
describe("the error, plain and weighted as llama.cpp weighs it, is at most that of llama.cpp's quantizer", () => {
  const weigh = {
    q4_k: (x: number, rms: number) => rms + Math.abs(x),
    q5_k: (x: number, rms: number) => rms + Math.abs(x),
    q6_k: (x: number) => x * x,
  };

  function errors(dtype: keyof typeof weigh, x: Float32Array, bytes: Uint8Array): { plain: number; weighted: number } {
    const y = decoded(dtype, bytes, x.length);
    let plain = 0;
    let weighted = 0;
    for (let i = 0; i < x.length; i++) {
      const sub = x.subarray(i - (i % 32), i - (i % 32) + 32);
      const rms = Math.sqrt(sub.reduce((sum, value) => sum + value * value, 0) / 32);
      const squared = (y[i]! - x[i]!) ** 2;
      plain += squared;
      weighted += weigh[dtype](x[i]!, rms) * squared;
    }
    return { plain: Math.sqrt(plain / x.length), weighted: Math.sqrt(weighted / x.length) };
  }

  for (const golden of (read("kquants_llama_cpp.json") as KQuantGolden).cases)
    for (const dtype of ["q4_k", "q5_k", "q6_k"] as const)
      test(`${dtype}, ${golden.name}`, () => {
        const bits = fromBase64(golden.bf16);
        const x = new Float32Array(bits.length / 2);
        decodeBf16(new Uint16Array(bits.buffer), x);
        const ours = errors(dtype, x, encoded(dtype, x));
        const theirs = errors(dtype, x, fromBase64(golden[dtype]));
        expect(ours.plain).toBeLessThanOrEqual(theirs.plain);
        expect(ours.weighted).toBeLessThanOrEqual(theirs.weighted);
      });
});

describe("whatever the row, no value is further off than its block's steps allow", () => {
  // Half a step of the format, and what rounding d (and m) to float16 moves the values by.
  const worst = { q8_0: 0.51 / 127, q4_0: 1.01 / 8, q5_0: 1.01 / 16, q4_1: 0.52 / 15, q5_1: 0.53 / 31 } as const;
  const steps = { q8_0: 127, q4_0: 8, q5_0: 16, q4_1: 15, q5_1: 31 } as const; // most of d in a value
  const float = fc.float({ min: -60000, max: 60000, noNaN: true, noDefaultInfinity: true });
  const row = fc.tuple(
    fc.array(fc.oneof(float, fc.constantFrom(0, -0, 1, -1)), { minLength: 32, maxLength: 32 }),
    fc.integer({ min: -12, max: 0 }), // a smaller power of two takes d below float16's normal numbers
  );

  for (const dtype of Object.keys(worst) as (keyof typeof worst)[])
    test(dtype, () => {
      fc.assert(
        fc.property(row, ([values, exponent]) => {
          const x = Float32Array.from(values, (value) => value * 2 ** exponent);
          const y = decoded(dtype, encoded(dtype, x), 32);
          const [low, high] = [Math.min(...x), Math.max(...x)];
          const span = dtype.endsWith("1") ? high - low : Math.max(-low, high);
          const rounding = 2 ** -11 * Math.max(-low, high) + 2 ** -25 * (steps[dtype] + 1); // float16's step, or half its smallest number, of d and m
          for (let i = 0; i < 32; i++)
            expect(Math.abs(y[i]! - x[i]!)).toBeLessThanOrEqual(worst[dtype] * span + rounding);
        }),
      );
    });

  for (const [dtype, levels] of [
    ["q4_k", 15],
    ["q5_k", 31],
    ["q6_k", 63],
  ] as const)
    test(`${dtype}: the block's root mean square error stays below a step of its widest sub-block`, () => {
      const block = fc.array(
        fc.tuple(fc.integer({ min: -8, max: 8 }), fc.array(float, { minLength: 32, maxLength: 32 })),
        {
          minLength: 8,
          maxLength: 8,
        },
      );
      fc.assert(
        fc.property(block, (parts) => {
          const x = Float32Array.from(parts.flatMap(([power, values]) => values.map((v) => v * 2 ** (power - 8))));
          const y = decoded(dtype, encoded(dtype, x), 256);
          const widest = 2 * x.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
          const rmse = Math.sqrt(x.reduce((sum, value, i) => sum + (y[i]! - value) ** 2, 0) / 256);
          expect(rmse).toBeLessThanOrEqual(widest / levels + 2 ** -24 * 63);
        }),
      );
    });
});

test("constant blocks come back almost exactly", () => {
  for (const value of [0, -0, 1, -1, 0.3, -60000])
    for (const dtype of ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k"] as const) {
      const x = new Float32Array(256).fill(value);
      const y = decoded(dtype, encoded(dtype, x), 256);
      for (const found of y) expect(Math.abs(found - value)).toBeLessThanOrEqual(Math.abs(value) * 2 ** -10);
    }
});

test("an element that the dtype cannot hold is named", () => {
  const x = new Float32Array(256);
  x[77] = Number.NaN;
  expect(() => encoded("q4_k", x)).toThrow("element 77 is NaN, which q4_k cannot hold; use bf16 or f32");
  x[77] = 70000;
  expect(() => encoded("f16", x)).toThrow("element 77 is 70000, which f16 cannot hold");
  expect(decoded("bf16", encoded("bf16", x), 256)[77]).toBe(70144);
});

test("what can be written is known", () => {
  expect((Object.keys(dtypes) as (keyof typeof dtypes)[]).filter(isQuantizable).sort()).toEqual(
    ["bf16", "f16", "f32", "q4_0", "q4_1", "q4_k", "q5_0", "q5_1", "q5_k", "q6_k", "q8_0"].sort(),
  );
});

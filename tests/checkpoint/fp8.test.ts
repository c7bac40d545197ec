// 8-bit float matrices with a factor for each row: what they stand for, read in any pieces.

import { describe, expect, it } from "vitest";
import { scaledRows } from "../../src/checkpoint/fp8.ts";
import { memorySource } from "../../src/checkpoint/source.ts";
import { bf16ToF32, type DType, f8E4m3ToF32, f32ToBf16 } from "../../src/tensor/dtype.ts";
import { CheckpointError } from "../../src/tensor/errors.ts";
import type { TensorView } from "../../src/tensor/tensor.ts";

const [rows, columns] = [5, 7];
const codes = Uint8Array.from({ length: rows * columns }, (_, i) => (i * 37) % 127); // no NaN
const factors = Float32Array.from({ length: rows }, (_, i) => bf16ToF32(f32ToBf16(0.013 * (i + 1))));

const view = (name: string, dtype: DType, shape: readonly number[], bytes: Uint8Array): TensorView => ({
  ...{ name, dtype, shape, offset: 3 },
  source: memorySource(Uint8Array.from([0, 0, 0, ...bytes]), name),
});
const bytesOf = (values: Float32Array | Uint16Array) => new Uint8Array(values.buffer);
const weight = view("w", "f8_e4m3", [rows, columns], codes);
const exact = (i: number) => Math.fround(f8E4m3ToF32(codes[i]!) * factors[Math.floor(i / columns)]!);

describe("an 8-bit float matrix", () => {
  it("is each row times its f32 factor", async () => {
    const { source, dtype } = scaledRows(weight, view("s", "f32", [rows, 1], bytesOf(factors)));
    expect(dtype).toBe("f32");
    const got = new Float32Array((await source.read(0, source.byteLength)).slice().buffer);
    expect([...got]).toEqual(Array.from(got, (_, i) => exact(i)));
  });

  it("is rounded to bf16 where its factors are bf16, whatever range is read", async () => {
    const stored = bytesOf(Uint16Array.from(factors, f32ToBf16));
    const { source, dtype, shape } = scaledRows(weight, view("s", "bf16", [rows, 1], stored));
    expect([dtype, shape]).toEqual(["bf16", [rows, columns]]);
    const whole = await source.read(0, source.byteLength);
    expect([...new Uint16Array(whole.slice().buffer)]).toEqual(Array.from(codes, (_, i) => f32ToBf16(exact(i))));
    for (let from = 0; from < whole.length; from++)
      for (let to = from; to <= whole.length; to++)
        expect(await source.read(from, to - from)).toEqual(whole.subarray(from, to));
  });

  it("may have one factor for all rows", async () => {
    const { source } = scaledRows(weight, view("s", "f32", [1], bytesOf(Float32Array.of(2))));
    const got = new Float32Array((await source.read(0, source.byteLength)).slice().buffer);
    expect(got[columns + 1]).toBe(2 * f8E4m3ToF32(codes[columns + 1]!));
  });

  it.each<[string, TensorView, RegExp]>([
    ["factors for other rows", view("s", "f32", [rows - 1, 1], bytesOf(factors)), /"s" is \[4, 1\] for "w", \[5, 7\]/],
    ["factors of whole numbers", view("s", "i8", [rows, 1], codes), /"s" is i8; expected bf16, f16 or f32/],
  ])("is refused with %s", (_, scale, sentence) => {
    expect(() => scaledRows(weight, scale)).toThrow(CheckpointError);
    expect(() => scaledRows(weight, scale)).toThrow(sentence);
  });
});

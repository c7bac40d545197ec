import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { dequantize } from "../../src/tensor/block-formats.ts";
import { dtypeOfGgml, dtypes } from "../../src/tensor/dtype.ts";
import { iq1S, iq2S, iq2Xs, iq2Xxs, iq3S, iq3Xxs, iq4Levels, mxfp4Levels } from "../../src/tensor/iq-grids.ts";
import { bitsOf, fromHex } from "./bytes.ts";

interface Golden {
  readonly cases: readonly {
    type: string;
    ggml_type: number;
    block_elems: number;
    block_bytes: number;
    bytes_hex: string;
    values: number[];
  }[];
}

interface Table {
  readonly rows: number[][];
}

const read = (name: string): unknown =>
  JSON.parse(readFileSync(new URL(`../golden/gguf/${name}`, import.meta.url), "utf8"));

describe("dequantize gives the reference's float32 values, bit for bit", () => {
  for (const { type, ggml_type, block_elems, block_bytes, bytes_hex, values } of (read("dequant_golden.json") as Golden)
    .cases)
    test(type, () => {
      const dtype = dtypeOfGgml(ggml_type)!;
      expect(dtype).toBe(type.toLowerCase());
      expect(dtypes[dtype]).toMatchObject({ blockElements: block_elems, blockBytes: block_bytes });
      const out = new Float32Array(values.length);
      dequantize(dtype, fromHex(bytes_hex), out);
      expect(bitsOf(out)).toEqual(bitsOf(Float32Array.from(values)));
    });
});

test("the ternary formats hold −d, 0 and d where their layouts say", () => {
  // One d = 1 (float16 3c00); byte 1 is 86/256 ≈ 0.10000₃ (element 1 has digit 1, the rest 0),
  // byte 0 is 255/256 ≈ 0.22222₃, all others 0.
  const tq1 = new Uint8Array(54);
  tq1.set([255, 86]);
  tq1[48] = 255;
  tq1[53] = 0x3c;
  const out = new Float32Array(256);
  dequantize("tq1_0", tq1, out);
  const twos = [0, 32, 64, 96, 128, 240, 244, 248, 252];
  expect([...out]).toEqual(Array.from(out, (_, i) => (twos.includes(i) ? 1 : i === 1 ? 0 : -1)));

  const tq2 = new Uint8Array(66);
  tq2.fill(0b01_01_01_01, 0, 64);
  tq2[3] = 0b10_01_00_01; // elements 3, 35, 67, 99
  tq2[65] = 0x3c;
  dequantize("tq2_0", tq2, out);
  expect([...out]).toEqual(Array.from(out, (_, i) => (i === 35 ? -1 : i === 99 ? 1 : 0)));
});

test("the codebooks are the reference's", () => {
  const tables = read("iq_grids.json") as Record<string, Table>;
  const ours = { IQ2_XXS: iq2Xxs, IQ2_XS: iq2Xs, IQ2_S: iq2S, IQ3_XXS: iq3Xxs, IQ3_S: iq3S, IQ1_S: iq1S };
  for (const [name, values] of Object.entries(ours)) expect([...values]).toEqual(tables[name]!.rows.flat());
  const levels = read("iq_grids.json") as Record<string, number[]>;
  expect([...iq4Levels]).toEqual(levels["kvalues_iq4nl"]);
  expect([...mxfp4Levels]).toEqual(levels["kvalues_mxfp4"]);
});

test("plain dtypes are read at any byte offset", () => {
  const bytes = new Uint8Array(13);
  const view = new DataView(bytes.buffer);
  view.setFloat32(1, 1.5, true);
  view.setFloat32(5, -0.25, true);
  const out = new Float32Array(2);
  dequantize("f32", bytes.subarray(1, 9), out);
  expect([...out]).toEqual([1.5, -0.25]);
  view.setBigInt64(1, -7n, true);
  const one = new Float32Array(1);
  dequantize("i64", bytes.subarray(1, 9), one);
  expect([...one]).toEqual([-7]);
});

test("bytes and values that do not belong together are refused", () => {
  expect(() => dequantize("q8_0", new Uint8Array(34), new Float32Array(31))).toThrow(
    "dequantize: 34 bytes of q8_0 and room for 31 values; expected 34 bytes for each 32",
  );
});

import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { type Addon, loadAddon } from "../../../src/backends/native/addon.ts";
import { dequantize } from "../../../src/tensor/block-formats.ts";
import { type DType, decodeBf16, dtypes } from "../../../src/tensor/dtype.ts";
import { iqTables } from "../../../src/tensor/iq-grids.ts";
import { isQuantizable, quantize } from "../../../src/tensor/quantize.ts";
import { fromBase64 } from "../../tensor/bytes.ts";

function load(): { addon?: Addon; absent: string } {
  try {
    const addon = loadAddon();
    addon.setCodebooks(iqTables.buffer, iqTables.byteOffset);
    return { addon, absent: "" };
  } catch (error) {
    return { absent: ` (skipped: ${error instanceof Error ? error.message : error})` };
  }
}

const { addon, absent } = load();
const names = Object.keys(dtypes) as DType[];
const typeId = (dtype: DType): number => dtypes[dtype].ggmlType ?? 256;

// xorshift32: the same bytes on every machine.
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}

const columns = 2048;

// Rows that steer the quantizers into every branch, beside the ordinary ones of the k-quants' golden.
function rows(): Float32Array[] {
  const { cases } = JSON.parse(
    readFileSync(new URL("../../golden/gguf/kquants_llama_cpp.json", import.meta.url), "utf8"),
  ) as { cases: { bf16: string }[] };
  const ordinary = cases.map(({ bf16 }) => {
    const x = new Float32Array(columns);
    decodeBf16(new Uint16Array(fromBase64(bf16).buffer), x);
    return x;
  });
  const u = random(7);
  const makers: ((i: number) => number)[] = [
    (i) => ((i >> 5) % 3) - 1, // constant sub-blocks
    () => (u() < 0.5 ? 0 : -0),
    () => (u() < 0.1 ? u() - 0.5 : 0),
    () => (u() - 0.5) * 1e-7, // float16 scales that are subnormal
    () => (u() - 0.5) * 1e-39,
    () => (u() - 0.5) * 130000,
    () => (u() - 0.5) * 4 ** Math.floor(-20 * u()),
    () => Math.floor(31 * u() - 15) / 2, // ties
    () => -1 - 0.1 * u(),
    (i) => (i & 256 ? 0 : u() - 0.5),
  ];
  return [...ordinary, ...makers.map((make) => Float32Array.from({ length: columns }, (_, i) => make(i)))];
}

for (const isa of addon?.isas() ?? [`no instruction set${absent}`])
  describe.skipIf(!addon)(`native on ${isa}`, () => {
    const engine = addon?.open(2, isa);

    for (const dtype of names.filter(isQuantizable))
      test(`quantize gives the reference's bytes, bit for bit: ${dtype}`, () => {
        const { blockElements, blockBytes } = dtypes[dtype];
        for (const [index, x] of rows().entries()) {
          const expected = new Uint8Array((columns / blockElements) * blockBytes);
          const found = new Uint8Array(expected.length);
          quantize(dtype, x, expected);
          expect(
            addon!.recode(engine!, 0, typeId(dtype), 1, columns, x.buffer as ArrayBuffer, 0, found.buffer, 0),
          ).toBe(-1);
          expect(Buffer.compare(expected, found), `row ${index}`).toBe(0);
        }
      });

    for (const dtype of names)
      test(`any bytes have the reference's values: ${dtype}`, () => {
        const { blockElements, blockBytes } = dtypes[dtype];
        const blocks = 64;
        const width = blocks * blockElements;
        const u = random(dtype.length);
        const table = Uint8Array.from({ length: 4 * blocks * blockBytes }, () => Math.floor(256 * u()));
        const y = new Float32Array(4 * width);
        addon!.rows(engine!, 4, width, typeId(dtype), table.buffer, 0, Int32Array.of(3, 0, 1, 2), y.buffer, 0);
        const expected = new Float32Array(4 * width);
        dequantize(dtype, table, expected);
        const reordered = Float32Array.of(...expected.subarray(3 * width), ...expected.subarray(0, 3 * width));
        expect(y.every((value, i) => Object.is(value, reordered[i]))).toBe(true);
      });

    test("the first element that cannot be held is pointed out, and f32 and bf16 hold anything", () => {
      const x = new Float32Array(3 * 256);
      x[300] = Number.POSITIVE_INFINITY;
      x[600] = Number.NaN;
      const out = new ArrayBuffer(4 * x.length);
      const call = (dtype: DType) => addon!.recode(engine!, 0, typeId(dtype), 3, 256, x.buffer, 0, out, 0);
      expect((["f16", "q8_0", "q4_k", "q6_k"] as const).map(call)).toEqual([300, 300, 300, 300]);
      expect((["f32", "bf16"] as const).map(call)).toEqual([-1, -1]);
      expect(() => call("q3_k")).toThrow("nothing recodes type 0 to 11");
    });
  });

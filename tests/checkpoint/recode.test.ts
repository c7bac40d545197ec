import { describe, expect, it } from "vitest";
import { openNative } from "../../src/backends/native/backend.ts";
import {
  type Quantizer,
  recoded,
  recodedTogether,
  referenceQuantizer,
  shareRows,
  turned,
} from "../../src/checkpoint/recode.ts";
import { memorySource } from "../../src/checkpoint/source.ts";
import { dequantize } from "../../src/tensor/block-formats.ts";
import { type DType, rowBytes } from "../../src/tensor/dtype.ts";
import { type QuantizableDType, quantize } from "../../src/tensor/quantize.ts";
import { elementCount, type Shape, type TensorView } from "../../src/tensor/tensor.ts";

const quantizers: Record<string, Quantizer | undefined> = { reference: referenceQuantizer, native: native() };

function native(): Quantizer | undefined {
  try {
    return openNative({ threads: 2 });
  } catch {
    return undefined; // where no compiler is, the native cases say so
  }
}

/** Numbers that are their own index in the tensor, small enough for every float. */
const numbers = (shape: Shape, scale = 1) =>
  Float32Array.from({ length: elementCount(shape) }, (_, i) => ((i * 37) % 251) * scale - 3);

function stored(values: Float32Array, dtype: QuantizableDType, columns: number): Uint8Array {
  const out = new Uint8Array((values.length / columns) * rowBytes(dtype, columns));
  quantize(dtype, values, out);
  return out;
}

function viewOf(
  values: Float32Array,
  dtype: QuantizableDType,
  shape: Shape,
  strides?: readonly number[],
  offset = 0,
): TensorView {
  const source = memorySource(stored(values, dtype, strides ? 1 : shape.at(-1)!));
  return { name: "w", dtype, shape, source, offset, ...(strides && { strides }) };
}

async function all(chunks: AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  for await (const chunk of chunks) parts.push(chunk);
  return new Uint8Array(Buffer.concat(parts));
}

function decoded(bytes: Uint8Array, dtype: DType, n: number): Float32Array {
  const out = new Float32Array(n);
  dequantize(dtype, bytes, out);
  return out;
}

describe.each(Object.entries(quantizers))("recoding, %s", (_name, quantizer) => {
  const test = it.skipIf(!quantizer); // the addon is not built here
  const q = quantizer ?? referenceQuantizer;

  test("the same dtype passes through", async () => {
    const view = viewOf(numbers([3, 64]), "q8_0", [3, 64]);
    expect(await all(recoded(view, "q8_0", q))).toEqual(await view.source.read(0, view.source.byteLength));
  });

  test.each([1, 2, 4, 8])("elements of %i bytes are transposed between larger matrices, and nothing else", (size) => {
    for (const [rows, columns] of [
      [0, 3],
      [1, 1],
      [1, 100],
      [64, 64],
      [130, 67],
      [37, 5000],
    ] as const)
      for (const [at, gap] of [
        [0, 0],
        [3, 5],
        [0, 16 / size],
      ] as const) {
        const grid = (height: number, width: number, fill: (i: number) => number) => {
          const stride = width + gap;
          return { at, stride, bytes: Uint8Array.from({ length: (at + height * stride) * size }, (_, i) => fill(i)) };
        };
        const from = grid(rows, columns, (i) => (i * 167) >> 3);
        const [got, expected] = [grid(columns, rows, () => 99), grid(columns, rows, () => 99)];
        q.transpose(size, rows, columns, from, got);
        for (let i = 0; i < rows; i++)
          for (let j = 0; j < columns; j++) {
            const source = (at + i * from.stride + j) * size;
            expected.bytes.set(from.bytes.subarray(source, source + size), (at + j * expected.stride + i) * size);
          }
        expect(Buffer.compare(got.bytes, expected.bytes)).toBe(0);
      }
  });

  test.each(["f32", "f16", "bf16", "q8_0", "q4_0", "q5_0", "q4_k", "q6_k"] as const)(
    "bf16 rows become the reference quantizer's %s",
    async (dtype) => {
      const values = decoded(stored(numbers([5, 512], 0.01), "bf16", 512), "bf16", 5 * 512);
      const view = viewOf(values, "bf16", [5, 512]);
      expect(Buffer.compare(await all(recoded(view, dtype, q)), stored(values, dtype, 512))).toBe(0);
    },
  );

  test("rows of more than one block of the file arrive in order", async () => {
    const values = numbers([150, 16384]); // 10 MB, and a block has 8 MiB
    const view = viewOf(values, "f32", [150, 16384]);
    expect(Buffer.compare(await all(recoded(view, "bf16", q)), stored(values, "bf16", 16384))).toBe(0);
  });

  test("an element that the dtype cannot hold is named", async () => {
    const values = numbers([150, 16384]);
    values[2_300_000] = 1e6;
    const refused = all(recoded(viewOf(values, "f32", [150, 16384]), "f16", q));
    await expect(refused).rejects.toThrow("w: element 2300000 is 1000000, which f16 cannot hold");
  });
});

describe("turning", () => {
  const q = quantizers["native"] ?? referenceQuantizer;
  const [E, D, F] = [3, 70, 45];
  const fused = numbers([E, D, 2 * F]);
  const strides = [2 * F * D, 1, 2 * F];
  const gate = viewOf(fused, "f32", [E, F, D], strides);
  const up = { ...gate, offset: 4 * F };
  const at = (e: number, d: number, f: number) => fused[(e * D + d) * 2 * F + f]!;

  it("fused experts of Hugging Face come apart into rows of gate and up", async () => {
    for (const [view, first] of [
      [gate, 0],
      [up, F],
    ] as const) {
      const got = decoded(await all(recoded(view, "f32", q)), "f32", E * F * D);
      const expected = got.map((_, i) => at(Math.floor(i / D / F), i % D, first + (Math.floor(i / D) % F)));
      expect(got).toEqual(expected);
    }
  });

  /** Gate and up over a source that counts the bytes read. */
  function counted() {
    const read: number[] = [];
    const source = {
      ...gate.source,
      read: (offset: number, length: number) => {
        read.push(length);
        return gate.source.read(offset, length);
      },
    };
    return { views: [gate, up].map((view) => ({ ...view, source })), bytes: () => read.reduce((sum, n) => sum + n) };
  }

  it("gate and up of one source come out of one reading of it", async () => {
    const { views, bytes } = counted();
    expect(shareRows(views[0]!, views[1]!)).toBe(true);
    const parts: Uint8Array[][] = [[], []];
    for await (const [i, bytes] of recodedTogether(views, ["f32", "bf16"], q)) parts[i]!.push(bytes);
    expect(Buffer.concat(parts[0]!)).toEqual(Buffer.from(await all(recoded(gate, "f32", q))));
    expect(Buffer.concat(parts[1]!)).toEqual(Buffer.from(await all(recoded(up, "bf16", q))));
    expect(bytes()).toBe(gate.source.byteLength);
  });

  it("gate and up are fused again to the same bytes", async () => {
    const { views, bytes } = counted();
    const [own, shorter] = [await all(turned(views, "f32", q)), await all(turned([gate, up], "bf16", q))];
    expect(decoded(own, "f32", fused.length)).toEqual(fused);
    expect(decoded(shorter, "bf16", fused.length)).toEqual(fused);
    expect(bytes()).toBe(gate.source.byteLength);
  });

  it("up before gate is another tensor", async () => {
    const got = decoded(await all(turned([up, gate], "f32", q)), "f32", fused.length);
    expect(got).toEqual(fused.map((_, i) => fused[i % (2 * F) < F ? i + F : i - F]!));
  });

  it("separate experts are turned as they are decoded", async () => {
    const values = decoded(stored(numbers([2, 40, 64]), "q8_0", 64), "q8_0", 2 * 40 * 64);
    const got = decoded(await all(turned([viewOf(values, "q8_0", [2, 40, 64])], "f32", q)), "f32", values.length);
    for (let e = 0; e < 2; e++)
      for (let r = 0; r < 40; r++)
        for (let c = 0; c < 64; c++) expect(got[(e * 64 + c) * 40 + r]).toBe(values[(e * 40 + r) * 64 + c]);
  });

  it("rows with gaps between them are gathered", async () => {
    const view = viewOf(fused, "f32", [D, F], [2 * F, 1]);
    const got = decoded(await all(recoded(view, "f32", q)), "f32", D * F);
    for (let d = 0; d < D; d++) for (let f = 0; f < F; f++) expect(got[d * F + f]).toBe(at(0, d, f));
  });
});

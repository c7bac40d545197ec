// One suite for every backend that computes fast: each operation, on each instruction set that this machine has, against
// the reference in f64. Values are drawn by a seeded generator; sizes are odd so that no vector's width divides them.

import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Isa, loadAddon } from "../../src/backends/native/addon.ts";
import { type NativeBackend, openNative } from "../../src/backends/native/backend.ts";
import { openReference } from "../../src/backends/reference/reference.ts";
import type { Backend, KVDType, LayerCache, Segment } from "../../src/tensor/backend.ts";
import { bf16ToF32, type DType, dtypes, f32ToBf16, f32ToF16, isQuantized, rowBytes } from "../../src/tensor/dtype.ts";
import {
  add,
  attend,
  crossEntropy,
  embed,
  experts,
  feedForward,
  gelu,
  layerNorm,
  linear,
  mul,
  permute,
  reshape,
  rmsNorm,
  rope,
  route,
  rows,
  splice,
  swiglu,
} from "../../src/tensor/ops.ts";
import { isQuantizable, quantize } from "../../src/tensor/quantize.ts";
import { elementCount, type Shape, type Tensor, type TensorView } from "../../src/tensor/tensor.ts";

// Without a compiler there is no addon; the build has said so, and the program runs on the reference.
function availableIsas(): { isas: Isa[]; why: string } {
  try {
    return { isas: loadAddon().isas(), why: "" };
  } catch (error) {
    return { isas: [], why: String(error) };
  }
}

const { isas, why } = availableIsas();
const reference = openReference({ precision: "f64" });

/** Numbers in (-1, 1) from a seed (mulberry32). */
function numbers(n: number, seed: number): Float32Array {
  let state = (seed * 2654435761) >>> 0;
  return Float32Array.from({ length: n }, () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 31 - 1;
  });
}

function integers(n: number, below: number, seed: number): Int32Array {
  return Int32Array.from(numbers(n, seed), (x) => Math.floor(((x + 1) / 2) * below));
}

/** Matrix e of a bank of them. */
function slice(view: TensorView, e: number): TensorView {
  const [, rows, columns] = view.shape as [number, number, number];
  return { ...view, shape: [rows, columns], offset: view.offset + e * rows * rowBytes(view.dtype, columns) };
}

/** Largest difference, as a share of the largest expected magnitude. */
function difference(got: ArrayLike<number>, expected: ArrayLike<number>): number {
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
function spread(got: ArrayLike<number>, expected: ArrayLike<number>): number {
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
function stored(dtype: DType, shape: Shape, seed: number): Uint8Array {
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

function viewOf(dtype: DType, shape: Shape, bytes: Uint8Array): TensorView {
  const source = {
    name: "memory",
    byteLength: bytes.length,
    read: async (offset: number, length: number) => bytes.slice(offset, offset + length),
  };
  return { name: "w", dtype, shape, source, offset: 0 };
}

type Body = (b: Backend) => Tensor | Promise<Tensor>;

for (const isa of isas) {
  describe(`native on ${isa} = reference`, () => {
    let native: NativeBackend;
    beforeAll(() => {
      native = openNative({ threads: 2, activations: "f32", isa });
    });
    afterAll(() => native.close());

    /** Runs both; the difference must stay below the tolerance, a share of the largest number. */
    async function agree(body: Body, tolerance: number): Promise<void> {
      const [got, expected] = await Promise.all([native, reference].map(async (b) => b.read(await body(b))));
      expect(difference(got!, expected!)).toBeLessThanOrEqual(tolerance);
    }

    // Sums of n products in float32: errors grow like √n · 2⁻²⁴ of Σ|x·w|, here below 2e-6 of the largest result.
    const sums = 4e-6;

    it.each([
      [1, 1, 1],
      [1, 3, 17],
      [2, 17, 33],
      [3, 255, 5],
      [5, 257, 33],
      [7, 33, 257],
      [13, 64, 255],
      [70, 129, 19],
      [17, 300, 100], // more than a panel's depth
      [1037, 513, 14], // more than one pass of rows
      [50, 83000, 9], // rows so long that fewer fit a pass
    ])("linear: %i rows of %i by %i", async (T, I, O) => {
      const [x, w, bias] = [numbers(T * I, 1), numbers(O * I, 2), numbers(O, 3)];
      await agree((b) => linear(b.from(x, [T, I]), b.from(w, [O, I])), sums);
      await agree((b) => linear(b.from(x, [T, I]), b.from(w, [O, I]), b.from(bias, [O])), sums);
    });

    it.each(Object.keys(dtypes) as DType[])("linear, embed: weights stored as %s", async (dtype) => {
      const I = dtypes[dtype].blockElements === 1 ? 77 : 512;
      const O = 19;
      const bytes = stored(dtype, [O, I], 4);
      const weights = await Promise.all([native, reference].map((b) => b.load([viewOf(dtype, [O, I], bytes)])));
      const weightOf = (b: Backend) => weights[b === native ? 0 : 1]![0]!;
      for (const T of [1, 2, 6, 9, 39]) {
        const x = numbers(T * I, 5);
        await agree((b) => linear(b.from(x, [T, I]), weightOf(b)), sums);
      }
      await agree((b) => embed(weightOf(b), Int32Array.of(3, 18, 0, 3)), 1e-7); // each value is one rounding
    });

    it("read fills the room it is given, or makes some", async () => {
      const x = native.from(numbers(33, 5), [3, 11]);
      const room = new Float32Array(40).fill(7);
      const filled = await native.read(x, room);
      expect(filled).toEqual(numbers(33, 5));
      expect(filled.buffer).toBe(room.buffer);
      expect(room.subarray(33)).toEqual(new Float32Array(7).fill(7));
      expect(await native.read(x, new Float32Array(32))).toEqual(numbers(33, 5));
    });

    // Tokens read one by one, guessed ahead or in one pass must give the same; so must an expert's rows, however many.
    it("linear gives the same bits for a row alone and among others", async () => {
      const rounding = openNative({ threads: 2, activations: "int8", isa }); // bf16 meets x rounded to bf16
      for (const [backend, dtype] of [
        ...(["f32", "bf16", "f16", "q8_0", "q6_k"] as const).map((dtype) => [native, dtype] as const),
        [rounding, "bf16"] as const,
      ]) {
        const [I, O] = [isQuantized(dtype) ? 512 : 523, 101];
        const [weight] = await backend.load([viewOf(dtype, [O, I], stored(dtype, [O, I], 6))]);
        const x = numbers(83 * I, 7);
        const product = (from: number, to: number) =>
          backend.read(linear(backend.from(x.subarray(from * I, to * I), [to - from, I]), weight!));
        const all = await product(0, 83);
        for (const [from, count] of [
          ...[1, 2, 3, 4, 5, 6, 7, 12, 13, 25, 40].map((count) => [83 - count, count] as const),
          ...[0, 11, 12, 41].map((from) => [from, 1] as const),
        ])
          expect(await product(from, from + count)).toEqual(all.slice(from * O, (from + count) * O));
      }
      rounding.close();
    });

    it("add, mul with every way of broadcasting, swiglu, gelu", async () => {
      for (const shape of [[1], [3, 17], [5, 1, 33], [2, 3, 255], [], [40, 2, 511]]) {
        const n = elementCount(shape);
        const [a, c] = [numbers(n, 8).map((v) => 12 * v), numbers(n, 9).map((v) => 12 * v)];
        await agree((b) => add(b.from(a, shape), b.from(c, shape)), 1e-7);
        await agree((b) => swiglu(b.from(a, shape), b.from(c, shape)), 1e-6); // exp to 2 ulp
        await agree((b) => gelu(b.from(a, shape)), 1e-6);
        for (let mask = 0; mask < 2 ** shape.length; mask++) {
          const small = shape.map((extent, axis) => (mask & (1 << axis) ? 1 : extent));
          const factors = numbers(elementCount(small), 10);
          await agree((b) => mul(b.from(a, shape), b.from(factors, small)), 1e-7);
        }
      }
    });

    it("exp's ends: swiglu of large, infinite and undefined numbers", async () => {
      const gate = Float32Array.of(-1e30, -104, -88, 0, 88, 104, 1e30, Number.NaN);
      const one = new Float32Array(8).fill(1);
      const got = await native.read(swiglu(native.from(gate, [8]), native.from(one, [8])));
      expect(got.slice(3, 7)).toEqual(Float32Array.of(0, 88, 104, 1e30));
      for (const small of got.slice(0, 3)) expect(Math.abs(small)).toBeLessThan(1e-8);
      expect(got[7]).toBeNaN();
    });

    it.each([1, 3, 17, 33, 255, 257, 5120])("rmsNorm, layerNorm: rows of %i", async (n) => {
      const [x, w, bias] = [numbers(7 * n, 11), numbers(n, 12), numbers(n, 13)];
      await agree((b) => rmsNorm(b.from(x, [7, n]), b.from(w, [n]), 1e-5), 2e-6);
      await agree((b) => rmsNorm(b.from(x, [7, n]), null, 1e-5), 2e-6);
      await agree((b) => layerNorm(b.from(x, [7, n]), b.from(w, [n]), b.from(bias, [n]), 1e-5), 4e-6);
    });

    it("rope turns neighbouring pairs", async () => {
      for (const [T, H, d] of [
        [1, 1, 2],
        [5, 3, 6],
        [70, 5, 64],
      ] as const) {
        const [x, turns] = [numbers(T * H * d, 14), numbers(T * d, 15)];
        await agree((b) => rope(b.from(x, [T, H, d]), b.from(turns, [T, d / 2, 2])), 3e-7);
      }
    });

    it("rows, splice, permute and reshape move numbers exactly", async () => {
      const x = numbers(7 * 5 * 3, 16);
      const at = Int32Array.of(6, 0, 3, 3);
      await agree((b) => rows(b.from(x, [7, 5, 3]), at), 0);
      const fresh = numbers(4 * 15, 17);
      await agree((b) => splice(b.from(x, [7, 5, 3]), b.from(fresh, [4, 5, 3]), at), 0);
      await agree((b) => rows(b.from(x, [7, 15]), new Int32Array(0)), 0);
      for (const order of [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
      ])
        await agree((b) => permute(reshape(b.from(x, [105]), [7, 5, 3]), order), 0);
    });

    it("feedForward: down of swiglu of gate and up", async () => {
      const [T, D, F] = [5, 67, 35];
      await agree((b) => {
        const m = (rows: number, columns: number, seed: number) =>
          b.from(numbers(rows * columns, seed), [rows, columns]);
        return feedForward(m(T, D, 56), m(F, D, 57), m(F, D, 58), m(D, F, 59));
      }, sums * 10);
    });

    it("route chooses the same experts, ties to the lower", async () => {
      const ties = Float32Array.of(1, 3, 3, 2, 3, -1, 0, 0, 0, 0);
      for (const topK of [1, 2, 5]) {
        for (const [logits, T, E] of [
          [numbers(9 * 17, 18), 9, 17],
          [ties, 2, 5],
        ] as const) {
          const [a, c] = [native, reference].map((b) => route(b.from(logits, [T, E]), topK));
          expect(a!.experts).toEqual(c!.experts);
          expect(difference(await native.read(a!.scores), await reference.read(c!.scores))).toBeLessThan(1e-6);
        }
      }
    });

    it.each([
      [1, 1, "f32"],
      [5, 2, "f32"],
      [33, 3, "bf16"],
      [17, 1, "q8_0"],
      [6, 2, "q4_k"],
    ] as const)("experts: %i rows, top %i, %s", async (T, topK, dtype) => {
      const [E, D, F] = [5, 256, 512];
      const bank = (["gate", "up", "down"] as const).map((name, i) => {
        const shape = name === "down" ? [E, D, F] : [E, F, D];
        return viewOf(dtype, shape, stored(dtype, shape, 19 + i));
      });
      const [x, logits] = [numbers(T * D, 22), numbers(T * E, 23)];
      const run = async (b: Backend) => {
        const [gate, up, down] = (await b.load(bank)) as [Tensor, Tensor, Tensor];
        return experts(b.from(x, [T, D]), { gate, up, down }, route(b.from(logits, [T, E]), topK));
      };
      await agree(run, 2 * sums);
    });

    it("crossEntropy leaves negative targets out", async () => {
      for (const V of [1, 7, 257]) {
        const targets = Int32Array.of(0, -1, V - 1, -5, V >> 1);
        const logits = numbers(5 * V, 24).map((v) => 20 * v);
        await agree((b) => crossEntropy(b.from(logits, [5, V]), targets), 1e-6);
      }
    });

    describe("attend", () => {
      // Softmax weights carry exp's 2 ulp and the scores' rounding; results are averages of values below 1.
      const tolerance = 4e-6;

      /** Segments laid end to end. */
      const laid = (
        ...parts: readonly (readonly [position: number, length: number, sequence: number])[]
      ): Segment[] => {
        let row = 0;
        return parts.map(([position, length, sequence]) => {
          row += length;
          return { row: row - length, length, position, sequence };
        });
      };
      const inputs = (b: Backend, T: number, H: number, K: number, d: number, seed: number) =>
        [
          b.from(
            numbers(T * H * d, seed).map((v) => 4 * v),
            [T, H, d],
          ),
          b.from(numbers(T * K * d, seed + 1), [T, K, d]),
          b.from(numbers(T * K * d, seed + 2), [T, K, d]),
        ] as const;

      it.each([
        [1, 1, 1, 2],
        [3, 4, 2, 7],
        [70, 5, 1, 33],
        [67, 6, 3, 64],
      ])("without a cache: %i rows, %i heads on %i, width %i", async (T, H, K, d) => {
        const whole = laid([0, T, 0]);
        const cut = T > 2 ? laid([0, 2, 0], [0, T - 2, 1]) : whole;
        for (const segments of [whole, cut]) {
          await agree((b) => attend(...inputs(b, T, H, K, d, 25), { segments }), tolerance);
          await agree((b) => attend(...inputs(b, T, H, K, d, 25), { segments, chunk: 16 }), tolerance);
          await agree((b) => attend(...inputs(b, T, H, K, d, 25), { segments, causal: false }), tolerance);
        }
      });

      it("several stretches of keys, without a cache", async () => {
        await agree((b) => attend(...inputs(b, 1500, 2, 1, 8, 26), { segments: laid([0, 1500, 0]) }), tolerance);
      });

      /** Steps of one or two sequences through a cache with shuffled blocks. */
      const cached = (
        b: Backend,
        steps: readonly Segment[][],
        o: { chunk?: number; blockSize: number; blocks: number; dtype: KVDType; headDim?: number },
      ) => {
        const [H, K, d] = [6, 2, o.headDim ?? 20];
        const pool = b.kvPool({
          layers: 2,
          blocks: o.blocks,
          blockSize: o.blockSize,
          heads: K,
          headDim: d,
          dtype: o.dtype,
        });
        // Sequence 0 has the odd blocks from the end, sequence 1 the even ones.
        const table = (sequence: number) =>
          Int32Array.from({ length: o.blocks >> 1 }, (_, i) => o.blocks - 1 - 2 * i - sequence);
        const cache: LayerCache = { pool, layer: 1, table };
        const parts = steps.map((segments, i) => {
          const T = segments.reduce((n, s) => n + s.length, 0);
          return attend(...inputs(b, T, H, K, d, 30 + 3 * i), { segments, cache, ...(o.chunk && { chunk: o.chunk }) });
        });
        return { parts, pool };
      };
      const compare = async (
        steps: readonly Segment[][],
        o: { chunk?: number; blockSize: number; blocks: number; dtype: KVDType; headDim?: number },
        tol: number,
      ) => {
        const [a, c] = [cached(native, steps, o), cached(reference, steps, o)];
        for (const [i, part] of a.parts.entries())
          expect(difference(await native.read(part), await reference.read(c.parts[i]!))).toBeLessThanOrEqual(tol);
        a.pool.close();
      };
      const steps = [
        laid([0, 5, 0]),
        laid([5, 1, 0], [0, 19, 1]),
        laid([19, 1, 1], [6, 2, 0]),
        laid([8, 8, 0], [20, 3, 1]),
        laid([16, 1, 0], [23, 1, 1]),
      ];

      it("through a cache, two sequences in mixed steps", async () => {
        for (const blockSize of [1, 4, 7, 64]) await compare(steps, { blockSize, blocks: 64, dtype: "f32" }, tolerance);
      });

      it("through a cache with chunks: slots are positions modulo the chunk", async () => {
        const chunked = [
          laid([0, 16, 0]),
          laid([16, 3, 0], [0, 1, 1]),
          laid([19, 1, 0], [1, 15, 1]),
          laid([20, 12, 0], [16, 2, 1]),
        ];
        for (const blockSize of [4, 16])
          await compare(chunked, { chunk: 16, blockSize, blocks: 8, dtype: "f32" }, tolerance);
      });

      it("through a cache of float16: values are rounded as they are written", async () => {
        for (const blockSize of [5, 16, 64]) await compare(steps, { blockSize, blocks: 64, dtype: "f16" }, tolerance);
      });

      // Queries keep 16 bits beside int8 keys: scores, up to 10 here, are off by some 2⁻¹⁶ of that.
      it("through a cache of q8_0", async () => {
        for (const [blockSize, headDim] of [
          [5, 32],
          [16, 64],
          [64, 128],
        ] as const)
          await compare(steps, { blockSize, blocks: 64, dtype: "q8_0", headDim }, 2e-4);
      });

      it("a number that float16 cannot hold shows in the results, in place of what its slot held", async () => {
        for (const dtype of ["f16", "q8_0"] as const) {
          const pool = native.kvPool({ layers: 1, blocks: 1, blockSize: 16, heads: 1, headDim: 32, dtype });
          const x = native.from(
            new Float32Array(64).map((_, i) => (i === 40 ? 1e9 : 1)),
            [2, 1, 32],
          );
          const q = native.from(new Float32Array(64), [2, 1, 32]);
          const k = native.from(new Float32Array(64), [2, 1, 32]);
          const cache = { pool, layer: 0, table: () => Int32Array.of(0) };
          const y = await native.read(attend(q, k, x, { segments: laid([0, 2, 0]), cache }));
          expect(Number.isFinite(y[40])).toBe(false);
          pool.close();
        }
      });

      // Queries share tiles of keys; a weight of 0 would not keep an infinity out.
      it("what later slots hold does not reach earlier queries", async () => {
        const [H, K, d, T] = [4, 2, 32, 40];
        const last = new Set([...Array(K * d).keys()].map((i) => (T - 1) * K * d + i));
        for (const dtype of ["f32", "f16", "q8_0"] as const)
          for (const bad of [Infinity, Number.NaN]) {
            const pool = native.kvPool({ layers: 1, blocks: 4, blockSize: 16, heads: K, headDim: d, dtype });
            const cache = { pool, layer: 0, table: () => Int32Array.of(2, 0, 1) };
            const run = (spoil: boolean) => {
              const x = (heads: number, seed: number) =>
                native.from(
                  numbers(T * heads * d, seed).map((v, i) => (spoil && heads === K && last.has(i) ? bad : v)),
                  [T, heads, d],
                );
              return native.read(attend(x(H, 28), x(K, 29), x(K, 30), { segments: laid([0, T, 0]), cache }));
            };
            const [clean, spoiled] = [await run(false), await run(true)];
            expect(spoiled.subarray(0, (T - 1) * H * d)).toEqual(clean.subarray(0, (T - 1) * H * d));
            expect(spoiled.subarray((T - 1) * H * d).every(Number.isFinite)).toBe(false);
            pool.close();
          }
      });

      it("q8_0 needs heads of whole blocks", () => {
        for (const b of [native, reference])
          expect(() => b.kvPool({ layers: 1, blocks: 1, blockSize: 4, heads: 1, headDim: 20, dtype: "q8_0" })).toThrow(
            "the cache's dtype is q8_0 and a head has 20 elements; expected a multiple of 32, or f16",
          );
      });

      // What prefix sharing and speculative decoding rely on.
      it.each([
        ["f32", 20, undefined],
        ["f16", 64, undefined],
        ["q8_0", 32, undefined],
        ["f16", 48, 1280],
      ] as const)(
        "%s, width %i, chunk %s: a query's result is the same, to the bit, for any slices, company and threads",
        async (dtype, d, chunk) => {
          const [H, K, T] = [10, 2, 2500];
          const [q, k, v] = [25, 26, 27].map((seed, i) => numbers(T * (i ? K : H) * d, seed));
          /** The sequence in slices; with `company` each step begins with tokens of another sequence. */
          const run = async (slices: readonly number[], threads: number, company: number) => {
            const b = openNative({ threads, isa });
            const pool = b.kvPool({ layers: 1, blocks: 200, blockSize: 32, heads: K, headDim: d, dtype });
            const table = (sequence: number) => Int32Array.from({ length: 100 }, (_, i) => 2 * i + sequence);
            const cache = { pool, layer: 0, table };
            const y = new Float32Array(T * H * d);
            let position = 0;
            for (const length of slices) {
              const part = (x: Float32Array, heads: number) => {
                const rows = new Float32Array((company + length) * heads * d);
                rows.set(x.subarray(0, company * heads * d));
                rows.set(x.subarray(position * heads * d, (position + length) * heads * d), company * heads * d);
                return b.from(rows, [company + length, heads, d]);
              };
              const segments = laid(...(company ? [[0, company, 1] as const] : []), [position, length, 0]);
              const span = { segments, cache, ...(chunk && { chunk }) };
              const rows = await b.read(attend(part(q!, H), part(k!, K), part(v!, K), span));
              y.set(rows.subarray(company * H * d), position * H * d);
              position += length;
            }
            b.close();
            return y;
          };
          const whole = await run([1280, 1220], 2, 0);
          expect(await run([1280, 1219, 1], 1, 0)).toEqual(whole);
          expect(await run([...new Array<number>(20).fill(64), 1000, 1, 1, 7, 30, 100, 81], 3, 40)).toEqual(whole);
        },
      );
    });

    it("results do not depend on the number of threads, to the bit", async () => {
      const bytes = stored("q8_0", [65, 96], 40);
      const x = numbers(9 * 96, 41);
      const results = [];
      for (const threads of [1, 2, 3]) {
        for (const activations of ["f32", "int8"] as const) {
          const b = openNative({ threads, activations, isa });
          const [w] = await b.load([viewOf("q8_0", [65, 96], bytes)]);
          const h = linear(b.from(x, [9, 96]), w!);
          const qkv = reshape(linear(h, b.from(numbers(64 * 65, 42), [64, 65])), [9, 4, 16]);
          results.push({
            activations,
            y: await b.read(attend(qkv, qkv, qkv, { segments: [{ row: 0, length: 9, position: 0, sequence: 0 }] })),
          });
          b.close();
        }
      }
      for (const { activations, y } of results)
        expect(y).toEqual(results.find((r) => r.activations === activations)!.y);
    });

    describe("with int8 activations", () => {
      let rounded: NativeBackend;
      beforeAll(() => {
        rounded = openNative({ threads: 2, activations: "int8", isa });
      });
      afterAll(() => rounded.close());

      // The specification of this mode: x becomes d·q in blocks of 32, d = max|x| / 127, q to the nearest; the rest is exact.
      const roundedRows = (x: Float32Array): Float64Array => {
        const out = new Float64Array(x.length);
        for (let b = 0; b < x.length; b += 32) {
          const block = x.subarray(b, b + 32);
          const d = Math.fround(block.reduce((m, v) => Math.max(m, Math.abs(v)), 0) / 127);
          for (let i = 0; i < block.length; i++) out[b + i] = d && d * Math.round(block[i]! / d);
        }
        return out;
      };

      it.each(["q8_0", "q4_0", "q4_k", "q5_k", "q6_k"] as const)(
        "linear of %s = the product with rounded x",
        async (dtype) => {
          for (const [T, I, O] of [
            [1, 256, 1],
            [2, 768, 19],
            [3, 512, 33],
            [5, 256, 17],
            [37, 1280, 35],
          ] as const) {
            const view = viewOf(dtype, [O, I], stored(dtype, [O, I], 43));
            const x = numbers(T * I, 44);
            const [[w], [exact]] = (await Promise.all([rounded.load([view]), reference.load([view])])) as [
              [Tensor],
              [Tensor],
            ];
            const y = await rounded.read(linear(rounded.from(x, [T, I]), w));
            const same = await reference.read(linear(reference.from(roundedRows(x), [T, I]), exact));
            // A tie may round to the other side: one step of one of I numbers, below 1/(127·√I) of the result's spread.
            expect(difference(y, same)).toBeLessThan(1e-3);
            const truth = await reference.read(linear(reference.from(x, [T, I]), exact));
            // Each x is off by at most max|x| / 254, evenly spread: some 0.4 % of the results' spread.
            if (T * O > 1) expect(spread(y, truth)).toBeLessThan(0.008);
          }
        },
      );

      it.each(["q8_0", "q4_0", "q4_k", "q5_k", "q6_k"] as const)(
        "%s: a row's products have the same bits alone, among a few and among many",
        async (dtype) => {
          const [I, O] = [1280, 49]; // an odd number of groups of 16 rows, the last not full
          const [w] = await rounded.load([viewOf(dtype, [O, I], stored(dtype, [O, I], 47))]);
          const x = numbers(600 * I, 48);
          const all = await rounded.read(linear(rounded.from(x, [600, I]), w!));
          for (const [first, T] of [
            [0, 1],
            [3, 2],
            [7, 5],
            [17, 6],
            [33, 7],
            [555, 45],
          ] as const) {
            const some = rounded.from(x.subarray(first * I, (first + T) * I), [T, I]);
            expect(await rounded.read(linear(some, w!))).toEqual(all.subarray(first * O, (first + T) * O));
          }
        },
      );

      it.each([
        ["q8_0", "q8_0", 1, 1],
        ["q4_k", "q6_k", 9, 1],
        ["q4_0", "q4_0", 40, 2],
        ["q4_k", "f16", 5, 2],
      ] as const)("experts of %s and %s: %i rows, top %i = one feedForward each", async (dtype, downType, T, topK) => {
        const [D, F, E] = [256, 256, 3];
        const load = (type: DType, shape: Shape, seed: number) => viewOf(type, shape, stored(type, shape, seed));
        const [gate, up, down, ...each] = (await rounded.load([
          load(dtype, [E, F, D], 49),
          load(dtype, [E, F, D], 50),
          load(downType, [E, D, F], 51),
          ...Array.from({ length: E }, (_, e) => [
            slice(load(dtype, [E, F, D], 49), e),
            slice(load(dtype, [E, F, D], 50), e),
            slice(load(downType, [E, D, F], 51), e),
          ]).flat(),
        ])) as [Tensor, Tensor, Tensor, ...Tensor[]];
        const x = numbers(T * D, 52);
        const routes = route(rounded.from(numbers(T * E, 53), [T, E]), topK);
        const y = await rounded.read(await experts(rounded.from(x, [T, D]), { gate, up, down }, routes));
        const scores = await rounded.read(routes.scores);
        const expected = new Float64Array(T * D);
        for (let t = 0; t < T; t++)
          for (let k = 0; k < topK; k++) {
            const e = routes.experts[t * topK + k]!;
            const scaled = x.subarray(t * D, (t + 1) * D).map((v) => v * scores[t * topK + k]!);
            const one = feedForward(rounded.from(scaled, [1, D]), each[3 * e]!, each[3 * e + 1]!, each[3 * e + 2]!);
            for (const [i, v] of (await rounded.read(one)).entries()) expected[t * D + i]! += v;
          }
        // The score scales x before it is rounded there and the sums after here, so that ties may fall the other way.
        expect(difference(y, expected)).toBeLessThan(2e-3);
      });

      it("packed matrices read back as their formats define them", async () => {
        for (const dtype of ["q8_0", "q4_0", "q4_k", "q5_k", "q6_k"] as const) {
          const view = viewOf(dtype, [2, 19, 512], stored(dtype, [2, 19, 512], 54));
          const [[a], [b]] = (await Promise.all([rounded.load([view]), reference.load([view])])) as [
            [Tensor],
            [Tensor],
          ];
          expect(await rounded.read(a)).toEqual(Float32Array.from(await reference.read(b)));
          const table = viewOf(dtype, [35, 512], stored(dtype, [35, 512], 55));
          const [[c], [d]] = (await Promise.all([rounded.load([table]), reference.load([table])])) as [
            [Tensor],
            [Tensor],
          ];
          const ids = Int32Array.of(34, 0, 17, 16, 34);
          expect(await rounded.read(embed(c, ids))).toEqual(Float32Array.from(await reference.read(embed(d, ids))));
        }
      });

      it("linear of bf16: x is rounded to bf16 where the processor multiplies them, else not at all", async () => {
        for (const [T, I, O] of [
          [1, 77, 19],
          [6, 300, 33],
          [7, 1, 1],
          [17, 77, 19],
          [70, 1031, 37],
          [530, 64, 13],
        ] as const) {
          const view = viewOf("bf16", [O, I], stored("bf16", [O, I], 47));
          const x = numbers(T * I, 48);
          const [[w], [exact]] = (await Promise.all([rounded.load([view]), reference.load([view])])) as [
            [Tensor],
            [Tensor],
          ];
          const y = await rounded.read(linear(rounded.from(x, [T, I]), w));
          const product = (values: Float32Array) => reference.read(linear(reference.from(values, [T, I]), exact));
          const bf16 = x.map((v) => bf16ToF32(f32ToBf16(v)));
          const [unrounded, same] = [difference(y, await product(x)), difference(y, await product(bf16))];
          expect(Math.min(unrounded, same)).toBeLessThanOrEqual(sums);
          const bias = numbers(O, 49);
          const sum = await rounded.read(linear(rounded.from(x, [T, I]), w, rounded.from(bias, [O])));
          expect(
            difference(
              sum,
              y.map((v, i) => v + bias[i % O]!),
            ),
          ).toBeLessThanOrEqual(1e-7);
        }
      });

      it("weights without an integer kernel are computed exactly", async () => {
        const view = viewOf("q5_0", [9, 64], stored("q5_0", [9, 64], 45));
        const x = numbers(64, 46);
        const [[w], [exact]] = (await Promise.all([rounded.load([view]), reference.load([view])])) as [
          [Tensor],
          [Tensor],
        ];
        const y = await rounded.read(linear(rounded.from(x, [1, 64]), w));
        expect(difference(y, await reference.read(linear(reference.from(x, [1, 64]), exact)))).toBeLessThan(sums);
      });

      it("what is not a number stays visible, in its own row only", async () => {
        const [w] = await rounded.load([viewOf("q4_0", [20, 64], stored("q4_0", [20, 64], 60))]);
        for (const broken of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
          const x = numbers(2 * 64, 61);
          x[40] = broken;
          const y = await rounded.read(linear(rounded.from(x, [2, 64]), w!));
          expect([...y].map(Number.isNaN)).toEqual(Array.from({ length: 40 }, (_, i) => i < 20));
        }
      });

      it("zero rows stay zero, extreme weights do not overflow", async () => {
        const blocks = new Uint8Array(34 * 4).fill(0x80); // every q = -128
        for (let b = 0; b < 4; b++) new DataView(blocks.buffer).setUint16(34 * b, f32ToF16(1), true);
        const [w] = await rounded.load([viewOf("q8_0", [1, 128], blocks)]);
        const y = await rounded.read(linear(rounded.from(new Float32Array(128), [1, 128]), w!));
        expect(y).toEqual(Float32Array.of(0));
        const ones = await rounded.read(linear(rounded.from(new Float32Array(128).fill(-1), [1, 128]), w!));
        expect(difference(ones, [128 * 128])).toBeLessThan(1e-6);
      });
    });

    it("any sizes: linear, rmsNorm and attend agree", async () => {
      const size = (max: number) => fc.integer({ min: 1, max });
      await fc.assert(
        fc.asyncProperty(
          size(20),
          size(70),
          size(40),
          size(3),
          size(3),
          size(24),
          fc.integer(),
          async (T, I, O, K, group, d, seed) => {
            const [x, w] = [numbers(T * I, seed), numbers(O * I, seed + 1)];
            await agree((b) => linear(rmsNorm(b.from(x, [T, I]), null, 1e-5), b.from(w, [O, I])), 2 * sums);
            const heads = numbers(T * K * group * d, seed + 2);
            const keys = numbers(T * K * d, seed + 3);
            await agree((b) => {
              const q = b.from(heads, [T, K * group, d]);
              const kv = b.from(keys, [T, K, d]);
              return attend(q, kv, kv, { segments: [{ row: 0, length: T, position: 0, sequence: 0 }], chunk: 8 });
            }, 4e-6);
          },
        ),
        { numRuns: 60 },
      );
    });
  });
}

// Skipped only where there is no addon, with what loading it said; a file without a test would fail instead.
if (isas.length === 0) it.skip(`the native backend is not built: ${why}`, () => {});

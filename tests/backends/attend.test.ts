// Attention on each instruction set against the reference in f64: shapes, caches, chunks, slices.

import { afterAll, beforeAll, expect, it } from "vitest";
import { type NativeBackend, openNative } from "../../src/backends/native/backend.ts";
import type { Backend, KVDType, LayerCache, Segment } from "../../src/tensor/backend.ts";
import { attend, rows } from "../../src/tensor/ops.ts";
import type { Tensor } from "../../src/tensor/tensor.ts";
import { onEachIsa } from "../addon.ts";
import { agree, difference, numbers, reference } from "./drawn.ts";

onEachIsa(
  (isa) => `attend on ${isa} = reference`,
  (isa) => {
    let native: NativeBackend;
    beforeAll(() => {
      native = openNative({ threads: 2, activations: "f32", isa });
    });
    afterAll(() => native.close());

    // Softmax weights carry exp's 2 ulp and the scores' rounding; results are averages of values below 1.
    const tolerance = 4e-6;

    /** Segments laid end to end. */
    const laid = (...parts: readonly (readonly [position: number, length: number, sequence: number])[]): Segment[] => {
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
        await agree(native, (b) => attend(...inputs(b, T, H, K, d, 25), { segments }), tolerance);
        await agree(native, (b) => attend(...inputs(b, T, H, K, d, 25), { segments, chunk: 16 }), tolerance);
        await agree(native, (b) => attend(...inputs(b, T, H, K, d, 25), { segments, causal: false }), tolerance);
      }
    });

    it("several stretches of keys, without a cache", async () => {
      await agree(native, (b) => attend(...inputs(b, 1500, 2, 1, 8, 26), { segments: laid([0, 1500, 0]) }), tolerance);
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
        [24, 96], // whole panels and a narrow one in a tile
        [40, 32],
        [64, 128],
      ] as const) {
        await compare(steps, { blockSize, blocks: 64, dtype: "q8_0", headDim }, 2e-4);
        await compare(steps, { chunk: 40, blockSize, blocks: 64, dtype: "q8_0", headDim }, 2e-4);
      }
    });

    it("q8_0: a value of great weight is exact beside one that is great and of small weight", async () => {
      const [T, d] = [8, 32];
      const only = (at: number, x: number) =>
        new Float32Array(T * d).map((_, i) => (i % d === 0 && (at < 0 || i === at * d) ? x : 0));
      const values = numbers(T * d, 31).map((v, i) => v * (i >= 2 * d && i < 3 * d ? 0.001 : 10));
      await agree(
        native,
        (b) => {
          const pool = b.kvPool({ layers: 1, blocks: 1, blockSize: 16, heads: 1, headDim: d, dtype: "q8_0" });
          const cache = { pool, layer: 0, table: () => Int32Array.of(0) };
          const [q, k, v] = [only(-1, 30), only(2, 3), values].map((x) => b.from(x, [T, 1, d])) as [
            Tensor,
            Tensor,
            Tensor,
          ];
          // what the last query sees: e^15.9 times as much of the third value, of 0.001, as of the others, of 10
          return rows(attend(q, k, v, { segments: laid([0, T, 0]), cache }), Int32Array.of(T - 1));
        },
        1e-4, // of the largest: int16 for weights and queries
      );
    });

    it("a key that is not a number shows in all queries that see it, wherever it stands", async () => {
      const d = 32;
      const spoiled = async (dtype: KVDType, T: number, slot: number) => {
        const pool = native.kvPool({
          layers: 1,
          blocks: Math.ceil(T / 64),
          blockSize: 64,
          heads: 1,
          headDim: d,
          dtype,
        });
        const cache = { pool, layer: 0, table: () => Int32Array.from({ length: pool.spec.blocks }, (_, i) => i) };
        const [q, k, v] = [28, 29, 30].map((seed) => numbers(T * d, seed)) as [
          Float32Array,
          Float32Array,
          Float32Array,
        ];
        k.fill(Number.NaN, slot * d, (slot + 1) * d);
        const [x, keys, values] = [q, k, v].map((x) => native.from(x, [T, 1, d])) as [Tensor, Tensor, Tensor];
        const y = await native.read(attend(x, keys, values, { segments: laid([0, T, 0]), cache }));
        pool.close();
        return [y.subarray(0, slot * d).every(Number.isFinite), y.subarray(slot * d).some(Number.isFinite)];
      };
      for (const dtype of ["f32", "f16", "q8_0"] as const) {
        for (let slot = 0; slot < 64; slot++) expect(await spoiled(dtype, 130, slot)).toEqual([true, false]);
        expect(await spoiled(dtype, 1100, 1024)).toEqual([true, false]); // alone in its stretch
      }
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
      ["q8_0", 64, undefined],
      ["f16", 48, 1280],
    ] as const)(
      "%s, width %i, chunk %s: a query's result is the same, to the bit, for any slices, company and threads",
      async (dtype, d, chunk) => {
        const [H, K, T] = [10, 2, 2500];
        const [q, k, v] = [25, 26, 27].map((seed, i) => numbers(T * (i ? K : H) * d, seed));
        /** The sequence in slices; with `company` each step begins with tokens of another sequence. */
        const run = async (slices: readonly number[], threads: number, company: number) => {
          const b = openNative({ threads, isa });
          const blockSize = dtype === "q8_0" ? 24 : 32; // narrow panels
          const pool = b.kvPool({ layers: 1, blocks: 220, blockSize, heads: K, headDim: d, dtype });
          const table = (sequence: number) => Int32Array.from({ length: 110 }, (_, i) => 2 * i + sequence);
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
  },
);

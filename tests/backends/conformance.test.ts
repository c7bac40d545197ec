// One suite for every backend that computes fast: each operation, on each instruction set that this machine has, against
// the reference in f64. Values are drawn by a seeded generator; sizes are odd so that no vector's width divides them.

import fc from "fast-check";
import { afterAll, beforeAll, expect, it } from "vitest";
import { type NativeBackend, openNative } from "../../src/backends/native/backend.ts";
import type { Backend } from "../../src/tensor/backend.ts";
import { type DType, dtypes, isQuantized } from "../../src/tensor/dtype.ts";
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
  qkv,
  reshape,
  rmsNorm,
  rope,
  route,
  rows,
  splice,
  swiglu,
} from "../../src/tensor/ops.ts";
import { elementCount, type Shape, type Tensor } from "../../src/tensor/tensor.ts";
import { onEachIsa } from "../addon.ts";
import { agree, difference, numbers, reference, stored, sums, viewOf } from "./drawn.ts";

onEachIsa(
  (isa) => `native on ${isa} = reference`,
  (isa) => {
    let native: NativeBackend;
    beforeAll(() => {
      native = openNative({ threads: 2, activations: "f32", isa });
    });
    afterAll(() => native.close());

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
      await agree(native, (b) => linear(b.from(x, [T, I]), b.from(w, [O, I])), sums);
      await agree(native, (b) => linear(b.from(x, [T, I]), b.from(w, [O, I]), b.from(bias, [O])), sums);
    });

    it.each(Object.keys(dtypes) as DType[])("linear, embed: weights stored as %s", async (dtype) => {
      const I = dtypes[dtype].blockElements === 1 ? 77 : 512;
      const O = 19;
      const bytes = stored(dtype, [O, I], 4);
      const weights = await Promise.all([native, reference].map((b) => b.load([viewOf(dtype, [O, I], bytes)])));
      const weightOf = (b: Backend) => weights[b === native ? 0 : 1]![0]!;
      for (const T of [1, 2, 6, 9, 39]) {
        const x = numbers(T * I, 5);
        await agree(native, (b) => linear(b.from(x, [T, I]), weightOf(b)), sums);
      }
      await agree(native, (b) => embed(weightOf(b), Int32Array.of(3, 18, 0, 3)), 1e-7); // each value is one rounding
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
        await agree(native, (b) => add(b.from(a, shape), b.from(c, shape)), 1e-7);
        await agree(native, (b) => swiglu(b.from(a, shape), b.from(c, shape)), 1e-6); // exp to 2 ulp
        await agree(native, (b) => gelu(b.from(a, shape)), 1e-6);
        for (let mask = 0; mask < 2 ** shape.length; mask++) {
          const small = shape.map((extent, axis) => (mask & (1 << axis) ? 1 : extent));
          const factors = numbers(elementCount(small), 10);
          await agree(native, (b) => mul(b.from(a, shape), b.from(factors, small)), 1e-7);
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
      const ends = await native.read(
        swiglu(native.from(Float32Array.of(-3e38, -89, -Infinity, Infinity), [4]), native.from(one.slice(4), [4])),
      );
      expect(ends).toEqual(Float32Array.of(-0, -0, Number.NaN, Infinity));
    });

    it.each([1, 3, 17, 33, 255, 257, 5120])("rmsNorm, layerNorm: rows of %i", async (n) => {
      const [x, w, bias] = [numbers(7 * n, 11), numbers(n, 12), numbers(n, 13)];
      await agree(native, (b) => rmsNorm(b.from(x, [7, n]), b.from(w, [n]), 1e-5), 2e-6);
      await agree(native, (b) => rmsNorm(b.from(x, [7, n]), null, 1e-5), 2e-6);
      await agree(native, (b) => layerNorm(b.from(x, [7, n]), b.from(w, [n]), b.from(bias, [n]), 1e-5), 4e-6);
    });

    it("rope turns neighbouring pairs", async () => {
      for (const [T, H, d] of [
        [1, 1, 2],
        [5, 3, 6],
        [70, 5, 64],
      ] as const) {
        const [x, turns] = [numbers(T * H * d, 14), numbers(T * d, 15)];
        await agree(native, (b) => rope(b.from(x, [T, H, d]), b.from(turns, [T, d / 2, 2])), 3e-7);
      }
    });

    it("rows, splice, permute and reshape move numbers exactly", async () => {
      const x = numbers(7 * 5 * 3, 16);
      const at = Int32Array.of(6, 0, 3, 3);
      await agree(native, (b) => rows(b.from(x, [7, 5, 3]), at), 0);
      const fresh = numbers(4 * 15, 17);
      await agree(native, (b) => splice(b.from(x, [7, 5, 3]), b.from(fresh, [4, 5, 3]), at), 0);
      await agree(native, (b) => rows(b.from(x, [7, 15]), new Int32Array(0)), 0);
      for (const order of [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
      ])
        await agree(native, (b) => permute(reshape(b.from(x, [105]), [7, 5, 3]), order), 0);
    });

    it("feedForward: down of swiglu of gate and up", async () => {
      const [T, D, F] = [5, 67, 35];
      await agree(
        native,
        (b) => {
          const m = (rows: number, columns: number, seed: number) =>
            b.from(numbers(rows * columns, seed), [rows, columns]);
          return feedForward(m(T, D, 56), m(F, D, 57), m(F, D, 58), m(D, F, 59));
        },
        sums * 10,
      );
    });

    it("qkv: one x by three matrices", async () => {
      for (const i of [0, 1, 2] as const)
        await agree(
          native,
          (b) => {
            const m = (rows: number, seed: number) => b.from(numbers(rows * 67, seed), [rows, 67]);
            return qkv(m(5, 60), m(35, 61), m(7, 62), m(9, 63))[i];
          },
          sums,
        );
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
      await agree(native, run, 2 * sums);
    });

    it("experts beside a shared one, as wide or not", async () => {
      const [T, E, D] = [6, 3, 64];
      for (const [F, S] of [
        [96, 96],
        [96, 40],
      ] as const)
        await agree(
          native,
          (b) => {
            const m = (shape: Shape, seed: number) => b.from(numbers(elementCount(shape), seed), shape);
            const bank = { gate: m([E, F, D], 70), up: m([E, F, D], 71), down: m([E, D, F], 72) };
            const shared = { gate: m([S, D], 73), up: m([S, D], 74), down: m([D, S], 75) };
            return experts(m([T, D], 76), bank, route(m([T, E], 77), 2), shared);
          },
          10 * sums,
        );
    });

    it("crossEntropy leaves negative targets out", async () => {
      for (const V of [1, 7, 257]) {
        const targets = Int32Array.of(0, -1, V - 1, -5, V >> 1);
        const logits = numbers(5 * V, 24).map((v) => 20 * v);
        await agree(native, (b) => crossEntropy(b.from(logits, [5, V]), targets), 1e-6);
      }
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
            await agree(native, (b) => linear(rmsNorm(b.from(x, [T, I]), null, 1e-5), b.from(w, [O, I])), 2 * sums);
            const heads = numbers(T * K * group * d, seed + 2);
            const keys = numbers(T * K * d, seed + 3);
            await agree(
              native,
              (b) => {
                const q = b.from(heads, [T, K * group, d]);
                const kv = b.from(keys, [T, K, d]);
                return attend(q, kv, kv, { segments: [{ row: 0, length: T, position: 0, sequence: 0 }], chunk: 8 });
              },
              4e-6,
            );
          },
        ),
        { numRuns: 60 },
      );
    });
  },
);

// Products of packed weights with activations rounded to int8, on each instruction set: what the mode says, and no more.

import { afterAll, beforeAll, expect, it } from "vitest";
import { type NativeBackend, openNative } from "../../src/backends/native/backend.ts";
import { bf16ToF32, type DType, f32ToBf16, f32ToF16 } from "../../src/tensor/dtype.ts";
import { add, embed, experts, feedForward, linear, qkv, route } from "../../src/tensor/ops.ts";
import type { Shape, Tensor } from "../../src/tensor/tensor.ts";
import { onEachIsa } from "../addon.ts";
import { difference, numbers, reference, slice, spread, stored, sums, viewOf } from "./drawn.ts";

onEachIsa(
  (isa) => `with int8 activations on ${isa}`,
  (isa) => {
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
          [131, 2816, 99], // three chunks of columns on any instruction set, and a panel of rows that is not full
          // blocks of 32: an odd number of them in a row, and fewer than any pass takes
          ...(dtype === "q8_0" || dtype === "q4_0"
            ? ([
                [13, 32, 20],
                [19, 288, 33],
              ] as const)
            : []),
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
        // An odd number of groups of 16 rows, the last not full: of a panel; of panels that one token of q8_0 takes two at a time.
        for (const [I, O] of [
          [1280, 49],
          [512, 859],
        ] as const) {
          const [w] = await rounded.load([viewOf(dtype, [O, I], stored(dtype, [O, I], 47))]);
          const x = numbers(600 * I, 48);
          const all = await rounded.read(linear(rounded.from(x, [600, I]), w!));
          for (const [first, T] of [
            [0, 1],
            [3, 2],
            [44, 3],
            [7, 5],
            [17, 6],
            [33, 7],
            [555, 45],
            [0, 513],
          ] as const) {
            const some = rounded.from(x.subarray(first * I, (first + T) * I), [T, I]);
            expect(await rounded.read(linear(some, w!))).toEqual(all.subarray(first * O, (first + T) * O));
          }
        }
      },
    );

    it.each([
      ["q8_0", "q8_0", 1, 1],
      ["q4_k", "q6_k", 9, 1],
      ["q4_0", "q4_0", 40, 2],
      ["q4_0", "f16", 40, 1],
      ["q4_k", "f16", 5, 2],
    ] as const)("experts of %s and %s: %i rows, top %i = one feedForward each", async (dtype, downType, T, topK) => {
      const [D, F, E] = [dtype === "q4_0" ? 288 : 256, 256, 3]; // 288: an odd number of blocks in a row
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

    it.each([
      ["q8_0", 1, 1],
      ["q4_k", 3, 1],
      ["q4_0", 40, 2],
    ] as const)(
      "three products of %s and a shared expert beside others are what each is alone: %i rows, top %i",
      async (dtype, T, topK) => {
        const [D, F, E] = [256, 512, 3];
        const load = (shape: Shape, seed: number) => viewOf(dtype, shape, stored(dtype, shape, seed));
        const shapes: Shape[] = [
          [E, F, D],
          [E, F, D],
          [E, D, F],
          [F, D],
          [F, D],
          [D, F],
          [D, D],
        ];
        const [gate, up, down, sharedGate, sharedUp, sharedDown, square] = (await rounded.load(
          shapes.map((shape, i) => load(shape, 80 + i)),
        )) as [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor];
        const x = rounded.from(numbers(T * D, 90), [T, D]);
        const routes = route(rounded.from(numbers(T * E, 91), [T, E]), topK);
        const shared = { gate: sharedGate, up: sharedUp, down: sharedDown };
        const apart = add(
          feedForward(x, sharedGate, sharedUp, sharedDown),
          await experts(x, { gate, up, down }, routes),
        );
        const together = await experts(x, { gate, up, down }, routes, shared);
        expect(await rounded.read(together)).toEqual(await rounded.read(apart));
        for (const [i, y] of qkv(x, sharedGate, square, sharedUp).entries())
          expect(await rounded.read(y)).toEqual(await rounded.read(linear(x, [sharedGate, square, sharedUp][i]!)));
      },
    );

    it("packed matrices read back as their formats define them", async () => {
      for (const dtype of ["q8_0", "q4_0", "q4_k", "q5_k", "q6_k"] as const) {
        const view = viewOf(dtype, [2, 19, 512], stored(dtype, [2, 19, 512], 54));
        const [[a], [b]] = (await Promise.all([rounded.load([view]), reference.load([view])])) as [[Tensor], [Tensor]];
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

    it.each([
      ["q4_0", 18, [0], []],
      ["q4_k", 144, [0], [2, 3]],
      ["q5_k", 176, [0], [2, 3]],
      ["q6_k", 210, [208], []],
    ] as const)("%s: the least and the most of all integers keep their sums", async (dtype, size, ones, zeros) => {
      // All integers alike or by turns, with rows of x at both ends of what is rounded, each against each.
      for (const fill of [0x00, 0xff, 0x0f, 0xf0, 0x55, 0xaa]) {
        const [I, O] = [512, 17];
        const blocks = new Uint8Array((size * O * I) / (dtype === "q4_0" ? 32 : 256)).fill(fill);
        for (let at = 0; at < blocks.length; at += size) {
          if (dtype === "q6_k") blocks.fill(5, at + 192, at + 208); // scales
          if (dtype === "q4_k" || dtype === "q5_k") blocks.fill(0x3f, at + 4, at + 16);
          for (const i of ones) new DataView(blocks.buffer).setUint16(at + i, f32ToF16(1), true);
          for (const i of zeros) blocks[at + i] = i === 2 ? 0x00 : 0x38; // dmin: 0.5
        }
        const view = viewOf(dtype, [O, I], blocks);
        const [[w], [exact]] = (await Promise.all([rounded.load([view]), reference.load([view])])) as [
          [Tensor],
          [Tensor],
        ];
        const signs = [() => 1, () => -1, (i: number) => 1 - 2 * (i % 2), (i: number) => 1 - 2 * ((i >> 1) % 2)];
        const x = Float32Array.from({ length: 17 * I }, (_, i) => signs[Math.floor(i / I) % 4]!(i));
        for (const T of [1, 4, 5, 17]) {
          const some = x.subarray(0, T * I);
          const y = await rounded.read(linear(rounded.from(some, [T, I]), w));
          expect(difference(y, await reference.read(linear(reference.from(some, [T, I]), exact)))).toBeLessThan(1e-5);
        }
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
  },
);

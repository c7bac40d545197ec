// The native backend's way back against the reference's in f64, on every instruction set that this machine has.

import fc from "fast-check";
import { afterAll, beforeAll, expect, it } from "vitest";
import { type NativeBackend, openNative } from "../../src/backends/native/backend.ts";
import { layerKinds } from "../../src/model/config.ts";
import { forward } from "../../src/model/transformer.ts";
import type { Backend, Segment } from "../../src/tensor/backend.ts";
import type { Backward } from "../../src/tensor/backward.ts";
import { bf16ToF32, f32ToBf16 } from "../../src/tensor/dtype.ts";
import { crossEntropy, exactLinear, linear } from "../../src/tensor/ops.ts";
import { elementCount, type Shape, type Tensor } from "../../src/tensor/tensor.ts";
import { Tape } from "../../src/train/tape.ts";
import { onEachIsa } from "../addon.ts";
import { difference, integers, numbers, reference, sums } from "../backends/drawn.ts";
import { config, lossOf, weights } from "./small-model.ts";

type Body = (way: Backward, make: (shape: Shape, seed: number) => Tensor, b: Backend) => Record<string, Tensor>;

/** Runs both; every result must be as near as the tolerance, a share of the largest number. */
async function agree(native: Backend, body: Body, tolerance: number, draw = numbers): Promise<void> {
  const run = async (b: Backend) => {
    const results = body(b.backward!, (shape, seed) => b.from(draw(elementCount(shape), seed), shape), b);
    return Promise.all(
      Object.entries(results).map(async ([name, x]) => ({ name, shape: x.shape, x: await b.read(x) })),
    );
  };
  const [got, expected] = [await run(native), await run(reference)];
  for (const [i, { name, shape, x }] of expected.entries()) {
    expect(got[i]!.shape, name).toEqual(shape);
    const some = 0.05; // a gradient of nothing, as by the queries of a single key, is not measured by itself
    expect(difference([...got[i]!.x, some], [...x, some]), name).toBeLessThanOrEqual(tolerance);
  }
}

const segment = (row: number, length: number, position = 0): Segment => ({ row, length, position, sequence: row });

onEachIsa(
  (isa) => `native's way back on ${isa} = reference's`,
  (isa) => {
    let native: NativeBackend;
    beforeAll(() => {
      native = openNative({ threads: 2, isa });
    });
    afterAll(() => native.close());

    // Sums of T, I or O products in float32, like the forward product's.
    it.each([
      [1, 1, 1],
      [3, 17, 5],
      [7, 33, 257],
      [70, 129, 19],
      [300, 31, 40], // more than a panel's depth
      [1037, 14, 51],
    ])("linear: %i rows of %i by %i", (T, I, O) =>
      agree(
        native,
        (way, make) => ({
          dx: way.linearInput(make([T, O], 1), make([O, I], 2)),
          dw: way.linearWeight(make([T, O], 1), make([T, I], 3)),
        }),
        sums,
      ),
    );

    it.each([
      [1, 3, 2],
      [16, 32, 16],
      [17, 33, 48],
      [70, 515, 65],
      [1100, 70, 33], // more than a panel's depth, and more rows than a pass
    ])("linear with factors rounded to bf16, where they are: %i rows of %i by %i", async (T, I, O) => {
      const rounding = openNative({ threads: 2, isa, activations: "bf16" });
      const starts = Int32Array.of(0, T >> 2, T);
      await agree(
        rounding,
        (way, make) => ({
          y: linear(make([T, I], 3), make([O, I], 2)),
          grouped: way.groupedLinear(make([T, I], 3), make([2, O, I], 4), starts),
          dx: way.linearInput(make([T, O], 1), make([2, O, I], 4), starts),
          dw: way.linearWeight(make([T, O], 1), make([T, I], 3)),
        }),
        sums,
        (n, seed) => numbers(n, seed).map((x) => bf16ToF32(f32ToBf16(x))),
      );
      rounding.close();
    });

    it.each([
      [3, 17, 5],
      [70, 515, 8],
    ])("an exact product rounds nothing, there and back: %i rows of %i by %i", async (T, I, O) => {
      const rounding = openNative({ threads: 2, isa, activations: "bf16" });
      await agree(
        rounding,
        (_, make, b) => {
          const tape = new Tape(b);
          const [x, w] = [make([T, I], 3), make([O, I], 2)];
          const watched = tape.watch({ x, w });
          const product = exactLinear(watched.x, watched.w);
          const weights = tape.constant(b.reshape(make([T, O], 1), [1, T * O]));
          const loss = tape.linear(tape.reshape(product, [1, T * O]), weights, undefined, true);
          return { y: exactLinear(x, w), ...tape.gradients(loss, watched) };
        },
        sums,
      );
      rounding.close();
    });

    it.each([
      ["even", [0, 5, 11, 13]],
      ["an expert without rows, one with all", [0, 0, 300, 300]],
      ["one row each", [0, 1, 2, 3]],
    ])("groups of rows: %s", (_, groups) => {
      const starts = Int32Array.from(groups);
      const [n, E, I, O] = [groups.at(-1)!, groups.length - 1, 19, 37];
      return agree(
        native,
        (way, make) => ({
          y: way.groupedLinear(make([n, I], 1), make([E, O, I], 2), starts),
          dx: way.linearInput(make([n, O], 3), make([E, O, I], 2), starts),
          dw: way.linearWeight(make([n, O], 3), make([n, I], 1), starts),
        }),
        sums,
      );
    });

    it.each([1, 3, 17, 33, 257])("norms: rows of %i", (n) =>
      agree(
        native,
        (way, make) => {
          const [x, w, dy] = [make([201, n], 1), make([n], 2), make([201, n], 3)]; // more rows than a block of sums
          const rms = way.rmsNormBackward(x, w, 1e-2, dy);
          const layer = way.layerNormBackward(x, w, 1e-2, dy);
          const plain = way.rmsNormBackward(x, null, 1e-2, dy);
          expect(plain.w).toBeUndefined();
          return { x: rms.x, w: rms.w!, plain: plain.x, layerX: layer.x, layerW: layer.w, layerB: layer.b };
        },
        1e-5, // sums of 201 rows
      ),
    );

    it("swiglu, gelu, scores, cross entropy and the router's loss", async () => {
      for (const n of [1, 7, 33, 20001]) {
        await agree(
          native,
          (way, make, b) => {
            const large = (seed: number) => b.mul(make([n, 1], seed), b.from(Float32Array.of(7), [1, 1]));
            const { gate, up } = way.swigluBackward(large(1), large(2), make([n, 1], 3));
            return { gate, up, gelu: way.geluBackward(large(4), make([n, 1], 5)) };
          },
          1e-6, // exp to 2 ulp
        );
      }
      const choice = { topK: 2, experts: integers(26, 5, 9) };
      const loss = { shares: Float64Array.of(0.1, 0.4, 0, 0.2, 0.3), balance: 0.7, z: 0.3 };
      const targets = Int32Array.of(0, -1, 4, 3, 3, -7, 2, 1, 0, 4, 4, -1, 2);
      await agree(
        native,
        (way, make) => {
          const [logits, one] = [make([13, 5], 6), make([], 7)];
          return {
            scores: way.scores(logits, choice),
            scoresBack: way.scoresBackward(logits, choice, make([13, 2], 8)),
            entropy: way.crossEntropyBackward(logits, targets, one),
            router: way.routerLoss(logits, loss),
            routerBack: way.routerLossBackward(logits, loss, one),
          };
        },
        1e-6,
      );
      for (const V of [1, 33, 257])
        await agree(
          native,
          (way, make) => ({
            d: way.crossEntropyBackward(make([4, V], 1), Int32Array.of(V - 1, -1, 0, V >> 1), make([], 2)),
          }),
          1e-6,
        );
    });

    it.each([
      ["causal", 4, 2, 6, [segment(0, 70), segment(70, 1), segment(71, 129)], {}],
      ["in chunks, from inside one", 6, 2, 9, [segment(0, 150, 32), segment(150, 50)], { chunk: 32 }],
      ["in chunks wider than a tile", 3, 1, 16, [segment(0, 200)], { chunk: 100 }],
      ["all see all", 2, 2, 10, [segment(0, 65), segment(65, 65), segment(130, 70)], { causal: false }],
      ["keys in pieces", 2, 1, 3, [segment(0, 2500)], {}],
      ["more heads to a key head than a tile has rows", 70, 1, 4, [segment(0, 9)], {}],
    ] as const)("attend: %s", (_, H, K, d, segments, kind) => {
      const T = segments.reduce((sum, { length }) => sum + length, 0);
      return agree(
        native,
        (way, make) => {
          const [q, k, v, dy] = [make([T, H, d], 1), make([T, K, d], 2), make([T, K, d], 3), make([T, H, d], 4)];
          const span = { segments, ...kind };
          const { y, lse } = way.attend(q, k, v, span);
          return { y, lse, ...way.attendBackward(q, k, v, y, lse, dy, span) };
        },
        1e-5, // sums of up to 2,500 keys, each through exp to 2 ulp
      );
    });

    it("rows come together and axes are added up", async () => {
      const at = Int32Array.of(3, 0, 3, 6, 3);
      await agree(native, (way, make) => ({ y: way.scatterRows(make([5, 4, 3], 1), at, 8) }), 1e-6);
      for (let mask = 0; mask < 8; mask++) {
        const x = [5, 7, 70];
        const to = x.map((extent, axis) => (mask & (1 << axis) ? 1 : extent));
        await agree(native, (way, make) => ({ y: way.sumTo(make(x, 2), to) }), sums);
      }
      await agree(native, (way, make) => ({ y: way.sumTo(make([9, 130], 3), [1, 130]) }), sums);
    });

    it("any sizes: products and attention", () =>
      fc.assert(
        fc.asyncProperty(
          fc.integer({ min: 1, max: 90 }),
          fc.integer({ min: 1, max: 90 }),
          fc.integer({ min: 1, max: 90 }),
          fc.integer({ min: 1, max: 3 }),
          fc.integer({ min: 1, max: 3 }),
          fc.integer({ min: 1, max: 20 }),
          async (T, I, O, K, group, d) =>
            agree(
              native,
              (way, make) => {
                const [q, k, v] = [make([T, K * group, d], 1), make([T, K, d], 2), make([T, K, d], 3)];
                const span = { segments: [segment(0, T)], chunk: I };
                const { y, lse } = way.attend(q, k, v, span);
                return {
                  dx: way.linearInput(make([T, O], 4), make([O, I], 5)),
                  dw: way.linearWeight(make([T, O], 4), make([T, I], 6)),
                  ...way.attendBackward(q, k, v, y, lse, make([T, K * group, d], 7), span),
                };
              },
              1e-5,
            ),
        ),
        { numRuns: 40 },
      ));

    // A value's rounding moves everything behind it: gradients of the whole model are further apart than an operation's.
    it.each([false, true])("the whole model, recomputed: %s", async (recompute) => {
      const c = { ...config, topK: 2 };
      const gradients = async (b: Backend) => {
        const all: Tensor[] = [];
        const tree = weights(c, (shape, name) =>
          b.from(numbers(elementCount(shape), name.length * 31 + name.charCodeAt(0)), shape),
        );
        const tape = new Tape(b, { recompute });
        const watched = tape.watch(tree);
        const g = tape.gradients(await lossOf(watched, c), watched);
        collect(g, all);
        return Promise.all(all.map((x) => b.read(x)));
      };
      const [got, expected] = [await gradients(native), await gradients(reference)];
      for (const [i, g] of expected.entries()) expect(difference(got[i]!, g)).toBeLessThan(5e-5);
    });

    it("gradients do not depend on the number of threads, nor on recomputation, to the bit", async () => {
      const results = [];
      for (const [threads, recompute] of [
        [1, false],
        [2, false],
        [3, true],
      ] as const) {
        const b = openNative({ threads, isa });
        const tape = new Tape(b, { recompute });
        const p = tape.watch(
          weights(config, (shape, name) => b.from(numbers(elementCount(shape), name.length), shape)),
        );
        const all: Tensor[] = [];
        collect(tape.gradients(await lossOf(p, config), p), all);
        results.push(await Promise.all(all.map((x) => b.read(x))));
        b.close();
      }
      for (const result of results.slice(1)) expect(result).toEqual(results[0]);
    });
    // What a step frees, the next one takes: the memory that a backend has asked for is the most that a step held.
    it("steps take no more memory than the first, and less than half of it with activations recomputed", async () => {
      const c = { ...config, dim: 64, headDim: 16, ffnDim: 160, expertDim: 80, layers: layerKinds(8, 4, 2) };
      const T = 512;
      const [tokens, targets] = [integers(T, c.vocabSize, 1), integers(T, c.vocabSize, 2)];
      const step = { tokens, segments: [segment(0, T)], wanted: tokens.map((_, row) => row) };
      const most: number[] = [];
      for (const recompute of [false, true]) {
        const b = openNative({ threads: 2, isa });
        const tape = new Tape(b, { recompute });
        const p = tape.watch(
          weights(c, (shape, name) => b.from(numbers(elementCount(shape), name.length), shape)).text,
        );
        const took: number[] = [];
        for (let i = 0; i < 4; i++) {
          await b.scope(async () => {
            const loss = crossEntropy(await forward(p, c, step), targets);
            await b.read(tape.gradients(loss, p).norm);
          });
          took.push(b.heldBytes);
        }
        expect(took.slice(1)).toEqual(took.slice(1).map(() => took[0]));
        most.push(took[0]!);
        b.close();
      }
      expect(most[1]! / most[0]!).toBeLessThan(0.5);
    });
  },
);

function collect(tree: unknown, into: Tensor[]): void {
  if (typeof tree !== "object" || tree === null || ArrayBuffer.isView(tree)) return;
  if ("backend" in tree && "data" in tree) into.push(tree as Tensor);
  else for (const part of Object.values(tree)) collect(part, into);
}

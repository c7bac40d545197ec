// What a teacher says, as loss and gradient, as bytes, and asked about once.

import { describe, expect, it } from "vitest";
import { openNative } from "../../src/backends/native/backend.ts";
import { openReference } from "../../src/backends/reference/reference.ts";
import type { TrainingBackend } from "../../src/tensor/backend.ts";
import { elementCount } from "../../src/tensor/tensor.ts";
import type { Batch } from "../../src/train/batches.ts";
import { partOf, StoredTeacher, softShareAt, type Teacher, TeacherModel } from "../../src/train/distil.ts";
import type { Weights } from "../../src/train/leaves.ts";
import {
  decodeSoftTargets,
  distilledLoss,
  encodeSoftTargets,
  type SoftTargets,
  softRowBytes,
  softTargetsOf,
} from "../../src/train/soft-targets.ts";
import { Tape } from "../../src/train/tape.ts";
import { haveAddon } from "../addon.ts";
import { integers, numbers } from "../backends/drawn.ts";
import { config, weights } from "./small-model.ts";

const f64 = openReference({ precision: "f64" }) as TrainingBackend;
const [n, V] = [9, 13];
const drawn = (seed: number, scale = 2) => Float64Array.from(numbers(n * V, seed), (x) => scale * x);
const targets = integers(n, V, 4);
const softmax = (row: ArrayLike<number>): number[] => {
  const weights = Array.from(row, Math.exp);
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((x) => x / sum);
};
const rowOf = (x: Float64Array, t: number) => x.subarray(t * V, (t + 1) * V);
const teacherSays = (b: TrainingBackend, k: number) => softTargetsOf(b, b.from(drawn(1), [n, V]), k);

describe("soft targets", () => {
  it.each([1, 4, V])("are the %d likeliest tokens of each row, and the rest's mass, to 16 bits", async (k) => {
    const soft = await teacherSays(f64, k);
    for (let t = 0; t < n; t++) {
      const p = softmax(rowOf(drawn(1), t));
      const order = [...p.keys()].sort((i, j) => p[j]! - p[i]!).slice(0, k);
      expect([...soft.ids.subarray(t * k, (t + 1) * k)]).toEqual(order);
      for (const [i, id] of order.entries())
        expect(Math.abs(soft.probabilities[t * k + i]! / p[id]! - 1)).toBeLessThan(3e-3);
      const all = soft.probabilities.subarray(t * k, (t + 1) * k).reduce((a, b) => a + b, soft.rest[t]!);
      expect(Math.abs(all - 1)).toBeLessThan(3e-3);
    }
  });

  it("are the same once stored: what is learnt from a store is what is learnt alongside", async () => {
    const soft = await teacherSays(f64, 5);
    for (const vocabulary of [V, 100_000]) {
      const bytes = encodeSoftTargets(soft, vocabulary);
      expect(bytes.length).toBe(n * softRowBytes(5, vocabulary));
      const decoded = decodeSoftTargets(bytes, n, 5, vocabulary);
      expect(decoded).toEqual(soft);
      expect(encodeSoftTargets(decoded, vocabulary)).toEqual(bytes);
    }
    expect(softRowBytes(32, 2048)).toBe(130); // beside 8,192 of all logits in f32
  });
});

/** Of the definition: k + 1 outcomes. */
function lossByDefinition(z: Float64Array, { k, ids, probabilities, rest }: SoftTargets, share: number): number {
  let sum = 0;
  for (let t = 0; t < n; t++) {
    const q = softmax(rowOf(z, t));
    const mass = probabilities.subarray(t * k, (t + 1) * k).reduce((a, b) => a + b, rest[t]!);
    let [soft, seen] = [0, 0];
    for (let i = t * k; i < (t + 1) * k; i++) {
      soft -= (probabilities[i]! / mass) * Math.log(q[ids[i]!]!);
      seen += q[ids[i]!]!;
    }
    if (k < V) soft -= (rest[t]! / mass) * Math.log(1 - seen);
    sum += share * soft - (1 - share) * Math.log(q[targets[t]!]!);
  }
  return sum / n;
}

describe("the distilled loss", () => {
  it.each([
    [1, 0.7],
    [4, 0.7],
    [4, 0],
    [4, 1],
    [V, 0.5],
  ])(
    "of the %d likeliest with a share of %d is that of the definition, its gradient that of finite differences",
    async (k, share) => {
      const soft = await teacherSays(f64, k);
      const z = drawn(2);
      const tape = new Tape(f64);
      const logits = tape.watch(f64.from(z, [n, V]));
      const { loss, hard, divergence } = await distilledLoss(tape, logits, targets, soft, share);
      expect((await tape.read(loss))[0]).toBeCloseTo(lossByDefinition(z, soft, share), 9);
      expect(hard).toBeCloseTo(lossByDefinition(z, soft, 0), 9);
      expect(divergence).toBeGreaterThan(0);
      const g = await f64.read(tape.gradients(loss, logits));
      for (let i = 0; i < n * V; i++) {
        const at = (h: number) =>
          lossByDefinition(
            z.map((x, j) => (j === i ? x + h : x)),
            soft,
            share,
          );
        const slope = (at(1e-5) - at(-1e-5)) / 2e-5;
        expect(Math.abs(slope - g[i]!), `element ${i}`).toBeLessThan(1e-6 * Math.abs(g[i]!) + 1e-9);
      }
    },
  );

  it("is the hard one with a share of 0, and has no divergence from itself", async () => {
    const tape = new Tape(f64);
    const soft = await teacherSays(f64, V);
    const logits = tape.watch(f64.from(drawn(1), [n, V]));
    const { divergence } = await distilledLoss(tape, logits, targets, soft, 1);
    expect(Math.abs(divergence)).toBeLessThan(1e-5); // what 16 bits leave
    tape.clear();
  });

  it.skipIf(!haveAddon)("has the reference's value and gradient in native code, with far logits too", async () => {
    const native = openNative({ threads: 2 });
    const soft = await teacherSays(f64, 4);
    for (const scale of [2, 30]) {
      const results: { value: number; g: ArrayLike<number> }[] = [];
      for (const b of [f64, native]) {
        const tape = new Tape(b);
        const logits = tape.watch(b.from(drawn(2, scale), [n, V]));
        const { loss } = await distilledLoss(tape, logits, targets, soft, 0.6);
        results.push({ value: (await tape.read(loss))[0]!, g: await b.read(tape.gradients(loss, logits)) });
      }
      const [expected, got] = results as [(typeof results)[0], (typeof results)[0]];
      // Far logits leave the rest less than float32 knows of 1 − Σ q: its logarithm is cut there (leastRest).
      expect(Math.abs(got.value - expected.value)).toBeLessThan(scale === 2 ? 1e-5 : 0.05 * expected.value);
      for (let i = 0; i < n * V; i++)
        expect(Math.abs(got.g[i]! - expected.g[i]!)).toBeLessThan(scale === 2 ? 1e-6 : 0.05);
    }
    const tape = new Tape(native);
    const logits = tape.watch(native.from(drawn(2, 400), [n, V]));
    const { loss } = await distilledLoss(tape, logits, targets, soft, 0.6); // softmaxes below the smallest float32
    expect(Number.isFinite((await tape.read(loss))[0])).toBe(true);
    for (const slope of await native.read(tape.gradients(loss, logits))) expect(Number.isFinite(slope)).toBe(true);
    native.close();
  });
});

describe("the soft targets' share", () => {
  it("goes from first to last over the run", () => {
    const at = (kind: "linear" | "cosine" | "constant") =>
      [0, 5, 10].map((step) => softShareAt({ kind, first: 0.9, last: 0.1 }, step, 11));
    expect(at("linear")).toEqual([0.9, 0.5, expect.closeTo(0.1, 12)]);
    expect(at("cosine")).toEqual([0.9, expect.closeTo(0.5, 12), expect.closeTo(0.1, 12)]);
    expect(at("constant")).toEqual([0.9, 0.9, 0.9]);
  });
});

describe("a stored teacher", () => {
  const side = config.vision!.imageSize;
  const pixels = Uint8Array.from(integers(2 * 3 * side ** 2, 256, 8));
  const segment = (row: number, length: number, sequence: number) => ({ row, length, position: 0, sequence });
  // Three documents; the second has an image of one tile, the third none, the first one too.
  const batch: Batch = {
    tokens: integers(30, V, 1),
    segments: [segment(0, 10, 0), segment(10, 12, 1), segment(22, 8, 2)],
    wanted: Int32Array.from([7, 8, 18, 20, 22, 23, 28]),
    targets: integers(7, V, 2),
    images: { pixels, tiles: 2, at: Int32Array.from([1, 2, 3, 4, 12, 13, 14, 15]) },
  };
  const b = openReference();
  const w = weights(config, (shape, name) => b.from(numbers(elementCount(shape), name.length), shape)) as Weights;
  const memory = () => {
    const kept = new Map<string, Uint8Array>();
    return {
      kept,
      get: async (key: string) => kept.get(key),
      put: async (key: string, x: Uint8Array) => void kept.set(key, x),
    };
  };
  const counted = (teacher: Teacher) => {
    const asked: Batch[] = [];
    const targets = (batch: Batch) => {
      asked.push(batch);
      return teacher.targets(batch);
    };
    return { asked, targets };
  };

  it("says what the teacher says, and is not asked twice about a document, wherever it stands", async () => {
    const alongside = new TeacherModel(b, w, config, 4);
    const [teacher, store] = [counted(alongside), memory()];
    const stored = new StoredTeacher(teacher, store, { k: 4, vocabSize: V });
    const plain = await alongside.targets(batch);
    expect(await stored.targets(batch)).toEqual(plain);
    expect(await stored.targets(batch)).toEqual(plain);
    expect(teacher.asked.length).toBe(1);
    const last = partOf(batch, [batch.segments[2]!]);
    const first = partOf(batch, [batch.segments[1]!, batch.segments[0]!]);
    await stored.targets(first);
    expect((await stored.targets(last)).ids).toEqual(plain.ids.subarray(16));
    expect(teacher.asked.length).toBe(1);
    expect(stored.counts).toEqual({ asked: 7, reused: 7 + 4 + 3 });
    expect(store.kept.size).toBe(3);
  });

  it("asks about what is new alone: other tokens, other pixels, other rows wanted", async () => {
    const [teacher, store] = [counted(new TeacherModel(b, w, config, 4)), memory()];
    const stored = new StoredTeacher(teacher, store, { k: 4, vocabSize: V });
    await stored.targets(batch);
    const other = pixels.slice();
    other[other.length - 1]! ^= 255; // the second document's
    await stored.targets({ ...batch, images: { ...batch.images!, pixels: other } });
    expect(teacher.asked[1]!.segments).toEqual([{ ...batch.segments[1]!, row: 0 }]);
    const tokens = batch.tokens.map((id, row) => (row === 29 ? (id + 1) % V : id));
    await stored.targets({ ...batch, tokens });
    expect(teacher.asked[2]!.tokens.length).toBe(8);
    await stored.targets({ ...batch, wanted: batch.wanted.map((row) => (row === 7 ? 6 : row)) });
    expect(teacher.asked[3]!.wanted).toEqual(Int32Array.of(6, 8));
  });
});

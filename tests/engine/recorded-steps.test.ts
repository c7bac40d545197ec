// Steps that are recorded and run again compute what they would have computed, bit for bit, on every instruction set.

import v8 from "node:v8";
import vm from "node:vm";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { type NativeBackend, openNative } from "../../src/backends/native/backend.ts";
import { Engine } from "../../src/engine/engine.ts";
import { RecordedSteps } from "../../src/engine/recorded-steps.ts";
import type { Generated } from "../../src/engine/requests.ts";
import { type Llama4Config, layerKinds } from "../../src/model/config.ts";
import type { Parameters } from "../../src/model/parameters.ts";
import { forward } from "../../src/model/transformer.ts";
import type { Backend } from "../../src/tensor/backend.ts";
import type { DType } from "../../src/tensor/dtype.ts";
import { attend } from "../../src/tensor/ops.ts";
import { haveAddon, onEachIsa } from "../addon.ts";
import { numbers, stored, viewOf } from "../backends/drawn.ts";
import { prompt, config as small } from "./random-model.ts";

/** Blocks of 32 elements divide its widths: q8_0 and q4_0 are multiplied packed. */
const config: Llama4Config = {
  ...small,
  ...{ dim: 64, nHeads: 4, nKvHeads: 2, headDim: 32, ffnDim: 96, expertDim: 64, topK: 1, vocabSize: 64 },
  layers: layerKinds(4, 4, 2),
};

async function parametersOf(backend: Backend, dtype: DType, c = config): Promise<Parameters> {
  let seed = 1;
  const tensor = async (shape: number[], type = dtype) =>
    (await backend.load([viewOf(type, shape, stored(type, shape, seed++))]))[0]!;
  const feedForward = async (width: number) => ({
    w1: await tensor([width, c.dim]),
    w2: await tensor([c.dim, width]),
    w3: await tensor([width, c.dim]),
  });
  const layers: Parameters["layers"][number][] = [];
  for (const { moe } of c.layers)
    layers.push({
      attentionNorm: await tensor([c.dim], "f32"),
      wq: await tensor([c.nHeads * c.headDim, c.dim]),
      wk: await tensor([c.nKvHeads * c.headDim, c.dim]),
      wv: await tensor([c.nKvHeads * c.headDim, c.dim]),
      wo: await tensor([c.dim, c.nHeads * c.headDim]),
      ffnNorm: await tensor([c.dim], "f32"),
      ffn: moe
        ? {
            router: await tensor([c.nExperts, c.dim], "f32"),
            experts: {
              gate: await tensor([c.nExperts, c.expertDim, c.dim]),
              up: await tensor([c.nExperts, c.expertDim, c.dim]),
              down: await tensor([c.nExperts, c.dim, c.expertDim]),
            },
            shared: await feedForward(c.expertDim),
          }
        : await feedForward(c.ffnDim),
    });
  return {
    tokEmbeddings: await tensor([c.vocabSize, c.dim]),
    layers,
    norm: await tensor([c.dim], "f32"),
    output: await tensor([c.vocabSize, c.dim]),
  };
}

async function all(tokens: AsyncIterable<Generated>): Promise<Generated[]> {
  const list: Generated[] = [];
  for await (const token of tokens) list.push(token);
  return list;
}

/** Replies of several lengths that begin one after the other, across chunks of 8 and blocks of 8, and the experts' load. */
async function replies(options: ConstructorParameters<typeof Engine>[0]) {
  const engine = new Engine(options);
  try {
    const one = (length: number, maxTokens: number, seed: number) =>
      all(
        engine.generate({ tokens: prompt(length, seed), maxTokens, sampling: { seed, temperature: 1, logprobs: 3 } }),
      );
    const alone = await one(5, 30, 1);
    const first = [one(3, 40, 2), one(17, 25, 3)];
    const second = first[1]!.then(() => one(9, 20, 4));
    const together = await Promise.all([...first, second]);
    const told = [alone, ...together].map((list) => list.map(({ token, logprob, top }) => ({ token, logprob, top })));
    return { told, experts: engine.stats().experts, steps: engine.stats().steps };
  } finally {
    await engine.close();
  }
}

onEachIsa(
  (isa) => `recorded steps by native on ${isa}`,
  (isa) => {
    for (const dtype of ["f32", "bf16", "q8_0", "q4_0"] as const)
      for (const kvDtype of ["f32", "q8_0"] as const)
        it(`are bit for bit those of the model, with weights of ${dtype} and a cache of ${kvDtype}`, async () => {
          const backend = openNative({ threads: 2, isa });
          try {
            const parameters = await parametersOf(backend, dtype);
            const options = { backend, parameters, config, kvDtype, context: 128 };
            const record = vi.spyOn(backend, "record");
            const { told, experts } = await replies({ ...options, forward: (...step) => forward(...step) });
            expect(record).not.toHaveBeenCalled();
            const recorded = await replies(options);
            // how many steps that takes is a matter of who shares one with whom, and so of time
            expect(recorded.told).toEqual(told);
            expect(recorded.experts).toEqual(experts);
            expect(record.mock.calls.length).toBeGreaterThan(0);
            expect(record.mock.calls.length).toBeLessThan(recorded.steps / 5);
            for (const { value } of record.mock.settledResults) expect(value?.recording).toBeDefined();
          } finally {
            backend.close();
          }
        });
  },
);

/** Cached attention over two sequences of 16 slots, a pool for each kind of layer. */
function cacheOf(backend: Backend) {
  const spec = { layers: 4, blocks: 4, blockSize: 8, heads: 2, headDim: 32, dtype: "f32" } as const;
  const pool = backend.kvPool(spec);
  const table = (sequence: number) => Int32Array.of(2 * sequence, 2 * sequence + 1);
  return { pool, cache: Array.from({ length: 4 }, (_, layer) => ({ pool, layer, table })) };
}

v8.setFlagsFromString("--expose-gc");
const collect = vm.runInNewContext("gc") as () => void;

describe.skipIf(!haveAddon)("a recording", () => {
  let backend: NativeBackend;
  let parameters: Parameters;
  beforeAll(async () => {
    backend = openNative({ threads: 1 });
    parameters = await parametersOf(backend, "q8_0");
  });
  afterAll(() => backend.close());

  /** A token for each of some segments [position, length, sequence]. */
  const stepOf = (...places: [position: number, length: number, sequence: number][]) => {
    let row = 0;
    const segments = places.map(([position, length, sequence]) => {
      row += length;
      return { row: row - length, length, position, sequence };
    });
    const all = Int32Array.from({ length: row }, (_, i) => i);
    return { tokens: all.map((i) => (7 * i + places[0]![0]) % config.vocabSize), wanted: all, segments };
  };
  const step = (position: number) => stepOf([position, 1, 0]);

  it("is none of a step with an operation that it does not keep, whose result is right all the same", async () => {
    const x = backend.from(Float32Array.of(-1, 0, 2), [3]);
    const { result, recording } = await backend.record!(async () => backend.gelu(x));
    expect(recording).toBeUndefined();
    expect(await backend.read(result)).toEqual(await backend.read(backend.gelu(x)));
  });

  it("is none of a step in which an operation failed, though the step went on", async () => {
    const w = (await backend.load([viewOf("f32", [4, 8], stored("f32", [4, 8], 3))]))[0]!;
    const { recording } = await backend.record!(async () => {
      expect(() => backend.embed(w, Int32Array.of(4))).toThrow("index 4; expected 0 to 3");
      return backend.add(w, w);
    });
    expect(recording).toBeUndefined();
  });

  it("is none of a step without a cache", async () => {
    const { result, recording } = await backend.record!(() => forward(parameters, config, step(0)));
    expect(recording).toBeUndefined();
    expect(await backend.read(result)).toEqual(await backend.read(await forward(parameters, config, step(0))));
  });

  it("is none of a step whose layers attend unlike, and each has its own segments", async () => {
    const x = backend.from(numbers(4 * 2 * 32, 1), [4, 2, 32]);
    const attendTwice = async () => {
      const once = attend(x, x, x, { segments: stepOf([0, 4, 0]).segments });
      return attend(once, x, x, { segments: stepOf([0, 2, 0], [0, 2, 1]).segments });
    };
    const { result, recording } = await backend.record!(attendTwice);
    expect(recording).toBeUndefined();
    expect(await backend.read(result)).toEqual(await backend.read(await attendTwice()));
  });

  it("that fails leaves the backend as it was", async () => {
    const failed = () =>
      backend.record!(async () => {
        await forward(parameters, config, step(0));
        throw new Error("enough");
      });
    await expect(failed()).rejects.toThrow("enough");
    const held = backend.heldBytes;
    for (let i = 0; i < 5; i++) await expect(failed()).rejects.toThrow("enough");
    expect(backend.heldBytes).toBe(held);
    const { pool, cache } = cacheOf(backend);
    const { recording } = await backend.record!(() => forward(parameters, config, { ...step(0), cache }));
    expect(recording).toBeDefined();
    recording!.close();
    pool.close();
  });

  it("is made one at a time", async () => {
    const x = backend.from(Float32Array.of(1), [1]);
    const inside = backend.record!(async () => {
      await expect(backend.record!(async () => backend.add(x, x))).rejects.toThrow("expected one at a time");
      return backend.add(x, x);
    });
    expect(await backend.read((await inside).result)).toEqual(Float32Array.of(2));
  });

  it("writes to nobody else's memory, and reads no array that was let go", async () => {
    const w = (await backend.load([viewOf("bf16", [64, 4], stored("bf16", [64, 4], 3))]))[0]!;
    const ids = Int32Array.from({ length: 64 }, (_, i) => 63 - i);
    const { recording } = await backend.record!(async () => backend.add(backend.embed(w, ids), w)); // decodes w for it
    const others = Array.from({ length: 20 }, (_, i) => backend.from(numbers(256, i), [64, 4]));
    for (let i = 0; i < 3; i++) collect();
    const again = recording!.run(
      Int32Array.from({ length: 64 }, (_, i) => i),
      [],
      [],
    );
    expect(again).toEqual(await backend.read(backend.add(w, w)));
    for (const [i, x] of others.entries()) expect(await backend.read(x)).toEqual(numbers(256, i));
    recording!.close();
  });

  it("serves any segments of as many rows", async () => {
    const { pool, cache } = cacheOf(backend);
    const steps = new RecordedSteps(parameters, config);
    const record = vi.spyOn(backend, "record");
    // two rows of one sequence, then two sequences of one, across a block and a chunk
    const turns = [stepOf([0, 2, 0]), stepOf([2, 2, 0]), stepOf([4, 1, 0], [0, 1, 1]), stepOf([8, 2, 0])];
    for (const turn of [...turns, stepOf([10, 1, 0], [1, 1, 1])]) {
      const got = await steps.run({ ...turn, cache }, () => {});
      const told = got.slice();
      got.fill(Number.NaN); // they are the caller's, to change
      expect(told).toEqual(await backend.read(await forward(parameters, config, { ...turn, cache })));
    }
    expect(record).toHaveBeenCalledTimes(1);
    steps.close();
    pool.close();
  });

  it("of one shape after the other takes no more memory than a few, and gives it back", async () => {
    const { pool, cache } = cacheOf(backend);
    const around = async () => {
      const steps = new RecordedSteps(parameters, config);
      for (let n = 1; n <= 12; n++)
        for (let i = 0; i < 3; i++)
          await backend.scope(async () => {
            await steps.run(
              {
                ...stepOf([0, Math.min(n, 8), 0], ...(n > 8 ? [[8, n - 8, 0] as [number, number, number]] : [])),
                cache,
              },
              () => {},
            );
          });
      steps.close();
      return backend.heldBytes;
    };
    const held = await around();
    for (let i = 0; i < 3; i++) expect(await around()).toBe(held);
    pool.close();
  });

  it("runs for as many tokens as it was made for, while its cache is open, and until it is closed", async () => {
    const { pool, cache } = cacheOf(backend);
    const numbers = [new Float64Array(config.headDim), new Float64Array(1)]; // rotations in chunks, and a temperature
    const { recording } = await backend.record!(() => forward(parameters, config, { ...step(0), cache }));
    const run = (tokens: Int32Array, position = 1, of = numbers) => recording!.run(tokens, of, step(position).segments);
    expect(run(Int32Array.of(3)).length).toBe(config.vocabSize);
    expect(() => run(Int32Array.of(3, 4))).toThrow("a recording of 1 tokens was run with 2; expected as many");
    expect(() => run(Int32Array.of(3), 1, [...numbers, ...numbers])).toThrow(
      "with other numbers than it was made with",
    );
    expect(() => run(Int32Array.of(config.vocabSize))).toThrow("index 64; expected 0 to 63");
    expect(() => run(Int32Array.of(3), 16)).toThrow("the block table of a sequence ends before slot 16");
    pool.close();
    expect(() => run(Int32Array.of(3))).toThrow("a recording was run after its cache was closed");
    recording!.close();
    expect(() => run(Int32Array.of(3))).toThrow("a recording was run after it was closed");
  });
});

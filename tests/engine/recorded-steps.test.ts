// Steps that are recorded and run again compute what they would have computed, bit for bit, on every instruction set.

import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { type NativeBackend, openNative } from "../../src/backends/native/backend.ts";
import { Engine, type Generated } from "../../src/engine/engine.ts";
import { type Llama4Config, layerKinds } from "../../src/model/config.ts";
import type { Parameters } from "../../src/model/parameters.ts";
import { forward } from "../../src/model/transformer.ts";
import type { Backend } from "../../src/tensor/backend.ts";
import type { DType } from "../../src/tensor/dtype.ts";
import { onEachIsa } from "../addon.ts";
import { stored, viewOf } from "../backends/drawn.ts";
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
            const plain = await replies({ ...options, forward: (...step) => forward(...step) });
            expect(record).not.toHaveBeenCalled();
            const recorded = await replies(options);
            expect(recorded).toEqual(plain);
            expect(record.mock.calls.length).toBeGreaterThan(0);
            expect(record.mock.calls.length).toBeLessThan(recorded.steps / 5);
            for (const { value } of record.mock.settledResults) expect(value?.recording).toBeDefined();
          } finally {
            backend.close();
          }
        });
  },
);

describe("a recording", () => {
  let backend: NativeBackend;
  let parameters: Parameters;
  beforeAll(async () => {
    backend = openNative({ threads: 1 });
    parameters = await parametersOf(backend, "q8_0");
  });
  afterAll(() => backend.close());

  const step = (position: number) => ({
    tokens: Int32Array.of(7),
    wanted: Int32Array.of(0),
    segments: [{ row: 0, length: 1, position, sequence: 0 }],
  });

  it("is none of a step with an operation that it does not keep, whose result is right all the same", async () => {
    const x = backend.from(Float32Array.of(-1, 0, 2), [3]);
    const { result, recording } = await backend.record!(async () => backend.gelu(x));
    expect(recording).toBeUndefined();
    expect(await backend.read(result)).toEqual(await backend.read(backend.gelu(x)));
  });

  it("is none of a step without a cache", async () => {
    const { result, recording } = await backend.record!(() => forward(parameters, config, step(0)));
    expect(recording).toBeUndefined();
    expect(await backend.read(result)).toEqual(await backend.read(await forward(parameters, config, step(0))));
  });

  it("that fails leaves the backend as it was", async () => {
    const held = backend.heldBytes;
    const x = backend.from(Float32Array.of(-1, 0, 2), [3]);
    await expect(
      backend.record!(async () => {
        backend.add(x, x);
        throw new Error("enough");
      }),
    ).rejects.toThrow("enough");
    await forward(parameters, config, step(0));
    expect(backend.heldBytes - held).toBeLessThan(2 ** 20);
  });

  it("runs for as many tokens as it was made for, while its cache is open, and until it is closed", async () => {
    const pool = backend.kvPool({ layers: 4, blocks: 2, blockSize: 8, heads: 2, headDim: 32, dtype: "f32" });
    const cache = Array.from({ length: 4 }, (_, layer) => ({ pool, layer, table: () => Int32Array.of(0, 1) }));
    const numbers = [new Float64Array(config.headDim), new Float64Array(1)]; // rotations in chunks, and a temperature
    const { recording } = await backend.record!(() => forward(parameters, config, { ...step(0), cache }));
    const run = (tokens: Int32Array, position = 1, of = numbers) => recording!.run(tokens, of, step(position).segments);
    expect(run(Int32Array.of(3)).shape).toEqual([1, config.vocabSize]);
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

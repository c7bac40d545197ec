// A small Llama 4 with random weights on the reference backend: chunks of 8, blocks of 8, local and global layers,
// dense and with experts.

import { afterAll } from "vitest";
import { openReference } from "../../src/backends/reference/reference.ts";
import { Engine, type EngineOptions } from "../../src/engine/engine.ts";
import { uniform } from "../../src/engine/random.ts";
import { type Llama4Config, layerKinds } from "../../src/model/config.ts";
import type { Parameters } from "../../src/model/parameters.ts";

export const config: Llama4Config = {
  vocabSize: 32,
  dim: 16,
  nHeads: 4,
  nKvHeads: 2,
  headDim: 4,
  ffnDim: 24,
  expertDim: 8,
  nExperts: 3,
  topK: 1,
  layers: layerKinds(4, 4, 2),
  attentionChunk: 8,
  normEps: 1e-5,
  qkNorm: true,
  ropeTheta: 10000,
  temperature: { floor: 4, scale: 0.3 },
  tied: false,
  contextLength: 512,
  tokens: { eos: [] },
};

export const backend = openReference();

export function randomParameters(c: Llama4Config = config, seed = 1): Parameters {
  let counter = 0;
  const random = (...shape: number[]) => {
    const n = shape.reduce((a, b) => a * b, 1);
    return backend.from(
      Float32Array.from({ length: n }, () => (uniform(seed, counter++) - 0.5) * 1.6),
      shape,
    );
  };
  const feedForward = (width: number) => ({
    w1: random(width, c.dim),
    w2: random(c.dim, width),
    w3: random(width, c.dim),
  });
  return {
    tokEmbeddings: random(c.vocabSize, c.dim),
    layers: c.layers.map(({ moe }) => ({
      attentionNorm: random(c.dim),
      wq: random(c.nHeads * c.headDim, c.dim),
      wk: random(c.nKvHeads * c.headDim, c.dim),
      wv: random(c.nKvHeads * c.headDim, c.dim),
      wo: random(c.dim, c.nHeads * c.headDim),
      ffnNorm: random(c.dim),
      ffn: moe
        ? {
            router: random(c.nExperts, c.dim),
            experts: {
              gate: random(c.nExperts, c.expertDim, c.dim),
              up: random(c.nExperts, c.expertDim, c.dim),
              down: random(c.nExperts, c.dim, c.expertDim),
            },
            shared: feedForward(c.expertDim),
          }
        : feedForward(c.ffnDim),
    })),
    norm: random(c.dim),
    output: random(c.vocabSize, c.dim),
  };
}

/** Some prompt of a length, the same for the same seed. */
export function prompt(length: number, seed = 0): number[] {
  return Array.from({ length }, (_, i) => Math.floor(uniform(seed + 1000, i) * config.vocabSize));
}

export const parameters = randomParameters();
const engines: Engine[] = [];
afterAll(() => Promise.all(engines.map((engine) => engine.close())));

/** An engine of that model, closed when the file's tests are done. */
export function open(options: Partial<EngineOptions> = {}): Engine {
  const engine = new Engine({ backend, parameters, config, context: 128, ...options });
  engines.push(engine);
  return engine;
}

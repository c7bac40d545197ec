// On the native kernels, which compute many rows by other loops than one, a reply with guesses is the reply without.

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openNative } from "../../src/backends/native/backend.ts";
import { type Draft, DraftModel } from "../../src/engine/draft-model.ts";
import { Engine } from "../../src/engine/engine.ts";
import { PromptLookup } from "../../src/engine/prompt-lookup.ts";
import type { Sampling } from "../../src/engine/sampler.ts";
import { type Guesser, Speculation } from "../../src/engine/speculation.ts";
import { mapParameters } from "../../src/model/parameters.ts";
import { forward } from "../../src/model/transformer.ts";
import { dtypes } from "../../src/tensor/dtype.ts";
import { quantize } from "../../src/tensor/quantize.ts";
import type { Tensor, TensorView } from "../../src/tensor/tensor.ts";
import { onEachIsa } from "../addon.ts";
import { prompt, randomParameters, backend as reference, config as small } from "./random-model.ts";

const config = { ...small, dim: 256, nHeads: 8, headDim: 32, ffnDim: 512, expertDim: 256, attentionChunk: 24 };
const parameters = randomParameters(config);

/** The model's matrices in a type, its vectors as they are. */
async function viewsOf(dtype: "f32" | "q8_0" | "q4_0" | "q4_k"): Promise<TensorView[]> {
  const tensors: Tensor[] = [];
  mapParameters(parameters, (tensor) => tensors.push(tensor));
  return Promise.all(
    tensors.map(async (tensor) => {
      const values = Float32Array.from(await reference.read(tensor));
      const type = tensor.shape.length < 2 ? "f32" : dtype;
      const { blockBytes, blockElements } = dtypes[type];
      const bytes = new Uint8Array((values.length / blockElements) * blockBytes);
      if (type === "f32") bytes.set(new Uint8Array(values.buffer));
      else quantize(type, values, bytes);
      const read = async (offset: number, length: number) => bytes.slice(offset, offset + length);
      const source = { name: "memory", byteLength: bytes.length, read };
      return { name: "w", dtype: type, shape: tensor.shape, source, offset: 0 };
    }),
  );
}

interface Request {
  readonly tokens: readonly number[];
  readonly sampling: Sampling;
  /** What the next token of a text gains, so that the reply copies it most of the time. */
  readonly lean: number;
}

const greedy = { temperature: 0 };
const repeating: readonly Request[] = [
  { tokens: prompt(20), sampling: greedy, lean: 14 },
  { tokens: prompt(20), sampling: { temperature: 1, topP: 0.95, seed: 3 }, lean: 14 },
];
const wandering: readonly Request[] = [
  { tokens: prompt(7, 1), sampling: greedy, lean: 0 },
  { tokens: prompt(7, 1), sampling: { temperature: 2, topP: 1, seed: 4 }, lean: 0 },
];

type Model = Pick<Draft, "backend" | "parameters" | "context" | "kvDtype">;

async function reply(model: Model, { tokens, sampling, lean }: Request, guesser?: Guesser<never>) {
  let steps = 0; // the clock of the guesses: rows cost nothing, so that all that can be guessed is
  const engine = new Engine({
    ...{ ...model, config },
    speculation: guesser && new Speculation(guesser as Guesser, () => steps),
    forward: async (p, c, step) => {
      steps++;
      const tensor = await forward(p, c, step);
      const logits = Float32Array.from(await model.backend.read(tensor));
      const positions = step.segments.flatMap((s) => Array.from({ length: s.length }, (_, i) => s.position + i));
      for (const [i, row] of step.wanted.entries())
        logits[i * c.vocabSize + tokens[(positions[row]! + 1) % tokens.length]!]! += lean;
      return model.backend.from(logits, tensor.shape);
    },
  });
  try {
    const said: number[] = [];
    for await (const { token, finish } of engine.generate({ tokens, maxTokens: 120, sampling })) {
      said.push(token);
      if (finish) return { tokens: said, guessed: finish.guessedTokens, accepted: finish.acceptedTokens };
    }
    throw new Error("the reply has no end");
  } finally {
    await engine.close();
  }
}

const cases = [
  ["f32", "f32", "f32"],
  ["q8_0", "f32", "f16"],
  ["q8_0", "int8", "f32"],
  ["q4_0", "int8", "f16"],
  ["q4_k", "int8", "q8_0"],
] as const;

onEachIsa(
  (isa) => `on ${isa}, with guesses,`,
  (isa) => {
    describe.each(cases)("%s weights, %s activations, %s keys and values:", (dtype, activations, kvDtype) => {
      const backend = openNative({ threads: 2, activations, isa });
      let model: Model;
      beforeAll(async () => {
        const tensors = await backend.load(await viewsOf(dtype));
        model = { backend, parameters: mapParameters(parameters, () => tensors.shift()!), context: 256, kvDtype };
      });
      afterAll(() => backend.close());

      it("the model drafts for itself what it says, every token", async () => {
        for (const request of wandering) {
          const draft = new DraftModel({ ...model, config }, { vocabSize: config.vocabSize, stepTokens: 512 });
          const { tokens, guessed, accepted } = await reply(model, request, draft);
          expect(tokens).toEqual((await reply(model, request)).tokens);
          expect(accepted).toBe(guessed);
          expect(accepted).toBeGreaterThan(60);
        }
      });

      it("text that repeats itself is the same", async () => {
        for (const request of repeating) {
          const { tokens, guessed, accepted } = await reply(model, request, new PromptLookup());
          expect(tokens).toEqual((await reply(model, request)).tokens);
          expect(accepted).toBeGreaterThan(40);
          expect(guessed).toBeGreaterThan(accepted); // some guesses are wrong
        }
      });

      it("text that does not is the same", async () => {
        for (const request of wandering) {
          const { tokens, guessed, accepted } = await reply(model, request, new PromptLookup());
          expect(tokens).toEqual((await reply(model, request)).tokens);
          expect(guessed).toBeGreaterThan(accepted);
        }
      });
    });
  },
);

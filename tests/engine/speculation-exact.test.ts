// Every random number that matters, one after the other: with guesses, replies have exactly the model's chances.

import { expect, it, vi } from "vitest";
import { Engine, type EngineOptions } from "../../src/engine/engine.ts";
import type { Guesser } from "../../src/engine/speculation.ts";
import { Speculation } from "../../src/engine/speculation.ts";
import { backend, config, randomParameters } from "./random-model.ts";

// The chances are eighths, so eight numbers stand for all: octal digit i of the seed draws token i.
vi.mock(import("../../src/engine/random.ts"), async (original) => ({
  ...(await original()),
  uniform: (seed: number, drawn: number) => (((seed >> (3 * drawn)) & 7) + 0.5) / 8,
}));

const eighths = [
  [3, 4, 1],
  [1, 5, 2],
  [0, 2, 6],
];
const markov: EngineOptions["forward"] = async (_p, c, { tokens, wanted }) => {
  const rows = [...wanted].flatMap((row) => eighths[tokens[row]!]!.map((n) => Math.log(n / 8)));
  return backend.from(Float32Array.from(rows), [wanted.length, c.vocabSize]);
};

/** Guesses always the same. */
const stubborn = (token: number): Guesser => ({
  hopes: [0.9],
  follow: async () => {},
  look: () => ({ kind: 0, most: 3 }),
  guess: async (wanted) => wanted.map(({ count }) => new Array<number>(count).fill(token)),
  forget: () => {},
  close: () => {},
});

it.each([0, 1, 2])("8³ random numbers give replies their exact chances, where %i is always guessed", async (guess) => {
  let steps = 0;
  const engine = new Engine({
    ...{ backend, parameters: randomParameters(), context: 64 },
    config: { ...config, vocabSize: 3, attentionChunk: 64 },
    forward: (p, c, step) => {
      steps++;
      return markov(p, c, step);
    },
    speculation: new Speculation(stubborn(guess), () => steps),
  });
  const counts = new Map<string, number>();
  let accepted = 0;
  for (let seed = 0; seed < 512; seed++) {
    const reply: number[] = [];
    const sampling = { temperature: 1, topP: 1, seed };
    for await (const { token, finish } of engine.generate({ tokens: [1], maxTokens: 3, sampling })) {
      reply.push(token);
      accepted += finish?.acceptedTokens ?? 0;
    }
    counts.set(reply.join(""), (counts.get(reply.join("")) ?? 0) + 1);
  }
  await engine.close();
  expect(accepted).toBeGreaterThan(20);
  for (const a of [0, 1, 2])
    for (const b of [0, 1, 2])
      for (const c of [0, 1, 2])
        expect(counts.get(`${a}${b}${c}`) ?? 0).toBe(eighths[1]![a]! * eighths[a]![b]! * eighths[b]![c]!);
});

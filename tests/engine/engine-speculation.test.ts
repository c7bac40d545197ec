// The engine with guesses says what it says without.

import { describe, expect, it } from "vitest";
import type { Matcher } from "../../src/engine/constraint.ts";
import { DraftModel } from "../../src/engine/draft-model.ts";
import type { Engine, EngineOptions } from "../../src/engine/engine.ts";
import { PromptLookup } from "../../src/engine/prompt-lookup.ts";
import type { Generated, GenerateRequest } from "../../src/engine/requests.ts";
import type { Sampling } from "../../src/engine/sampler.ts";
import { type Decoding, type Guesser, Speculation, type Wanted } from "../../src/engine/speculation.ts";
import { forward } from "../../src/model/transformer.ts";
import { RequestError } from "../../src/tensor/errors.ts";
import { backend, config, open, parameters, prompt, randomParameters } from "./random-model.ts";

/** An engine that guesses whatever it can: its clock counts steps, so that rows cost nothing. */
function guessing(guesser: Guesser, options: Partial<EngineOptions> = {}): Engine & { steps: number } {
  const count = { steps: 0 };
  const model = options.forward ?? forward;
  const engine = open({
    ...options,
    speculation: new Speculation(guesser, () => count.steps),
    forward: (p, c, step) => {
      count.steps++;
      return model(p, c, step);
    },
  });
  return Object.defineProperty(engine as Engine & { steps: number }, "steps", { get: () => count.steps });
}

async function all(pieces: AsyncIterable<Generated>): Promise<Generated[]> {
  const list: Generated[] = [];
  for await (const piece of pieces) list.push(piece);
  return list;
}

/** All but the times, what was guessed and what the cache held. */
const said = async (engine: Engine, request: GenerateRequest) =>
  (await all(engine.generate(request))).map(({ prompt, finish, ...piece }) => ({ ...piece, reason: finish?.reason }));

/** Guesses at random among few tokens: often wrong, sometimes right, for every number of guesses. */
class Random implements Guesser {
  readonly hopes = [0.9];
  #counter = 0;
  #next = () => (this.#counter++ * 7919) % 32;
  async follow() {}
  look = () => ({ kind: 0, most: 1 + (this.#next() % 9) });
  guess = async (wanted: readonly Wanted<Decoding>[]) =>
    wanted.map(({ count }) => Array.from({ length: count }, this.#next));
  forget() {}
  close() {}
}

const draftOptions = { vocabSize: 32, stepTokens: 16 };
const memory = { backend, context: 128, kvDtype: "f32" } as const;
const other = { ...config, layers: config.layers.slice(0, 2), attentionChunk: 12 };
const drafts = {
  "its own model": { ...memory, parameters, config },
  "another model with other chunks": { ...memory, parameters: randomParameters(other, 1), config: other },
};
const guessers: Record<string, () => Guesser<never>> = {
  "prompt lookup": () => new PromptLookup(),
  "random guesses": () => new Random(),
  ...Object.fromEntries(
    Object.entries(drafts).map(([name, draft]) => [name, () => new DraftModel(draft, draftOptions)]),
  ),
};
const samplings: Sampling[] = [
  { temperature: 0 },
  { temperature: 0, repetitionPenalty: 1.3, logprobs: 2 },
  { temperature: 0.8, topP: 0.9, seed: 3 },
  { temperature: 1.5, topP: 1, topK: 9, minP: 0.02, seed: 4 },
  { temperature: 1, presencePenalty: 0.6, frequencyPenalty: 0.4, logitBias: { 3: 2, 7: -4 }, logprobs: 1, seed: 5 },
];
const repeating = [...prompt(9), ...prompt(9), ...prompt(5)];

describe.each(Object.entries(guessers))("with %s", (_, guesser) => {
  const guess = (options?: Partial<EngineOptions>) => guessing(guesser() as Guesser, options);

  it.each(samplings)("a reply is the same, past chunk boundaries: %o", async (sampling) => {
    for (const tokens of [repeating, prompt(3)]) {
      const request = { tokens, maxTokens: 50, sampling };
      expect(await said(guess(), request)).toEqual(await said(open(), request));
    }
  });

  it("so are those of a batch, with beginnings shared", async () => {
    const requests = samplings.map((sampling, i) => ({
      tokens: i % 2 ? [...repeating, i] : prompt(4 + i, i),
      maxTokens: 30 + i,
      sampling,
    }));
    const engine = guess({ stepTokens: 20 });
    const together = await Promise.all(requests.map((request) => said(engine, request)));
    for (const [i, request] of requests.entries()) expect(together[i]).toEqual(await said(open(), request));
    for (const request of requests) expect(await said(engine, request)).toEqual(await said(open(), request));
  });

  it("so are those that outgrow the cache and start again", async () => {
    const requests = [0, 1, 2, 3].map((i) => ({ tokens: prompt(10, i), maxTokens: 40, sampling: { temperature: 0 } }));
    const engine = guess({ context: 56 });
    const together = await Promise.all(requests.map((request) => said(engine, request)));
    for (const [i, request] of requests.entries()) expect(together[i]).toEqual(await said(open(), request));
  });

  it("the last token is the same where the context or the reply is full, or a stop token comes", async () => {
    const sampling = { temperature: 1, topP: 1, seed: 9 };
    for (const request of [
      { tokens: repeating, sampling },
      { tokens: repeating, sampling, maxTokens: 7 },
      { tokens: repeating, sampling, stopTokens: new Set([1, 2, 3, 4]) },
    ])
      expect(await said(guess({ context: 40 }), request)).toEqual(await said(open({ context: 40 }), request));
  });
});

/** Throws after some calls of each kind. */
class Failing extends Random {
  readonly #where: "follow" | "guess";
  #calls = 3;
  closed = 0;
  constructor(where: "follow" | "guess") {
    super();
    this.#where = where;
    const { guess } = this;
    this.guess = async (wanted) => {
      this.#fail("guess");
      return guess(wanted);
    };
  }
  #fail(where: string) {
    if (where === this.#where && --this.#calls === 0) throw new Error("the draft is broken");
  }
  override async follow() {
    this.#fail("follow");
  }
  override close() {
    this.closed++;
  }
}

// It ended every request with its error.
it.each(["follow", "guess"] as const)("a draft that throws in %s ends guessing, with one warning", async (where) => {
  const warnings: string[] = [];
  const guesser = new Failing(where);
  const engine = guessing(guesser, { onWarning: (message) => warnings.push(message) });
  const requests = [3, 4, 5].map((n) => ({ tokens: prompt(n, n), maxTokens: 30, sampling: { temperature: 0 } }));
  const together = await Promise.all(requests.map((request) => said(engine, request)));
  for (const [i, request] of requests.entries()) expect(together[i]).toEqual(await said(open(), request));
  expect(warnings).toEqual(["guessing tokens ahead has failed (the draft is broken); going on without it"]);
  await engine.close();
  expect(guesser.closed).toBe(1);
});

// It was taken for a broken draft model, and nobody's tokens were guessed any more.
it("a grammar that is exhausted ends the guesses of its reply, and nobody else's", async () => {
  const warnings: string[] = [];
  const guesser = new DraftModel(drafts["its own model"], draftOptions) as Guesser<never> as Guesser;
  const engine = guessing(guesser, { onWarning: (message) => warnings.push(message) });
  const request = { tokens: prompt(5), maxTokens: 60, sampling: { temperature: 1, presencePenalty: 1, seed: 1 } };
  // what a sampler calls of one: all may come, but a guess behind another needs a state too many
  const at = (guessed: number): Matcher =>
    ({
      mask: () => {
        if (guessed === 2) throw new RequestError("the constraint needs more than 100,000 states");
      },
      advance: () => {
        if (guessed >= 0) guessed++;
      },
      fork: () => at(0),
    }) as unknown as Matcher;
  const [exhausted, other] = await Promise.all([
    all(engine.generate({ ...request, matcher: at(-1) })),
    all(engine.generate(request)),
  ]);
  const plain = (await all(open().generate(request))).map(({ token }) => token);
  for (const pieces of [exhausted, other]) expect(pieces.map(({ token }) => token)).toEqual(plain);
  expect(warnings).toEqual([]);
  expect(exhausted.at(-1)!.finish!.guessedTokens).toBeLessThan(5);
  expect(other.at(-1)!.finish!.acceptedTokens).toBeGreaterThan(20);
});

describe("the steps of a reply", () => {
  it("are few where the model drafts for itself, and timed", async () => {
    const engine = guessing(new DraftModel(drafts["its own model"], draftOptions) as Guesser<never> as Guesser);
    const pieces = await all(
      engine.generate({ tokens: prompt(5), maxTokens: 60, sampling: { temperature: 1, seed: 1 } }),
    );
    expect(pieces).toHaveLength(60);
    expect(engine.steps).toBeLessThan(30);
    const { guessedTokens, acceptedTokens } = pieces.at(-1)!.finish!;
    expect(acceptedTokens).toBe(guessedTokens);
    expect(engine.steps).toBe(60 - acceptedTokens);
  });

  it("are few where a text is copied", async () => {
    const text = Array.from({ length: 60 }, (_, i) => (i * i * 7 + i) % 31);
    const copying: EngineOptions["forward"] = async (_p, c, { segments, wanted }) => {
      const positions = segments.flatMap((s) => Array.from({ length: s.length }, (_, i) => s.position + i));
      const logits = new Float32Array(wanted.length * c.vocabSize);
      for (const [i, row] of wanted.entries())
        logits[i * c.vocabSize + text[(positions[row]! + 1) % text.length]!] = 50;
      return backend.from(logits, [wanted.length, c.vocabSize]);
    };
    const engine = guessing(new PromptLookup(), { forward: copying, config: { ...config, attentionChunk: 64 } });
    const pieces = await all(engine.generate({ tokens: text, maxTokens: 60 }));
    expect(pieces.map((p) => p.token)).toEqual(text);
    expect(engine.steps).toBeLessThan(15);
  });
});

describe("the distribution of replies", () => {
  // Logits that depend on the last token, of chances that are eighths, so that eight random numbers say all.
  const eighths = [
    [4, 2, 1, 1],
    [1, 5, 1, 1],
    [2, 2, 2, 2],
    [1, 1, 0, 6],
  ];
  const small = { ...config, vocabSize: 4 };
  const markov: EngineOptions["forward"] = async (_p, c, { tokens, wanted }) => {
    const rows = [...wanted].flatMap((row) => eighths[tokens[row]!]!.map((n) => Math.log(n / 8)));
    return backend.from(Float32Array.from(rows), [wanted.length, c.vocabSize]);
  };

  it("is the product of the model's chances, to the last of 4⁴ replies, over many seeds", async () => {
    const sampling = { temperature: 1, topP: 1 };
    const n = 3000;
    const engine = guessing(new PromptLookup(), { config: small, forward: markov, sequences: 2 });
    const counts = new Map<string, number>();
    const start = [0, 1, 3, 0, 1, 1, 3, 3, 0, 0, 1];
    let accepted = 0;
    const replies = Array.from({ length: n }, async (_, seed) => {
      const pieces = await all(engine.generate({ tokens: start, maxTokens: 4, sampling: { ...sampling, seed } }));
      accepted += pieces.at(-1)!.finish!.acceptedTokens;
      const reply = pieces.map((p) => p.token).join("");
      counts.set(reply, (counts.get(reply) ?? 0) + 1);
    });
    await Promise.all(replies);
    expect(accepted).toBeGreaterThan(n / 4);
    let chi2 = 0;
    let cells = 0;
    for (let code = 0; code < 256; code++) {
      const reply = [code >> 6, (code >> 4) & 3, (code >> 2) & 3, code & 3];
      const p = reply.reduce((p, token, i) => (p * eighths[i === 0 ? 1 : reply[i - 1]!]![token]!) / 8, 1);
      const seen = counts.get(reply.join("")) ?? 0;
      if (p === 0) expect(seen).toBe(0);
      else {
        cells++;
        chi2 += (seen - n * p) ** 2 / (n * p);
      }
    }
    // mean and spread of χ² with cells - 1 degrees of freedom; 3.1 spreads are p = 0.001; the seeds are fixed
    expect(chi2).toBeLessThan(cells - 1 + 3.1 * Math.sqrt(2 * cells));
  });
});

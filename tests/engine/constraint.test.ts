// A random model, held to a form: what it says has that form, however tokens are chosen and guessed.

import fc from "fast-check";
import { describe, expect, it, vi } from "vitest";
import { type CompletionRequest, complete, type Piece } from "../../src/engine/completion.ts";
import { type Constraint, Grammars } from "../../src/engine/constraint.ts";
import { DraftModel } from "../../src/engine/draft-model.ts";
import type { Engine, EngineOptions } from "../../src/engine/engine.ts";
import { Regexes } from "../../src/engine/grammar/regex.ts";
import { PromptLookup } from "../../src/engine/prompt-lookup.ts";
import { uniform } from "../../src/engine/random.ts";
import { type Decoding, type Guesser, Speculation, type Wanted } from "../../src/engine/speculation.ts";
import { byteLevel } from "../../src/prompt/small-vocabularies.ts";
import { RequestError } from "../../src/tensor/errors.ts";
import { backend, open as openEngine, randomParameters, config as small } from "./random-model.ts";

const tokenizer = byteLevel({ vocabSize: 320 });
const config = { ...small, vocabSize: 320 };
const parameters = randomParameters(config, 3);
const grammars = new Grammars(tokenizer, tokenizer.stop);
const open = (options: Partial<EngineOptions> = {}): Engine =>
  openEngine({ config, parameters, context: 400, ...options });

async function reply(engine: Engine, request: Partial<CompletionRequest> = {}) {
  const pieces: Piece[] = [];
  const whole = { tokens: [1, 2, 3], ...request };
  for await (const piece of complete(engine, tokenizer, tokenizer.stop, whole, grammars)) pieces.push(piece);
  return {
    text: pieces.map((p) => p.text).join(""),
    tokens: pieces.flatMap((p) => p.tokens),
    calls: pieces.flatMap((p) => p.toolCalls ?? []),
    logprobs: pieces.flatMap((p) => p.logprobs ?? []),
    end: pieces.at(-1)!,
  };
}

const schema = {
  type: "object",
  properties: {
    name: { type: "string", maxLength: 6 },
    ages: { type: "array", items: { type: "integer", minimum: 0, maximum: 130 }, minItems: 1, maxItems: 3 },
    kind: { enum: ["cat", "dog"] },
  },
  required: ["name", "ages", "kind"],
};
const bound: Constraint = { type: "json_schema", schema };
const tools = [{ name: "look", parameters: schema }, { name: "stop" }];
const greedy: Constraint = { type: "regex", pattern: "(?:[ab]*a[ab]{30})" }; // a state for each way through 30 characters
const ab = [..."ab"].map((c) => tokenizer.encode(c)[0]!);
const forced: Constraint = { type: "tool_calls", tools, parallel: false };

function checkPet(pet: { name: string; ages: number[]; kind: string }): void {
  expect(Object.keys(pet)).toEqual(["name", "ages", "kind"]);
  expect(Array.from(pet.name).length).toBeLessThanOrEqual(6);
  expect(pet.ages.length).toBeGreaterThan(0);
  for (const age of pet.ages) expect(age >= 0 && age <= 130 && Number.isInteger(age)).toBe(true);
  expect(["cat", "dog"]).toContain(pet.kind);
}

const sampling = fc.record({
  temperature: fc.constantFrom(0, 0.3, 1, 2),
  topP: fc.constantFrom(0.5, 0.9, 1),
  topK: fc.constantFrom(0, 1, 5),
  minP: fc.constantFrom(0, 0.1),
  repetitionPenalty: fc.constantFrom(1, 1.3),
  logitBias: fc.constantFrom({}, { 34: -100, 125: -100 }), // against quotes and closing braces
  seed: fc.nat(),
});

describe("a reply that is held to a schema", () => {
  it("has its form however tokens are chosen", async () => {
    const engine = open();
    await fc.assert(
      fc.asyncProperty(sampling, async (sampling) => {
        const { text, end, tokens } = await reply(engine, { constraint: bound, sampling });
        checkPet(JSON.parse(text));
        expect(end.finishReason).toBe("stop");
        expect(tokenizer.stop.has(tokens.at(-1)!)).toBe(true);
        expect(tokens.slice(0, -1).some((token) => tokenizer.isSpecial(token))).toBe(false);
      }),
      { numRuns: 40 },
    );
  });

  it("is what each is alone, where many are held to different ones at once", async () => {
    const constraints: (Constraint | undefined)[] = [
      bound,
      forced,
      { type: "regex", pattern: "[ab]{3,20}" },
      undefined,
      { type: "json_schema", schema: { enum: [1, "two"] } },
    ];
    const requests = constraints.map((constraint, seed) => ({
      constraint,
      maxTokens: 90,
      sampling: { seed, temperature: 1 },
    }));
    const engine = open();
    const together = await Promise.all(requests.map((request) => reply(engine, request)));
    for (const [i, request] of requests.entries())
      expect((await reply(open(), request)).tokens).toEqual(together[i]!.tokens);
  });

  it("is cut where its tokens are at an end, and says so", async () => {
    const whole = await reply(open(), { constraint: bound, sampling: { temperature: 0 } });
    const cut = await reply(open(), { constraint: bound, sampling: { temperature: 0 }, maxTokens: 5 });
    expect(cut.end.finishReason).toBe("length");
    expect(whole.text.startsWith(cut.text)).toBe(true);
  });

  it("ends at a stop string all the same", async () => {
    const { text, end } = await reply(open(), { constraint: bound, stop: ['"ages"'] });
    expect(end).toMatchObject({ finishReason: "stop", stopString: '"ages"' });
    expect(text).toMatch(/^\{\s*"name": ?"/);
  });

  it("has the model's own log-probabilities", async () => {
    const { logprobs, tokens } = await reply(open(), { constraint: bound, sampling: { logprobs: 20 }, maxTokens: 1 });
    const free = await reply(open(), { sampling: { logprobs: 20 }, maxTokens: 1 });
    expect(logprobs[0]!.top).toEqual(free.logprobs[0]!.top);
    expect(tokens).toEqual([0x7b]);
  });

  const other = { ...config, layers: config.layers.slice(0, 2) };
  const memory = { backend, context: 400, kvDtype: "f32" } as const;
  const guessers: Record<string, () => Guesser<never>> = {
    "prompt lookup": () => new PromptLookup(),
    "the same text again and again": () => ({
      hopes: [0.9],
      follow: async () => {},
      look: ({ tokens }: Decoding) => ({ kind: 0, most: 1 + (tokens.length % 5) }),
      guess: async (wanted: readonly Wanted<Decoding>[]) =>
        wanted.map(({ count, of }) =>
          Array.from({ length: count }, (_, i) => '{"name":"'.charCodeAt((of.tokens.length + 6 + i) % 9)),
        ),
      forget: () => {},
      close: () => {},
    }),
    "its own model": () => new DraftModel({ ...memory, parameters, config }, { vocabSize: 320, stepTokens: 16 }),
    "a smaller model": () =>
      new DraftModel(
        { ...memory, parameters: randomParameters(other, 3), config: other },
        { vocabSize: 320, stepTokens: 16 },
      ),
  };
  it.each(Object.entries(guessers))("is the same with guesses: %s", async (_, guesser) => {
    let clock = 0;
    let accepted = 0;
    const engine = open({ speculation: new Speculation(guesser(), () => clock++) });
    const plain = open();
    for (const constraint of [bound, forced])
      for (let seed = 0; seed < 4; seed++) {
        const request = { constraint, sampling: { seed, temperature: seed / 2 } };
        const { tokens, end } = await reply(engine, request);
        expect(tokens).toEqual((await reply(plain, request)).tokens);
        accepted += end.timings!.acceptedTokens;
      }
    expect(accepted).toBeGreaterThan(0);
  });
});

describe("a reply that has to be a call", () => {
  it("is a call whose arguments fit, and no text", async () => {
    const engine = open();
    for (let seed = 0; seed < 30; seed++) {
      const { text, calls, end } = await reply(engine, { constraint: forced, sampling: { seed, temperature: 1 } });
      expect(text).toBe("");
      expect(calls.length).toBe(1);
      if (calls[0]!.name === "look") checkPet(calls[0]!.arguments as never);
      else expect(calls[0]).toEqual({ name: "stop", arguments: {} });
      expect(end.finishReason).toBe("stop");
    }
  });

  it("never leaks as text, even cut off", async () => {
    const engine = open();
    for (let maxTokens = 1; maxTokens < 30; maxTokens++) {
      const { text, end, calls } = await reply(engine, {
        constraint: forced,
        maxTokens,
        sampling: { seed: maxTokens },
      });
      expect(text).toBe("");
      if (calls.length === 0) expect(end.finishReason).toBe("length");
    }
  });
});

describe("a constraint", () => {
  it("that cannot be kept is refused at once", () => {
    const ask = (constraint: unknown) => () =>
      complete(open(), tokenizer, tokenizer.stop, { tokens: [1], constraint: constraint as Constraint }, grammars);
    expect(
      ask({ type: "json_schema", schema: { type: "object", properties: { a: { not: { minLength: 3 } } } } }),
    ).toThrow(RequestError);
    expect(ask({ type: "xml" })).toThrow('its type is "xml"; expected json, json_schema, regex or tool_calls');
    expect(ask({ type: "regex" })).toThrow(RequestError);
    const none = { tokens: [1], constraint: bound };
    expect(() => complete(open(), undefined, new Set(), none)).toThrow("without a tokenizer");
    expect(() => new Grammars(tokenizer, new Set()).begin(bound)).toThrow("a token that ends replies");
  });

  it("that needs too many states fails by itself: others go on, and it may come again", () => {
    const all = new Grammars(tokenizer, tokenizer.stop);
    const other = all.begin(bound);
    const replies = Array.from({ length: 5000 }, () => all.begin(greedy));
    const fill = () => {
      for (const [i, reply] of replies.entries())
        for (let j = 0; j < 60; j++) reply.advance(ab[uniform(i, j) < 0.5 ? 0 : 1]!);
    };
    expect(fill).toThrow("more than 100,000 states");
    for (const token of tokenizer.encode('{"name": "a')) {
      expect(other.mask()!.has(token)).toBe(true);
      other.advance(token);
    }
    const again = all.begin(greedy);
    again.advance(ab[0]!);
    again.advance(ab[1]!);
    expect(again.mask()!.has(ab[0]!)).toBe(true);
    expect(all.begin({ type: "regex", pattern: "[ab]{9}c" }).mask()!.has(ab[1]!)).toBe(true);
  });

  // With a draft model, wrong guesses ended replies that went through without one.
  it("that guesses have exhausted still holds its reply", () => {
    const place = new Grammars(tokenizer, tokenizer.stop).begin(greedy);
    const guessAll = () => {
      let places = [place.fork()];
      for (let i = 0; i < 20; i++)
        places = places.flatMap((place) =>
          ab.map((token) => {
            const next = place.fork();
            next.advance(token);
            return next;
          }),
        );
    };
    expect(guessAll).toThrow("more than 100,000 states");
    for (let i = 0; i < 200; i++) {
      expect(ab.every((token) => place.mask()!.has(token))).toBe(true);
      place.advance(ab[Math.floor(i / 7) % 2]!);
    }
    expect(() => place.fork().mask()).not.toThrow(); // what is known costs nothing
  });

  // It was an error of the server's.
  it("whose terms nest too deep to go on with a token is refused", () => {
    const deep = new Grammars(tokenizer, tokenizer.stop).begin({ type: "regex", pattern: "a?b?".repeat(2500) });
    expect(() => deep.advance(tokenizer.encode("a")[0]!)).toThrow(
      new RequestError("the constraint nests too deep, or is too long; expected a simpler one"),
    );
  });

  // Each of n choices compiled it anew.
  it("that takes more than half of the states from the beginning is compiled once", () => {
    const all = new Grammars(tokenizer, tokenizer.stop);
    const large: Constraint = { type: "json_schema", schema: { enum: [..."abc"].map((c) => c.repeat(19_000)) } };
    all.begin(bound); // reads the vocabulary
    const compiled = vi.spyOn(Regexes.prototype, "made");
    const [one, two] = [all.begin(large), all.begin(large)];
    expect(compiled.mock.contexts.map((regexes) => (regexes as Regexes).size > 50_000)).toEqual([true]);
    compiled.mockRestore();
    expect([...two.mask()!.ids!]).toEqual([...one.mask()!.ids!]);
  });
});

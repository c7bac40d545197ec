// A mask is what one gets by trying every token, byte by byte.

import { describe, expect, it, vi } from "vitest";
import { automatonOf, type Constraint, type Matcher } from "../../../src/engine/constraint.ts";
import type { State } from "../../../src/engine/grammar/automaton.ts";
import { Masks, TokenMask } from "../../../src/engine/grammar/masks.ts";
import { Regexes } from "../../../src/engine/grammar/regex.ts";
import { TokenTrie } from "../../../src/engine/grammar/vocabulary.ts";
import { uniform } from "../../../src/engine/random.ts";
import { Sampler, type Sampling } from "../../../src/engine/sampler.ts";
import { fromTiktoken } from "../../../src/prompt/tiktoken.ts";
import type { Tokenizer } from "../../../src/prompt/tokenizer.ts";
import { metaTokenizer, unlessMissing } from "../../prompt/meta-tokenizer.ts";
import { tokenizers } from "./walk.ts";

const person = {
  type: "object",
  properties: {
    name: { type: "string" },
    nick: { type: "string", maxLength: 4 },
    age: { type: "integer", minimum: 0, maximum: 130 },
  },
  required: ["name", "age"],
  additionalProperties: { type: ["boolean", "null"] },
};
const tools = [{ name: "find", parameters: person }, { name: "stop" }];
const constraints: Record<string, Constraint> = {
  "a schema": { type: "json_schema", schema: person },
  "any JSON": { type: "json" },
  "a list of lists": {
    type: "json_schema",
    schema: { type: "array", items: { type: "array", items: { type: "string" } } },
  },
  "a text of a bounded length": { type: "json_schema", schema: { type: "string", minLength: 40, maxLength: 90 } },
  "a text of few characters": { type: "json_schema", schema: { type: "string", maxLength: 14 } },
  "a bounded pattern": { type: "regex", pattern: "(?:[a-z .,]|é){12,30}" },
  "a pattern that may end anywhere": { type: "regex", pattern: "[^x]{0,25}" },
  "a pattern": { type: "regex", pattern: '[^"]*é?\\d{2,3}' },
  "calls that have to be": { type: "tool_calls", tools, parallel: true },
  "calls or text": { type: "tool_calls", tools, parallel: true, otherwise: { type: "text" } },
};

/** Checks the masks on a way of random tokens. */
function checkWay(tokenizer: Tokenizer, constraint: Constraint, seed: number, steps: number, masks: Masks): void {
  const regexes = new Regexes();
  const automaton = automatonOf(constraint, regexes);
  let state: State = automaton.start;
  const after = (token: number): State | null => {
    let here: State | null = state;
    for (const byte of tokenizer.tokenBytes(token)) here = here && automaton.next(here, byte);
    return here;
  };
  for (let i = 0; i < steps; i++) {
    const expected: number[] = [];
    for (let id = 0; id < tokenizer.vocabSize; id++)
      if (
        tokenizer.isSpecial(id)
          ? tokenizer.stop.has(id) && state.isFinal
          : tokenizer.tokenBytes(id).length > 0 && after(id)
      )
        expected.push(id);
    const mask = masks.of(state, automaton, regexes);
    const found: number[] = [];
    for (let id = 0; id < tokenizer.vocabSize; id++) if (mask.has(id)) found.push(id);
    expect(found).toEqual(expected);
    const ordinary = expected.filter((id) => !tokenizer.isSpecial(id));
    if (ordinary.length === 0) return;
    const few = ordinary.filter((id) => tokenizer.tokenBytes(id).length > 1); // the more interesting ones
    const from = few.length > 0 && uniform(seed, 2 * i) < 0.7 ? few : ordinary;
    state = after(from[Math.floor(uniform(seed, 2 * i + 1) * from.length)]!)!;
  }
}

const masksOf = (tokenizer: Tokenizer, mostBytes?: number) =>
  new Masks(new TokenTrie(tokenizer), tokenizer.stop, mostBytes);

describe("masks", () => {
  const known = new Map(Object.values(tokenizers).map((tokenizer) => [tokenizer, masksOf(tokenizer)]));
  it.each(Object.entries(constraints))("are those of all tokens tried one by one: %s", (_, constraint) => {
    for (const tokenizer of Object.values(tokenizers))
      for (let seed = 0; seed < 6; seed++) {
        // every other time with what other grammars have left, else with so little room that masks are forgotten on the way
        const masks = seed % 2 === 0 ? known.get(tokenizer)! : masksOf(tokenizer, 100_000);
        checkWay(tokenizer, constraint, seed, 60, masks);
      }
  });

  it.skipIf(!metaTokenizer).each(Object.entries(constraints))(
    `are those of all tokens of Llama 4's vocabulary: %s${unlessMissing}`,
    (_, constraint) => {
      const tokenizer = fromTiktoken(metaTokenizer!);
      checkWay(tokenizer, constraint, 1, 12, masksOf(tokenizer));
    },
  );

  it("of few characters are not looked for among those of more, nor terms made for that", () => {
    const near = vi.spyOn(Regexes.prototype, "near");
    for (const tokenizer of Object.values(tokenizers))
      checkWay(tokenizer, constraints["a text of few characters"]!, 1, 60, masksOf(tokenizer));
    const longest = Object.values(tokenizers).map((tokenizer) => new TokenTrie(tokenizer).longest);
    const lengths = near.mock.calls.map(([, length]) => length);
    near.mockRestore();
    expect(lengths.length).toBeGreaterThan(0);
    expect(lengths.filter((length) => length < 8 && !longest.includes(length))).toEqual([]);
  });

  it("take no more memory than they may", () => {
    const tokenizer = tokenizers["words"]!;
    const regexes = new Regexes();
    const automaton = automatonOf(constraints["any JSON"]!, regexes);
    const masks = new Masks(new TokenTrie(tokenizer), tokenizer.stop, 4000);
    let state = automaton.start;
    for (const byte of new TextEncoder().encode('{"a": [1, "two", {"three": [null, true, 3.5e7]}]')) {
      masks.of(state, automaton, regexes);
      expect(masks.byteLength).toBeLessThanOrEqual(4000 + 1000); // the newest is kept however large
      state = automaton.next(state, byte)!;
    }
  });

  it("leave their tokens to choose from and no others", () => {
    for (const every of [1, 2, 3, 7, 100, 1000]) {
      const { logits, tokenAt } = everyNth(every).choices(Float32Array.from({ length: 2500 }, (_, i) => i));
      const left = Array.from(logits, (logit, place) => ({ logit, token: tokenAt(place) }));
      const expected = Array.from({ length: Math.ceil(2500 / every) }, (_, i) => ({
        logit: every * i,
        token: every * i,
      }));
      expect(left.filter(({ logit }) => logit > -Infinity)).toEqual(expected);
    }
  });

  it.each<Sampling>([
    { temperature: 0 },
    { temperature: 0, logprobs: 3 },
    { temperature: 1, topP: 1 },
    { temperature: 0.7, topP: 1, minP: 0.05 },
    { temperature: 0.6, topP: 0.9 },
    { temperature: 1.5, topP: 0.95, topK: 40 },
    { temperature: 1, topP: 1, topK: 3, repetitionPenalty: 1.3 },
  ])("choose as if the other tokens had no probability: %j", (sampling) => {
    for (const every of [1, 2, 3, 7, 100, 1000])
      for (let seed = 0; seed < 8; seed++) {
        const logits = Float32Array.from({ length: 2500 }, (_, i) => 6 * uniform(seed, i));
        const bias = Object.fromEntries(Array.from({ length: 2500 }, (_, i) => [i, i % every === 0 ? 0 : -100]));
        const mask = everyNth(every);
        const matcher = { mask: () => mask, advance: () => {}, fork: () => matcher } as unknown as Matcher; // what a sampler calls of one
        const held = new Sampler({ ...sampling, seed }, [7, 14], 2500, matcher);
        const free = new Sampler({ ...sampling, seed, logitBias: bias }, [7, 14], 2500);
        for (let i = 0; i < 4; i++) expect(held.sample(logits.slice())).toEqual(free.sample(logits.slice()));
        expect(held.guess(logits.slice(), [100, 200])).toBe(free.guess(logits.slice(), [100, 200]));
      }
  });
});

/** The mask of tokens 0, n, 2n … of 2500. */
function everyNth(n: number): TokenMask {
  const bits = new Uint32Array(Math.ceil(2500 / 32));
  for (let id = 0; id < 2500; id += n) bits[id >> 5]! |= 1 << (id & 31);
  return new TokenMask(bits, 2500);
}

describe("a vocabulary's trie", () => {
  it("has every ordinary token once, and knows what follows a node", () => {
    for (const tokenizer of Object.values(tokenizers)) {
      const trie = new TokenTrie(tokenizer);
      const found: number[] = [];
      const path: number[] = [];
      for (let node = 1; node < trie.size; node++) {
        path.length = trie.depths[node]! - 1;
        path.push(trie.bytes[node]!);
        for (let i = trie.firsts[node]!; i < trie.firsts[node + 1]!; i++) {
          expect([...tokenizer.tokenBytes(trie.tokens[i]!)]).toEqual(path);
          found.push(trie.tokens[i]!);
        }
        expect(trie.ends[node]).toBeGreaterThan(node);
      }
      const ordinary = Array.from({ length: tokenizer.vocabSize }, (_, id) => id).filter(
        (id) => !tokenizer.isSpecial(id),
      );
      expect(found.sort((a, b) => a - b)).toEqual(ordinary);
    }
  });
});

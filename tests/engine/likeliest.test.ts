import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { KVCache } from "../../src/engine/kv-cache.ts";
import { best, likeliest } from "../../src/engine/likeliest.ts";
import { promptLogprobs } from "../../src/engine/prompt-logprobs.ts";
import { CapacityError, RequestError } from "../../src/tensor/errors.ts";
import { config, open, prompt } from "./random-model.ts";

const { vocabSize } = config;
// of one to four tokens; many begin alike, some are another's beginning, some come twice
const continuations = Array.from({ length: 90 }, (_, i) =>
  prompt(1 + (i % 4), i % 50).map((id, at) => id % (5 + 9 * at)),
);

/** As one asks without `likeliest`: each continuation behind the whole prompt, computed anew. */
async function oneByOne(of: readonly number[], candidates: readonly (readonly number[])[] = continuations) {
  const engine = open({ sharePrefixes: false });
  const scores = candidates.map(async (continuation) => {
    const told = await promptLogprobs(engine, undefined, [...of, ...continuation], { vocabSize, top: 0 });
    return told.slice(of.length).reduce((sum, { logprob }) => sum + logprob!, 0);
  });
  return (await Promise.all(scores)).map((logprob, candidate) => ({ candidate, logprob }));
}

const ranked = (list: { candidate: number; logprob: number }[], k = list.length) =>
  [...list].sort((a, b) => b.logprob - a.logprob || a.candidate - b.candidate).slice(0, k);

describe("the likeliest continuations", () => {
  // chunks and blocks of 8: prompts that end inside a block, at a chunk's end, and before it, so that continuations cross it
  it.each([1, 7, 8, 14, 23])("of %i tokens are, to the bit, those that each gets alone", async (length) => {
    const all = await likeliest(open(), prompt(length), continuations, { vocabSize, k: continuations.length });
    expect(ranked(all)).toEqual(ranked(await oneByOne(prompt(length))));
  });

  it("are as many as were asked for, whoever else is served, in a cache that has room for few", async () => {
    const engine = open({ context: 48, localTokens: 16, stepTokens: 8, sequences: 3 });
    const reply = async (seed: number) => {
      const said: number[] = [];
      const asked = { tokens: prompt(9, seed), maxTokens: 20, sampling: { temperature: 0 } };
      for await (const { token } of engine.generate(asked)) said.push(token);
      return said;
    };
    const ask = (length: number) => likeliest(engine, prompt(length), continuations, { vocabSize, k: 5 });
    const [first, a, second, b] = await Promise.all([ask(14), reply(1), ask(21), reply(2)]);
    expect(ranked(first)).toEqual(ranked(await oneByOne(prompt(14)), 5));
    expect(ranked(second)).toEqual(ranked(await oneByOne(prompt(21)), 5));
    expect([a.length, b.length]).toEqual([20, 20]);
    expect([await reply(1), await reply(2)]).toEqual([a, b]);
    await new Promise((resolve) => setTimeout(resolve, 5)); // what is over leaves with the loop's next turn
    const { running, waiting, cache } = engine.stats();
    expect([running, waiting, cache.global!.used, cache.local!.used]).toEqual([0, 0, 0, 0]);
  });

  it("do not wait for one who has to wait for them, nor for one who is gone", async () => {
    const engine = open({ context: 48, localTokens: 16, stepTokens: 8, sequences: 3 });
    const held = await engine.hold(prompt(24));
    const long = (async () => {
      let said = 0;
      for await (const _ of engine.generate({ tokens: prompt(40, 1), maxTokens: 2, sampling: { temperature: 0 } }))
        said++;
      return said;
    })();
    let rows = 0;
    for await (const _ of engine.logits([1, 2], { last: true, from: held })) rows++;
    expect(rows).toBe(1);
    const abort = new AbortController();
    const gone = engine.hold(prompt(8), { signal: abort.signal });
    abort.abort(new Error("left"));
    await expect(gone).rejects.toThrow("left");
    held.close();
    expect(await long).toBe(2);
    (await engine.hold(prompt(8))).close();
  });

  it("compute the prompt once, and once what many begin with", async () => {
    const engine = open({ context: 512 });
    const alike = Array.from({ length: 30 }, (_, i) => [7, i, 3]);
    await likeliest(engine, prompt(16), alike, { vocabSize, k: 30 });
    expect(engine.stats()).toMatchObject({ stepTokens: 16 + 1 + 2 * 30, steps: 2 + 1 + 1 });
    await likeliest(engine, prompt(16, 1), alike, { vocabSize, k: 1 });
    expect(engine.stats().stepTokens).toBeLessThanOrEqual(2 * (16 + 1 + 2 * 30));
  });

  it("say what is wrong with a continuation, and where there is no room", async () => {
    const options = { vocabSize, k: 1 };
    const wrong = likeliest(open(), [1], [[2], [3, vocabSize]], options);
    await expect(wrong).rejects.toThrow(
      new RequestError("continuation 1 is [3, 32]; expected one or more tokens from 0 to 31"),
    );
    await expect(likeliest(open(), [1], [[]], options)).rejects.toBeInstanceOf(RequestError);
    await expect(likeliest(open({ context: 24 }), prompt(24), [[1, 2]], options)).rejects.toBeInstanceOf(CapacityError);
    const engine = open({ context: 24, localTokens: 16 });
    await expect(likeliest(engine, prompt(20), [[1, 2, 3]], options)).rejects.toThrow(
      "no room for the prompt of 22 tokens",
    );
    await expect(likeliest(engine, prompt(9), [[1, 2, 3]], options)).resolves.toHaveLength(1); // and it goes on
  });

  it("end when they are cancelled, and when the engine closes", async () => {
    const engine = open();
    const cancel = new AbortController();
    const options = { vocabSize, k: 90, signal: cancel.signal };
    const asked = likeliest(engine, prompt(9), continuations, options);
    setTimeout(() => cancel.abort(new Error("enough")), 1);
    await expect(asked).rejects.toThrow("enough");
    const held = await engine.hold(prompt(9)); // one that was cancelled holds up nobody
    const rows = engine.logits([1, 2, 3], { from: held });
    held.close();
    await expect(rows.next()).rejects.toThrow("let go");
    const last = await engine.hold(prompt(9));
    await engine.close();
    expect(() => engine.logits([1], { from: last })).toThrow("closed");
  });
});

describe("the best of many", () => {
  it("are those that scoring all would find, and hopeless ones are not followed", async () => {
    const bounds = Array.from({ length: 2000 }, (_, i) => -((i * 7919) % 2000) / 100);
    const scores = bounds.map((bound, i) => bound - ((i * 104729) % 17) / 4);
    const branches = bounds.map((logprob, i) => ({ candidates: [i], depth: 1, logprob }));
    let followed = 0;
    const found = await best(branches, 5, async ({ candidates: [candidate] }) => {
      followed++;
      return [{ candidate: candidate!, logprob: scores[candidate!]! }];
    });
    expect(found.map(({ logprob }) => logprob)).toEqual(scores.toSorted((a, b) => b - a).slice(0, 5));
    expect(followed).toBeLessThan(300);
  });
});

describe("a fork of a sequence in the cache", () => {
  it("reads what its original wrote, writes to blocks of its own, and leaks none", () => {
    fc.assert(
      fc.property(
        fc.record({
          blockSize: fc.constantFrom(1, 2, 4),
          blocksInChunk: fc.constantFrom(1, 2, 3, Infinity),
          length: fc.integer({ min: 1, max: 20 }),
          forks: fc.array(fc.integer({ min: 1, max: 14 }), { minLength: 1, maxLength: 4 }),
          sharePrefixes: fc.boolean(),
        }),
        ({ blockSize, blocksInChunk, length, forks, sharePrefixes }) => {
          const chunk = blockSize * blocksInChunk;
          const slots = new Map<string, string>(); // what stands in a slot: the tokens up to it
          const cache = new KVCache(
            { blockSize, chunk, globalBlocks: 100, localBlocks: 100 },
            {
              sharePrefixes,
              copy(kind, from, to) {
                for (let s = 0; s < blockSize; s++) slots.set(`${kind} ${to} ${s}`, slots.get(`${kind} ${from} ${s}`)!);
              },
            },
          );
          const slot = (kind: "global" | "local", sequence: number, p: number) => {
            const s = kind === "global" || chunk === Infinity ? p : p % chunk;
            return `${kind} ${cache.table(kind, sequence)[Math.floor(s / blockSize)]} ${s % blockSize}`;
          };
          const step = (sequence: number, tokens: number[], from: number) => {
            for (let p = from; p < tokens.length; p++) {
              cache.reserve(sequence, p + 1);
              for (const kind of ["global", "local"] as const) {
                slots.set(slot(kind, sequence, p), tokens.slice(0, p + 1).join());
                const start = kind === "global" || chunk === Infinity ? 0 : p - (p % chunk);
                for (let q = start; q <= p; q++)
                  if (slots.get(slot(kind, sequence, q)) !== tokens.slice(0, q + 1).join())
                    expect.fail(`${kind} slot ${q} of sequence ${sequence} holds another's`);
              }
              cache.commit(sequence, tokens, p + 1);
            }
          };
          const tokens = Array.from({ length }, (_, i) => i);
          cache.open(0, tokens);
          step(0, tokens, 0);
          for (const [i] of forks.entries()) expect(cache.fork(i + 1, 0)).toBe(length);
          for (const [i, more] of forks.entries())
            step(i + 1, [...tokens, ...Array.from({ length: more }, () => 100 + i)], length);
          step(0, [...tokens, 7], length);
          for (let i = forks.length; i >= 0; i--) cache.close(i);
          expect([cache.available("global"), cache.available("local")]).toEqual([100, 100]);
        },
      ),
      { numRuns: 200 },
    );
  });
});

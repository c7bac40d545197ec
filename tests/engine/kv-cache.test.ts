import { describe, expect, it } from "vitest";
import { blockSizeFor, cacheSizes, contextFor, KVCache } from "../../src/engine/kv-cache.ts";
import { presets } from "../../src/model/config.ts";

const tokens = (n: number, from = 0) => Array.from({ length: n }, (_, i) => from + i);

/** Computes a whole sequence, step by step, and ends it. */
function run(cache: KVCache, sequence: number, prompt: number[], slice = 4): number {
  const reused = cache.open(sequence, prompt);
  for (let p = reused; p < prompt.length; ) {
    const end = Math.min(prompt.length, p + slice, p - (p % cache.sizes.chunk) + cache.sizes.chunk);
    expect(cache.reserve(sequence, end)).toBe(true);
    cache.commit(sequence, prompt, end);
    p = end;
  }
  cache.close(sequence);
  return reused;
}

describe("the key-value cache", () => {
  const sizes = { blockSize: 4, chunk: 16, globalBlocks: 32, localBlocks: 8 };

  it("gives a sequence a block for every four positions, and gives the local ones up at the chunk's end", () => {
    const cache = new KVCache(sizes);
    cache.open(1, tokens(20));
    for (const [length, nGlobal, nLocal] of [
      [4, 1, 1],
      [15, 4, 4],
    ] as const) {
      expect(cache.reserve(1, length)).toBe(true);
      expect(cache.table("global", 1)).toHaveLength(nGlobal);
      expect(cache.table("local", 1)).toHaveLength(nLocal);
      cache.commit(1, tokens(20), length);
    }
    cache.reserve(1, 16);
    cache.commit(1, tokens(20), 16);
    expect(cache.table("global", 1)).toHaveLength(4);
    expect(cache.table("local", 1)).toHaveLength(0);
    cache.reserve(1, 18);
    expect(cache.table("local", 1)).toHaveLength(1);
  });

  it("refuses room it has not, and changes nothing", () => {
    const cache = new KVCache({ ...sizes, globalBlocks: 3 });
    cache.open(1, tokens(20));
    expect(cache.reserve(1, 8)).toBe(true);
    expect(cache.reserve(1, 16)).toBe(false);
    expect(cache.table("global", 1)).toHaveLength(2);
    expect(cache.available("global")).toBe(1);
  });

  it("finds a beginning again in whole blocks, but never the last token", () => {
    const cache = new KVCache(sizes);
    expect(run(cache, 1, tokens(14))).toBe(0);
    expect(run(cache, 2, tokens(14))).toBe(12);
    expect(run(cache, 3, tokens(12))).toBe(8);
    expect(run(cache, 4, tokens(14, 1))).toBe(0);
  });

  it("takes the same tokens with another image for another beginning, from the image on", () => {
    const cache = new KVCache(sizes);
    const open = (sequence: number, key: string) => {
      const reused = cache.open(sequence, tokens(14), [{ key, from: 6, to: 9 }]);
      cache.reserve(sequence, 14);
      cache.commit(sequence, tokens(14), 14);
      cache.close(sequence);
      return reused;
    };
    expect([open(1, "a"), open(2, "b"), open(3, "a"), open(4, "b")]).toEqual([0, 4, 12, 12]);
  });

  it("shares a beginning while its first user still runs", () => {
    const cache = new KVCache(sizes);
    cache.open(1, tokens(9));
    cache.reserve(1, 9);
    cache.commit(1, tokens(9), 9);
    expect(cache.open(2, tokens(12))).toBe(8);
    expect(cache.table("global", 2)).toEqual(cache.table("global", 1).slice(0, 2));
    cache.close(1);
    expect(cache.open(3, tokens(12))).toBe(8);
  });

  it("needs no local block of a chunk that is over", () => {
    const cache = new KVCache({ ...sizes, localBlocks: 4 });
    run(cache, 1, tokens(24)); // its second chunk has taken two of the four local blocks of the first
    run(cache, 2, tokens(15, 100)); // takes all four
    expect(cache.open(3, tokens(24))).toBe(16);
    expect(cache.table("local", 3)).toHaveLength(0);
  });

  it("does not continue inside a chunk whose local blocks are gone", () => {
    const cache = new KVCache({ ...sizes, localBlocks: 4 });
    run(cache, 1, tokens(14));
    run(cache, 2, tokens(15, 100));
    expect(cache.open(3, tokens(14))).toBe(0);
  });

  it("gives up the end of an unused beginning first, and the longest unused first", () => {
    const cache = new KVCache({ blockSize: 4, chunk: Infinity, globalBlocks: 6, localBlocks: undefined });
    run(cache, 1, tokens(8));
    run(cache, 2, tokens(12, 50));
    run(cache, 3, tokens(8, 100)); // one block was free; the other is the second of sequence 1
    expect(cache.open(4, tokens(12))).toBe(4);
  });

  it("forgets a beginning of 30,000 blocks, the last of which was evicted, without running out of stack", () => {
    const cache = new KVCache({ blockSize: 1, chunk: 2, globalBlocks: undefined, localBlocks: 2 });
    const long = new Int32Array(30_000);
    cache.open(1, long);
    for (let end = 2; end <= long.length; end += 2) {
      expect(cache.reserve(1, end)).toBe(true);
      cache.commit(1, long, end);
    }
    cache.close(1);
    expect(run(cache, 2, [7, 8])).toBe(0);
    expect(cache.available("local")).toBe(2);
  });

  it("shares nothing when told so", () => {
    const cache = new KVCache(sizes, { sharePrefixes: false });
    run(cache, 1, tokens(14));
    expect(run(cache, 2, tokens(14))).toBe(0);
  });
});

describe("the size of a cache", () => {
  it("is what the specification derives for Scout in 16 bits", () => {
    const gib = (context: number) =>
      cacheSizes(presets.scout, { context, dtype: "f16", localTokens: 8192 }).bytes / 2 ** 30;
    expect([8192, 131_072, 1_048_576, 10_485_760].map(gib)).toEqual([1.5, 7.125, 49.125, 481.125]);
  });

  it("has blocks that divide the chunk", () => {
    expect([8192, 16, 24, 7, 96, Infinity].map(blockSizeFor)).toEqual([64, 16, 8, 1, 32, 64]);
  });

  it("turns bytes into the longest context they hold", () => {
    const options = { dtype: "f16", localTokens: 8192 } as const;
    expect(contextFor(presets.scout, 7.125 * 2 ** 30, options)).toBe(131_072);
    expect(() => contextFor(presets.scout, 1000, options)).toThrow(
      "the key-value cache may take 1,000 bytes; expected at least 12,582,912, one block",
    );
  });
});

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { GRAMS, NgramIndex } from "../../src/engine/prompt-lookup.ts";

/** The newest earlier place of the longest gram, by looking everywhere. */
function searched(tokens: readonly number[]) {
  for (const [gram, n] of GRAMS.entries())
    for (let at = tokens.length - 1; at >= n; at--)
      if (tokens.slice(at - n, at).join() === tokens.slice(-n).join()) return { at, gram };
  return undefined;
}

describe("prompt lookup", () => {
  it("finds what a search of everything finds, while the sequence grows", () => {
    fc.assert(
      fc.property(fc.array(fc.array(fc.nat(3), { maxLength: 20 }), { maxLength: 40 }), (parts) => {
        const tokens: number[] = [];
        const index = new NgramIndex(tokens);
        for (const part of parts) {
          tokens.push(...part);
          expect(index.find()).toEqual(searched(tokens));
        }
      }),
      { numRuns: 300 },
    );
  });

  it("guesses what followed, and goes round where that reaches the end", () => {
    const tokens = [5, 6, 7, 8, 9, 1, 5, 6];
    const index = new NgramIndex(tokens);
    expect(index.find()).toEqual({ at: 2, gram: 2 });
    expect(index.after(2, 3)).toEqual([7, 8, 9]);
    expect(index.after(2, 9)).toEqual([7, 8, 9, 1, 5, 6, 7, 8, 9]);
  });

  it("finds nothing in what does not repeat", () => {
    expect(new NgramIndex(Array.from({ length: 5000 }, (_, i) => i)).find()).toBeUndefined();
    expect(new NgramIndex([1]).find()).toBeUndefined();
  });
});

import { describe, expect, it } from "vitest";
import { Likelihood, logProbability, windows } from "../../src/eval/likelihood.ts";

describe("a log-probability", () => {
  it("is the logit less the logarithm of the sum, however large", () => {
    const logits = [1000, 1000 + Math.log(2), 1000 + Math.log(5)];
    expect([0, 1, 2].map((token) => Math.exp(logProbability(logits, token)))).toEqual(
      [1, 2, 5].map((weight) => expect.closeTo(weight / 8, 12)),
    );
  });
});

describe("a likelihood", () => {
  it("of equal choices among 256 is a byte's eight bits", () => {
    const likelihood = new Likelihood();
    for (let i = 0; i < 3; i++) likelihood.add(10 * Math.log(256), 10, 10);
    const { tokens, bytes, loss, perplexity, bitsPerByte } = likelihood.summary;
    expect([tokens, bytes]).toEqual([30, 30]);
    expect(loss).toBeCloseTo(Math.log(256), 12);
    expect(perplexity).toBeCloseTo(256, 9);
    expect(bitsPerByte).toBeCloseTo(8, 12);
  });
});

describe("windows", () => {
  it("foretell every token but the first exactly once", () => {
    for (const n of [0, 1, 2, 7, 8, 9, 50])
      for (const length of [2, 8]) {
        const foretold = [...windows(n, length)].flatMap(({ from, to }) =>
          Array.from({ length: to - from - 1 }, (_, i) => from + 1 + i),
        );
        expect(foretold).toEqual(Array.from({ length: Math.max(0, n - 1) }, (_, i) => i + 1));
      }
  });
});

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { Matcher } from "../../src/engine/constraint.ts";
import { uniform } from "../../src/engine/random.ts";
import { Sampler, type Sampling } from "../../src/engine/sampler.ts";
import { CheckpointError, RequestError } from "../../src/tensor/errors.ts";

const V = 12;
const logits = Float32Array.from({ length: V }, (_, i) => Math.sin(i * 2.3) * 2);

function draw(from: Float32Array, sampling: Sampling, prompt: number[] = []): number {
  const sample = new Sampler(sampling, prompt, from.length).sample(from.slice());
  return typeof sample === "number" ? sample : sample.token;
}

/** How often each token comes, over seeds 0 … n - 1. */
function histogram(from: Float32Array, sampling: Sampling, n: number): number[] {
  const counts = new Array<number>(from.length).fill(0);
  for (let seed = 0; seed < n; seed++) counts[draw(from, { ...sampling, seed })]!++;
  return counts;
}

/** The rules by a full sort, as the papers write them. */
function expected(from: Float32Array, { temperature = 1, topK = 0, topP = 1, minP = 0 }: Sampling): number[] {
  const max = from.reduce((a, b) => Math.max(a, b));
  let tokens = Array.from(from, (logit, token) => ({ token, p: Math.exp((logit - max) / temperature) }));
  const normalise = () => {
    const sum = tokens.reduce((a, { p }) => a + p, 0);
    tokens = tokens.map(({ token, p }) => ({ token, p: p / sum }));
  };
  tokens.sort((a, b) => b.p - a.p || a.token - b.token);
  if (topK > 0) tokens = tokens.slice(0, topK);
  normalise();
  let before = 0;
  tokens = tokens.filter(({ p }) => {
    const kept = before <= topP;
    before += p;
    return kept;
  });
  tokens = tokens.filter(({ p }) => p >= minP * tokens[0]!.p);
  normalise();
  const result = new Array<number>(from.length).fill(0);
  for (const { token, p } of tokens) result[token] = p;
  return result;
}

describe("a sampled token", () => {
  const cases: Sampling[] = [
    { temperature: 1, topP: 1 },
    { temperature: 0.6, topP: 0.9 },
    { temperature: 2, topP: 0.5 },
    { temperature: 1, topP: 1, topK: 4 },
    { temperature: 1.5, topP: 0.8, topK: 7 },
    { temperature: 1, topP: 1, minP: 0.3 },
    { temperature: 1.3, topP: 0.9, minP: 0.1, topK: 9 },
  ];
  for (const sampling of cases) {
    it(`has the probability that ${JSON.stringify(sampling)} gives it`, () => {
      const n = 8000;
      const p = expected(logits, sampling);
      const counts = histogram(logits, sampling, n);
      let chi2 = 0;
      for (const [token, count] of counts.entries()) {
        if (p[token] === 0) expect(count).toBe(0);
        else chi2 += (count - n * p[token]!) ** 2 / (n * p[token]!);
      }
      expect(chi2).toBeLessThan(31.3); // 11 degrees of freedom, p = 0.001; the seeds are fixed
    });
  }

  it("is one that a full sort would keep, among many equal and unequal logits", () => {
    const values = fc.array(fc.oneof(fc.constantFrom(0, 1, 2), fc.double({ min: -8, max: 8, noNaN: true })), {
      minLength: 1,
      maxLength: 300,
    });
    const options = fc.record({
      temperature: fc.double({ min: 0.1, max: 2, noNaN: true }),
      topP: fc.constantFrom(0, 0.3, 0.9, 1),
      topK: fc.constantFrom(0, 1, 5, 50),
      minP: fc.constantFrom(0, 0.2),
      seed: fc.nat(),
    });
    fc.assert(
      fc.property(values, options, (list, sampling) => {
        const from = Float32Array.from(list);
        expect(expected(from, sampling)[draw(from, sampling)]).toBeGreaterThan(0);
      }),
      { numRuns: 500 },
    );
  });

  it("is the one that a full sort gives for its random number, of any number of logits", () => {
    const shapes = fc.record({
      length: fc.integer({ min: 1, max: 3000 }),
      spread: fc.constantFrom(0, 0.01, 1, 5, 100),
      step: fc.constantFrom(0, 0.5), // equals, or hardly any
      forbidden: fc.constantFrom(0, 0.3),
    });
    const options = fc.record({
      temperature: fc.constantFrom(1e-3, 0.6, 1, 2),
      topP: fc.constantFrom(0, 0.3137, 0.8917, 0.9991, 1), // no fraction of 3000
      topK: fc.constantFrom(0, 1, 7, 40, 2500),
      minP: fc.constantFrom(0, 0.01, 0.4, 1),
      seed: fc.nat(),
    });
    fc.assert(
      fc.property(shapes, options, ({ length, spread, step, forbidden }, sampling) => {
        const from = Float32Array.from({ length }, (_, i) => {
          if (i > 0 && uniform(sampling.seed + 1, i) < forbidden) return -Infinity;
          const logit = spread * (uniform(sampling.seed + 2, i) + uniform(sampling.seed + 3, i) - 1);
          return step > 0 ? step * Math.round(logit / step) : logit;
        });
        const token = draw(from, sampling);
        const p = expected(from, sampling);
        const before = p.slice(0, token).reduce((a, b) => a + b, 0);
        const u = uniform(sampling.seed, 0);
        expect(p[token]).toBeGreaterThan(0);
        expect(u).toBeGreaterThan(before - 1e-9);
        expect(u).toBeLessThan(before + p[token]! + 1e-9);
      }),
      { numRuns: 500 },
    );
  });

  it("at temperature 0 is the likeliest, the lowest id among equals", () => {
    expect(draw(Float32Array.of(1, 3, 3, 2), { temperature: 0 })).toBe(1);
  });

  it("with topP 0 is the likeliest", () => {
    expect(new Set(Array.from({ length: 50 }, (_, seed) => draw(logits, { topP: 0, temperature: 2, seed }))).size).toBe(
      1,
    );
  });

  it("follows its seed, token after token", () => {
    const tokens = (seed: number) => {
      const sampler = new Sampler({ temperature: 2, topP: 1, seed }, [], V);
      return Array.from({ length: 20 }, () => sampler.sample(logits.slice())).join();
    };
    expect(tokens(3)).toBe(tokens(3));
    expect(tokens(3)).not.toBe(tokens(4));
  });

  it("of the whole vocabulary is found without a sort", () => {
    const flat = new Float32Array(202_048); // the worst case: all equal
    expect(draw(flat, { topP: 0.5, temperature: 1, seed: 1 })).toBeLessThan(101_025);
  });

  for (const sampling of [{ temperature: 0 }, {}, { temperature: 0, logprobs: 1 }])
    it(`is refused where a logit is no number: ${JSON.stringify(sampling)}`, () => {
      const broken = (bad: number) => () => draw(Float32Array.of(1, 2, bad, 3), sampling);
      expect(broken(Number.NaN)).toThrow(CheckpointError);
      expect(broken(Infinity)).toThrow(
        "the weights are broken: logit 2 is Infinity; expected numbers, get the checkpoint anew",
      );
      expect(broken(-Infinity)).not.toThrow(); // a model may forbid a token
      expect(() => draw(new Float32Array(4).fill(-Infinity), sampling)).toThrow("all 4 logits are -Infinity");
    });
});

describe("penalties", () => {
  const greedy = { temperature: 0 };
  it("for repetition divide positive and multiply negative logits of prompt and reply", () => {
    expect(draw(Float32Array.of(3, 2), { ...greedy, repetitionPenalty: 2 }, [0])).toBe(1);
    expect(draw(Float32Array.of(-1, -1.5), { ...greedy, repetitionPenalty: 2 }, [0])).toBe(1);
    expect(draw(Float32Array.of(3, 1), { ...greedy, repetitionPenalty: 2 }, [0, 0])).toBe(0);
  });

  it("for presence and frequency count the reply, not the prompt", () => {
    const reply = (sampling: Sampling) => {
      const sampler = new Sampler({ ...greedy, ...sampling }, [0, 0, 0], 2);
      return [1, 2, 3, 4].map(() => sampler.sample(Float32Array.of(1, 0)));
    };
    expect(reply({ presencePenalty: 1.5 })).toEqual([0, 1, 0, 0]);
    expect(reply({ frequencyPenalty: 0.6 })).toEqual([0, 0, 1, 0]);
  });

  it("by bias can forbid and force", () => {
    expect(draw(logits, { ...greedy, logitBias: { 7: 100 } })).toBe(7);
    const best = draw(logits, greedy);
    expect(draw(logits, { ...greedy, logitBias: { [best]: -100 } })).not.toBe(best);
  });
});

describe("log-probabilities", () => {
  it("are those of the model, before temperature, bias and penalties", () => {
    const sampler = new Sampler({ temperature: 0, logitBias: { 7: 100 }, logprobs: 2 }, [], V);
    const sample = sampler.sample(logits.slice());
    const sum = Math.log(logits.reduce((a, l) => a + Math.exp(l), 0));
    const order = [...logits.keys()].sort((a, b) => logits[b]! - logits[a]!);
    if (typeof sample === "number") throw new Error("expected log-probabilities");
    expect(sample.token).toBe(7);
    expect(sample.logprob).toBeCloseTo(logits[7]! - sum, 6);
    expect(sample.top.map((t) => t.token)).toEqual(order.slice(0, 2));
    expect(sample.top[1]!.logprob).toBeCloseTo(logits[order[1]!]! - sum, 6);
  });
});

it("a guess that a grammar does not answer leaves nothing behind", () => {
  const fork = {
    mask: () => undefined,
    advance: () => {
      throw new RequestError("the constraint needs more than 100,000 states");
    },
  };
  const matcher = { mask: () => undefined, advance: () => {}, fork: () => fork } as unknown as Matcher; // what a sampler calls of one
  const sampling = { temperature: 1, frequencyPenalty: 2, repetitionPenalty: 1.5, seed: 3 };
  const asked = new Sampler(sampling, [], V, matcher);
  expect(() => asked.guess(logits.slice(), [1, 2, 2, 3])).toThrow(RequestError);
  const plain = new Sampler(sampling, [], V);
  for (let i = 0; i < 20; i++) expect(asked.sample(logits.slice())).toBe(plain.sample(logits.slice()));
});

describe("a wrong choice", () => {
  const wrong: [Sampling, string][] = [
    [{ temperature: -1 }, "temperature is -1; expected a number from 0 to 2"],
    [{ temperature: Number.NaN }, "temperature is NaN; expected a number from 0 to 2"],
    [{ topP: 1.5 }, "topP is 1.5; expected a number from 0 to 1"],
    [{ topK: 2.5 }, "topK is 2.5; expected a whole number from 0 to 2147483648"],
    [{ seed: -3 }, "seed is -3; expected a whole number from 0 to 9007199254740991"],
    [{ logprobs: 21 }, "logprobs is 21; expected a whole number from 0 to 20"],
    [{ logitBias: { 12: 1 } }, '"12" of logitBias is no token; expected an id from 0 to 11'],
    [{ logitBias: Object.fromEntries([["", 5]]) }, '"" of logitBias is no token; expected an id from 0 to 11'],
    [{ logitBias: Object.fromEntries([["1e0", 5]]) }, '"1e0" of logitBias is no token; expected an id from 0 to 11'],
    [{ topp: 1 } as Sampling, 'there is no option "topp"; expected the options of `Sampling`'],
    [{ logitBias: { 3: 101 } }, "logitBias of token 3 is 101; expected a number from -100 to 100"],
  ];
  for (const [sampling, message] of wrong) {
    it(`is named: ${message}`, () => {
      expect(() => new Sampler(sampling, [], V)).toThrow(new RequestError(message));
    });
  }
});

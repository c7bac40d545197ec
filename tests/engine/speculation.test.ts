import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { uniform } from "../../src/engine/random.ts";
import {
  Acceptance,
  type Decoding,
  type Guesser,
  guessCounts,
  MOST_GUESSED,
  Speculation,
  StepCost,
  type Wanted,
} from "../../src/engine/speculation.ts";

describe("the cost of a step", () => {
  it("is what was measured, and between and beyond on a line", () => {
    const cost = new StepCost();
    expect(cost.of(3)).toBeUndefined();
    cost.learn(1, 10);
    expect(cost.of(1)).toBe(10);
    expect(cost.of(5)).toBe(15); // nothing known: an eighth for each row more
    cost.learn(9, 26);
    expect(cost.of(5)).toBe(18);
    expect(cost.of(17)).toBeCloseTo((26 * 3) / 2);
  });

  it("follows a machine that becomes slower", () => {
    const cost = new StepCost();
    for (let i = 0; i < 30; i++) cost.learn(1, i < 10 ? 10 : 20);
    expect(cost.of(1)).toBeCloseTo(20, 1);
  });

  it("forgets a hiccup in the end", () => {
    const cost = new StepCost();
    cost.learn(1, 10);
    cost.learn(2, 500);
    for (let i = 0; i < 600; i++) cost.doubt(1);
    expect(cost.of(2)).toBeLessThan(15);
  });
});

describe("the chance of a guess", () => {
  it("is a hope first, and what was seen later", () => {
    const acceptance = new Acceptance([0.5, 0.8]);
    expect([acceptance.of(0), acceptance.of(1)]).toEqual([0.5, 0.8]);
    for (let i = 0; i < 50; i++) acceptance.learn(0, 8, 8);
    expect(acceptance.of(0)).toBeGreaterThan(0.98);
    for (let i = 0; i < 50; i++) acceptance.learn(0, 4, 1);
    expect(acceptance.of(0)).toBeCloseTo(0.5, 1); // one right and one wrong each time
    expect(acceptance.of(1)).toBe(0.8);
  });
});

describe("how many are guessed", () => {
  const costs = (row: number) => ({ step: (rows: number) => 1 + row * (rows - 1), guessing: () => 0 });
  const one = { batch: 1, room: 100, bound: Infinity };

  it("is what brings the most tokens in a time, as trying all says", () => {
    fc.assert(
      fc.property(
        fc.double({ min: 0, max: 1, noNaN: true }),
        fc.double({ min: 0, max: 1, noNaN: true }),
        (chance, row) => {
          const speed = (k: number) => {
            let tokens = 1;
            for (let j = 1; j <= k; j++) tokens += chance ** j;
            return tokens / costs(row).step(1 + k);
          };
          const best = Math.max(...Array.from({ length: 17 }, (_, k) => speed(k)));
          const [count] = guessCounts([{ chance, most: 16 }], one, costs(row));
          expect(speed(count!)).toBeCloseTo(best, 9);
        },
      ),
    );
  });

  it("favours those whose guesses are right more often, within the room", () => {
    const prospects = [
      { chance: 0.9, most: 16 },
      { chance: 0.2, most: 16 },
    ];
    expect(guessCounts(prospects, { batch: 2, room: 5, bound: Infinity }, costs(0.05))).toEqual([5, 0]);
  });

  it("is none where the credit does not cover the loss", () => {
    expect(guessCounts([{ chance: 0.9, most: 16 }], { ...one, bound: 0.05 }, costs(0.1))).toEqual([0]);
  });
});

/** A machine whose clock runs by what steps cost, and guesses that are right as told. */
function simulated(step: (rows: number) => number, right: (token: number) => boolean) {
  let clock = 0;
  let plain = 0;
  const guesser: Guesser = {
    hopes: [0.6],
    follow: async () => {},
    look: () => ({ kind: 0, most: MOST_GUESSED }),
    guess: async (wanted: readonly Wanted<Decoding>[]) => wanted.map(({ count }) => new Array<number>(count).fill(0)),
    forget: () => {},
    close: () => {},
  };
  const speculation = new Speculation(guesser, () => clock);
  return {
    /** Time that `n` tokens took, and how long they would have taken without guesses. */
    async run(n: number) {
      let steps = 0;
      for (let made = 0; made < n; steps++) {
        const guesses =
          (await speculation.propose([{ sequence: 0, tokens: [], most: n - made - 1 }], 100)).get(0) ?? [];
        let accepted = 0;
        while (accepted < guesses.length && right(made + accepted)) accepted++;
        clock += step(1 + guesses.length);
        plain += (1 + accepted) * step(1);
        made += 1 + accepted;
        speculation.learn([{ sequence: 0, guessed: guesses.length, accepted }]);
      }
      return { clock, plain, steps };
    },
  };
}

describe("speculation", () => {
  it("never costs 3 %, whatever a row costs and whichever guesses are right", async () => {
    const pattern = fc.record({
      row: fc.double({ min: 0, max: 1.2, noNaN: true }),
      // stretches of a length, each with its own chance
      stretches: fc.array(fc.tuple(fc.integer({ min: 1, max: 80 }), fc.constantFrom(0, 0.2, 0.4, 0.6, 0.8, 1)), {
        minLength: 1,
        maxLength: 8,
      }),
      seed: fc.nat(1000),
    });
    await fc.assert(
      fc.asyncProperty(pattern, async ({ row, stretches, seed }) => {
        const chances = stretches.flatMap(([n, chance]) => new Array<number>(n).fill(chance));
        const right = (token: number) => uniform(seed, token) < chances[token % chances.length]!;
        const { clock, plain } = await simulated((rows) => 10 * (1 + row * (rows - 1)), right).run(400);
        expect(clock).toBeLessThan(plain / 0.97);
      }),
      { numRuns: 300 },
    );
  });

  it("takes less than a fifth of the steps where all guesses are right and rows are cheap", async () => {
    const { steps, clock, plain } = await simulated(
      (rows) => 10 * (1 + 0.05 * (rows - 1)),
      () => true,
    ).run(400);
    expect(steps).toBeLessThan(80);
    expect(plain / clock).toBeGreaterThan(4);
  });

  it("goes on where its first guesses were wrong", async () => {
    const { steps } = await simulated(
      (rows) => 10 * (1 + 0.3 * (rows - 1)),
      (token) => token >= 4,
    ).run(250);
    expect(steps).toBeLessThan(50);
  });

  it("begins again when the text begins to repeat itself", async () => {
    const repeats = (token: number) => token >= 500;
    const { steps } = await simulated((rows) => 10 * (1 + 0.2 * (rows - 1)), repeats).run(1000);
    expect(steps).toBeLessThan(700);
  });
});

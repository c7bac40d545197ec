// What of the balancing biases is left at a step.

import { describe, expect, it } from "vitest";
import { biasShareAt, type Schedule } from "../../src/train/schedule.ts";

const sharesOf = (schedule: Partial<Schedule>) => {
  const whole: Schedule = { ...{ kind: "wsd", steps: 100, warmup: 0, decay: 40, final: 0 }, ...schedule };
  return Array.from({ length: whole.steps }, (_, step) => biasShareAt(whole, step));
};

describe("the biases' share", () => {
  it("falls while the first half of the rate's fall lasts", () => {
    const shares = sharesOf({});
    expect([0, 60, 65, 70, 75, 80, 99].map((step) => shares[step])).toEqual([1, 1, 0.75, 0.5, 0.25, 0, 0]);
    expect(sharesOf({ kind: "cosine" }).findIndex((share) => share < 1)).toBe(76);
  });

  it.each([
    [1, 0],
    [3, 0],
    [100, 0],
    [100, 1],
    [10_000, 0],
    [10_000, 10],
  ])("is 0 before a run of %d steps ends whose rate falls over %d", (steps, decay) => {
    const shares = sharesOf({ steps, decay });
    expect(shares.at(-1)).toBe(0);
    expect(shares.filter((share) => share < 1).length).toBeGreaterThanOrEqual(
      Math.min(steps, Math.max(3, steps / 20 - 1)),
    );
  });
});

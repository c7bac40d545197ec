import { describe, expect, it } from "vitest";
import { philox, uniform } from "../../src/engine/random.ts";

describe("random numbers", () => {
  // Random123's known-answer vectors for philox2x32-10
  it("are those of the published generator", () => {
    expect(philox(0, 0, 0).map((w) => w.toString(16))).toEqual(["ff1dae59", "6cd10df2"]);
    expect(philox(0xffffffff, 0xffffffff, 0xffffffff).map((w) => w.toString(16))).toEqual(["2c3f628b", "ab4fd7ad"]);
    expect(philox(0x243f6a88, 0x85a308d3, 0x13198a2e).map((w) => w.toString(16))).toEqual(["dd7ce038", "f62a4c12"]);
  });

  it("depend on every bit of the seed, and lie in [0, 1)", () => {
    const seeds = [0, 1, 2 ** 31, 2 ** 32, 2 ** 32 + 1, 2 ** 52, Number.MAX_SAFE_INTEGER];
    const numbers = seeds.map((seed) => uniform(seed, 5));
    expect(new Set(numbers).size).toBe(seeds.length);
    for (const u of numbers) expect(u >= 0 && u < 1).toBe(true);
  });

  it("fall evenly", () => {
    const bins = new Array(16).fill(0);
    for (let i = 0; i < 16_000; i++) bins[Math.floor(uniform(7, i) * 16)]++;
    const chi2 = bins.reduce((sum, n) => sum + (n - 1000) ** 2 / 1000, 0);
    expect(chi2).toBeLessThan(37.7); // 15 degrees of freedom, p = 0.001; the seed is fixed, so it holds or it does not
  });
});

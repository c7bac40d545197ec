import { describe, expect, it } from "vitest";
import { countParameters, layerKinds, presets } from "../../src/model/config.ts";
import { ropeFrequencies } from "../../src/model/rope.ts";
import { temperatures } from "../../src/model/transformer.ts";

describe("parameter counts", () => {
  it.each([
    ["scout", 108641793536, 17172894720],
    ["maverick", 401583781376, 17184691200],
    ["behemoth", 2005424804864, 287857316864],
  ] as const)("%s: as specification §2 and §18 derive them", (name, total, active) => {
    expect(countParameters(presets[name])).toEqual({ total, active });
  });
});

describe("layer kinds", () => {
  it("follow the intervals, and a step of 0 means none", () => {
    const kinds = layerKinds(8, 4, 2);
    expect(kinds.map((kind) => kind.rope)).toEqual([true, true, true, false, true, true, true, false]);
    expect(kinds.map((kind) => kind.moe)).toEqual([false, true, false, true, false, true, false, true]);
    expect(layerKinds(3, 0, 0)).toEqual(Array(3).fill({ rope: true, chunked: true, moe: false }));
  });
});

describe("rotary frequencies", () => {
  const plain = ropeFrequencies(presets.maverick);

  it("with Scout's scaling leave 0 to 34 and divide 35 to 63 by 16", () => {
    const scaled = ropeFrequencies(presets.scout);
    expect(Array.from(scaled, (f, j) => plain[j]! / f)).toEqual(Array.from(scaled, (_, j) => (j <= 34 ? 1 : 16)));
  });

  it("with the launch-time scaling ramp between 29 and 34", () => {
    const ropeScaling = { factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalContext: 8192 };
    const scaled = ropeFrequencies({ ...presets.scout, ropeScaling });
    const ramp = [0.828168, 0.643743, 0.493507, 0.371122, 0.271425, 0.190211];
    for (const [i, multiplier] of ramp.entries()) expect(scaled[29 + i]! / plain[29 + i]!).toBeCloseTo(multiplier, 5);
    expect(scaled[28]).toBe(plain[28]);
    expect(scaled[35]! * 8).toBeCloseTo(plain[35]!, 15);
  });

  it("are divided by a file's own factors", () => {
    const ropeDivisors = Array.from({ length: 64 }, (_, j) => j + 1);
    expect(ropeFrequencies({ ...presets.maverick, ropeDivisors })[9]).toBe(plain[9]! / 10);
  });
});

describe("attention temperature", () => {
  it("equals specification §3.6's examples", () => {
    const at = Int32Array.of(0, 8190, 8191, 16383, 262143, 1048575, 10485759);
    const expected = [1, 1, 1.069315, 1.109861, 1.349651, 1.485981, 1.71554];
    for (const [i, tau] of temperatures(presets.scout, at).entries()) expect(tau).toBeCloseTo(expected[i]!, 6);
  });
});

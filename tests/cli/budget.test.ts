import { describe, expect, it } from "vitest";
import { type Mix, storedType } from "../../src/checkpoint/mix.ts";
import { bytesPerToken, kvBytes, partBytes, weightsOf } from "../../src/cli/budget.ts";
import { countParameters, presets } from "../../src/model/config.ts";

const { scout, maverick, behemoth } = presets;
const sum = (parts: Record<string, number>) => Object.values(parts).reduce((a, b) => a + b);

describe("the bytes of a model", () => {
  it("are twice the parameters where all is bfloat16", () => {
    for (const c of [scout, maverick, behemoth]) expect(sum(partBytes(c, "bf16"))).toBe(2 * countParameters(c).total);
  });

  it.each([
    ["scout", "q8_0", 114.5],
    ["scout", "q4_k_m", 65.4],
    ["maverick", "q8_0", 425.8],
    ["maverick", "q4_k_m", 242.8],
  ] as const)("of %s in %s are those of gguf.md §7: %d GB of text", (name, quant, gigabytes) => {
    const parts = partBytes(presets[name], quant);
    expect((sum(parts) - parts.vision) / 1e9).toBeCloseTo(gigabytes, 0.9);
  });

  it("of the Q4_K_M mix are Q6_K in v and down of 24 of 48 layers", () => {
    const more = weightsOf(scout).filter((w) => w.role === "wv" && storedType("q4_k_m", w, scout) === "q6_k");
    const layers = [0, 1, 2, 3, 4, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35, 38, 41, 42, 43, 44, 45, 46, 47];
    expect(more.map((w) => w.layer)).toEqual(layers);
  });

  it("never need a block that does not divide the row", () => {
    const small = {
      ...scout,
      nHeads: 3,
      headDim: 32,
      dim: 96,
      expertDim: 80,
      layers: scout.layers.slice(0, 2),
      vocabSize: 512,
    };
    const types = (mix: Mix) => new Set(weightsOf(small).map((w) => storedType(mix, w, small)));
    expect(types("q4_k")).toEqual(new Set(["q8_0", "f32", "f16"]));
  });

  it("of one token are at most those of the active parameters", () => {
    for (const c of [scout, maverick, behemoth])
      expect(bytesPerToken(c, "bf16")).toBe(2 * (countParameters(c).active - c.vocabSize * c.dim));
  });
});

describe("the keys and values of Scout in 16 bits", () => {
  it.each([
    [8192, 1.5],
    [131072, 7.125],
    [1048576, 49.125],
    [10485760, 481.125],
  ])("take, for %d tokens, %d GiB (specification §4)", (context, gibibytes) => {
    const { global, local } = kvBytes(scout, context, "f16");
    expect(global + local).toBe(gibibytes * 2 ** 30);
  });

  it("take 196,608 bytes a token below the chunk, and in local layers nothing more beyond", () => {
    const at = (context: number) => kvBytes(scout, context, "f16");
    expect(at(1).global + at(1).local).toBe(196608);
    expect(at(8193).local).toBe(at(8192).local);
  });
});

import { describe, expect, it } from "vitest";
import { overridePreset, randomTensors } from "../../src/checkpoint/init.ts";
import { presets } from "../../src/model/config.ts";
import { dequantize } from "../../src/tensor/block-formats.ts";
import { RequestError } from "../../src/tensor/errors.ts";

async function values(dtype: "f32" | "f16" | "bf16", name: string, shape: number[], seed = 0): Promise<Float32Array> {
  const [tensor] = randomTensors([{ name, shape }], 8, dtype, seed);
  const chunks: Uint8Array[] = [];
  for await (const chunk of tensor!.chunks()) chunks.push(chunk);
  const out = new Float32Array(shape.reduce((a, b) => a * b, 1));
  dequantize(dtype, new Uint8Array(Buffer.concat(chunks)), out);
  return out;
}

const mean = (x: Float32Array) => x.reduce((a, b) => a + b, 0) / x.length;
const deviation = (x: Float32Array) => Math.sqrt(x.reduce((a, b) => a + b * b, 0) / x.length);

describe("random tensors", () => {
  const projection = "model.layers.0.self_attn.q_proj.weight";

  it.each(["f32", "f16", "bf16"] as const)(
    "%s matrices have mean 0 and variance 1 / fan-in, across blocks",
    async (dtype) => {
      const x = await values(dtype, projection, [1500, 1024]); // more than one block of 2²⁰
      expect(Math.abs(mean(x))).toBeLessThan(4 / Math.sqrt(1024 * x.length)); // four standard errors
      expect(deviation(x) * 32).toBeCloseTo(1, 2);
    },
  );

  it("experts are [E, in, out]: their fan-in is the middle axis", async () => {
    const x = await values("f32", "model.layers.0.feed_forward.experts.gate_up_proj", [4, 64, 512]);
    expect(deviation(x) * 8).toBeCloseTo(1, 1);
  });

  it("gains are 1, biases 0", async () => {
    expect(new Set(await values("bf16", "model.norm.weight", [64]))).toEqual(new Set([1]));
    expect(new Set(await values("bf16", "vision_model.layernorm_pre.bias", [64]))).toEqual(new Set([0]));
  });

  it("depend on the seed and the name, and on nothing else", async () => {
    const x = await values("f32", projection, [8, 64]);
    expect(await values("f32", projection, [8, 64])).toEqual(x);
    expect(await values("f32", projection, [8, 64], 1)).not.toEqual(x);
    expect(await values("f32", projection.replace("q_", "k_"), [8, 64])).not.toEqual(x);
  });
});

describe("overrides of a preset", () => {
  it("keep its proportions where they are silent", () => {
    const c = overridePreset("scout", { dim: 640, layers: 8 });
    expect(c).toMatchObject({
      dim: 640,
      nHeads: 5,
      nKvHeads: 1,
      headDim: 128,
      ffnDim: 2048,
      expertDim: 1024,
      nExperts: 16,
    });
    expect(c.layers.map((kind) => kind.rope)).toEqual([true, true, true, false, true, true, true, false]);
  });

  it("without experts every layer is dense", () => {
    expect(() => overridePreset("scout", { layers: 99_999_999 })).toThrow(
      "init: layers is 99999999; expected at most 4096",
    );
    expect(overridePreset("maverick", { experts: 0, layers: 4 }).layers.some((kind) => kind.moe)).toBe(false);
  });

  it("any size of a vision encoder asks for one, in the published one's proportions", () => {
    expect(overridePreset("scout", { vision: true }).vision).toEqual(presets.scout.vision);
    expect(overridePreset("scout", { visionLayers: 2, visionDim: 176, visionTile: 112 }).vision).toMatchObject({
      ...{ dim: 176, nLayers: 2, nHeads: 2, ffnDim: 704, imageSize: 112, patchSize: 14 },
      ...{ adapterDim: 512, outputDim: 512 },
    });
    expect(overridePreset("scout", { visionDim: 48, visionHeads: 3 }).vision).toMatchObject({ dim: 48, nHeads: 3 });
    expect(overridePreset("scout", {}).vision).toBeUndefined();
  });

  it.each([
    [{ visionDim: 66 }, /vision-dim is 66; expected a multiple of 4/],
    [{ visionDim: 64, visionHeads: 3 }, /vision-heads is 3; expected a divisor of 16/],
    [{ visionTile: 100 }, /vision-tile is 100; expected a multiple of 28/],
    [{ vision: false, visionLayers: 2 }, /sizes of a vision encoder with --vision off/],
    [{ layers: 0 }, /layers is 0; expected a whole number of at least 1/],
    [{ heads: 6, kvHeads: 4 }, /6 heads cannot share 4/],
    [{ headDim: 7 }, /head-dim is 7/],
    [{ experts: 2, topK: 3 }, /top-k is 3 of 2/],
  ])("%o is refused", (overrides, message) => {
    expect(() => overridePreset("scout", overrides)).toThrow(RequestError);
    expect(() => overridePreset("scout", overrides)).toThrow(message);
  });
});

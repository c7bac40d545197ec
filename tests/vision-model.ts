// A small random Llama 4 with a vision encoder, as a Hugging Face folder: tiles of 56 pixels, four tokens each.

import { mkdirSync } from "node:fs";
import { toHuggingFace as configFile } from "../src/checkpoint/config-hugging-face.ts";
import { overridePreset, randomTensors } from "../src/checkpoint/init.ts";
import { huggingFaceTensors } from "../src/checkpoint/names-hugging-face.ts";
import { writeHuggingFace } from "../src/checkpoint/writers.ts";
import { promptFiles } from "../src/cli/init.ts";
import { type Llama4Config, publishedPreprocessing } from "../src/model/config.ts";
import { byteLevel } from "../src/prompt/small-vocabularies.ts";

const vision = {
  ...{ dim: 16, nLayers: 2, nHeads: 2, ffnDim: 64, imageSize: 56, patchSize: 14, nChannels: 3, normEps: 1e-5 },
  ...{ ropeTheta: 10000, shuffle: 2, adapterDim: 24, outputDim: 24, preprocessing: publishedPreprocessing },
};

export const visionModel = { tileSize: 56, tokensPerTile: 4 };

/** Writes it, with chunks of 32. */
export async function writeVisionModel(folder: string): Promise<Llama4Config> {
  const sizes = { layers: 4, dim: 32, heads: 4, kvHeads: 2, headDim: 8, ffn: 32, expertFfn: 16, experts: 2, chunk: 32 };
  const shape = overridePreset("scout", { ...sizes, vocab: 512, vision: true });
  const tokenizer = byteLevel(shape);
  const id = (text: string) => tokenizer.specialId(text);
  const config: Llama4Config = {
    ...shape,
    vision,
    tokens: {
      ...{ bos: tokenizer.bos!, eos: [...tokenizer.stop] },
      ...{ imageStart: id("<|image_start|>"), imageEnd: id("<|image_end|>"), patch: id("<|patch|>") },
    },
  };
  mkdirSync(folder, { recursive: true });
  await writeHuggingFace(
    folder,
    {
      "config.json": JSON.stringify(configFile(config, "float32")),
      ...promptFiles(config, tokenizer, { defaults: {} }),
    },
    randomTensors(huggingFaceTensors(config), config.layers.length, "f32", 7),
  );
  return config;
}

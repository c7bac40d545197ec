// `llama4 init`: a randomly initialised checkpoint in Hugging Face layout.

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { type Command, Option } from "commander";
import { toHuggingFace as configFile } from "../checkpoint/config-hugging-face.ts";
import { type Overrides, overridePreset, randomTensors } from "../checkpoint/init.ts";
import { parseObject } from "../checkpoint/json.ts";
import { huggingFaceTensors } from "../checkpoint/names-hugging-face.ts";
import type { Checkpoint } from "../checkpoint/open.ts";
import { toPreprocessorConfig } from "../checkpoint/preprocessor-config.ts";
import { writeHuggingFace } from "../checkpoint/writers.ts";
import { countParameters, type Llama4Config, presets, type TokenIds } from "../model/config.ts";
import { byteLevel, cut } from "../prompt/small-vocabularies.ts";
import { fromTiktoken } from "../prompt/tiktoken.ts";
import type { Tokenizer } from "../prompt/tokenizer.ts";
import { fromHuggingFace, toHuggingFace, toHuggingFaceConfig } from "../prompt/tokenizer-json.ts";
import { RequestError } from "../tensor/errors.ts";
import { type Answer, oneOf, progress, type Run, type Session } from "./answer.ts";
import { define, whole } from "./options.ts";
import { isFile, refuseToOverwrite, replacing } from "./output.ts";

interface InitOptions extends Omit<Overrides, "vision"> {
  readonly vision?: "on" | "off";
  readonly tokenizer?: string;
  readonly dtype: "f32" | "f16" | "bf16";
  readonly seed: number;
  readonly force?: true;
}

const presetNames = Object.keys(presets) as (keyof typeof presets)[];

export function init(program: Command, run: Run): void {
  define(program, "init", "A randomly initialised checkpoint: for tests, benchmarks and training from scratch.", [
    "llama4 init scout ./small --layers 4 --dim 256 --heads 4 --kv-heads 2 --experts 4 --vocab 512",
    "llama4 init scout ./vision --layers 2 --dim 128 --experts 2 --vocab 512 --vision-layers 2 --vision-dim 64",
    "llama4 init maverick ./mine --layers 12 --dim 768 --tokenizer tokenizer.model --vocab 32768 --seed 1",
  ])
    .argument("<preset>", presetNames.join(", "))
    .argument("<out>", "the folder to write")
    .option("--layers <n>", "Transformer blocks", whole())
    .option("--dim <n>", "width of the residual stream", whole())
    .option("--heads <n>", "query heads", whole())
    .option("--kv-heads <n>", "key/value heads", whole())
    .option("--head-dim <n>", "width of a head", whole())
    .option("--ffn <n>", "width of a dense layer's feed-forward", whole())
    .option("--expert-ffn <n>", "width of an expert", whole())
    .option("--experts <n>", "routed experts of a layer; 0 = none", whole())
    .option("--top-k <n>", "experts that a token takes", whole())
    .option("--moe-step <n>", "every n-th layer has experts; 0 = none", whole())
    .option("--chunk <n>", "positions of an attention chunk", whole())
    .option("--vocab <n>", "tokens", whole())
    .addOption(
      new Option("--vision <on|off>", "the vision encoder (default: off; on with any size of it)").choices([
        "on",
        "off",
      ]),
    )
    .option("--vision-layers <n>", "its blocks (default: 34)", whole(1))
    .option("--vision-dim <n>", "its width (default: 1408: 1.7 GB in bf16)", whole(1))
    .option("--vision-heads <n>", "its heads (default: in proportion to its width)", whole(1))
    .option("--vision-tile <n>", "pixels along a tile's side (default: 336)", whole(1))
    .option("--tokenizer <file>", "a tokenizer.model, cut to the vocabulary (default: one token a byte)")
    .addOption(new Option("--dtype <type>", "of the weights").choices(["bf16", "f16", "f32"]).default("bf16"))
    .option("--seed <n>", "the same seed gives the same bytes", whole(), 0)
    .option("--force", "replaces the checkpoint that is there")
    .action(run(initialise));
}

async function initialise({ signal }: Session, preset: string, out: string, options: InitOptions): Promise<Answer> {
  const { vision, tokenizer: vocabulary, dtype, seed, force, ...sizes } = options;
  const name = oneOf("the preset", preset, presetNames);
  refuseToOverwrite(out, force);
  const shape = overridePreset(name, { ...sizes, ...(vision && { vision: vision === "on" }) });
  const tokenizer = vocabulary === undefined ? byteLevel(shape) : cutTo(shape.vocabSize, vocabulary);
  const config = { ...shape, tokens: tokenIds(tokenizer) };
  const tensors = randomTensors(huggingFaceTensors(config), config.layers.length, dtype, seed);
  const files = {
    "config.json": shown({ ...configFile(config, torchNames[dtype]), [RANDOM]: seed }),
    ...(config.vision && { "preprocessor_config.json": shown(toPreprocessorConfig(config.vision)) }),
    ...promptFiles(config, tokenizer, { defaults: {} }),
  };
  const bar = progress(`writing ${out}`);
  try {
    await replacing(out, (folder) => writeHuggingFace(folder, files, tensors, { signal, onProgress: bar.update }));
  } finally {
    bar.stop();
  }
  const parameters = countParameters(config);
  const [total, active] = [parameters.total, parameters.active].map((n) => n.toLocaleString("en"));
  return {
    json: { out, preset: name, parameters, layers: config.layers.length, dtype, seed },
    text: `${out}: a random ${name} with ${total} parameters, ${active} of them active. Next: llama4 inspect ${out}`,
  };
}

/** The key of config.json that says that nobody trained these weights. */
const RANDOM = "llama4_random_seed";

/** Whether a model is one that `init` has made. */
export function isRandom(path: string): boolean {
  const file = join(path, "config.json");
  return existsSync(file) && RANDOM in parseObject(readFileSync(file, "utf8"), file);
}

export const torchNames = { f32: "float32", f16: "float16", bf16: "bfloat16" } as const;

/** Everything beside weights and config.json: the tokenizer, its template and the sampling. */
export function promptFiles(
  { tokens: { bos, eos } }: Pick<Llama4Config, "tokens">,
  tokenizer: Tokenizer | undefined,
  { defaults, chatTemplate }: Pick<Checkpoint, "defaults" | "chatTemplate">,
): Record<string, string> {
  const { temperature = 0.6, topP = 0.9 } = defaults; // as published (specification §11)
  const files = {
    "generation_config.json": {
      ...{ do_sample: temperature > 0, bos_token_id: bos, eos_token_id: eos },
      ...(temperature > 0 && { temperature, top_p: topP }),
    },
    ...(tokenizer && {
      "tokenizer.json": toHuggingFace(tokenizer),
      "tokenizer_config.json": toHuggingFaceConfig(tokenizer, chatTemplate === undefined ? {} : { chatTemplate }),
    }),
  };
  return Object.fromEntries(Object.entries(files).map(([name, json]) => [name, shown(json)]));
}

const shown = (json: object) => `${JSON.stringify(json, null, 2)}\n`;

/** What the configuration names of the vocabulary. */
export function tokenIds({ special, bos, stop }: Tokenizer): TokenIds {
  const named = { imageStart: "<|image_start|>", imageEnd: "<|image_end|>", patch: "<|patch|>" };
  const found = Object.entries(named).flatMap(([key, text]) => {
    const id = special.get(text);
    return id === undefined ? [] : [[key, id]];
  });
  return { ...(bos !== undefined && { bos }), eos: [...stop], ...Object.fromEntries(found) };
}

function cutTo(vocabSize: number, file: string): Tokenizer {
  if (!existsSync(file)) throw new RequestError(`--tokenizer: there is no file ${file}; check the path`);
  if (!isFile(file))
    throw new RequestError(`--tokenizer: ${file} is no file; expected a tokenizer.model or tokenizer.json`);
  const bytes = readFileSync(file);
  const isJson = file.endsWith(".json");
  const whole = isJson ? fromHuggingFace(parseObject(bytes.toString(), file)) : fromTiktoken(bytes);
  return whole.vocabSize === vocabSize ? whole : cut(whole, vocabSize);
}

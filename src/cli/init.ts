// `llama4 init`: a randomly initialised checkpoint in Hugging Face layout.

import { existsSync, readFileSync } from "node:fs";
import { rename, rm } from "node:fs/promises";
import { type Command, Option } from "commander";
import { toHuggingFace as configFile } from "../checkpoint/config.ts";
import { type Overrides, overridePreset, randomTensors } from "../checkpoint/init.ts";
import { parseObject } from "../checkpoint/json.ts";
import { huggingFaceTensors } from "../checkpoint/names.ts";
import { writeHuggingFace } from "../checkpoint/writers.ts";
import { countParameters, type Llama4Config, presets, type TokenIds } from "../model/config.ts";
import { byteLevel, cut } from "../prompt/small-vocabularies.ts";
import { fromTiktoken } from "../prompt/tiktoken.ts";
import type { Tokenizer } from "../prompt/tokenizer.ts";
import { fromHuggingFace, toHuggingFace, toHuggingFaceConfig } from "../prompt/tokenizer-json.ts";
import { RequestError } from "../tensor/errors.ts";
import { type Answer, oneOf, progress, type Run, type Session } from "./answer.ts";
import { define, whole } from "./options.ts";

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
    "init scout ./small --layers 4 --dim 256 --heads 4 --kv-heads 2 --experts 4 --vocab 512 --vision off",
    "init maverick ./mine --layers 12 --dim 768 --tokenizer tokenizer.model --vocab 32768 --seed 1",
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
    .addOption(new Option("--vision <on|off>", "the vision encoder (default: off)").choices(["on", "off"]))
    .option("--tokenizer <file>", "a tokenizer.model, cut to the vocabulary (default: one token a byte)")
    .addOption(new Option("--dtype <type>", "of the weights").choices(["bf16", "f16", "f32"]).default("bf16"))
    .option("--seed <n>", "the same seed gives the same bytes", whole(), 0)
    .option("--force", "replaces what is there")
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
  const bar = progress(`writing ${out}`);
  try {
    await replacing(out, (folder) =>
      writeHuggingFace(folder, filesOf(config, tokenizer, dtype), tensors, { signal, onProgress: bar.update }),
    );
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

const torchNames = { f32: "float32", f16: "float16", bf16: "bfloat16" } as const;

/** Everything beside the weights. */
function filesOf(config: Llama4Config, tokenizer: Tokenizer, dtype: InitOptions["dtype"]): Record<string, string> {
  const { bos, eos } = config.tokens;
  const generation = { do_sample: true, temperature: 0.6, top_p: 0.9, bos_token_id: bos, eos_token_id: eos };
  const files = {
    "config.json": configFile(config, torchNames[dtype]),
    "generation_config.json": generation, // as published (specification §11)
    "tokenizer.json": toHuggingFace(tokenizer),
    "tokenizer_config.json": toHuggingFaceConfig(tokenizer),
  };
  return Object.fromEntries(Object.entries(files).map(([name, json]) => [name, `${JSON.stringify(json, null, 2)}\n`]));
}

/** What the configuration names of the vocabulary. */
function tokenIds({ special, bos, stop }: Tokenizer): TokenIds {
  const named = { imageStart: "<|image_start|>", imageEnd: "<|image_end|>", patch: "<|patch|>" };
  const found = Object.entries(named).flatMap(([key, text]) => {
    const id = special.get(text);
    return id === undefined ? [] : [[key, id]];
  });
  return { ...(bos !== undefined && { bos }), eos: [...stop], ...Object.fromEntries(found) };
}

function cutTo(vocabSize: number, file: string): Tokenizer {
  const bytes = readFileSync(file);
  const isJson = file.endsWith(".json");
  const whole = isJson ? fromHuggingFace(parseObject(bytes.toString(), file)) : fromTiktoken(bytes);
  return whole.vocabSize === vocabSize ? whole : cut(whole, vocabSize);
}

/** Has `write` make a new folder or file beside `out`, which then takes the place of what is there. */
export async function replacing(out: string, write: (path: string) => Promise<unknown>): Promise<void> {
  if (!existsSync(out)) {
    await write(out);
    return;
  }
  const fresh = `${out}.${process.pid}.new`;
  await write(fresh);
  await rm(out, { recursive: true });
  await rename(fresh, out);
}

/** Without --force a command leaves alone what is there. */
export function refuseToOverwrite(out: string, force: true | undefined): void {
  if (!force && existsSync(out))
    throw new RequestError(`${out} exists already; choose another place, or replace it with --force`);
}

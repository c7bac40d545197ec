// Options that several commands share, and how their values are read. What they mean is checked by those who use them.

import { type Command, InvalidArgumentError, Option } from "commander";
import { Sampler, type Sampling } from "../engine/sampler.ts";
import type { Start } from "../protocol.ts";
import { type KVDType, kvDtypes } from "../tensor/backend.ts";
import { RequestError } from "../tensor/errors.ts";

/** A whole number from `least`. */
export function whole(least = 0, most = Number.MAX_SAFE_INTEGER): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!/^-?\d+$/.test(text) || !Number.isSafeInteger(value) || value < least || value > most)
      throw new InvalidArgumentError(
        `Expected a whole number from ${least}${most < Number.MAX_SAFE_INTEGER ? ` to ${most}` : ""}.`,
      );
    return value;
  };
}

export function number(text: string): number {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value)) throw new InvalidArgumentError("Expected a number.");
  return value;
}

/** Adds a value to those given before: for options that may stand several times. */
export const collect = (value: string, before: readonly string[] = []): string[] => [...before, value];

export interface ModelOptions {
  readonly model?: string;
  readonly backend?: "reference" | "native";
  readonly threads?: number;
  readonly context?: number;
  readonly mmproj?: string;
  readonly adapter?: string;
  readonly kvDtype?: KVDType;
}

export interface SpeculationOptions {
  readonly speculate?: "lookup" | "off";
  readonly draft?: string;
}

export function withSpeculation(command: Command): Command {
  return command
    .addOption(
      new Option("--speculate <how>", "guesses tokens ahead where the text repeats itself (default: off)").choices([
        "lookup",
        "off",
      ]),
    )
    .option("--draft <path>", "a smaller model with the same vocabulary that guesses tokens ahead");
}

/** What the options ask for. Throws RequestError where they contradict each other. */
export function speculationOf({ speculate, draft }: SpeculationOptions): Start["speculation"] {
  if (draft !== undefined && speculate !== undefined)
    throw new RequestError(`--draft with --speculate ${speculate}; expected one of them`);
  return draft === undefined ? speculate : { draft };
}

export function withModel(command: Command): Command {
  return command
    .option(
      "-m, --model <path>",
      "a Hugging Face folder, a Meta folder or a .gguf file (default: the model that ships)",
    )
    .addOption(new Option("--backend <name>", "default: native where it loads").choices(["native", "reference"]))
    .option("--threads <n>", "threads that compute (default: all cores)", whole(1))
    .option("--context <n>", "tokens that prompt and reply may have together", whole(1))
    .addOption(kvDtypeOption("default: f32 for a model in f32, else f16"))
    .option("--mmproj <file>", mmprojHelp)
    .option("--adapter <folder>", adapterHelp);
}

export const adapterHelp = "an adapter in PEFT's layout that goes into the weights, as llama4 train makes them";
export const mmprojHelp = "the vision part of a GGUF model (default: mmproj-<model> beside it, if there)";

export const kvDtypeOption = (description: string): Option =>
  new Option("--kv-dtype <type>", `how keys and values are kept (${description})`).choices(kvDtypes);

/** The model of a command that takes it as an argument or as an option. */
export function named(command: string, argument: string | undefined, { model }: Pick<ModelOptions, "model">): string {
  const name = argument ?? model;
  if (name === undefined) throw new RequestError(`${command}: no model; llama4 ${command} --help says what it takes`);
  if (model !== undefined && name !== model)
    throw new RequestError(`${command}: two models, ${name} and ${model}; expected one`);
  return name;
}

export interface SamplingOptions extends Pick<Sampling, "temperature" | "topP" | "topK" | "minP" | "seed"> {
  readonly maxTokens?: number;
  readonly stop?: readonly string[];
}

export function withSampling(command: Command): Command {
  return command
    .option("-n, --max-tokens <n>", "longest reply (default: what the context leaves)", whole(1))
    .option("--temperature <t>", "0 takes the likeliest token (default: the checkpoint's, else 0.6)", number)
    .option(
      "--top-p <p>",
      "keeps the likeliest tokens up to this probability (default: the checkpoint's, else 0.9)",
      number,
    )
    .option("--top-k <k>", "keeps this many of the likeliest tokens; 0 keeps all", number)
    .option("--min-p <p>", "drops tokens less likely than this part of the likeliest", number)
    .option("--seed <n>", "the same seed gives the same tokens", number)
    .option("--stop <text>", "ends the reply where this text appears; may stand several times", collect);
}

/** The sampling options that were given. Throws RequestError, before a model is loaded, for values that make no sense. */
export function samplingOf({ temperature, topP, topK, minP, seed }: SamplingOptions): Sampling {
  const sampling = { temperature, topP, topK, minP, seed };
  new Sampler(sampling, [], 1);
  return sampling;
}

/** A command with what all have: `--json`, and examples under its help. */
export function define(program: Command, usage: string, description: string, examples: readonly string[]): Command {
  const shown = examples.map((line) => `  $ ${line}`).join("\n");
  return program
    .command(usage)
    .description(description)
    .option("--json", "one object on stdout (chat: one a turn) and nothing else there")
    .addHelpText("after", `\n${examples.length > 1 ? "Examples" : "Example"}:\n${shown}`);
}

// Options that several commands share, and how their values are read. What they mean is checked by those who use them.

import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { type Command, InvalidArgumentError, Option } from "commander";
import { RequestError } from "../tensor/errors.ts";

/** A whole number from `least`. */
export function whole(least = 0): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!/^-?\d+$/.test(text) || !Number.isSafeInteger(value) || value < least)
      throw new InvalidArgumentError(`Expected a whole number from ${least}.`);
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
    .option("--mmproj <file>", "the vision part of a GGUF model");
}

/** The path given, or that of the model that ships with the package. */
export function modelPath({ model }: Pick<ModelOptions, "model">): string {
  if (model !== undefined) return model;
  const shipped = fileURLToPath(new URL("../../models/tiny", import.meta.url));
  if (existsSync(shipped)) return shipped;
  throw new RequestError(
    "no model was named and this version ships none; give --model PATH, or make one: llama4 init scout FOLDER --layers 4 --dim 256",
  );
}

export interface ImageOptions {
  readonly image?: readonly string[];
  readonly video?: string;
}

export function withImages(command: Command): Command {
  return command
    .option("--image <file>", "an image before the text; may stand several times", collect)
    .option("--video <file>", "a video before the text");
}

export function refuseImages({ image, video }: ImageOptions): void {
  const given = image ? "--image" : video !== undefined ? "--video" : undefined;
  if (given) throw new RequestError(`${given}: images are not supported yet by this version; leave it out`);
}

export interface SamplingOptions {
  readonly temperature?: number;
  readonly topP?: number;
  readonly topK?: number;
  readonly minP?: number;
  readonly seed?: number;
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

/** The sampling options that were given, and no others. */
export function samplingOf({ temperature, topP, topK, minP, seed }: SamplingOptions): SamplingOptions {
  return Object.fromEntries(
    Object.entries({ temperature, topP, topK, minP, seed }).filter(([, value]) => value !== undefined),
  );
}

/** A command with what all have: `--json`, and examples under its help. */
export function define(program: Command, usage: string, description: string, examples: readonly string[]): Command {
  const shown = examples.map((line) => `  $ llama4 ${line}`).join("\n");
  return program
    .command(usage)
    .description(description)
    .option("--json", "one object on stdout and nothing else there")
    .addHelpText("after", `\n${examples.length > 1 ? "Examples" : "Example"}:\n${shown}`);
}

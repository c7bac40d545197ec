// What belongs to the prompt in a checkpoint: tokenizer, chat template, and the sampling that its makers recommend.

import { readFileSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { parseObject } from "./checkpoint/json.ts";
import type { Sampling } from "./engine/sampler.ts";
import type { Llama4Config } from "./model/config.ts";
import { fromGguf, type GgufVocabulary } from "./prompt/gguf-vocabulary.ts";
import { fromTiktoken } from "./prompt/tiktoken.ts";
import type { Tokenizer, TokenizerOptions } from "./prompt/tokenizer.ts";
import { fromHuggingFace } from "./prompt/tokenizer-json.ts";
import { CheckpointError } from "./tensor/errors.ts";

export interface PromptFiles {
  readonly tokenizer: Tokenizer | undefined;
  readonly chatTemplate: string | undefined;
  /** Of generation_config.json; empty where there is none. */
  readonly sampling: Sampling;
}

/** GGUF metadata, where the checkpoint is such a file. */
type Metadata = ReadonlyMap<string, unknown>;

/** Reads what stands beside the weights, or inside them. A tokenizer of another size than the model's is refused. */
export function openPromptFiles(path: string, c: Llama4Config, metadata?: Metadata): PromptFiles {
  const options = { vocabSize: c.vocabSize, bos: c.tokens.bos, eos: c.tokens.eos };
  if (metadata?.has("tokenizer.ggml.tokens")) {
    const template = metadata.get("tokenizer.chat_template");
    return {
      tokenizer: ggufTokenizer(metadata, options),
      chatTemplate: typeof template === "string" ? template : undefined,
      sampling: {},
    };
  }
  const folder = statSync(path).isDirectory() ? path : dirname(path);
  return {
    tokenizer: folderTokenizer(folder, options),
    chatTemplate: folderTemplate(folder),
    sampling: folderSampling(folder),
  };
}

function ggufTokenizer(metadata: Metadata, options: TokenizerOptions): Tokenizer {
  const key = (name: string) => metadata.get(`tokenizer.ggml.${name}`);
  const [model, pre, tokens, tokenTypes, merges] = ["model", "pre", "tokens", "token_type", "merges"].map(key);
  const isList = (value: unknown) => Array.isArray(value) || ArrayBuffer.isView(value);
  if (!isList(tokens) || !isList(tokenTypes))
    throw new CheckpointError("tokenizer.ggml.tokens and token_type; expected a list each, of equal length");
  // their contents are checked by fromGguf
  return fromGguf({ model, pre, tokens, tokenTypes, merges } as GgufVocabulary, options);
}

function folderTokenizer(folder: string, options: TokenizerOptions): Tokenizer | undefined {
  const json = objectIn(folder, "tokenizer.json");
  if (json) return fromHuggingFace(json, options);
  const model = bytesIn(folder, "tokenizer.model");
  return model && fromTiktoken(model, options);
}

function folderTemplate(folder: string): string | undefined {
  const file = bytesIn(folder, "chat_template.jinja");
  if (file) return new TextDecoder().decode(file);
  const given = objectIn(folder, "tokenizer_config.json")?.["chat_template"];
  // several templates are a list of { name, template }
  const templates: readonly unknown[] = Array.isArray(given) ? given : [];
  const named = templates.find((t): t is { template: unknown } => Object(t).name === "default")?.template;
  const template = named ?? given;
  return typeof template === "string" ? template : undefined;
}

function folderSampling(folder: string): Sampling {
  const file = objectIn(folder, "generation_config.json") ?? {};
  const names = { temperature: "temperature", topP: "top_p", topK: "top_k", minP: "min_p" } as const;
  const given = Object.entries(names).map(([ours, theirs]) => [ours, file[theirs]] as const);
  return Object.fromEntries(given.filter(([, value]) => typeof value === "number"));
}

function objectIn(folder: string, name: string): Readonly<Record<string, unknown>> | undefined {
  const bytes = bytesIn(folder, name);
  return bytes && parseObject(new TextDecoder().decode(bytes), name);
}

function bytesIn(folder: string, name: string): Uint8Array | undefined {
  try {
    return readFileSync(join(folder, name));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw new CheckpointError(`${name}: ${error instanceof Error ? error.message : error}; expected a readable file`);
  }
}

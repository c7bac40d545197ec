// `llama4 generate`: one completion.

import { readFileSync } from "node:fs";
import type { Command } from "commander";
import type { Constraint } from "../engine/constraint.ts";
import type { ContentPart } from "../index.ts";
import { RequestError } from "../tensor/errors.ts";
import type { Answer, Run, Session } from "./answer.ts";
import { checkSees, type ImageOptions, mediaOf, partsOf, rawParts, withImages } from "./media.ts";
import { collected, openModel } from "./model.ts";
import {
  define,
  type ModelOptions,
  type SamplingOptions,
  type SpeculationOptions,
  samplingOf,
  speculationOf,
  withModel,
  withSampling,
  withSpeculation,
} from "./options.ts";

export interface PromptOptions extends ModelOptions, ImageOptions {
  readonly prompt?: string;
  readonly raw?: true;
  readonly bos?: true;
}

interface FormOptions {
  readonly jsonSchema?: string;
  readonly regex?: string;
}

type Options = PromptOptions & SamplingOptions & SpeculationOptions & FormOptions;

export function generate(program: Command, run: Run): void {
  const command = define(program, "generate", "One completion of a prompt.", [
    'llama4 generate --model ./scout --prompt "Why is the sky blue?" --max-tokens 200',
    'llama4 generate --model ./scout --image cat.jpg --image dog.png --prompt "Which of them is larger?"',
    'llama4 generate --model ./scout --prompt "A pet, please." --json-schema pet.json',
    'llama4 generate --model scout.gguf --raw --bos --prompt "Once upon a time" --temperature 0 --json',
  ]);
  withSpeculation(withSampling(withImages(withPrompt(withModel(command)))))
    .option("--json-schema <schema>", "holds the reply to a JSON schema: a file, or the schema itself")
    .option("--regex <pattern>", "holds the reply to a regular expression, which has to match all of it")
    .action(run((session, options: Options) => generated(session, options)));
}

/** What the reply is held to. Throws RequestError, before a model is loaded, for what no reply can be held to. */
async function constraintOf({ jsonSchema, regex }: FormOptions): Promise<Constraint | undefined> {
  if (jsonSchema !== undefined && regex !== undefined)
    throw new RequestError("--json-schema with --regex; expected one of them");
  if (jsonSchema === undefined && regex === undefined) return undefined;
  const constraint: Constraint =
    regex !== undefined ? { type: "regex", pattern: regex } : { type: "json_schema", schema: schemaOf(jsonSchema!) };
  const { checkConstraint } = await import("../engine/constraint.ts"); // few need it
  checkConstraint(constraint);
  return constraint;
}

function schemaOf(given: string): Readonly<Record<string, unknown>> | boolean {
  const isText = /^\s*(\{|true\s*$|false\s*$)/.test(given);
  const text = isText ? given : readFileSync(given, "utf8");
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new RequestError(
      `--json-schema: ${isText ? "the schema" : given} is no JSON: ${(error as Error).message}; expected a JSON schema, or a file with one`,
    );
  }
}

export function withPrompt(command: Command): Command {
  return command
    .option("-p, --prompt <text>", "what to answer, or with --raw to go on from")
    .option("--raw", "the prompt as it stands: no chat format, no begin-of-text token")
    .option("--bos", "with --raw: begin-of-text stands before everything");
}

/** What the options make a prompt of. Throws RequestError where they do not. */
export function promptOf(options: PromptOptions): string | ContentPart[] {
  const { prompt, raw, bos } = options;
  if (prompt === undefined) throw new RequestError("no prompt; give --prompt TEXT");
  if (bos && !raw) throw new RequestError("--bos without --raw; the chat format has its own begin-of-text token");
  const parts = partsOf(options);
  if (parts.length === 0 && !(raw && prompt.includes("<|image|>"))) return prompt;
  return raw ? rawParts(prompt, parts) : [...parts, { type: "text", text: prompt }];
}

async function generated(session: Session, options: Options): Promise<Answer> {
  const content = promptOf(options);
  const { raw, bos = false, maxTokens, stop } = options;
  const form = { constraint: await constraintOf(options), media: mediaOf(options) };
  const request = { ...samplingOf(options), ...form, maxTokens, stop, signal: session.signal };
  if (Array.isArray(content)) await checkSees(options, content);
  await using model = await openModel(options, session, { speculation: speculationOf(options) });
  const reply = raw ? model.complete(content, { ...request, bos }) : model.chat([{ role: "user", content }], request);
  const json = await collected(model, reply, (text) => {
    if (!session.json) process.stdout.write(text);
  });
  if (!session.json) process.stdout.write("\n");
  return { json };
}

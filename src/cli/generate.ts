// `llama4 generate`: one completion.

import type { Command } from "commander";
import { RequestError } from "../tensor/errors.ts";
import type { Answer, Run, Session } from "./answer.ts";
import { collected, openModel } from "./model.ts";
import {
  define,
  type ImageOptions,
  type ModelOptions,
  refuseImages,
  type SamplingOptions,
  type SpeculationOptions,
  samplingOf,
  speculationOf,
  withImages,
  withModel,
  withSampling,
  withSpeculation,
} from "./options.ts";

export interface PromptOptions extends ModelOptions, ImageOptions {
  readonly prompt?: string;
  readonly raw?: true;
  readonly bos?: true;
}

export function generate(program: Command, run: Run): void {
  const command = define(program, "generate", "One completion of a prompt.", [
    'generate --model ./scout --prompt "Why is the sky blue?" --max-tokens 200',
    'generate --model scout.gguf --raw --bos --prompt "Once upon a time" --temperature 0 --json',
  ]);
  withSpeculation(withSampling(withImages(withPrompt(withModel(command))))).action(
    run((session, options: PromptOptions & SamplingOptions & SpeculationOptions) => generated(session, options)),
  );
}

export function withPrompt(command: Command): Command {
  return command
    .option("-p, --prompt <text>", "what to answer, or with --raw to go on from")
    .option("--raw", "the prompt as it stands: no chat format, no begin-of-text token")
    .option("--bos", "with --raw: begin-of-text stands before everything");
}

/** Throws RequestError where the options do not make a prompt. */
export function checkPrompt(options: PromptOptions): void {
  const { prompt, raw, bos } = options;
  refuseImages(options);
  if (prompt === undefined) throw new RequestError("no prompt; give --prompt TEXT");
  if (raw && prompt.includes("<|image|>"))
    throw new RequestError("the prompt has an <|image|>, and images are not supported yet by this version");
  if (bos && !raw) throw new RequestError("--bos without --raw; the chat format has its own begin-of-text token");
}

async function generated(
  session: Session,
  options: PromptOptions & SamplingOptions & SpeculationOptions,
): Promise<Answer> {
  checkPrompt(options);
  const { prompt = "", raw, bos = false, maxTokens, stop } = options;
  const request = { ...samplingOf(options), maxTokens, stop, signal: session.signal };
  await using model = await openModel(options, session, { speculation: speculationOf(options) });
  const reply = raw
    ? model.complete(prompt, { ...request, bos })
    : model.chat([{ role: "user", content: prompt }], request);
  const json = await collected(model, reply, (text) => {
    if (!session.json) process.stdout.write(text);
  });
  if (!session.json) process.stdout.write("\n");
  return { json };
}

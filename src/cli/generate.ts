// `llama4 generate`: one completion.

import type { Command } from "commander";
import type { ContentPart } from "../index.ts";
import { RequestError } from "../tensor/errors.ts";
import type { Answer, Run, Session } from "./answer.ts";
import { type ImageOptions, mediaOf, partsOf, rawParts, withImages } from "./media.ts";
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

export function generate(program: Command, run: Run): void {
  const command = define(program, "generate", "One completion of a prompt.", [
    'llama4 generate --model ./scout --prompt "Why is the sky blue?" --max-tokens 200',
    'llama4 generate --model ./scout --image cat.jpg --image dog.png --prompt "Which of them is larger?"',
    'llama4 generate --model scout.gguf --raw --bos --prompt "Once upon a time" --temperature 0 --json',
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

/** What the options make a prompt of. Throws RequestError where they do not. */
export function promptOf(options: PromptOptions): string | ContentPart[] {
  const { prompt, raw, bos } = options;
  if (prompt === undefined) throw new RequestError("no prompt; give --prompt TEXT");
  if (bos && !raw) throw new RequestError("--bos without --raw; the chat format has its own begin-of-text token");
  const parts = partsOf(options);
  if (parts.length === 0 && !(raw && prompt.includes("<|image|>"))) return prompt;
  return raw ? rawParts(prompt, parts) : [...parts, { type: "text", text: prompt }];
}

async function generated(
  session: Session,
  options: PromptOptions & SamplingOptions & SpeculationOptions,
): Promise<Answer> {
  const content = promptOf(options);
  const { raw, bos = false, maxTokens, stop } = options;
  const request = { ...samplingOf(options), maxTokens, stop, media: mediaOf(options), signal: session.signal };
  await using model = await openModel(options, session, { speculation: speculationOf(options) });
  const reply = raw ? model.complete(content, { ...request, bos }) : model.chat([{ role: "user", content }], request);
  const json = await collected(model, reply, (text) => {
    if (!session.json) process.stdout.write(text);
  });
  if (!session.json) process.stdout.write("\n");
  return { json };
}

// `llama4 logits`: the numbers behind the text, for comparing with other implementations.
//
// T tokens · V vocabulary

import { existsSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { type Command, InvalidArgumentError } from "commander";
import { type OutTensor, writeSafetensorsFile } from "../checkpoint/writers.ts";
import type { LogitRows } from "../index.ts";
import { CheckpointError, RequestError } from "../tensor/errors.ts";
import { type Answer, bytes, type Run, type Session } from "./answer.ts";
import { type PromptOptions, promptOf, withPrompt } from "./generate.ts";
import { checkSees, mediaOf, withImages } from "./media.ts";
import { openModel } from "./model.ts";
import { define, withModel } from "./options.ts";
import { isFile, refuseMissingFolder, refuseToOverwrite } from "./output.ts";

interface LogitsOptions extends PromptOptions {
  readonly tokens?: readonly number[];
  readonly last?: true;
  readonly fast?: true;
  readonly out: string;
  readonly force?: true;
}

export function logits(program: Command, run: Run): void {
  const command = define(program, "logits", "The logits of a prompt's positions, as a safetensors file.", [
    "llama4 logits --model ./scout --tokens 200000,19,42 --out logits.safetensors",
    'llama4 logits --model scout.gguf --prompt "Hello" --last --out last.safetensors --json',
  ]);
  withImages(withPrompt(withModel(command)))
    .option("--tokens <ids>", "token ids with commas between, in place of a prompt", tokenIds)
    .requiredOption("-o, --out <file>", "gets the tensors `logits` [T, V] f32 and `tokens` [T] i32")
    .option("--force", "replaces the file that is there")
    .option("--last", "the last position only")
    .option("--fast", "computes as `generate` does, with rounded activations where that is faster")
    .action(run((session, options: LogitsOptions) => written(session, options)));
}

const stepTokens = 64; // rows of logits in memory at once: 52 MB where the vocabulary has 202,048 tokens

function tokenIds(text: string): number[] {
  const ids = text.split(",").map((part) => (/^\s*\d+\s*$/.test(part) ? Number(part) : Number.NaN));
  if (ids.some((id) => !(id < 2 ** 31))) throw new InvalidArgumentError("Expected token ids with commas between.");
  return ids;
}

async function written(session: Session, options: LogitsOptions): Promise<Answer> {
  const { tokens: given, prompt, raw, bos = false, last = false, fast, out, force } = options;
  if ((given === undefined) === (prompt === undefined))
    throw new RequestError("logits needs --tokens 1,2,3 or --prompt TEXT, and not both");
  // --raw says nothing new of tokens, which always stand as they are.
  if (given && bos) throw new RequestError("--bos is of a prompt; --tokens stand as they are");
  if (given && (options.image || options.video !== undefined))
    throw new RequestError("--image and --video are of a prompt; --tokens stand alone");
  const content = given ? "" : promptOf(options);
  if (!isEarlierOutput(out)) refuseToOverwrite(out, force, isFile);
  refuseMissingFolder(out);
  const { signal } = session;
  // float32 activations on exactly dequantized weights, so that another implementation can be compared
  const exact = fast ? {} : ({ activations: "f32" } as const);
  const { kvDtype = fast ? undefined : "f32" } = options;
  if (Array.isArray(content)) await checkSees(options, content);
  await using model = await openModel({ ...options, ...(kvDtype && { kvDtype }) }, session, { ...exact, stepTokens });
  const media = mediaOf(options);
  const messages = [{ role: "user", content }] as const;
  const tokens = given
    ? Int32Array.from(given)
    : raw
      ? await model.encode(content, { bos, media, signal })
      : await model.encodeChat(messages, { media, signal });
  const asked = given ? tokens : raw ? content : { messages };
  const rows = last ? 1 : tokens.length;
  const { vocabSize } = model.info;
  const tensors: OutTensor[] = [
    {
      name: "logits",
      dtype: "f32",
      shape: [rows, vocabSize],
      chunks: () => checked(model.logits(asked, { bos, last, media, signal }), vocabSize),
    },
    {
      name: "tokens",
      dtype: "i32",
      shape: [tokens.length],
      chunks: () => once(new Uint8Array(tokens.buffer, tokens.byteOffset, tokens.byteLength)),
    },
  ];
  await writeSafetensorsFile(out, tensors, { signal });
  return {
    json: {
      out,
      tokens: [...tokens],
      shape: [rows, vocabSize],
      exact: !fast && kvDtype === "f32",
      backend: model.info.backend,
    },
    text: `${out}: logits [${rows}, ${vocabSize}], ${bytes(4 * rows * vocabSize)}`,
  };
}

/** The bytes of rows that hold numbers; throws CheckpointError at the first that does not. */
async function* checked(slices: AsyncIterable<LogitRows>, vocabSize: number): AsyncGenerator<Uint8Array> {
  for await (const { position, logits } of slices) {
    const wrong = logits.findIndex((x) => !Number.isFinite(x));
    if (wrong >= 0)
      throw new CheckpointError(
        `the logits of position ${position + Math.floor(wrong / vocabSize)} have ${logits[wrong]}; expected numbers: the weights are broken, fetch or convert them again`,
      );
    const floats = Float32Array.from(logits);
    yield new Uint8Array(floats.buffer);
  }
}

async function* once(part: Uint8Array): AsyncGenerator<Uint8Array> {
  yield part;
}

/** A safetensors file that is no model's: what an earlier call left there is replaced without --force. */
function isEarlierOutput(path: string): boolean {
  const isModel = existsSync(join(dirname(resolve(path)), "config.json"));
  return path.endsWith(".safetensors") && !isModel && existsSync(path) && isFile(path);
}

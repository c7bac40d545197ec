// `llama4 convert`: safetensors to GGUF, GGUF to safetensors, and quantization.

import { basename, dirname, join } from "node:path";
import type { Command } from "commander";
import { openNative } from "../backends/native/backend.ts";
import { convert, isRequantized } from "../checkpoint/convert.ts";
import { type Mix, mixes } from "../checkpoint/mix.ts";
import { type Checkpoint, mmprojName, openCheckpoint } from "../checkpoint/open.ts";
import { type Quantizer, referenceQuantizer } from "../checkpoint/recode.ts";
import { openTokenizer } from "../open.ts";
import { toGguf } from "../prompt/gguf-vocabulary.ts";
import { type Answer, bytes, oneOf, progress, type Run, type Session } from "./answer.ts";
import { promptFiles } from "./init.ts";
import { adapterHelp, define, mmprojHelp, whole } from "./options.ts";
import { refuseOntoItself, refuseToOverwrite, replacing } from "./output.ts";

interface ConvertOptions {
  readonly type?: string;
  readonly threads?: number;
  readonly mmproj?: string;
  readonly adapter?: string;
  readonly allowLossy?: true;
  readonly force?: true;
}

export function convertCommand(program: Command, run: Run): void {
  define(program, "convert", "A checkpoint in another format or with fewer bits, streamed expert by expert.", [
    "llama4 convert ./scout scout.gguf --type q4_k_m",
    "llama4 convert scout.gguf ./scout-bf16 --type bf16",
    "llama4 convert ./scout ./scout-tuned --adapter run/adapter",
  ])
    .argument("<in>", "a Hugging Face folder, a Meta folder or a .gguf file")
    .argument("<out>", "a name that ends in .gguf, else a folder; vision goes to mmproj-<out> beside a .gguf")
    .option("--type <type>", `${mixes.join(", ")} (default: as the input is stored)`)
    .option("--threads <n>", "threads that quantize (default: all cores)", whole(1))
    .option("--mmproj <file>", mmprojHelp)
    .option("--adapter <folder>", adapterHelp)
    .option("--allow-lossy", "writes a GGUF that other programs misread, where the format lacks a word")
    .option("--force", "replaces what is there")
    .action(run(converted));
}

async function converted(session: Session, input: string, out: string, options: ConvertOptions): Promise<Answer> {
  const type = options.type === undefined ? undefined : oneOf<Mix>("--type", options.type, mixes);
  refuseOntoItself(input, out);
  refuseToOverwrite(out, options.force);
  const start = performance.now();
  const { quantizer, close } = openQuantizer(options.threads);
  const { mmproj, adapter } = options;
  const checkpoint = await openCheckpoint(input, { ...session, mmproj, adapter }).catch((error: unknown) => {
    close();
    throw error;
  });
  const bar = progress(`writing ${out}`);
  try {
    const done = await writeAs(checkpoint, out, { ...options, type, quantizer, onProgress: bar.update }, session);
    const seconds = (performance.now() - start) / 1000;
    const json = { in: input, out, ...done, inputBytes: checkpoint.totalBytes, seconds };
    const speed = `${bytes(checkpoint.totalBytes / seconds)} of input a second`;
    return { json, text: `${done.paths.join(" and ")}: ${done.type}, ${bytes(done.bytes)}, ${speed}` };
  } finally {
    bar.stop();
    close();
    await checkpoint.close();
  }
}

interface Writing {
  readonly type: Mix | undefined;
  readonly quantizer: Quantizer;
  readonly onProgress: (done: number, total: number) => void;
  readonly allowLossy?: true;
  readonly force?: true;
}

async function writeAs(checkpoint: Checkpoint, out: string, { force, ...writing }: Writing, { signal }: Session) {
  const isGguf = out.endsWith(".gguf");
  if (isGguf && checkpoint.config.vision) refuseToOverwrite(join(dirname(out), mmprojName(basename(out))), force);
  if (writing.type && isRequantized(checkpoint, writing.type))
    warn("the input is quantized already; another type adds to its errors");
  const tokenizer = openTokenizer(checkpoint);
  const options = { ...writing, signal, onWarning: warn };
  if (isGguf) return convert(checkpoint, out, { ...options, vocabulary: tokenizer && toGguf(tokenizer, checkpoint) });
  const files = promptFiles(checkpoint.config, tokenizer, checkpoint);
  const done = await replacing(out, (folder) => convert(checkpoint, folder, { ...options, files }));
  return { ...done, paths: [out] };
}

const warn = (message: string) => process.stderr.write(`${message}\n`);

/** All cores in native code; without it plain TypeScript, which gives the same bytes. */
function openQuantizer(threads: number | undefined): { quantizer: Quantizer; close(): void } {
  try {
    const backend = openNative(threads === undefined ? {} : { threads });
    return { quantizer: backend, close: () => backend.close() };
  } catch (error) {
    warn(`${error instanceof Error ? error.message : error}; going on in plain TypeScript, slowly`);
    return { quantizer: referenceQuantizer, close: () => {} };
  }
}

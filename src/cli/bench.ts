// `llama4 bench`: how fast a model runs, beside what this machine can do at most, measured in the same run.

import { setMaxListeners } from "node:events";
import type { Command } from "commander";
import type { Ceilings, NativeBackend } from "../backends/native/backend.ts";
import { Engine } from "../engine/engine.ts";
import { uniform } from "../engine/random.ts";
import { shippedModel } from "../index.ts";
import { countParameters, type Llama4Config } from "../model/config.ts";
import { type OpenModel, openModel } from "../open.ts";
import type { Backend } from "../tensor/backend.ts";
import { RequestError } from "../tensor/errors.ts";
import { type Answer, bytes, progress, type Run, type Session, table } from "./answer.ts";
import { loadedBytesPerStep } from "./budget.ts";
import { define, type ModelOptions, whole, withModel } from "./options.ts";

interface BenchOptions extends ModelOptions {
  readonly promptTokens: number;
  readonly genTokens: number;
  readonly batch: number;
  readonly runs: number;
}

export function bench(program: Command, run: Run): void {
  const command = define(program, "bench", "Prefill and decode speed, beside what this machine can do at most.", [
    "llama4 bench --model scout.gguf",
    "llama4 bench --model scout.gguf --batch 16 --prompt-tokens 32",
    "llama4 bench --model ./small --prompt-tokens 128 --gen-tokens 32 --runs 3 --json",
  ]);
  withModel(command)
    .option("--prompt-tokens <n>", "random tokens of the prompt", whole(1), 512)
    .option("--gen-tokens <n>", "tokens of the reply", whole(2), 64)
    .option(
      "--batch <n>",
      "sequences at once, each with a prompt of its own; speeds are those of all together",
      whole(1),
      1,
    )
    .option("--runs <n>", "measured runs, after one that warms up", whole(1), 5)
    .action(run((session, options: BenchOptions) => measured(session, options)));
}

async function measured(session: Session, options: BenchOptions): Promise<Answer> {
  const {
    model: path = shippedModel(),
    promptTokens,
    genTokens,
    batch,
    runs,
    backend,
    threads,
    mmproj,
    adapter,
    kvDtype,
  } = options;
  const { signal } = session;
  const bar = progress("loading");
  // a sequence fills whole blocks of the cache, of 64 tokens at most, and is admitted where the others have one to spare
  const context = options.context ?? batch * (promptTokens + genTokens) + (batch - 1) * 2 * 64;
  const onWarning = (message: string) => process.stderr.write(`${message}\n`);
  const model = await openModel(path, {
    ...{ backend, threads, context, mmproj, adapter, kvDtype, signal, onWarning, onProgress: bar.update },
  }).finally(bar.stop);
  try {
    const { parameters, config } = model;
    const samples = await run(model, { promptTokens, genTokens, batch, runs }, signal);
    const prefill = samples.map((s) => s.prefill);
    const decode = samples.map((s) => s.decode);
    const json = {
      model: path,
      backend: model.backend.name,
      ...machine(model.backend),
      parameters: countParameters(config),
      batch,
      prefill: {
        tokens: promptTokens,
        tokensPerSecond: median(prefill),
        samples: prefill,
        opsPerToken: opsPerPromptToken(config),
      },
      decode: {
        tokens: genTokens,
        tokensPerSecond: median(decode),
        samples: decode,
        bytesPerToken: loadedBytesPerStep(parameters, config),
        bytesPerStep: loadedBytesPerStep(parameters, config, batch),
      },
    };
    return { json, text: shown(json) };
  } finally {
    model.close();
  }
}

/** Operations of the matrices that every token of a prompt passes: no embedding, no logits, no attention scores. */
function opsPerPromptToken(c: Llama4Config): number {
  return 2 * (countParameters(c).active - c.vocabSize * c.dim * (c.tied ? 1 : 2)); // a multiplication and an addition for each
}

/** Tokens a second of one run, all sequences together. */
interface Sample {
  readonly prefill: number;
  readonly decode: number;
}

/** The first run warms up and is not counted. */
async function run(
  { backend, parameters, config, context, kvDtype }: OpenModel,
  { promptTokens, genTokens, batch, runs }: Pick<BenchOptions, "promptTokens" | "genTokens" | "batch" | "runs">,
  signal: AbortSignal,
): Promise<Sample[]> {
  let drawn = 0;
  const random = () => Math.floor(uniform(0, drawn++) * config.vocabSize);
  const options = { backend, parameters, config, context, kvDtype };
  const engine = new Engine({ ...options, localTokens: context, sharePrefixes: false });
  const bar = progress("measuring");
  const samples: Sample[] = [];
  setMaxListeners(0, signal); // every sequence listens: Node takes more than ten for a leak
  try {
    for (let i = 0; i <= runs; i++) {
      const start = performance.now();
      const replies = Array.from({ length: batch }, async () => {
        const times: number[] = [];
        const onToken = () => {
          times.push(performance.now());
          return false;
        };
        const tokens = new Int32Array(promptTokens).map(random);
        // greedy replies of a random model fall into cycles, which would touch few experts
        const sampling = { temperature: 2, topP: 1, seed: drawn };
        const request = { tokens, maxTokens: genTokens, sampling, onToken, signal };
        for await (const _ of engine.generate(request));
        return times;
      });
      samples.push(sampleOf(await Promise.all(replies), start, promptTokens));
      bar.update(i + 1, runs + 1);
    }
  } finally {
    bar.stop();
    await engine.close();
  }
  return samples.slice(1);
}

/** From the times of each reply's tokens: prefill ends with the last first token; decode counts while all sequences run. */
function sampleOf(replies: readonly (readonly number[])[], start: number, promptTokens: number): Sample {
  const begin = Math.max(...replies.map((times) => times[0]!));
  const end = Math.min(...replies.map((times) => times.at(-1)!));
  const decoded = replies.flat().filter((time) => time > begin && time <= end).length;
  if (decoded === 0)
    throw new RequestError("bench: the first reply ended before the last one began; expected more --gen-tokens");
  return {
    prefill: (1000 * replies.length * promptTokens) / (begin - start),
    decode: (1000 * decoded) / (end - begin),
  };
}

/** What this machine can do; unknown without the native code. */
function machine(backend: Backend): { threads: number; isa?: string; ceilings: Ceilings | null } {
  if (backend.name !== "native") return { threads: 1, ceilings: null };
  const native = backend as NativeBackend; // the only backend of that name
  return { threads: native.threads, isa: native.isa, ceilings: native.ceilings() };
}

function median(samples: readonly number[]): number {
  const sorted = [...samples].sort((a, b) => a - b);
  const middle = (sorted.length - 1) / 2;
  return (sorted[Math.floor(middle)]! + sorted[Math.ceil(middle)]!) / 2;
}

interface Speed {
  readonly tokensPerSecond: number;
  readonly samples: readonly number[];
}

interface Measured {
  readonly model: string;
  readonly backend: string;
  readonly threads: number;
  readonly isa?: string;
  readonly ceilings: Ceilings | null;
  readonly batch: number;
  readonly prefill: Speed & { readonly opsPerToken: number };
  readonly decode: Speed & { readonly bytesPerStep: number };
}

function shown({ model, backend, threads, isa, ceilings, batch, prefill, decode }: Measured): string {
  const row = (name: string, { tokensPerSecond, samples }: Speed, reached: string) => {
    const spread = `${Math.min(...samples).toFixed(1)} to ${Math.max(...samples).toFixed(1)}`;
    return [name, `${tokensPerSecond.toFixed(1)} tokens/s`, spread, reached];
  };
  const readGBps = (decode.bytesPerStep * decode.tokensPerSecond) / batch / 1e9;
  const gigaOps = (prefill.opsPerToken * prefill.tokensPerSecond) / 1e9;
  const of = (most: number | undefined) => (most === undefined ? "" : ` of ${most.toFixed(1)}`);
  const together = batch === 1 ? "" : `, ${batch} sequences`;
  return [
    `${model}: ${backend}${isa ? ` (${isa})` : ""}, ${threads} thread${threads === 1 ? "" : "s"}${together}, ${bytes(decode.bytesPerStep)} of weights a step`,
    table([
      ["", "median", "spread", "reached, of what the machine does at most"],
      row("prefill", prefill, `${gigaOps.toFixed(1)}${of(ceilings?.int8Gops)} Gop/s (int8)`),
      row("decode", decode, `${readGBps.toFixed(1)}${of(ceilings?.dramReadGBps)} GB/s`),
    ]),
  ].join("\n");
}

// `llama4 bench`: how fast a model runs, beside what this machine can do at most, measured in the same run.

import type { Command } from "commander";
import type { Ceilings, NativeBackend } from "../backends/native/backend.ts";
import { Engine, type Finish } from "../engine/engine.ts";
import { shippedModel } from "../index.ts";
import { countParameters, type Llama4Config } from "../model/config.ts";
import { type OpenModel, openModel } from "../open.ts";
import type { Backend } from "../tensor/backend.ts";
import { type Answer, bytes, progress, type Run, type Session, table } from "./answer.ts";
import { loadedBytesPerToken } from "./budget.ts";
import { define, type ModelOptions, refuseImages, whole, withModel } from "./options.ts";

interface BenchOptions extends ModelOptions {
  readonly promptTokens: number;
  readonly genTokens: number;
  readonly runs: number;
}

export function bench(program: Command, run: Run): void {
  const command = define(program, "bench", "Prefill and decode speed, beside what this machine can do at most.", [
    "bench --model scout.gguf",
    "bench --model ./small --prompt-tokens 128 --gen-tokens 32 --runs 3 --json",
  ]);
  withModel(command)
    .option("--prompt-tokens <n>", "random tokens of the prompt", whole(1), 512)
    .option("--gen-tokens <n>", "tokens of the reply", whole(2), 64)
    .option("--runs <n>", "measured runs, after one that warms up", whole(1), 5)
    .action(run((session, options: BenchOptions) => measured(session, options)));
}

async function measured(session: Session, options: BenchOptions): Promise<Answer> {
  const { model: path = shippedModel(), promptTokens, genTokens, runs, backend, threads, kvDtype } = options;
  refuseImages(options);
  const { signal } = session;
  const bar = progress("loading");
  const context = options.context ?? promptTokens + genTokens;
  const onWarning = (message: string) => process.stderr.write(`${message}\n`);
  const model = await openModel(path, {
    ...{ backend, threads, context, kvDtype, signal, onWarning, onProgress: bar.update },
  }).finally(bar.stop);
  try {
    const samples = await run(model, { promptTokens, genTokens, runs }, signal);
    const prefill = samples.map((f) => (1000 * f.promptTokens) / f.prefillMs);
    const decode = samples.map((f) => (1000 * (f.completionTokens - 1)) / f.decodeMs); // the first token ends the prefill
    const json = {
      model: path,
      backend: model.backend.name,
      ...machine(model.backend),
      parameters: countParameters(model.config),
      prefill: { tokens: promptTokens, tokensPerSecond: median(prefill), samples: prefill },
      decode: {
        tokens: genTokens,
        tokensPerSecond: median(decode),
        samples: decode,
        bytesPerToken: loadedBytesPerToken(model.parameters, model.config),
      },
    };
    return { json, text: shown(json, model.config) };
  } finally {
    model.close();
  }
}

/** The first run warms up and is not counted. */
async function run(
  { backend, parameters, config, context, kvDtype }: OpenModel,
  { promptTokens, genTokens, runs }: Pick<BenchOptions, "promptTokens" | "genTokens" | "runs">,
  signal: AbortSignal,
): Promise<Finish[]> {
  const engine = new Engine({ backend, parameters, config, context, kvDtype, sharePrefixes: false });
  const bar = progress("measuring");
  const finished: Finish[] = [];
  try {
    for (let i = 0; i <= runs; i++) {
      const tokens = Int32Array.from(
        { length: promptTokens },
        (_, t) => (t * 7919 + i * 104729 + 1) % config.vocabSize,
      );
      const reply = engine.generate({ tokens, maxTokens: genTokens, sampling: { temperature: 0 }, signal });
      for await (const { finish } of reply) if (finish) finished.push(finish);
      bar.update(i + 1, runs + 1);
    }
  } finally {
    bar.stop();
    await engine.close();
  }
  return finished.slice(1);
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

interface Measured {
  readonly model: string;
  readonly backend: string;
  readonly threads: number;
  readonly isa?: string;
  readonly ceilings: Ceilings | null;
  readonly parameters: { readonly active: number };
  readonly prefill: { readonly tokensPerSecond: number; readonly samples: readonly number[] };
  readonly decode: Measured["prefill"] & { readonly bytesPerToken: number };
}

function shown(
  { model, backend, threads, isa, ceilings, parameters, prefill, decode }: Measured,
  { vocabSize, dim, tied }: Llama4Config,
): string {
  const row = (name: string, { tokensPerSecond, samples }: Measured["prefill"], reached: string) => {
    const spread = `${Math.min(...samples).toFixed(1)} to ${Math.max(...samples).toFixed(1)}`;
    return [name, `${tokensPerSecond.toFixed(1)} tokens/s`, spread, reached];
  };
  const readGBps = (decode.bytesPerToken * decode.tokensPerSecond) / 1e9;
  // A multiplication and an addition for each parameter of a layer: an embedding is looked up, and only a prompt's last
  // row meets the output matrix.
  const multiplied = parameters.active - vocabSize * dim * (tied ? 1 : 2);
  const gigaOps = (2 * multiplied * prefill.tokensPerSecond) / 1e9;
  const of = (most: number | undefined) => (most === undefined ? "" : ` of ${most.toFixed(1)}`);
  return [
    `${model}: ${backend}${isa ? ` (${isa})` : ""}, ${threads} thread${threads === 1 ? "" : "s"}, ${bytes(decode.bytesPerToken)} of weights a token`,
    table([
      ["", "median", "spread", "reached, of what the machine does at most"],
      row("prefill", prefill, `${gigaOps.toFixed(1)}${of(ceilings?.int8Gops)} Gop/s (int8)`),
      row("decode", decode, `${readGBps.toFixed(1)}${of(ceilings?.dramReadGBps)} GB/s`),
    ]),
  ].join("\n");
}

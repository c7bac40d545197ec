// `llama4 plan`: what will fit and how fast it will be, before anything is loaded.

import type { Command } from "commander";
import { isPlain, type Mix, mixes } from "../checkpoint/mix.ts";
import { type Checkpoint, openCheckpoint } from "../checkpoint/open.ts";
import { cacheSizes, contextFor } from "../engine/kv-cache.ts";
import { countParameters, type Llama4Config, presets } from "../model/config.ts";
import { mapParameters } from "../model/parameters.ts";
import { availableMemory, DEFAULT_CONTEXT, workingBytes } from "../open.ts";
import type { KVDType } from "../tensor/backend.ts";
import { RequestError } from "../tensor/errors.ts";
import { type Answer, bytes, oneOf, type Run, table } from "./answer.ts";
import { bytesPerToken, kvBytes, loadedBytesPerStep, type Part, partBytes, storedPartBytes } from "./budget.ts";
import { define, kvDtypeOption, named, number, whole } from "./options.ts";

interface PlanOptions {
  readonly model?: string;
  readonly quant?: string;
  readonly context?: number;
  readonly ram?: number;
  readonly ranks: number;
  readonly bandwidth?: number;
  readonly kvDtype?: KVDType;
}

export function plan(program: Command, run: Run): void {
  define(program, "plan", "What will fit, where every byte goes, and how fast it will be.", [
    "llama4 plan scout --quant q4_k_m --context 131072",
    "llama4 plan maverick --ram 512 --ranks 4 --json",
    "llama4 plan ./my-model",
  ])
    .argument("[model]", `${Object.keys(presets).join(", ")}, or a checkpoint's path`)
    .option("-m, --model <model>", "the same, as an option")
    .option("--quant <type>", `${mixes.join(", ")} (default: as the checkpoint is stored; presets: bf16)`)
    .option("--context <n>", "tokens of the conversation (default: as loading takes it, 32,768 or what fits)", whole(1))
    .addOption(kvDtypeOption("default: f32 for weights in f32, else f16"))
    .option("--ram <GB>", "memory of a machine, 10⁹ bytes each (default: what is free here)", number)
    .option("--ranks <n>", "machines that share the model", whole(1), 1)
    .option("--bandwidth <GB/s>", "memory reads of a machine, for the expected speed (default: 40, assumed)", number)
    .action(run((_, model: string | undefined, options: PlanOptions) => planned(model, options)));
}

async function planned(argument: string | undefined, options: PlanOptions): Promise<Answer> {
  const name = named("plan", argument, options);
  const { ram = availableMemory() / 1e9, bandwidth = assumedGBps } = options;
  if (!(ram > 0)) throw new RequestError(`--ram is ${ram}; expected more than 0 GB`);
  if (!(bandwidth > 0)) throw new RequestError(`--bandwidth is ${bandwidth}; expected more than 0 GB/s`);
  const json = budget(await weightsNamed(name, options.quant), options, ram * 1e9);
  return { json, text: shown(json) };
}

/** What is known of a model's weights without loading them. */
interface Weights {
  readonly model: string;
  readonly config: Llama4Config;
  readonly quantization: string;
  readonly parts: Readonly<Record<Part, number>>;
  readonly bytesPerToken: number;
  /** How loading keeps keys and values. */
  readonly kvDtype: KVDType;
  /** Of the files that hold the text model; a GGUF keeps vision in another one. */
  readonly weightBytes: number;
}

async function weightsNamed(model: string, quant: string | undefined): Promise<Weights> {
  const mix = quant === undefined ? undefined : oneOf<Mix>("--quant", quant, mixes);
  const preset = Object.entries(presets).find(([name]) => name === model)?.[1];
  if (preset) return mixed(model, preset, mix ?? "bf16");
  const checkpoint = await openCheckpoint(model);
  try {
    const { config, parameters, format } = checkpoint;
    if (mix) return mixed(model, config, mix);
    const parts = storedPartBytes(checkpoint);
    return {
      ...{ model, config, parts },
      quantization: `as stored (${format})`,
      bytesPerToken: loadedBytesPerStep(parameters, config),
      kvDtype: hasExactMatrices(parameters) ? "f32" : "f16",
      weightBytes: sum(parts),
    };
  } finally {
    await checkpoint.close();
  }
}

function mixed(model: string, config: Llama4Config, mix: Mix): Weights {
  const parts = partBytes(config, mix);
  const weightBytes = sum(parts) - (isPlain(mix) ? 0 : parts.vision); // a folder holds vision too
  return {
    ...{ model, config, quantization: mix, parts, weightBytes },
    bytesPerToken: bytesPerToken(config, mix),
    kvDtype: mix === "f32" ? "f32" : "f16",
  };
}

function hasExactMatrices(parameters: Checkpoint["parameters"]): boolean {
  let exact = true;
  mapParameters(parameters, ({ dtype, shape }) => {
    exact &&= dtype === "f32" || shape.length < 2;
  });
  return exact;
}

const sum = (parts: Readonly<Record<Part, number>>) => Object.values(parts).reduce((total, n) => total + n);

type Budget = ReturnType<typeof budget>;

const assumedGBps = 40; // two channels of DDR4

/** Where the bytes go, and what follows from that. */
function budget({ config: c, parts, ...weights }: Weights, options: PlanOptions, memoryBytes: number) {
  const { ranks, bandwidth = assumedGBps, kvDtype: dtype = weights.kvDtype } = options;
  const left = ranks * (memoryBytes - workingBytes(c)) - sum(parts);
  const context = options.context ?? defaultContext(c, left, dtype);
  if (context > c.contextLength)
    throw new RequestError(
      `--context is ${context} and the model's longest is ${c.contextLength}; expected at most that`,
    );
  const kv = kvBytes(c, context, dtype);
  const kvTotal = kv.global + kv.local;
  const cacheBytes = cacheSizes(c, { context, dtype }).bytes;
  const neededBytes = Math.ceil((sum(parts) + cacheBytes) / ranks) + workingBytes(c);
  const readBytes = weights.bytesPerToken + kvTotal;
  const localLayers = c.layers.filter((layer) => layer.chunked).length;
  return {
    model: weights.model,
    hypothetical: weights.model === "behemoth",
    parameters: countParameters(c),
    quantization: weights.quantization,
    weightBytes: weights.weightBytes,
    visionBytes: parts.vision,
    parts,
    context,
    kvBytes: kvTotal,
    /** What loading allocates: whole blocks, and in the local layers room for a second sequence. */
    cacheBytes,
    kv: {
      dtype,
      globalLayers: c.layers.length - localLayers,
      globalBytes: kv.global,
      localLayers,
      localBytes: kv.local,
    },
    ranks,
    memoryBytes,
    neededBytes,
    fits: neededBytes <= memoryBytes,
    expected: {
      bandwidthGBps: bandwidth,
      isAssumed: options.bandwidth === undefined,
      bytesPerToken: readBytes,
      tokensPerSecond: (bandwidth * 1e9 * ranks) / readBytes,
      assumption: "every weight that a token needs, and the whole cache, is read from memory once a token",
    },
  };
}

/** As loading chooses it: less than 32,768 tokens where the model or the memory has less. */
function defaultContext(c: Llama4Config, left: number, dtype: KVDType): number {
  const context = Math.min(DEFAULT_CONTEXT, c.contextLength);
  const takes = (tokens: number) => cacheSizes(c, { context: tokens, dtype }).bytes;
  return takes(context) > left && takes(1) <= left ? contextFor(c, left, { dtype }) : context;
}

const partNames: Readonly<Record<Part, string>> = {
  embeddings: "embeddings and output",
  attention: "attention",
  dense: "dense feed-forward",
  shared: "shared experts",
  routed: "routed experts",
  norms: "norms",
  routers: "routers",
  vision: "vision",
};

function shown(b: Budget): string {
  const perCent = (n: number) => `${((100 * n) / (b.weightBytes + b.cacheBytes)).toFixed(1)} %`;
  const row = (name: string, n: number) => [name, bytes(n), perCent(n)];
  const parts = (Object.entries(b.parts) as [Part, number][]).filter(([, n]) => n > 0);
  const billions = (n: number) => (n < 1e8 ? n.toLocaleString("en") : `${(n / 1e9).toFixed(1)} billion`);
  const { kv, expected } = b;
  const machines = b.ranks === 1 ? "" : ` on each of ${b.ranks} machines`;
  return [
    `${b.model}${b.hypothetical ? " (hypothetical: it was never released)" : ""}: ` +
      `${billions(b.parameters.total)} parameters, ${billions(b.parameters.active)} active for a token, ${b.quantization}`,
    "",
    table([
      ...parts.map(([part, n]) => row(partNames[part], n)),
      row(`keys and values, ${kv.globalLayers} global layers`, kv.globalBytes),
      row(`keys and values, ${kv.localLayers} local layers`, kv.localBytes),
      ...(b.cacheBytes > b.kvBytes ? [row("keys and values, room for other sequences", b.cacheBytes - b.kvBytes)] : []),
    ]),
    "",
    `For ${b.context.toLocaleString("en")} tokens of context it takes ${bytes(b.neededBytes)}${machines}; ${bytes(b.memoryBytes)} are there: ` +
      (b.fits ? "it fits." : "it does not fit."),
    ...(b.fits
      ? [
          `At ${expected.isAssumed ? "an assumed " : ""}${expected.bandwidthGBps} GB/s of memory reads${expected.isAssumed ? " (llama4 bench measures it, --bandwidth says it)" : ""}: up to ${expected.tokensPerSecond.toFixed(1)} tokens/s for one reader.`,
        ]
      : [wayOut(b)]),
  ].join("\n");
}

function wayOut({ quantization }: Budget): string {
  return quantization.startsWith("q4")
    ? "Take a shorter --context, more --ranks, or a machine with more memory."
    : "Try --quant q4_k_m, a shorter --context, or more --ranks.";
}

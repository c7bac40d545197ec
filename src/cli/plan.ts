// `llama4 plan`: what will fit and how fast it will be, before anything is loaded.

import type { Command } from "commander";
import { type Mix, mixes } from "../checkpoint/mix.ts";
import { countParameters, type Llama4Config, presets } from "../model/config.ts";
import { RequestError } from "../tensor/errors.ts";
import { type Answer, bytes, oneOf, type Run, table } from "./answer.ts";
import { bytesPerToken, kvBytes, type Part, partBytes } from "./budget.ts";
import { define, number, whole } from "./options.ts";

interface PlanOptions {
  readonly model?: string;
  readonly quant?: string;
  readonly context?: number;
  readonly ram?: number;
  readonly ranks: number;
  readonly bandwidth: number;
}

export function plan(program: Command, run: Run): void {
  define(program, "plan", "What will fit, where every byte goes, and how fast it will be.", [
    "plan scout --quant q4_k_m --context 131072",
    "plan maverick --ram 512 --ranks 4 --json",
    "plan ./my-model",
  ])
    .argument("[model]", `${Object.keys(presets).join(", ")}, or a checkpoint's path`)
    .option("-m, --model <model>", "the same, as an option")
    .option("--quant <type>", `${mixes.join(", ")} (default: as the checkpoint is stored; presets: bf16)`)
    .option("--context <n>", "tokens of the conversation (default: 8192 or the model's longest)", whole(1))
    .option("--ram <GB>", "memory of a machine, 10⁹ bytes each (default: what is free here)", number)
    .option("--ranks <n>", "machines that share the model", whole(1), 1)
    .option("--bandwidth <GB/s>", "memory reads of a machine, for the expected speed", number, 40)
    .action(run((_, model: string | undefined, options: PlanOptions) => planned(model, options)));
}

async function planned(argument: string | undefined, options: PlanOptions): Promise<Answer> {
  const name = argument ?? options.model;
  if (name === undefined) throw new RequestError("plan: no model; expected scout, maverick, behemoth or a path");
  if (argument !== undefined && options.model !== undefined && argument !== options.model)
    throw new RequestError(`plan: two models, ${argument} and ${options.model}; expected one`);
  const { ram = process.availableMemory() / 1e9, bandwidth } = options;
  if (!(ram > 0)) throw new RequestError(`--ram is ${ram}; expected more than 0 GB`);
  if (!(bandwidth > 0)) throw new RequestError(`--bandwidth is ${bandwidth}; expected more than 0 GB/s`);
  const json = budget(name, await configOf(name), options, ram * 1e9);
  return { json, text: shown(json) };
}

async function configOf(name: string): Promise<Llama4Config> {
  const preset = Object.entries(presets).find(([known]) => known === name);
  if (!preset)
    throw new RequestError(`plan: there is no preset "${name}"; expected ${Object.keys(presets).join(", ")}`);
  return preset[1];
}

type Budget = ReturnType<typeof budget>;

/** Where the bytes go, and what follows from that. */
export function budget(
  model: string,
  c: Llama4Config,
  { quant, context = Math.min(8192, c.contextLength), ranks, bandwidth }: Omit<PlanOptions, "ram" | "model">,
  memoryBytes: number,
) {
  if (context > c.contextLength)
    throw new RequestError(
      `--context is ${context} and the model's longest is ${c.contextLength}; expected at most that`,
    );
  const type = oneOf<Mix>("--quant", quant ?? "bf16", mixes);
  const parts = partBytes(c, type);
  const kv = kvBytes(c, context, "f16");
  const isFile16 = type === "bf16" || type === "f16" || type === "f32"; // the published layout: one folder with everything
  const text = Object.values(parts).reduce((sum, n) => sum + n) - parts.vision;
  const weightBytes = text + (isFile16 ? parts.vision : 0);
  const kvTotal = kv.global + kv.local;
  const workBytes = 300e6; // the program, its buffers and the activations of a slice
  const neededBytes = Math.ceil((text + parts.vision + kvTotal) / ranks) + workBytes;
  const tokenBytes = bytesPerToken(c, type);
  return {
    model,
    hypothetical: model === "behemoth",
    parameters: countParameters(c),
    quantization: type,
    weightBytes,
    visionBytes: parts.vision,
    parts,
    context,
    kvBytes: kvTotal,
    kv: { dtype: "f16", globalBytes: kv.global, localBytes: kv.local, globalLayers: c.layers.filter((l) => !l.chunked).length, localLayers: c.layers.filter((l) => l.chunked).length }, // biome-ignore format: a table
    ranks,
    memoryBytes,
    neededBytes,
    fits: neededBytes <= memoryBytes,
    expected: {
      bandwidthGBps: bandwidth,
      bytesPerToken: tokenBytes + kvTotal,
      tokensPerSecond: (bandwidth * 1e9 * ranks) / (tokenBytes + kvTotal),
      assumption: "every weight that a token needs, and the whole cache, is read from memory once a token",
    },
  };
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
  const perCent = (n: number) => `${((100 * n) / (b.weightBytes + b.kvBytes)).toFixed(1)} %`;
  const row = (name: string, n: number) => [name, bytes(n), perCent(n)];
  const parts = (Object.entries(b.parts) as [Part, number][]).filter(([, n]) => n > 0);
  const billions = (n: number) => `${(n / 1e9).toFixed(1)} B`;
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
    ]),
    "",
    `For ${b.context.toLocaleString("en")} tokens of context it takes ${bytes(b.neededBytes)}${machines}; ${bytes(b.memoryBytes)} are there: ` +
      (b.fits ? "it fits." : "it does not fit."),
    ...(b.fits
      ? [
          `At ${expected.bandwidthGBps} GB/s of memory reads: up to ${expected.tokensPerSecond.toFixed(1)} tokens/s for one reader.`,
        ]
      : [wayOut(b)]),
  ].join("\n");
}

function wayOut({ quantization }: Budget): string {
  return quantization.startsWith("q4")
    ? "Take a shorter --context, more --ranks, or a machine with more memory."
    : "Try --quant q4_k_m, a shorter --context, or more --ranks.";
}

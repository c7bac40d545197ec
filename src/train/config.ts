// What a training run is: its model, data, phases, optimizer, and what is kept of it. Read from JSON, with a default for
// all that may be left out; the model's sizes follow from one number, its depth, unless they are given.

import { type Llama4Config, layerKinds, publishedPreprocessing, type VisionConfig } from "../model/config.ts";
import { RequestError } from "../tensor/errors.ts";
import type { Mix } from "./batches.ts";
import type { SoftShare } from "./distil.ts";
import { type LoraOptions, loraTargets } from "./lora.ts";
import type { OptimizerOptions } from "./optimizer.ts";
import type { Schedule } from "./schedule.ts";

export interface Phase extends Mix {
  readonly steps: number;
}

/** How the load of the experts is kept even. */
export interface Balancing {
  /** `loss`: an auxiliary loss; `bias`: one that only the choice sees, faded out before the end; `none`: see balance.ts. */
  readonly by: "loss" | "bias" | "none";
  /** The loss's weight, or what a bias moves by in a step. */
  readonly strength: number;
  /** Weight of the router's z-loss. */
  readonly z: number;
}

export interface TrainConfig {
  /** Of a new model; undefined where the run begins with one that is there. */
  readonly model: ModelSizes | undefined;
  /** The checkpoint that the run begins with: fine-tuning. */
  readonly from: string | undefined;
  /** Low-rank adapters learn, and the weights of `from` stay. */
  readonly lora: LoraOptions | undefined;
  /** Who teaches, in distillation. */
  readonly teacher: TeacherOptions | undefined;
  /** A tokenizer.json, or how many tokens to learn from the data; that of `from` or of the teacher where there is one. */
  readonly tokenizer: string | number | undefined;
  /** Names and files: JSON lines, with the tiles of their images in a file that ends in .tiles instead of .jsonl. */
  readonly data: Readonly<Record<string, string>>;
  /** Files that are never learnt from, by name: their loss is measured. */
  readonly heldOut: Readonly<Record<string, string>>;
  /** Every n-th document of each file in `data` is measured and not learnt from; 0 = none. */
  readonly holdOut: number;
  /** A file of documents that the model continues now and then. */
  readonly samples: string | undefined;
  readonly phases: readonly Phase[];
  /** Longest document, in tokens. */
  readonly context: number;
  /** Tokens of a forward and backward pass, and how many of those make a step. */
  readonly rows: number;
  readonly accumulate: number;
  readonly rate: number;
  readonly schedule: Schedule;
  readonly optimizer: OptimizerOptions;
  readonly balance: Balancing;
  /** Computes activations again on the way back instead of keeping them. */
  readonly recompute: boolean;
  /** Steps from one measurement of the held-out loss, and of samples, to the next; tokens of each file that are measured. */
  readonly evaluate: { readonly every: number; readonly tokens: number };
  readonly checkpoint: { readonly minutes: number; readonly keep: number };
  readonly seed: number;
  readonly out: string;
}

export interface TeacherOptions {
  /** A checkpoint with the student's vocabulary. */
  readonly model: string;
  /** Likeliest tokens of which it says the probabilities. */
  readonly topK: number;
  /** A file that keeps what it said, for this run's later epochs and for other runs. */
  readonly store: string | undefined;
  readonly share: SoftShare;
}

/** The sizes of a model; everything that is left out follows from `depth`. */
export interface ModelSizes {
  readonly depth: number;
  readonly dim: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly expertFfn: number;
  readonly ffn: number;
  readonly experts: number;
  readonly topK: number;
  readonly moeStep: number;
  /** Every n-th layer is global, without rotation. */
  readonly nopeEvery: number;
  readonly chunk: number;
  readonly tied: boolean;
  readonly vision: VisionSizes | undefined;
}

export interface VisionSizes {
  readonly dim: number;
  readonly layers: number;
  readonly heads: number;
  readonly patch: number;
  /** Most tiles of an image, the global one not counted: what the data has, and what an image becomes at inference. */
  readonly tiles: number;
}

const headDim = 32;

/**
 * A whole Llama 4 from its depth: 32 wide a layer, heads of 32 with about four queries to a key, as the heads divide (all
 * where they are prime), eight experts of twice the width beside a shared one, every fourth layer global. 4 gives 3.7
 * million weights beside the tables, 8 gives 29.6 million, 16 gives 237; of these a token meets 1.0, 7.6 and 60.9 million.
 * A width or a number of heads that is given changes what follows from it.
 */
export function sizesOfDepth(
  depth: number,
  dim = 32 * Math.max(4, depth),
  heads = Math.max(1, Math.round(dim / headDim)),
): Omit<ModelSizes, "vision"> {
  return {
    ...{ depth, dim, heads, kvHeads: largestDivisor(heads, Math.ceil(heads / 4)), headDim },
    ...{ expertFfn: 2 * dim, ffn: 4 * dim, experts: 8, topK: 1, moeStep: 1, nopeEvery: 4, chunk: 256, tied: false },
  };
}

function largestDivisor(n: number, most: number): number {
  let divisor = most;
  while (n % divisor) divisor--;
  return divisor;
}

/** The config of the model itself. Throws RequestError where the data's tiles do not fall into the encoder's patches. */
export function modelConfig(
  s: ModelSizes,
  { vocabSize, context, tileSize }: { vocabSize: number; context: number; tileSize: number | undefined },
  tokens: Llama4Config["tokens"],
): Llama4Config {
  const vision = s.vision && tileSize !== undefined ? visionConfig(s, s.vision, tileSize) : undefined;
  return {
    ...{ vocabSize, dim: s.dim, nHeads: s.heads, nKvHeads: s.kvHeads, headDim: s.headDim },
    ...{ ffnDim: s.ffn, expertDim: s.expertFfn, nExperts: s.experts, topK: s.topK },
    layers: layerKinds(s.depth, s.nopeEvery, s.experts > 0 ? s.moeStep : 0),
    attentionChunk: s.chunk,
    ...{ normEps: 1e-5, qkNorm: true, ropeTheta: 10000 },
    // Sharpens global layers beyond what was trained on, as the published models do beyond 8,192.
    temperature: { floor: context, scale: 0.1 },
    tied: s.tied,
    contextLength: 64 * context,
    tokens,
    ...(vision && { vision }),
  };
}

const shuffle = 2; // patches to a side of what becomes one token

function visionConfig({ dim }: ModelSizes, v: VisionSizes, imageSize: number): VisionConfig {
  if (imageSize % (v.patch * shuffle))
    throw new RequestError(
      `tiles of ${imageSize} pixels and patches of ${v.patch} × ${shuffle}; expected a multiple: set model.vision.patch`,
    );
  return {
    ...{ dim: v.dim, nLayers: v.layers, nHeads: v.heads, ffnDim: 4 * v.dim, imageSize, patchSize: v.patch },
    ...{ nChannels: 3, normEps: 1e-5, ropeTheta: 10000, shuffle, adapterDim: 2 * dim, outputDim: 2 * dim },
    preprocessing: { ...publishedPreprocessing, maxTiles: v.tiles },
  };
}

// ---- from JSON ----

type Json = Readonly<Record<string, unknown>>;

/** Reads a config. Throws RequestError for a key that it does not know and a value that makes no sense. */
export function readConfig(json: unknown, file: string): TrainConfig {
  const top = new Fields(json, file);
  const from = top.text("from", undefined);
  const given = top.optional("model");
  const lora = top.optional("lora");
  const teacher = top.optional("teacher");
  if (from !== undefined && given) top.refuse(`from and model; expected one of them: a checkpoint has its own sizes`);
  if (lora && from === undefined) top.refuse("lora without from; expected the checkpoint that the adapters change");
  const tokenizer = top.textOrWhole("tokenizer", from === undefined && !teacher ? 4096 : undefined);
  if (from !== undefined && typeof tokenizer === "number")
    top.refuse(
      `tokenizer is ${tokenizer} beside from; expected a tokenizer.json or none: a checkpoint has its own vocabulary`,
    );
  const model = from === undefined ? readModel(given ?? new Fields({}, `${file}: model`)) : undefined;
  const rows = top.whole("batchTokens", 4096, 2);
  const phases = top.list("phases").map((phase, i): Phase => {
    const at = new Fields(phase, `${file}: phases[${i}]`);
    const read = {
      steps: at.whole("steps", undefined, 1),
      shares: at.numbers("mix"),
      loss: at.one("loss", ["text", "answers"], "text"),
    };
    at.end();
    return read;
  });
  const steps = phases.reduce((sum, { steps }) => sum + steps, 0);
  const holdOut = top.whole("holdOut", 0, 0);
  const schedule = top.fields("schedule");
  const warmup = schedule.whole("warmup", Math.min(200, Math.ceil(steps / 20)), 0);
  const kind = schedule.one("kind", ["wsd", "cosine"], "wsd");
  if (kind === "cosine" && schedule.has("decay"))
    schedule.refuse("decay with kind cosine, which falls from the warmup to the end; expected kind wsd, or no decay");
  const optimizer = top.fields("optimizer");
  const balance = top.fields("balance");
  const by = balance.one("by", ["loss", "bias", "none"], from === undefined ? "loss" : "none");
  if (by === "none" && balance.has("strength"))
    balance.refuse("strength with by none, which balances nothing; expected by loss or bias, or no strength");
  const evaluate = top.fields("evaluate");
  const checkpoint = top.fields("checkpoint");
  const config: TrainConfig = {
    ...{ model, from, lora: lora && readLora(lora), teacher: teacher && readTeacher(teacher) },
    tokenizer,
    data: top.files("data"),
    heldOut: top.files("heldOut", {}),
    holdOut,
    samples: top.text("samples", undefined),
    phases,
    ...{ context: top.whole("context", Math.min(512, rows), 2), rows, accumulate: top.whole("accumulate", 1, 1) },
    rate: optimizer.number("rate", model ? 0.24 / model.dim : lora ? loraRate : fineRate, 0),
    schedule: {
      kind,
      steps,
      warmup,
      decay: schedule.whole("decay", Math.min(Math.ceil(steps / 4), Math.max(0, steps - warmup)), 0),
      final: schedule.number("final", 0.02, 0, 1),
    },
    optimizer: {
      kind: optimizer.one("kind", ["adamw", "muon"], "adamw"),
      beta1: optimizer.kept("beta1", 0.9),
      beta2: optimizer.kept("beta2", 0.95),
      eps: optimizer.number("eps", 1e-8, 0),
      decay: optimizer.number("decay", lora ? 0 : 0.1, 0),
      clip: optimizer.number("clip", 1, 0),
      visionRate: optimizer.number("visionRate", 1, 0),
      average: optimizer.kept("average", 0),
    },
    balance: {
      by,
      // The loss's is that of examples/train-tiny; what a bias moves by is Wang et al.'s (see balance.ts).
      strength: balance.number("strength", by === "loss" ? 0.02 : 0.001, 0),
      z: balance.number("z", from === undefined ? 1e-4 : 0, 0),
    },
    recompute: top.flag("recompute", false),
    evaluate: {
      every: evaluate.whole("every", Math.max(1, Math.ceil(steps / 20)), 1),
      tokens: evaluate.whole("tokens", 4 * rows, 1),
    },
    checkpoint: { minutes: checkpoint.number("minutes", 10, 0), keep: checkpoint.whole("keep", 2, 1) },
    seed: top.whole("seed", 0, 0),
    out: top.text("out", undefined) ?? "run",
  };
  for (const fields of [given, lora, teacher, schedule, optimizer, balance, evaluate, checkpoint, top]) fields?.end();
  check(config, file);
  return config;
}

// What fine-tuning begins with; adapters take about ten times the rate of weights (Schulman et al. 2025, "LoRA Without Regret").
const fineRate = 1e-4;
const loraRate = 10 * fineRate;

function readLora(lora: Fields): LoraOptions {
  const rank = lora.whole("rank", 8, 1);
  const targets = lora.texts("targets", ["attention"], Object.keys(loraTargets));
  return {
    rank,
    alpha: lora.number("alpha", 2 * rank, 0),
    slots: [...new Set(targets.flatMap((target) => loraTargets[target]!))],
  };
}

function readTeacher(teacher: Fields): TeacherOptions {
  const share = teacher.fields("share");
  const first = share.number("first", 0.9, 0, 1);
  const kind = share.one("kind", ["linear", "cosine", "constant"], "linear");
  if (kind === "constant" && share.has("last"))
    share.refuse("last with kind constant, which stays at first; expected kind linear or cosine, or no last");
  const read = {
    model: teacher.text("model", undefined) ?? teacher.refuse("model is missing; expected a checkpoint"),
    topK: teacher.whole("topK", 32, 1),
    store: teacher.text("store", undefined),
    share: { kind, first, last: share.number("last", kind === "constant" ? first : 0.5, 0, 1) },
  };
  share.end();
  return read;
}

function readModel(given: Fields): ModelSizes {
  const depth = given.whole("depth", 4, 1);
  const dim = given.whole("dim", sizesOfDepth(depth).dim, 8);
  const heads = given.whole("heads", sizesOfDepth(depth, dim).heads, 1);
  const base = sizesOfDepth(depth, dim, heads);
  const vision = given.optional("vision");
  const sizes = {
    ...{ depth, dim, heads },
    kvHeads: given.whole("kvHeads", base.kvHeads, 1),
    headDim: given.whole("headDim", base.headDim, 2),
    expertFfn: given.whole("expertFfn", base.expertFfn, 1),
    ffn: given.whole("ffn", base.ffn, 1),
    experts: given.whole("experts", base.experts, 0),
    topK: given.whole("topK", base.topK, 1),
    moeStep: given.whole("moeStep", base.moeStep, 0),
    nopeEvery: given.whole("nopeEvery", base.nopeEvery, 0),
    chunk: given.whole("chunk", base.chunk, 1),
    tied: given.flag("tied", base.tied),
    vision: vision && {
      dim: vision.whole("dim", 128, 4),
      layers: vision.whole("layers", 4, 1),
      heads: vision.whole("heads", 4, 1),
      patch: vision.whole("patch", 8, 1),
      tiles: vision.whole("tiles", publishedPreprocessing.maxTiles, 1),
    },
  };
  vision?.end();
  return sizes;
}

function check({ model: m, data, phases, context, rows, schedule, holdOut }: TrainConfig, file: string): void {
  const refuse = (sentence: string) => {
    throw new RequestError(`${file}: ${sentence}`);
  };
  if (m && m.heads % m.kvHeads) refuse(`model: ${m.heads} heads cannot share ${m.kvHeads} kvHeads; expected a divisor`);
  if (m && m.headDim % 2) refuse(`model.headDim is ${m.headDim}; expected an even number (rotary pairs)`);
  if (m && m.experts > 0 && m.topK > m.experts) refuse(`model.topK is ${m.topK} of ${m.experts} experts`);
  if (m?.vision && m.vision.tiles > 64) refuse(`model.vision.tiles is ${m.vision.tiles}; expected at most 64`);
  if (m?.vision && (m.vision.dim / m.vision.heads) % 4)
    refuse(
      `model.vision: heads of ${m.vision.dim / m.vision.heads}; expected a multiple of 4 (rotary pairs of two axes)`,
    );
  const { kind, warmup, decay, steps } = schedule;
  if (warmup > steps || (kind === "wsd" && warmup + decay > steps))
    refuse(
      `schedule: ${warmup} steps of warmup${kind === "wsd" ? ` and ${decay} of decay` : ""} in ${steps}; expected no more than the phases have`,
    );
  if (holdOut === 1) refuse("holdOut is 1, which leaves nothing to learn from; expected 2 or more, or 0 for none");
  if (context > rows) refuse(`context is ${context} and batchTokens ${rows}; expected a batch to hold a document`);
  if (Object.keys(data).length === 0) refuse("data names no file; expected at least one");
  if (phases.length === 0) refuse("phases is empty; expected at least one, with its steps and its mix");
  for (const [i, { shares }] of phases.entries())
    for (const name of Object.keys(shares))
      if (!(name in data)) refuse(`phases[${i}].mix names "${name}"; expected one of ${Object.keys(data).join(", ")}`);
}

/** The keys of an object, each taken once; what nobody asked for is refused. */
class Fields {
  readonly #json: Json;
  readonly #place: string;
  readonly #known = new Set<string>();

  constructor(json: unknown, place: string) {
    if (typeof json !== "object" || json === null || Array.isArray(json))
      throw new RequestError(`${place} is ${JSON.stringify(json)}; expected an object`);
    this.#json = json as Json; // an object of JSON has string keys
    this.#place = place;
  }

  has(key: string): boolean {
    return this.#take(key) !== undefined;
  }

  fields(key: string): Fields {
    return new Fields(this.#take(key) ?? {}, `${this.#place}: ${key}`);
  }

  optional(key: string): Fields | undefined {
    return this.has(key) ? this.fields(key) : undefined;
  }

  whole(key: string, otherwise: number | undefined, least: number): number {
    return this.#checked(
      key,
      otherwise,
      `a whole number from ${least}`,
      (x) => Number.isSafeInteger(x) && Number(x) >= least,
    );
  }

  number(key: string, otherwise: number, least: number, most = Infinity): number {
    const range = most === Infinity ? `a number from ${least}` : `a number from ${least} to ${most}`;
    return this.#checked(key, otherwise, range, (x) => typeof x === "number" && x >= least && x <= most);
  }

  /** The share of a moving average that a step leaves: with 1 nothing would come in. */
  kept(key: string, otherwise: number): number {
    const fits = (x: unknown) => typeof x === "number" && x >= 0 && x < 1;
    return this.#checked(key, otherwise, "a number from 0 that is below 1", fits);
  }

  flag(key: string, otherwise: boolean): boolean {
    return this.#checked(key, otherwise, "true or false", (x) => typeof x === "boolean");
  }

  text(key: string, otherwise: string | undefined): string | undefined {
    return this.#take(key) === undefined ? otherwise : this.#checked<string>(key, "", "a text", isText);
  }

  textOrWhole<T>(key: string, otherwise: T): string | number | T {
    if (this.#take(key) === undefined) return otherwise;
    return this.#checked<string | number>(
      key,
      undefined,
      "a file, or a number of tokens",
      (x) => isText(x) || Number.isInteger(x),
    );
  }

  one<T extends string>(key: string, choices: readonly T[], otherwise: T): T {
    return this.#checked(key, otherwise, `one of ${choices.join(", ")}`, (x) => choices.includes(x as T));
  }

  list(key: string): readonly unknown[] {
    return this.#checked<readonly unknown[]>(key, undefined, "a list", Array.isArray);
  }

  /** Some of the choices, at least one. */
  texts(key: string, otherwise: readonly string[], choices: readonly string[]): readonly string[] {
    const expected = `a list of ${choices.join(", ")}`;
    return this.#checked(
      key,
      otherwise,
      expected,
      (x) => Array.isArray(x) && x.length > 0 && x.every((text) => choices.includes(text)),
    );
  }

  files(key: string, otherwise?: Readonly<Record<string, string>>): Readonly<Record<string, string>> {
    return this.#checked(key, otherwise, "names and their files", (x) => isRecordOf(x, isText));
  }

  numbers(key: string): Readonly<Record<string, number>> {
    return this.#checked<Readonly<Record<string, number>>>(key, undefined, "names and their shares, from 0", (x) =>
      isRecordOf(x, (share) => typeof share === "number" && share >= 0),
    );
  }

  refuse(sentence: string): never {
    throw new RequestError(`${this.#place}: ${sentence}`);
  }

  /** Refuses keys that nobody asked for. */
  end(): void {
    for (const key of Object.keys(this.#json))
      if (!this.#known.has(key))
        throw new RequestError(`${this.#place}: "${key}" is not known here; expected ${[...this.#known].join(", ")}`);
  }

  #take(key: string): unknown {
    this.#known.add(key);
    return this.#json[key];
  }

  #checked<T>(key: string, otherwise: T | undefined, expected: string, fits: (x: unknown) => boolean): T {
    const found = this.#take(key) ?? otherwise;
    if (found === undefined || !fits(found))
      throw new RequestError(
        `${this.#place}: ${key} is ${JSON.stringify(this.#json[key]) ?? "missing"}; expected ${expected}`,
      );
    return found as T; // by `fits`
  }
}

const isText = (x: unknown): x is string => typeof x === "string" && x !== "";

const isRecordOf = (x: unknown, fits: (value: unknown) => boolean): boolean =>
  typeof x === "object" && x !== null && !Array.isArray(x) && Object.values(x).every(fits);

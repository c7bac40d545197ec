// `llama4 train`: from data to a model, with checkpoints to go on from, a log, and a report to look at.

import { existsSync, readFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { basename, dirname, isAbsolute, join, resolve } from "node:path";
import { type Command, Option } from "commander";
import { openNative } from "../backends/native/backend.ts";
import { openReference } from "../backends/reference/reference.ts";
import { parseObject } from "../checkpoint/json.ts";
import type { FileSource } from "../checkpoint/source.ts";
import { countParameters } from "../model/config.ts";
import { continuationTemplate } from "../prompt/template.ts";
import type { TrainingBackend } from "../tensor/backend.ts";
import { RequestError } from "../tensor/errors.ts";
import { readConfig, type TrainConfig } from "../train/config.ts";
import type { Documents } from "../train/documents.ts";
import { type HeldOutLoss, type Sample, Trainer } from "../train/trainer.ts";
import { writeAdapter } from "./adapters.ts";
import type { Answer, Run, Session } from "./answer.ts";
import { openDocuments, tilesOf } from "./documents.ts";
import { define, whole } from "./options.ts";
import { replacing } from "./output.ts";
import { type Compute, RunFolder, refuseOtherRun, refuseOtherTokens, writeModel } from "./run-folder.ts";
import { type OpenTeacher, openTeacher } from "./teacher.ts";
import { Meter } from "./train-meter.ts";
import { reportPage } from "./train-report.ts";
import { learnt, momentsOf, type Started, started } from "./train-start.ts";

export interface TrainOptions {
  readonly config?: string;
  readonly depth?: number;
  readonly data?: string;
  readonly steps?: number;
  readonly out?: string;
  readonly resume?: true;
  readonly backend?: "native" | "reference";
  readonly threads?: number;
  readonly compute?: Compute;
}

export function train(program: Command, run: Run): void {
  const command = define(
    program,
    "train",
    "A model from data: text, images and chats, into a mixture of experts of Llama 4's kind.",
    [
      "llama4 train --config examples/train-tiny/config.json",
      "llama4 train --config examples/train-tiny/config.json --resume",
      "llama4 train --depth 4 --data documents.jsonl --steps 2000 --out my-model",
      "llama4 chat --model my-model/model",
    ],
  )
    .option("--config <file>", "what to train: docs/training.md says what may stand in it")
    .option("--depth <n>", "instead of a config: a whole model from its number of layers", whole(1))
    .option("--data <file>", "with --depth: documents, one JSON object a line, or a plain text file")
    .option("--steps <n>", "with --depth: steps of about 4,000 tokens (default: 2000)", whole(1));
  withRun(command).action(run((session, options: TrainOptions) => trained(session, options)));
}

/** The options of every run. */
export function withRun(command: Command): Command {
  return command
    .option("--out <folder>", "where the run is kept (default: the config's, else run)")
    .option("--resume", "goes on from the newest checkpoint in that folder")
    .addOption(new Option("--backend <name>", "default: native").choices(["native", "reference"]))
    .option("--threads <n>", "threads that compute (default: all cores)", whole(1))
    .addOption(
      new Option(
        "--compute <type>",
        "what products round their factors to (default: what the run had before; at first bf16 where this processor multiplies it 1.5 times as fast)",
      ).choices(["f32", "bf16"]),
    );
}

/** A run of `train`, or of `distil`, which has a teacher. */
export async function trained(
  { signal, allowToEnd }: Session,
  options: TrainOptions,
  command: "train" | "distil" = "train",
): Promise<Answer> {
  allowToEnd(120_000); // a step and a checkpoint: a second Ctrl-C does not wait for them
  const { config, at } = configOf(options);
  if (command === "train" && config.teacher)
    throw new RequestError(
      `train: ${options.config} has a teacher; llama4 distil --config ${options.config} learns from it`,
    );
  if (command === "distil" && !config.teacher)
    throw new RequestError(
      `distil: ${options.config} has no teacher; expected "teacher": {"model": …}, or llama4 train`,
    );
  const folder = new RunFolder(options.out === undefined ? at(config.out) : options.out);
  const saved = options.resume ? await folder.latest() : undefined;
  if (options.resume && !saved && !folder.exists)
    throw new RequestError(`${folder.path}: no run to resume; leave out --resume to begin one`);
  if (!options.resume && folder.hasBegun)
    throw new RequestError(`${folder.path} holds a run already; go on with it by --resume, or choose another --out`);
  const files: FileSource[] = [];
  let teacher: OpenTeacher | undefined;
  const { backend, compute } = openBackend(options, saved?.state.compute);
  try {
    if (saved) refuseOtherRun(saved.state, config);
    const open = async (path: string) => openDocuments(at(path), files);
    const [data, heldOut] = heldApart(
      await opened(config.data, open),
      await opened(config.heldOut, open),
      config.holdOut,
    );
    if (heldOut.size === 0 && config.holdOut > 0) process.stderr.write(`${nothingApart(data, config.holdOut)}\n`);
    const apart = config.holdOut > 0 ? [...heldOut.values()][0] : undefined;
    const samples = config.samples === undefined ? apart : await open(config.samples);
    teacher = config.teacher && (await openTeacher(config.teacher, at, backend));
    const anew = { progress: { step: 0, tokens: 0, cursor: {}, biases: [] }, seconds: 0, logBytes: 0, config };
    await folder.resume(saved?.state ?? anew);
    const start = await started(config, { at, folder, data, backend, saved, signal }, teacher?.tokenizer);
    teacher?.refuseOthers(start.tokenizer);
    if (saved) refuseOtherTokens(saved, start.tokenizer);
    const state = saved && { progress: saved.state.progress, moments: await momentsOf(saved, backend) };
    const trainer = new Trainer({
      ...{ config, backend, data, heldOut },
      ...start,
      teacher: teacher?.teacher,
      ...(samples && { samples }),
      ...(state && { state }),
    });
    process.stderr.write(`${learnt(trainer.leaves, start)}\nproducts take their factors in ${compute}\n`);
    const seconds = saved?.state.seconds ?? 0;
    const chatTemplate = templateOf(start, await haveChats(data));
    const parts = { trainer, folder, config, backend, compute, samples, seconds, signal };
    const answer = await loop({ ...start, ...parts, chatTemplate });
    return teacher ? { ...answer, json: { ...answer.json, teacher: teacher.counts() } } : answer;
  } finally {
    await saved?.close();
    await teacher?.close();
    for (const file of files) await file.close();
    folder.close();
    backend.close();
  }
}

/** Without `--compute` a run keeps to the type that it had before; a new one takes what is faster here. */
function openBackend(
  { backend, threads, compute }: TrainOptions,
  before: Compute | undefined,
): { readonly backend: TrainingBackend; readonly compute: Compute } {
  if (backend === "reference" && compute === "bf16")
    throw new RequestError("--compute bf16 with --backend reference, which computes in float32; leave out one of them");
  if (backend === "reference" && threads !== undefined)
    throw new RequestError(
      `--threads ${threads} with --backend reference, which computes in one; leave out one of them`,
    );
  if (backend === "reference") return { backend: openReference(), compute: "f32" };
  const open = (activations: Compute) => ({
    backend: openNative({ activations, ...(threads && { threads }) }),
    compute: activations,
  });
  const known = compute ?? before;
  if (known) return open(known);
  const exact = open("f32");
  const { bf16Gflops, f32Gflops } = exact.backend.ceilings();
  if (bf16Gflops < 1.5 * f32Gflops) return exact;
  exact.backend.close();
  return open("bf16");
}

interface RunParts extends Started {
  readonly trainer: Trainer;
  readonly folder: RunFolder;
  readonly config: TrainConfig;
  readonly backend: TrainingBackend;
  readonly compute: Compute;
  readonly samples: Documents | undefined;
  /** Spent before. */
  readonly seconds: number;
  readonly signal: AbortSignal;
}

/** How the model is talked to: with chats in Llama 4's format, which they were learnt in; else as the one that it began with. */
function templateOf({ base, adapters, chatTemplate }: Started, hasChats: boolean): string | undefined {
  if (hasChats && adapters && chatTemplate === continuationTemplate)
    throw new RequestError(
      `lora: ${base} has seen no chat, and an adapter cannot say that it has; expected texts to learn from, or no "lora"`,
    );
  if (hasChats) return undefined;
  return base === undefined ? continuationTemplate : chatTemplate;
}

const mostSamples = 12;
const sampleTokens = 48;

/** Steps, looks and checkpoints, until the run is through or stopped. */
async function loop(parts: RunParts): Promise<Answer> {
  const { trainer, folder, config, signal } = parts;
  const { steps } = config.schedule;
  const begun = performance.now();
  const spent = () => parts.seconds + (performance.now() - begun) / 1000;
  const first = trainer.progress.step;
  const meter = new Meter(parts.model, parts.backend, steps, first);
  const checkpoints = new Checkpoints(parts, spent);
  let heldOut: Record<string, HeldOutLoss> = {};
  try {
    while (trainer.progress.step < steps) {
      const start = performance.now();
      const report = await trainer.step();
      const entry = { type: "step", ...report, seconds: (performance.now() - start) / 1000 };
      folder.log(entry);
      meter.step(entry);
      const isLast = report.step === steps;
      if (isLast || report.step % config.evaluate.every === 0) heldOut = await look(parts, meter, spent);
      if (isLast || checkpoints.isDue || signal.aborted) await checkpoints.save();
      if (signal.aborted) throw signal.reason;
      await new Promise((resolve) => setImmediate(resolve)); // Ctrl-C is heard here
    }
  } finally {
    meter.stop(checkpoints.step);
  }
  const out = outOf(parts);
  if (trainer.progress.step > first || !existsSync(out))
    await replacing(out, (path) => writeLearnt(parts, path, "shipped"));
  return summary(parts, { out, seconds: spent(), heldOut });
}

/** What has been learnt so far: losses on what is held out, samples, the report with both. */
async function look(parts: RunParts, meter: Meter, spent: () => number): Promise<Record<string, HeldOutLoss>> {
  const { trainer, folder, config, model, samples } = parts;
  const { step } = trainer.progress;
  const losses = await trainer.evaluate();
  folder.log({ type: "heldOut", step, losses, seconds: spent() });
  const shown = await trainer.samples(mostSamples, sampleTokens);
  if (shown.length > 0) folder.log({ type: "samples", step, samples: shown });
  meter.heldOut(losses, shown);
  await folder.write("report.html", reportPage(folder.entries(), config, model, await picturesOf(shown, samples)));
  return losses;
}

/** The checkpoints of a run, from which it can go on. */
class Checkpoints {
  readonly #parts: RunParts;
  readonly #spent: () => number;
  readonly #first: number;
  /** A model stands there already, of a run that was shorter: it goes when this one has a checkpoint beyond it. */
  #isStale: boolean;
  #savedAt = performance.now();
  /** Of the last one. */
  step: number;

  constructor(parts: RunParts, spent: () => number) {
    this.#parts = parts;
    this.#spent = spent;
    this.#first = this.step = parts.trainer.progress.step;
    this.#isStale = this.#first < parts.config.schedule.steps && existsSync(outOf(parts));
  }

  get isDue(): boolean {
    return performance.now() - this.#savedAt >= this.#parts.config.checkpoint.minutes * 60_000;
  }

  async save(): Promise<void> {
    const { trainer, folder, config, backend, compute } = this.#parts;
    trainer.refuseDiverged(); // it would push out the checkpoints that are good
    await folder.save(
      { progress: trainer.progress, seconds: this.#spent(), config, compute },
      { backend, moments: trainer.moments(), write: (path) => writeLearnt(this.#parts, path, "exact") },
      config.checkpoint.keep,
    );
    this.#savedAt = performance.now();
    this.step = trainer.progress.step;
    if (this.#isStale && this.step > this.#first) {
      await rm(outOf(this.#parts), { recursive: true, force: true });
      this.#isStale = false;
    }
  }
}

/** Where what has been learnt is written at the end. */
const outOf = ({ folder, config }: RunParts) => join(folder.path, config.lora ? "adapter" : "model");

/** Writes the model, or the adapters: as they are, to go on from, or as they ship, averaged and a model in bf16. */
async function writeLearnt(parts: RunParts, path: string, form: "exact" | "shipped"): Promise<void> {
  const { trainer, config, model, adapters, base = "", backend, tokenizer, chatTemplate } = parts;
  const isShipped = form === "shipped";
  const { lora } = config;
  if (lora && adapters) {
    const learnt = isShipped ? trainer.averagedAdapters : adapters;
    return writeAdapter(path, { backend, model, lora, base, adapters: learnt });
  }
  return trainer.shipping((averaged) => {
    const weights = isShipped ? averaged : trainer.weights;
    return writeModel(path, { backend, weights, model, tokenizer, chatTemplate }, isShipped ? "bf16" : "f32");
  });
}

interface Outcome {
  readonly out: string;
  readonly seconds: number;
  readonly heldOut: Readonly<Record<string, HeldOutLoss>>;
}

/** What a run came to, and how its model is talked to. */
function summary(
  { trainer, folder, model, config, base, compute, chatTemplate }: RunParts,
  { out, seconds, heldOut }: Outcome,
): Answer {
  const { total, active } = countParameters(model);
  const { step, tokens } = trainer.progress;
  const report = join(folder.path, "report.html");
  const losses = Object.entries(heldOut).map(
    ([name, { loss, bitsPerByte }]) =>
      `  held out: ${name} ${loss.toFixed(3)} nats, ${bitsPerByte.toFixed(2)} bits/byte`,
  );
  const how =
    chatTemplate === continuationTemplate ? "it has seen no chat, and goes on with what you type" : "talk to it";
  const named = config.lora ? `${base} --adapter ${out}` : out;
  return {
    json: {
      ...{ out, steps: step, tokens, seconds, compute, parameters: { total, active } },
      ...{ learnt: trainer.leaves.map(({ name }) => name), heldOut, report },
    },
    text: [
      `${out}: ${total.toLocaleString("en")} parameters after ${step.toLocaleString("en")} steps and ${tokens.toLocaleString("en")} tokens`,
      ...losses,
      `Look at ${report}; ${how}: llama4 chat --model ${named}`,
    ].join("\n"),
  };
}

/** The config that the options mean, and how it names files. */
function configOf({ config: file, depth, data, steps }: TrainOptions): {
  config: TrainConfig;
  at: (path: string) => string;
} {
  if ((file === undefined) === (depth === undefined))
    throw new RequestError("train: expected --config F, or --depth N with --data F; llama4 train --help shows both");
  if (file !== undefined) {
    const stray = data !== undefined ? "--data" : steps !== undefined ? "--steps" : undefined;
    if (stray)
      throw new RequestError(`train: ${stray} beside --config; expected it with --depth only: ${file} says its own`);
    const json = parseObject(readFileSync(file, "utf8"), file);
    const home = dirname(resolve(file));
    return { config: readConfig(json, basename(file)), at: (path) => (isAbsolute(path) ? path : join(home, path)) };
  }
  if (data === undefined)
    throw new RequestError("train: --depth without --data; expected a file of documents or of text");
  const vision = existsSync(tilesOf(data)) && { vision: {} };
  const json = {
    model: { depth, ...vision },
    data: { documents: data },
    holdOut: 50,
    phases: [{ steps: steps ?? 2000, mix: { documents: 1 }, loss: "answers" }],
  };
  return { config: readConfig(json, "--depth"), at: (path) => path };
}

async function opened(
  files: Readonly<Record<string, string>>,
  open: (path: string) => Promise<Documents>,
): Promise<Map<string, Documents>> {
  const found = new Map<string, Documents>();
  for (const [name, path] of Object.entries(files)) found.set(name, await open(path));
  return found;
}

/** Every n-th document of the data goes to what is held out, under the name of its source, where there are as many. */
function heldApart(
  data: ReadonlyMap<string, Documents>,
  heldOut: ReadonlyMap<string, Documents>,
  n: number,
): [data: Map<string, Documents>, heldOut: Map<string, Documents>] {
  const [learnt, held] = [new Map(data), new Map(heldOut)];
  for (const [name, documents] of data) {
    if (n === 0 || documents.length < n) continue;
    const parts = documents.split(n);
    learnt.set(name, parts.learnt);
    held.set(held.has(name) ? `${name}, every ${n}th` : name, parts.heldOut);
  }
  return [learnt, held];
}

function nothingApart(data: ReadonlyMap<string, Documents>, n: number): string {
  const count = [...data.values()].reduce((sum, { length }) => sum + length, 0);
  return `nothing is held out: of every ${n} documents one would be, and there are ${count}; held-out losses and samples need more, or a config with "heldOut" or a smaller "holdOut"`;
}

/** Whether a chat is among the documents. */
async function haveChats(data: ReadonlyMap<string, Documents>): Promise<boolean> {
  for (const documents of data.values())
    for (let i = 0; i < documents.length; i++) {
      const record = await documents.record(i);
      if (typeof record === "object" && record !== null && "messages" in record) return true;
    }
  return false;
}

/** The pixels of the samples' tiles, for the report. */
async function picturesOf(samples: readonly Sample[], documents: Documents | undefined) {
  const side = documents?.tileSize;
  if (!documents || side === undefined) return undefined;
  const found = new Map<number, Uint8Array>();
  for (const tile of new Set(samples.flatMap(({ tiles }) => tiles))) found.set(tile, await documents.pixels([tile]));
  return { side, tiles: found };
}

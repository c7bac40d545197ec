// A training run on disk:
//
//     log.jsonl                    a line for each step, measurement and sample
//     report.html                  the same for people
//     tokenizer.json               where it was learnt from the data
//     checkpoints/step-00001200/   a model like others, with training/ beside its weights: what the run goes on from
//     running                      the process that trains there, while it does
//     model/                       what came out; adapter/ in a run with `lora`, whose checkpoints are adapters too
//
// A checkpoint is written beside its place and renamed when it is whole; the older ones go only then.

import {
  closeSync,
  existsSync,
  fsyncSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { mkdir, open, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { toHuggingFace as configFile } from "../checkpoint/config-hugging-face.ts";
import { folderTensors } from "../checkpoint/convert.ts";
import { parseObject } from "../checkpoint/json.ts";
import { type Checkpoint, openCheckpoint } from "../checkpoint/open.ts";
import { toPreprocessorConfig } from "../checkpoint/preprocessor-config.ts";
import { readSafetensors } from "../checkpoint/safetensors.ts";
import { memorySource, openFile } from "../checkpoint/source.ts";
import { writeHuggingFace, writeSafetensorsFile } from "../checkpoint/writers.ts";
import type { Llama4Config } from "../model/config.ts";
import { openTokenizer } from "../open.ts";
import type { Tokenizer } from "../prompt/tokenizer.ts";
import { fromHuggingFace, toHuggingFace } from "../prompt/tokenizer-json.ts";
import type { Backend } from "../tensor/backend.ts";
import { RequestError, TrainingError } from "../tensor/errors.ts";
import type { Tensor, TensorView } from "../tensor/tensor.ts";
import type { TrainConfig } from "../train/config.ts";
import { type Leaf, mapWeights, type Weights } from "../train/leaves.ts";
import { biasShareAt } from "../train/schedule.ts";
import type { Progress } from "../train/trainer.ts";
import { promptFiles, torchNames } from "./init.ts";

export type Compute = "f32" | "bf16";

/** What a checkpoint holds beside weights and moments. */
export interface SavedState {
  readonly progress: Progress;
  /** Spent so far. */
  readonly seconds: number;
  /** Of the log, at that step. */
  readonly logBytes: number;
  readonly config: TrainConfig;
  /** What products rounded their factors to; absent in runs from before it was kept. */
  readonly compute?: Compute;
}

export interface SavedCheckpoint {
  readonly path: string;
  readonly state: SavedState;
  /** The moments' views, and what closes their file. */
  readonly moments: readonly TensorView[];
  close(): Promise<void>;
}

const shape = /^step-(\d{8})$/;

// What a killed run leaves: drafts of a checkpoint and of its model, and drafts and the predecessor of what comes out.
const draftOfCheckpoint = /^step-\d{8}\.partial/;
const draftOfModel = /^(model|adapter)(\.\d+\.(new|old)|(\.\d+\.new)?\.[0-9a-f]{8}\.partial)$/;

export class RunFolder {
  readonly path: string;
  readonly #checkpoints: string;
  readonly #logPath: string;
  #log: number | undefined;
  #isClaimed = false;
  #logBytes = 0;

  constructor(path: string) {
    this.path = path;
    this.#checkpoints = join(path, "checkpoints");
    this.#logPath = join(path, "log.jsonl");
  }

  get exists(): boolean {
    return existsSync(this.#checkpoints) || existsSync(this.#logPath);
  }

  /** A step was made: there is something to go on with. */
  get hasBegun(): boolean {
    const log = statSync(this.#logPath, { throwIfNoEntry: false });
    return (log !== undefined && log.size > 0) || (existsSync(this.#checkpoints) && this.#steps().length > 0);
  }

  async create(): Promise<void> {
    await mkdir(this.#checkpoints, { recursive: true });
    this.#claim();
    this.#log = openSync(this.#logPath, "a");
  }

  /** The newest checkpoint that is whole; what a killed run left half-written is removed. */
  async latest(): Promise<SavedCheckpoint | undefined> {
    if (!existsSync(this.#checkpoints)) return undefined;
    this.#claim();
    await removeFrom(this.#checkpoints, (name) => draftOfCheckpoint.test(name));
    await removeFrom(this.path, (name) => draftOfModel.test(name));
    const newest = this.#steps().at(-1);
    if (newest === undefined) return undefined;
    const path = join(this.#checkpoints, newest);
    const stateFile = join(path, "training", "state.json");
    const state = parseObject(readFileSync(stateFile, "utf8"), stateFile) as unknown as SavedState; // we wrote it
    if (typeof state.progress?.step !== "number" || typeof state.logBytes !== "number")
      throw new TrainingError(`${stateFile} is no state of a run; remove ${path} to resume from the checkpoint before`);
    const file = await openFile(join(path, "training", "moments.safetensors"));
    return { path, state, moments: await readSafetensors(file), close: () => file.close() };
  }

  /** Two processes would write into one log, and remove each other's drafts. */
  #claim(): void {
    if (this.#isClaimed) return;
    const file = join(this.path, "running");
    const pid = existsSync(file) ? Number(readFileSync(file, "utf8")) : 0;
    if (isAlive(pid))
      throw new RequestError(
        `process ${pid} trains in ${this.path}; stop it first, or take another folder (if that process is another program, remove ${file})`,
      );
    rmSync(file, { force: true }); // of a process that was killed
    writeFileSync(file, `${process.pid}\n`, { flag: "wx" });
    this.#isClaimed = true;
  }

  /** Goes on with the log as it was at a checkpoint. */
  async resume({ logBytes }: SavedState): Promise<void> {
    await this.create();
    truncateSync(this.#logPath, logBytes);
    this.#logBytes = logBytes;
  }

  log(entry: object): void {
    const line = Buffer.from(`${JSON.stringify(entry)}\n`);
    writeSync(this.#log!, line);
    this.#logBytes += line.length;
  }

  /** The log so far, entry by entry. */
  entries(): Record<string, unknown>[] {
    const lines = readFileSync(this.#logPath, "utf8").split("\n").filter(Boolean);
    return lines.map((line) => JSON.parse(line));
  }

  /** Writes a checkpoint, what is learnt by `write`, then removes all but the newest `keep`. */
  async save(
    state: Omit<SavedState, "logBytes">,
    {
      backend,
      moments,
      write,
    }: { backend: Backend; moments: readonly Leaf[]; write: (folder: string) => Promise<void> },
    keep: number,
  ): Promise<void> {
    const { step } = state.progress;
    fsyncSync(this.#log!); // what the state counts on
    const path = join(this.#checkpoints, `step-${String(step).padStart(8, "0")}`);
    const draft = `${path}.partial`;
    await rm(draft, { recursive: true, force: true });
    try {
      await write(draft);
      const training = join(draft, "training");
      await mkdir(training);
      await writeSafetensorsFile(
        join(training, "moments.safetensors"),
        moments.map(({ name, weight }) => ({
          ...{ name, shape: weight.shape, dtype: "f32" },
          chunks: () => numbersOf(backend, weight),
        })),
      );
      const file = await open(join(training, "state.json"), "w");
      await file.writeFile(`${JSON.stringify({ ...state, logBytes: this.#logBytes } satisfies SavedState)}\n`);
      await file.sync();
      await file.close();
      flushFolder(training);
      flushFolder(draft);
      await rm(path, { recursive: true, force: true });
      await rename(draft, path);
      flushFolder(this.#checkpoints);
    } catch (error) {
      await rm(draft, { recursive: true, force: true });
      throw error;
    }
    for (const old of this.#steps().slice(0, -keep)) await rm(join(this.#checkpoints, old), { recursive: true });
  }

  /** A text file, whole or not at all. */
  async write(name: string, text: string): Promise<void> {
    const draft = join(this.path, `${name}.partial`);
    await writeFile(draft, text);
    await rename(draft, join(this.path, name));
  }

  close(): void {
    if (this.#log !== undefined) closeSync(this.#log);
    this.#log = undefined;
    if (this.#isClaimed) rmSync(join(this.path, "running"), { force: true });
    this.#isClaimed = false;
  }

  #steps(): string[] {
    return readdirSync(this.#checkpoints)
      .filter((name) => shape.test(name))
      .sort();
  }
}

export interface Contents {
  readonly backend: Backend;
  readonly weights: Weights;
  readonly model: Llama4Config;
  readonly tokenizer: Tokenizer;
  /** Default: Meta's own chat format. */
  readonly chatTemplate?: string | undefined;
}

/** A folder in Hugging Face's layout. */
export async function writeModel(
  folder: string,
  { backend, weights, model, tokenizer, chatTemplate }: Contents,
  dtype: "f32" | "bf16",
): Promise<void> {
  const bytes = new Map<Tensor, TensorView>();
  const tensors: Tensor[] = [];
  mapWeights(weights, (x) => tensors.push(x));
  for (const x of tensors) {
    const numbers = Float32Array.from(await backend.read(x));
    const source = memorySource(new Uint8Array(numbers.buffer), "a weight");
    bytes.set(x, { name: "", dtype: "f32", shape: x.shape, source, offset: 0 });
  }
  const { text, vision } = mapWeights(weights, (x) => bytes.get(x)!);
  const out = folderTensors({ config: model, parameters: text, ...(vision && { vision }) }, dtype);
  const json = (value: object) => `${JSON.stringify(value, null, 2)}\n`;
  const files = {
    "config.json": json(configFile(model, torchNames[dtype])),
    ...promptFiles(model, tokenizer, { defaults: {}, ...(chatTemplate !== undefined && { chatTemplate }) }),
    ...(model.vision && { "preprocessor_config.json": json(toPreprocessorConfig(model.vision)) }),
  };
  await writeHuggingFace(folder, files, out);
}

export interface ReadModel {
  readonly model: Llama4Config;
  readonly weights: Weights;
  readonly tokenizer: Tokenizer | undefined;
  readonly chatTemplate: string | undefined;
}

/** A checkpoint's weights, loaded, and its tokenizer. */
export async function readModel(folder: string, backend: Backend): Promise<ReadModel> {
  const checkpoint = await openCheckpoint(folder);
  try {
    return await loadModel(checkpoint, backend);
  } finally {
    await checkpoint.close();
  }
}

/** The same of one that is open. */
export async function loadModel(checkpoint: Checkpoint, backend: Backend): Promise<ReadModel> {
  const { parameters, vision, config, chatTemplate } = checkpoint;
  const views: TensorView[] = [];
  const tree: Weights<TensorView> = { text: parameters, ...(vision && { vision }) };
  mapWeights(tree, (view) => views.push(view));
  const tensors = await backend.load(views);
  const at = new Map(views.map((view, i) => [view, tensors[i]!]));
  const tokenizer = openTokenizer(checkpoint);
  return { model: config, weights: mapWeights(tree, (view) => at.get(view)!), tokenizer, chatTemplate };
}

async function* numbersOf(backend: Backend, x: Tensor): AsyncGenerator<Uint8Array> {
  const numbers = Float32Array.from(await backend.read(x));
  yield new Uint8Array(numbers.buffer);
}

function isAlive(pid: number): boolean {
  if (!(pid > 0) || pid === process.pid) return false;
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM"; // another user's
  }
}

async function removeFrom(folder: string, isLeft: (name: string) => boolean): Promise<void> {
  for (const name of readdirSync(folder)) if (isLeft(name)) await rm(join(folder, name), { recursive: true });
}

function flushFolder(path: string): void {
  const folder = openSync(path, "r");
  fsyncSync(folder);
  closeSync(folder);
}

/** What a run keeps to, by the names that its config has for it. */
const decisive = ({ rows, lora, holdOut, optimizer, ...config }: TrainConfig): Readonly<Record<string, unknown>> => ({
  model: config.model,
  from: config.from,
  lora: lora && { rank: lora.rank, alpha: lora.alpha, targets: lora.slots },
  teacher: config.teacher,
  context: config.context,
  batchTokens: rows,
  accumulate: config.accumulate,
  seed: config.seed,
  holdOut: holdOut ?? 0, // runs from before there was any have none
  "optimizer.kind": optimizer.kind,
});

/** Refuses to resume with a config that makes another model or other batches, or drops biases that still choose experts. */
export function refuseOtherRun({ config: before, progress }: SavedState, now: TrainConfig): void {
  const refuse = (key: string, was: unknown, is: unknown, why = "") => {
    const [then, here] = [was, is].map((value) => JSON.stringify(value) ?? "absent");
    throw new RequestError(
      `${key} was ${then} when the run began and is ${here}; expected the same to resume${why}: mend the config, or begin anew in another folder`,
    );
  };
  const asked = decisive(now);
  for (const [key, was] of Object.entries(decisive(before)))
    if (JSON.stringify(was) !== JSON.stringify(asked[key])) refuse(key, was, asked[key]);
  const { average } = before.optimizer;
  if (average > 0 !== now.optimizer.average > 0) refuse("optimizer.average", average, now.optimizer.average);
  const { by } = before.balance;
  const { step, biases } = progress;
  if (by === "bias" && now.balance.by !== by && biases.length > 0 && biasShareAt(before.schedule, step - 1) > 0)
    refuse(
      "balance.by",
      by,
      now.balance.by,
      `, since the biases of step ${step} have not faded and would be gone at once`,
    );
}

/** Refuses to resume with a vocabulary whose tokens are not those that the checkpoint has learnt. */
export function refuseOtherTokens({ path }: SavedCheckpoint, now: Tokenizer): void {
  const file = join(path, "tokenizer.json");
  if (!existsSync(file)) return; // adapters have none
  const text = (tokenizer: Tokenizer) => JSON.stringify(toHuggingFace(tokenizer));
  if (text(fromHuggingFace(parseObject(readFileSync(file, "utf8"), file))) !== text(now))
    throw new RequestError(
      `the tokenizer is not the one that the run began with, which ${file} holds; expected the same to resume: name that one in the config, or begin anew in another folder`,
    );
}

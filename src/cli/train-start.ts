// What a run begins with: a new model or one that is there, adapters where only those learn, the vocabulary, and where a
// checkpoint was left.

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { randomTensors } from "../checkpoint/init.ts";
import { parseObject } from "../checkpoint/json.ts";
import { bindHuggingFace, huggingFaceTensors } from "../checkpoint/names-hugging-face.ts";
import { memorySource } from "../checkpoint/source.ts";
import type { Llama4Config } from "../model/config.ts";
import type { Tokenizer } from "../prompt/tokenizer.ts";
import { fromHuggingFace, toHuggingFace } from "../prompt/tokenizer-json.ts";
import type { TrainingBackend } from "../tensor/backend.ts";
import { RequestError } from "../tensor/errors.ts";
import { elementCount, type Tensor, type TensorView } from "../tensor/tensor.ts";
import { modelConfig, type TrainConfig } from "../train/config.ts";
import type { Documents } from "../train/documents.ts";
import { type Leaf, mapWeights, type Weights } from "../train/leaves.ts";
import { beginAdapters, type LoraAdapter, missingSlots } from "../train/lora.ts";
import { trainTokenizer } from "../train/tokenizer.ts";
import { readAdapters } from "./adapters.ts";
import { progress } from "./answer.ts";
import { tokenIds } from "./init.ts";
import { type RunFolder, readModel, type SavedCheckpoint } from "./run-folder.ts";

/** What learns. */
export interface Started {
  readonly model: Llama4Config;
  readonly weights: Weights;
  readonly adapters?: LoraAdapter[];
  readonly tokenizer: Tokenizer;
  /** The path of the model that it began with. */
  readonly base?: string;
  /** Of that model. */
  readonly chatTemplate?: string | undefined;
}

interface Place {
  /** How the config names files. */
  readonly at: (path: string) => string;
  readonly folder: RunFolder;
  readonly data: ReadonlyMap<string, Documents>;
  readonly backend: TrainingBackend;
  readonly saved: SavedCheckpoint | undefined;
  readonly signal: AbortSignal;
}

/** `vocabulary` is a teacher's, for a new model whose config names none. */
export async function started(config: TrainConfig, place: Place, vocabulary?: Tokenizer): Promise<Started> {
  return config.from === undefined ? newModel(config, place, vocabulary) : givenModel(config, config.from, place);
}

async function newModel(config: TrainConfig, place: Place, vocabulary: Tokenizer | undefined): Promise<Started> {
  const { data, backend, saved } = place;
  const tokenizer = (config.tokenizer === undefined && vocabulary) || (await tokenizerOf(config, place));
  const tileSize = [...data.values()].map((documents) => documents.tileSize).find((size) => size !== undefined);
  const model = modelConfig(
    config.model!, // there where `from` is not
    { vocabSize: tokenizer.vocabSize, context: config.context, tileSize },
    tokenIds(tokenizer),
  );
  const weights = saved
    ? (await readModel(saved.path, backend)).weights
    : await randomWeights(model, config.seed, backend);
  return { model, weights, tokenizer };
}

async function givenModel(config: TrainConfig, from: string, { at, backend, saved }: Place): Promise<Started> {
  const { lora } = config;
  const base = await readModel(saved && !lora ? saved.path : at(from), backend);
  const { model } = base;
  const path = at(from);
  const tokenizer = typeof config.tokenizer === "string" ? readTokenizer(at(config.tokenizer)) : base.tokenizer;
  if (!tokenizer) throw new RequestError(`${from} has no tokenizer; name one in the config`);
  if (tokenizer.vocabSize > model.vocabSize)
    throw new RequestError(
      `the tokenizer has ${tokenizer.vocabSize} tokens and ${from} ${model.vocabSize}; expected the model's own`,
    );
  if (config.context > model.contextLength)
    throw new RequestError(`context is ${config.context}; expected at most the ${model.contextLength} of ${from}`);
  const { chatTemplate } = base;
  if (!lora) return { model, weights: await inFloats(base.weights, backend), tokenizer, base: path, chatTemplate };
  const [missing] = missingSlots(lora.slots, model.layers);
  if (missing) throw new RequestError(`lora.targets: ${from} has no layer with experts for ${missing}; leave it out`);
  const { text } = base.weights;
  const adapters = saved
    ? await readAdapters(saved.path, { backend, model, text, lora })
    : beginAdapters(backend, text, lora, config.seed);
  return { model, weights: base.weights, adapters, tokenizer, base: path, chatTemplate };
}

/** Weights that can learn. */
async function inFloats(weights: Weights, backend: TrainingBackend): Promise<Weights> {
  const floats = new Map<Tensor, Tensor>();
  const all: Tensor[] = [];
  mapWeights(weights, (x) => all.push(x));
  for (const x of all)
    floats.set(x, x.dtype === "f32" || x.dtype === "f64" ? x : backend.from(await backend.read(x), x.shape));
  return mapWeights(weights, (x) => floats.get(x)!);
}

/** Which tensors learn, those of all layers in one line; and how many of a model's numbers they are. */
export function learnt(leaves: readonly Leaf[], { weights, adapters, base }: Started): string {
  const groups = new Map<string, { layers: string[]; shape: string }>();
  for (const { name, weight } of leaves) {
    const key = name.replace(/layers\.(\d+)/, "layers.*");
    const group = groups.get(key) ?? { layers: [], shape: `[${weight.shape.join(", ")}]` };
    group.layers.push(/layers\.(\d+)/.exec(name)?.[1] ?? "");
    groups.set(key, group);
  }
  const lines = [...groups].map(([name, { layers, shape }]) => {
    return `  ${name} ${shape}${layers[0] === "" ? "" : `, layers ${ranges(layers.map(Number))}`}`;
  });
  const count = (tensors: readonly Tensor[]) => tensors.reduce((sum, { shape }) => sum + elementCount(shape), 0);
  const all = new Set<Tensor>();
  mapWeights(weights, (x) => all.add(x));
  const learning = count(leaves.map(({ weight }) => weight));
  const total = count([...all]) + (adapters ? learning : 0);
  const share = ((100 * learning) / total).toPrecision(3);
  const summary = `${learning.toLocaleString("en")} of ${total.toLocaleString("en")} numbers learn (${share} %), in ${leaves.length} tensors`;
  return base === undefined ? summary : [`${summary}:`, ...lines].join("\n"); // of a new model, everything
}

/** "0–3, 5" */
function ranges(numbers: readonly number[]): string {
  const runs: [number, number][] = [];
  for (const n of numbers) {
    const last = runs.at(-1);
    if (last && last[1] === n - 1) last[1] = n;
    else runs.push([n, n]);
  }
  return runs.map(([first, last]) => (first === last ? `${first}` : `${first}–${last}`)).join(", ");
}

const mostLearntFrom = 64e6; // characters of the data that a vocabulary is learnt from

async function tokenizerOf({ tokenizer }: TrainConfig, { at, folder, data, saved, signal }: Place): Promise<Tokenizer> {
  if (typeof tokenizer === "string") return readTokenizer(at(tokenizer));
  const own = join(folder.path, "tokenizer.json");
  if (saved && existsSync(own)) return readTokenizer(own); // one without a checkpoint may be of other data
  const bar = progress("learning the vocabulary");
  try {
    const learnt = await trainTokenizer(textsOf(data), { vocabSize: tokenizer!, signal, onProgress: bar.update });
    await folder.write("tokenizer.json", `${JSON.stringify(toHuggingFace(learnt), null, 2)}\n`);
    return readTokenizer(own);
  } finally {
    bar.stop();
  }
}

const readTokenizer = (path: string) => fromHuggingFace(parseObject(readFileSync(path, "utf8"), path));

async function* textsOf(data: ReadonlyMap<string, Documents>): AsyncGenerator<string> {
  for (const documents of data.values()) {
    let taken = 0;
    for (let i = 0; i < documents.length && taken < mostLearntFrom / data.size; i++) {
      const text = await documents.text(i);
      taken += text.length;
      yield text;
    }
  }
}

/** Weights as `llama4 init` draws them by this seed, in float32. */
export async function randomWeights(model: Llama4Config, seed: number, backend: TrainingBackend): Promise<Weights> {
  const views: TensorView[] = [];
  for (const { name, dtype, shape, chunks } of randomTensors(
    huggingFaceTensors(model),
    model.layers.length,
    "f32",
    seed,
  )) {
    const parts: Uint8Array[] = [];
    for await (const part of chunks()) parts.push(part);
    views.push({ name, dtype, shape, source: memorySource(Buffer.concat(parts), name), offset: 0 });
  }
  const { parameters, vision } = bindHuggingFace(model, views, "random weights");
  const tree: Weights<TensorView> = { text: parameters, ...(vision && { vision }) };
  const list: TensorView[] = [];
  mapWeights(tree, (view) => list.push(view));
  const tensors = await backend.load(list);
  const at = new Map(list.map((view, i) => [view, tensors[i]!]));
  return mapWeights(tree, (view) => at.get(view)!);
}

/** The optimizer's moments of a checkpoint. */
export async function momentsOf({ moments }: SavedCheckpoint, backend: TrainingBackend): Promise<Map<string, Tensor>> {
  const found = new Map<string, Tensor>();
  for (const { name, shape, source, offset } of moments) {
    const length = shape.reduce((product, extent) => product * extent, 1);
    const bytes = await source.read(offset, 4 * length);
    found.set(name, backend.from(new Float32Array(bytes.buffer, bytes.byteOffset, length), shape));
  }
  return found;
}

// A model that learns: batch after batch through the tape, the optimizer's step, and now and then a look at what it can
// do. What a step depends on is in its state, so that a run goes on from there to the bit.

import type { Llama4Config } from "../model/config.ts";
import { tokensPerTile } from "../model/config.ts";
import type { Tokenizer } from "../prompt/tokenizer.ts";
import type { TrainingBackend } from "../tensor/backend.ts";
import { TrainingError } from "../tensor/errors.ts";
import { crossEntropy } from "../tensor/ops.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { Balance, type BalanceOptions } from "./balance.ts";
import { type Batch, Batches, type BatchOptions, type Cursor, inOrder } from "./batches.ts";
import type { TrainConfig } from "./config.ts";
import { continued, type Prompt } from "./continuation.ts";
import { softShareAt, type Teacher } from "./distil.ts";
import type { Documents, Example } from "./documents.ts";
import { type Leaf, leavesOf, mapWeights, type Weights } from "./leaves.ts";
import { logitsOf } from "./logits.ts";
import { adapterLeaves, type LoraAdapter, mergedWeight, withAdapters } from "./lora.ts";
import { Optimizer } from "./optimizer.ts";
import { biasShareAt, rateAt } from "./schedule.ts";
import { type DistilledLoss, distilledLoss } from "./soft-targets.ts";
import { Tape } from "./tape.ts";

/** What a run begins with, and what it may go on from. */
export interface Beginning {
  readonly config: TrainConfig;
  readonly model: Llama4Config;
  readonly backend: TrainingBackend;
  /** f32 (f64 in a reference of that precision); they are changed in place. */
  readonly weights: Weights;
  /** With these the weights are frozen, of any dtype, and the adapters learn. */
  readonly adapters?: readonly LoraAdapter[] | undefined;
  readonly tokenizer: Tokenizer;
  readonly data: ReadonlyMap<string, Documents>;
  readonly heldOut: ReadonlyMap<string, Documents>;
  readonly samples?: Documents;
  /** Its soft targets take the share of the loss that the config's `teacher` says. */
  readonly teacher?: Teacher | undefined;
  readonly state?: { readonly progress: Progress; readonly moments: ReadonlyMap<string, Tensor> };
}

/** Everything but weights and moments that the next step depends on. */
export interface Progress {
  readonly step: number;
  /** Seen so far. */
  readonly tokens: number;
  readonly cursor: Cursor;
  /** Of the routers, layer by layer, where they are balanced by biases. */
  readonly biases: readonly (readonly number[])[];
  /** Steps that each weight took: fewer where a step gave it no gradient. */
  readonly updates?: readonly number[];
}

/** What one step was. */
export interface StepReport {
  /** From 1 on. */
  readonly step: number;
  readonly phase: number;
  /** Nats a token that counts, of those that came. */
  readonly loss: number;
  /** With a teacher: nats from its distribution to the model's, and the share of the soft targets. */
  readonly taught?: { readonly divergence: number; readonly share: number };
  readonly rate: number;
  /** Of the gradients, before clipping. */
  readonly norm: number;
  /** Seen in this step, and of these: had to be predicted. */
  readonly tokens: number;
  readonly counted: number;
  /** Of images. */
  readonly tiles: number;
  /** Each expert's share of the choices, layer by layer, where there are experts. */
  readonly load: readonly (readonly number[])[];
}

/** The loss on documents that are not learnt from. */
export interface HeldOutLoss {
  /** Nats a token. */
  readonly loss: number;
  readonly bitsPerByte: number;
}

export interface Sample {
  readonly prompt: string;
  /** What the document says next. */
  readonly expected: string;
  readonly text: string;
  /** Tiles of its images. */
  readonly tiles: readonly number[];
}

/** Holds weights, moments and batches, and takes steps. */
export class Trainer {
  readonly #b: Beginning;
  readonly #leaves: readonly Leaf[];
  readonly #optimizer: Optimizer;
  readonly #balance: Balance;
  readonly #tape: Tape;
  readonly #watched: Weights;
  readonly #learnt: readonly Tensor[]; // of the tape, in the order of the leaves
  readonly #batches: Batches;
  readonly #packing: Omit<BatchOptions, "seed">;
  #step: number;
  #tokens: number;

  constructor(beginning: Beginning) {
    const { config, backend, weights, adapters, tokenizer, data, state, model } = beginning;
    this.#b = beginning;
    const sees = [...data.values()].some(({ tileSize }) => tileSize !== undefined);
    // Without an image in the data the encoder would get no gradient, and decay would shrink it.
    const learning = (leaf: Leaf) => sees || !isVisions(leaf);
    this.#leaves = adapters ? adapterLeaves(adapters) : leavesOf(weights).filter(learning);
    this.#optimizer = new Optimizer(backend, this.#leaves, config.optimizer);
    const { z } = config.balance;
    this.#balance = new Balance({ nExperts: model.nExperts, method: methodOf(config.balance), zLoss: z });
    if (state) this.#balance.restore(state.progress.biases);
    this.#tape = new Tape(backend, { recompute: config.recompute, router: this.#balance });
    const tape = this.#tape;
    this.#watched = adapters
      ? withAdapters(
          weights,
          adapters,
          (weight, a, b) => tape.changed(weight, { a, b, scale: this.#scale }),
          (weight) => tape.constant(weight),
        )
      : tape.watch(weights);
    this.#learnt = this.#leaves.map(({ weight }) => tape.watch(weight));
    const perTile = model.vision ? tokensPerTile(model.vision) : 0;
    this.#packing = { rows: config.rows, context: config.context, tokensPerTile: perTile };
    for (const documents of [...data.values(), ...beginning.heldOut.values()])
      if (documents.tileSize !== undefined && documents.tileSize !== model.vision?.imageSize)
        throw new TrainingError(
          `${documents.name} has tiles of ${documents.tileSize} pixels and the model's vision encoder ${model.vision ? `takes ${model.vision.imageSize}` : "is not there"}; expected the same in all data`,
        );
    const batchOptions = { ...this.#packing, seed: config.seed };
    this.#batches = new Batches(data, tokenizer, batchOptions, state?.progress.cursor);
    this.#step = state?.progress.step ?? 0;
    this.#tokens = state?.progress.tokens ?? 0;
    if (state) {
      const { step: steps, updates } = state.progress;
      this.#optimizer.restore({ steps, updates }, state.moments);
    }
  }

  get progress(): Progress {
    return {
      ...{ step: this.#step, tokens: this.#tokens, cursor: this.#batches.cursor },
      ...{ biases: this.#balance.state(), updates: this.#optimizer.updates },
    };
  }

  /** The moments of the optimizer, by name. */
  moments(): Leaf[] {
    return this.#optimizer.state();
  }

  /** Throws TrainingError where a step left a weight without a finite norm: nobody can go on from there. */
  refuseDiverged(): void {
    const { backend } = this.#b;
    const odd = this.#leaves.find(({ weight }) => !Number.isFinite(backend.sumSquares(weight)));
    if (odd)
      throw new TrainingError(
        `${odd.name} is not finite after step ${this.#step}; lower the rate or lengthen the warm-up, and resume from the last checkpoint`,
      );
  }

  /** What gets gradients, by name. */
  get leaves(): readonly Leaf[] {
    return this.#leaves;
  }

  /** The weights as they are. */
  get weights(): Weights {
    return this.#b.weights;
  }

  /** The adapters with what has been learnt, averaged where an average is kept. */
  get averagedAdapters(): LoraAdapter[] {
    const average = this.#averageOf();
    const { adapters = [] } = this.#b;
    return adapters.map(({ a, b, ...place }) => ({ ...place, a: average(a), b: b.map(average) }));
  }

  /** Calls `use` with the weights that would ship: averaged where an average is kept, the adapters gone into them. */
  async shipping<T>(use: (weights: Weights) => Promise<T>): Promise<T> {
    const { weights, adapters, backend } = this.#b;
    if (!adapters) return use(mapWeights(weights, this.#averageOf()));
    return backend.scope(async () => {
      const merge = (weight: Tensor, a: Tensor, b: Tensor) => mergedWeight(backend, weight, a, b, this.#scale);
      return use(withAdapters(weights, this.averagedAdapters, merge));
    });
  }

  #averageOf(): (weight: Tensor) => Tensor {
    const averages = this.#optimizer.averages();
    const at = new Map(this.#leaves.map(({ weight }, i) => [weight, averages[i]!]));
    return (weight) => at.get(weight) ?? weight;
  }

  get #scale(): number {
    const { lora } = this.#b.config;
    return lora ? lora.alpha / lora.rank : 0;
  }

  /** One step. Throws TrainingError, with the weights as they were, where the loss or a gradient is no number. */
  async step(): Promise<StepReport> {
    const { config, backend } = this.#b;
    const { phase, index, first } = phaseAt(config, this.#step);
    if (first) this.#batches.remix();
    const batches: Batch[] = [];
    for (let i = 0; i < config.accumulate; i++) batches.push(await this.#batches.next(phase));
    const counted = batches.reduce((sum, { targets }) => sum + targets.length, 0);
    if (counted === 0) throw new TrainingError(`step ${this.#step + 1}: nothing to predict; expected text in the data`);
    this.#balance.fade(biasShareAt(config.schedule, this.#step));
    const softShare = config.teacher ? softShareAt(config.teacher.share, this.#step, config.schedule.steps) : 0;
    const { loss, divergence, gradients } = await this.#mean(batches, counted, softShare);
    const rate = config.rate * rateAt(config.schedule, this.#step);
    // What no image was there for stands still: it has no gradient, and must not decay.
    const saw = batches.some(({ images, targets }) => images && targets.length > 0);
    const reached = gradients.map((gradient, i) => (saw || !isVisions(this.#leaves[i]!) ? gradient : undefined));
    const norm = await this.#optimizer.step(reached, rate);
    for (const gradient of gradients) free(backend, gradient);
    const load = this.#balance.loads().map(sharesOf);
    this.#balance.update();
    const tokens = batches.reduce((sum, batch) => sum + batch.tokens.length, 0);
    this.#step++;
    this.#tokens += tokens;
    const tiles = batches.reduce((sum, { images }) => sum + (images?.tiles ?? 0), 0);
    const taught = this.#b.teacher && { divergence, share: softShare };
    return {
      ...{ step: this.#step, phase: index, loss, rate, norm, tokens, counted, tiles, load },
      ...(taught && { taught }),
    };
  }

  /** Loss and gradients of a step's batches: each weighs as much as it has of the tokens that count. */
  async #mean(batches: readonly Batch[], counted: number, softShare: number) {
    const { backend } = this.#b;
    let [loss, divergence] = [0, 0];
    let sums: Tensor[] | undefined;
    for (const batch of batches) {
      const share = batch.targets.length / counted;
      if (share === 0) continue;
      const { nats, gradients, ...soft } = await this.#backward(batch, softShare);
      loss += share * nats;
      divergence += share * soft.divergence;
      if (sums) for (const [i, sum] of sums.entries()) backend.blend(sum, gradients[i]!, 1, share);
      else if (share < 1) for (const gradient of gradients) backend.blend(gradient, gradient, share, 0);
      if (sums) for (const gradient of gradients) free(backend, gradient);
      else sums = gradients;
    }
    return { loss, divergence, gradients: sums! }; // some token counts
  }

  async #backward(batch: Batch, softShare: number) {
    const { teacher, model } = this.#b;
    const soft = teacher && (await teacher.targets(batch));
    this.#balance.begin();
    const logits = await logitsOf(this.#tape, this.#watched, model, batch);
    const { loss, hard, divergence } = soft
      ? await distilledLoss(this.#tape, logits, batch.targets, soft, softShare)
      : await this.#hardLoss(logits, batch);
    const nats = hard;
    if (!Number.isFinite(nats)) {
      this.#tape.clear();
      throw new TrainingError(
        `the loss is ${nats} at step ${this.#step + 1}; lower the rate, lengthen the warm-up or clip gradients, and resume from the last checkpoint`,
      );
    }
    const gradients = [...this.#tape.gradients(this.#balance.loss(loss), this.#learnt)];
    return { nats, gradients, divergence };
  }

  async #hardLoss(logits: Tensor, { targets }: Batch): Promise<DistilledLoss> {
    const loss = crossEntropy(logits, targets);
    return { loss, hard: (await this.#tape.read(loss))[0]!, divergence: 0 };
  }

  /** The held-out losses with the weights that would ship, and the biases that still choose beside them. */
  async evaluate(): Promise<Record<string, HeldOutLoss>> {
    return this.shipping((weights) => this.#evaluate(weights));
  }

  async #evaluate(weights: Weights): Promise<Record<string, HeldOutLoss>> {
    const { heldOut, tokenizer, model, backend, config } = this.#b;
    const results: Record<string, HeldOutLoss> = {};
    for (const [name, documents] of heldOut) {
      let nats = 0;
      let tokens = 0;
      let bytes = 0;
      const range = { loss: "answers", most: config.evaluate.tokens } as const;
      for await (const batch of inOrder(documents, tokenizer, this.#packing, range)) {
        if (batch.targets.length === 0) continue;
        const loss = await backend.scope(async () => {
          const logits = await logitsOf(backend, weights, model, batch, this.#balance.choosing(backend, model));
          return (await backend.read(crossEntropy(logits, batch.targets)))[0]!;
        });
        nats += loss * batch.targets.length;
        tokens += batch.targets.length;
        for (const id of batch.targets) bytes += tokenizer.isSpecial(id) ? 0 : tokenizer.tokenBytes(id).length;
      }
      results[name] = { loss: nats / tokens, bitsPerByte: nats / Math.LN2 / Math.max(1, bytes) };
    }
    return results;
  }

  /** What the model says where the last answer, or the text, of each sample would go on: the likeliest tokens. */
  async samples(most: number, length: number): Promise<Sample[]> {
    return this.shipping((weights) => this.#samples(weights, most, length));
  }

  async #samples(weights: Weights, most: number, length: number): Promise<Sample[]> {
    const { samples, tokenizer, backend, model, config } = this.#b;
    if (!samples) return [];
    const { tokensPerTile } = this.#packing;
    const patch = tokenizer.special.get("<|patch|>");
    const asked: { readonly example: Example; readonly prompt: Prompt }[] = [];
    for (let i = 0; i < Math.min(most, samples.length); i++) {
      const example = await samples.example(i, tokenizer, { loss: "answers", tokensPerTile });
      const tokens = example.tokens.subarray(0, promptLength(example));
      const at = Int32Array.from([...tokens.keys()].filter((row) => tokens[row] === patch));
      const { tiles } = example;
      const images = tiles.length > 0 ? { pixels: await samples.pixels(tiles), tiles: tiles.length, at } : undefined;
      asked.push({ example, prompt: { tokens, images } });
    }
    const said = await continued(
      ...([backend, weights, model] as const),
      asked.map(({ prompt }) => prompt),
      {
        ...{ most: length, context: config.context, stop: tokenizer.stop },
        choose: this.#balance.choosing(backend, model),
      },
    );
    return asked.map(({ example: { tokens, tiles }, prompt }, i) => ({
      prompt: tokenizer.decode(prompt.tokens),
      expected: tokenizer.decode(tokens.subarray(prompt.tokens.length), { skipSpecial: true }),
      text: tokenizer.decode(said[i]!, { skipSpecial: true }),
      tiles,
    }));
  }
}

const isVisions = ({ name }: Leaf) => name.startsWith("vision.");

/** The phase of a step, counted from 0, and whether it is its first. */
export function phaseAt({ phases }: Pick<TrainConfig, "phases">, step: number) {
  let before = 0;
  for (const [index, phase] of phases.entries()) {
    if (step < before + phase.steps) return { phase, index, first: step === before };
    before += phase.steps;
  }
  return { phase: phases.at(-1)!, index: phases.length - 1, first: false };
}

/** Of a chat all but the last answer; of a text all but its end. */
function promptLength({ tokens, counts, divisible }: Example): number {
  if (divisible) return tokens.length - 1;
  let at = tokens.length;
  while (at > 1 && counts[at - 1]) at--;
  return at;
}

function methodOf({ by, strength }: TrainConfig["balance"]): BalanceOptions["method"] {
  if (by === "none") return { kind: by };
  return by === "loss" ? { kind: by, weight: strength } : { kind: by, rate: strength };
}

function sharesOf(choices: readonly number[]): number[] {
  const all = choices.reduce((sum, n) => sum + n, 0);
  return choices.map((n) => n / all);
}

function free(backend: TrainingBackend, x: Tensor): void {
  backend.backward?.free(x);
}

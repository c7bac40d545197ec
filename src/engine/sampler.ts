// From the logits of one position to a token. V vocabulary

import type { Backend } from "../tensor/backend.ts";
import { CheckpointError, RequestError } from "../tensor/errors.ts";
import type { Matcher } from "./constraint.ts";
import { uniform } from "./random.ts";

/** How tokens are chosen. The defaults are those that Llama 4's `generation_config.json` gives. */
export interface Sampling {
  /** 0 takes the likeliest token, the lowest id among equals. Default 0.6. */
  readonly temperature?: number | undefined;
  /** Drops tokens whose likelier ones have together more than this probability. Default 0.9; 1 drops none. */
  readonly topP?: number | undefined;
  /** Keeps this many of the likeliest tokens; 0, the default, all. */
  readonly topK?: number | undefined;
  /** Drops tokens less likely than this part of the likeliest. Default 0. */
  readonly minP?: number | undefined;
  /** Divides positive and multiplies negative logits of tokens in prompt or reply. Default 1. */
  readonly repetitionPenalty?: number | undefined;
  /** Is subtracted from the logits of tokens in the reply. Default 0. */
  readonly presencePenalty?: number | undefined;
  /** Is subtracted from the logit of a token each time that it stands in the reply. Default 0. */
  readonly frequencyPenalty?: number | undefined;
  /** Is added to the logits of these tokens. */
  readonly logitBias?: Readonly<Record<number, number>> | undefined;
  /** The same seed gives the same tokens. Default: a random one. */
  readonly seed?: number | undefined;
  /** Gives each token's log-probability, and those of this many of the likeliest; before everything above. */
  readonly logprobs?: number | undefined;
}

export interface Logprob {
  readonly token: number;
  readonly logprob: number;
}

export interface Sample extends Logprob {
  /** The likeliest tokens, best first. */
  readonly top: readonly Logprob[];
}

/** Chooses the tokens of one reply, one after the other. */
export class Sampler {
  readonly #options: ReturnType<typeof checked>;
  readonly #prompt: ReadonlySet<number>;
  /** How often a token stands in the reply. */
  readonly #counts = new Map<number, number>();
  /** Where the reply stands in the grammar that it is held to. */
  readonly #matcher: Matcher | undefined;
  readonly #backend: Pick<Backend, "draw"> | undefined;
  #drawn = 0;

  /**
   * Throws RequestError for a value that makes no sense. With a matcher, only tokens that it allows are chosen; a backend that
   * draws saves passes over the logits here.
   */
  constructor(
    sampling: Sampling,
    prompt: Iterable<number>,
    vocabSize: number,
    matcher?: Matcher,
    backend?: Pick<Backend, "draw">,
  ) {
    this.#options = checked(sampling, vocabSize);
    this.#matcher = matcher;
    this.#backend = backend;
    this.#prompt = this.#options.repetitionPenalty === 1 ? new Set() : new Set(prompt);
  }

  /** The next token. `logits` `[V]` are changed. */
  sample(logits: Float32Array | Float64Array): number | Sample {
    const { logprobs } = this.#options;
    if (logprobs === undefined) return this.#next(logits);
    const of = logprobsOf(logits.slice(), logprobs);
    return of(this.#next(logits));
  }

  /**
   * What the next token would be after the `guessed` ones, if the logits were these; nothing is remembered. Throws
   * RequestError where the grammar needs more states than it may have.
   */
  guess(logits: Float32Array | Float64Array, guessed: readonly number[]): number {
    const matcher = this.#matcher?.fork();
    for (const token of guessed) this.#count(token, 1);
    try {
      for (const token of guessed) matcher?.advance(token);
      return this.#choose(logits, matcher);
    } finally {
      for (const token of guessed) this.#count(token, -1);
    }
  }

  #next(logits: Logits): number {
    const token = this.#choose(logits, this.#matcher);
    this.#count(token, 1);
    this.#matcher?.advance(token);
    return token;
  }

  #choose(logits: Logits, matcher: Matcher | undefined): number {
    this.#adjust(logits);
    const mask = matcher?.mask();
    if (!mask) return this.#among(logits);
    const choices = mask.choices(logits);
    return choices.tokenAt(this.#among(choices.logits));
  }

  #among(logits: Logits): number {
    const { temperature, topK, seed } = this.#options;
    const u = uniform(seed, this.#drawn);
    const token = topK > 0 && temperature > 0 ? undefined : this.#backend?.draw?.(logits, this.#options, u);
    return token ?? (temperature === 0 ? argmax(logits) : this.#draw(logits, u));
  }

  #count(token: number, change: 1 | -1): void {
    this.#drawn += change;
    const count = (this.#counts.get(token) ?? 0) + change;
    if (count > 0) this.#counts.set(token, count);
    else this.#counts.delete(token);
  }

  #adjust(logits: Float32Array | Float64Array): void {
    const { repetitionPenalty, presencePenalty, frequencyPenalty, logitBias } = this.#options;
    const repeat = (token: number) => {
      const logit = logits[token]!;
      logits[token] = logit > 0 ? logit / repetitionPenalty : logit * repetitionPenalty;
    };
    if (repetitionPenalty !== 1) {
      for (const token of this.#prompt) repeat(token);
      for (const token of this.#counts.keys()) if (!this.#prompt.has(token)) repeat(token);
    }
    if (presencePenalty !== 0 || frequencyPenalty !== 0)
      for (const [token, count] of this.#counts) logits[token]! -= presencePenalty + frequencyPenalty * count;
    for (const [token, bias] of logitBias) logits[token]! += bias;
  }

  #draw(logits: Logits, u: number): number {
    const { temperature, topK, topP, minP } = this.#options;
    const peaks = peaksOf(logits);
    const least: Edge = { weight: minP, token: Infinity };
    if (topK > 0) {
      const few = candidates(logits, peaks, temperature, 0, behind(peaks, topK, temperature));
      let kept = keptOf(
        few,
        edgeOf(few, topK - 1, () => 1),
      );
      if (topP < 1) kept = keptOf(kept, edgeOf(kept, topP * sumOf(kept.weights), itself));
      kept = keptOf(kept, least);
      return pick(kept, u * sumOf(kept.weights));
    }
    const edge = topP < 1 ? nucleus(logits, peaks, temperature, topP) : least;
    return drawn(logits, peaks, temperature, edge.weight < minP ? least : edge, u);
  }
}

/** What the model's own logits `[V]` say of a token, and of the `count` likeliest. */
export function logprobsOf(logits: Float32Array | Float64Array, count: number): (token: number) => Sample {
  const peaks = peaksOf(logits);
  const normalizer = peaks.max + Math.log(sumOf(weighed(logits, peaks, 1)));
  const logprob = (token: number): Logprob => ({ token, logprob: logits[token]! - normalizer });
  return (token) => ({ ...logprob(token), top: largest(logits, peaks, count).map(logprob) });
}

/** The choices with their defaults, or a RequestError that names the wrong one. */
function checked(sampling: Sampling, vocabSize: number) {
  const { temperature = 0.6, topP = 0.9, topK = 0, minP = 0, ...others } = sampling;
  const { repetitionPenalty = 1, presencePenalty = 0, frequencyPenalty = 0, ...rest } = others;
  const { seed = Math.floor(Math.random() * 2 ** 53), logprobs, logitBias = {}, ...unknown } = rest;
  for (const name of Object.keys(unknown))
    throw new RequestError(`there is no option "${name}"; expected the options of \`Sampling\``);
  expectNumber("temperature", temperature, 0, 2);
  expectNumber("topP", topP, 0, 1);
  expectWhole("topK", topK, 0, 2 ** 31);
  expectNumber("minP", minP, 0, 1);
  expectNumber("repetitionPenalty", repetitionPenalty, 0.01, 100);
  expectNumber("presencePenalty", presencePenalty, -2, 2);
  expectNumber("frequencyPenalty", frequencyPenalty, -2, 2);
  expectWhole("seed", seed, 0, Number.MAX_SAFE_INTEGER);
  if (logprobs !== undefined) expectWhole("logprobs", logprobs, 0, 20);
  const biases = Object.entries(logitBias).map(([token, bias]): [number, number] => {
    const id = /^\d+$/.test(token) ? Number(token) : Number.NaN;
    if (!(id < vocabSize))
      throw new RequestError(`"${token}" of logitBias is no token; expected an id from 0 to ${vocabSize - 1}`);
    expectNumber(`logitBias of token ${token}`, bias, -100, 100);
    return [id, bias];
  });
  return {
    ...{ temperature, topP, topK, minP, repetitionPenalty, presencePenalty, frequencyPenalty },
    ...{ seed, logprobs, logitBias: biases },
  };
}

function expectNumber(name: string, value: number, low: number, high: number): void {
  if (!(typeof value === "number" && value >= low && value <= high))
    throw new RequestError(`${name} is ${value}; expected a number from ${low} to ${high}`);
}

function expectWhole(name: string, value: number, low: number, high: number): void {
  if (!(Number.isInteger(value) && value >= low && value <= high))
    throw new RequestError(`${name} is ${value}; expected a whole number from ${low} to ${high}`);
}

type Logits = Float32Array | Float64Array;

/** The largest logit, and that of each BLOCK: what is far behind is passed over by blocks. */
interface Peaks {
  readonly max: number;
  readonly blocks: Float64Array;
}

const BLOCK = 256;

function peaksOf(logits: Logits): Peaks {
  const blocks = new Float64Array(Math.ceil(logits.length / BLOCK));
  let max = -Infinity;
  for (let b = 0; b < blocks.length; b++) {
    const end = Math.min((b + 1) * BLOCK, logits.length);
    let peak = -Infinity;
    for (let i = b * BLOCK; i < end; i++) peak = Math.max(peak, logits[i]!); // NaN stays
    if (!(peak < Infinity)) refuse(logits);
    blocks[b] = peak;
    if (peak > max) max = peak;
  }
  if (max === -Infinity) throw broken(`all ${logits.length} logits are -Infinity`);
  return { max, blocks };
}

function refuse(logits: Logits): never {
  const i = logits.findIndex((logit) => !(logit < Infinity));
  throw broken(`logit ${i} is ${logits[i]}`);
}

function broken(found: string): CheckpointError {
  return new CheckpointError(`the weights are broken: ${found}; expected numbers, get the checkpoint anew`);
}

function argmax(logits: Logits): number {
  const { max, blocks } = peaksOf(logits);
  return logits.indexOf(max, BLOCK * blocks.indexOf(max));
}

// Below e⁻⁴⁰ of the likeliest, 202,048 tokens have together less than 10⁻¹² of the probability; they are left out.
const NEGLIGIBLE = 40;
/** Within so many temperatures of the likeliest is, most often, all that top-p keeps. */
const LIKELY = 20;

// A token's weight beside the likeliest, which weighs 1, is e⁻ᶻ; z, how far it is behind in temperatures, falls into bins.
const BINS = 64; // for z to z + 1
const weights = Float64Array.from({ length: BINS * NEGLIGIBLE + 1 }, (_, bin) => Math.exp(-bin / BINS));

/** e⁻ᶠ for f from 0 to a bin's width, by the series to 10⁻¹¹. */
const within = (f: number) => 1 - f * (1 - f * (1 / 2 - f * (1 / 6 - f / 24)));

/** e⁻ᶻ for z from 0 to NEGLIGIBLE. */
function weightOf(z: number): number {
  const bin = (z * BINS) | 0;
  return weights[bin]! * within(z - bin / BINS);
}

const itself = (weight: number) => weight;

/** By how much one unit of logits is behind; finite for the smallest temperature. */
const scaleOf = (temperature: number) => Math.min(1 / temperature, 1e300);

/** What the tokens of each bin weigh together, as far as `far` temperatures behind. */
function weighed(logits: Logits, { max, blocks }: Peaks, temperature: number, far = NEGLIGIBLE): Float64Array {
  const scale = BINS * scaleOf(temperature);
  const sums = new Float64Array(BINS * far);
  for (let b = 0; b < blocks.length; b++) {
    if ((max - blocks[b]!) * scale >= sums.length) continue;
    const end = Math.min((b + 1) * BLOCK, logits.length);
    for (let i = b * BLOCK; i < end; i++) {
      const z = (max - logits[i]!) * scale; // in bins
      if (z < sums.length) sums[z | 0]! += within((z - (z | 0)) / BINS);
    }
  }
  for (let bin = 0; bin < sums.length; bin++) sums[bin]! *= weights[bin]!;
  return sums;
}

/** The bin that brings the sum above `limit`, or the last, and the sum before it. */
function binAbove(sums: Float64Array, limit: number): { readonly bin: number; readonly before: number } {
  let before = 0;
  let bin = 0;
  while (bin < sums.length - 1 && before + sums[bin]! <= limit) before += sums[bin++]!;
  return { bin, before };
}

/** More than the temperatures that the n-th likeliest token is behind: as many blocks have a token that is not farther. */
function behind({ max, blocks }: Peaks, n: number, temperature: number): number {
  if (n > blocks.length) return NEGLIGIBLE;
  const peak = blocks.slice().sort()[blocks.length - n]!;
  return Math.min((max - peak) * scaleOf(temperature) + 1e-6, NEGLIGIBLE);
}

/** Tokens in the order of their ids, and their weights. */
interface Candidates {
  readonly tokens: Int32Array;
  readonly weights: Float64Array;
}

/** Tokens at least `near` and less than `far` temperatures behind. */
function candidates(
  logits: Logits,
  { max, blocks }: Peaks,
  temperature: number,
  near: number,
  far: number,
): Candidates {
  const scale = scaleOf(temperature);
  let tokens = new Int32Array(BLOCK);
  let n = 0;
  for (let b = 0; b < blocks.length; b++) {
    if ((max - blocks[b]!) * scale >= far) continue;
    if (n + BLOCK > tokens.length) tokens = resized(tokens, 2 * tokens.length);
    const end = Math.min((b + 1) * BLOCK, logits.length);
    for (let i = b * BLOCK; i < end; i++) {
      const z = (max - logits[i]!) * scale;
      if (z >= near && z < far) tokens[n++] = i;
    }
  }
  const weights = new Float64Array(n);
  for (let i = 0; i < n; i++) weights[i] = weightOf((max - logits[tokens[i]!]!) * scale);
  return { tokens: tokens.subarray(0, n), weights };
}

function resized(list: Int32Array, length: number): Int32Array<ArrayBuffer> {
  const all = new Int32Array(length);
  all.set(list);
  return all;
}

function sumOf(weights: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < weights.length; i++) sum += weights[i]!;
  return sum;
}

/** The candidate at `left` of their weights. */
function pick({ tokens, weights }: Candidates, left: number): number {
  for (let i = 0; i < weights.length; i++) {
    left -= weights[i]!;
    if (left < 0) return tokens[i]!;
  }
  return tokens[weights.findLastIndex((weight) => weight > 0)]!; // rounding has eaten the last sliver
}

/** Where a choice among tokens ends: all that are heavier are kept, and of equal ones those up to this id. */
interface Edge {
  readonly weight: number;
  readonly token: number;
}

const keeps = (edge: Edge, weight: number, token: number) =>
  weight > edge.weight || (weight === edge.weight && token <= edge.token);

/** Those that are kept, in the same order and memory. */
function keptOf({ tokens, weights }: Candidates, edge: Edge): Candidates {
  let n = 0;
  for (let i = 0; i < weights.length; i++) {
    if (!keeps(edge, weights[i]!, tokens[i]!)) continue;
    tokens[n] = tokens[i]!;
    weights[n++] = weights[i]!;
  }
  return { tokens: tokens.subarray(0, n), weights: weights.subarray(0, n) };
}

/** Draws of all that are kept: a block, then one of its tokens. Nothing is held of them: there may be as many as logits. */
function drawn(logits: Logits, { max, blocks }: Peaks, temperature: number, edge: Edge, u: number): number {
  const scale = scaleOf(temperature);
  const far = Math.min(NEGLIGIBLE, 1e-9 - Math.log(edge.weight)); // the weights are exact to 10⁻¹¹
  const { weight: least, token: last } = edge;
  const sums = new Float64Array(blocks.length);
  for (let b = 0; b < blocks.length; b++) {
    if ((max - blocks[b]!) * scale >= far) continue;
    const end = Math.min((b + 1) * BLOCK, logits.length);
    let sum = 0;
    for (let i = b * BLOCK; i < end; i++) {
      const z = (max - logits[i]!) * scale;
      if (z >= far) continue;
      const weight = weightOf(z);
      if (weight > least || (weight === least && i <= last)) sum += weight;
    }
    sums[b] = sum;
  }
  let left = u * sumOf(sums);
  let b = 0;
  for (const end = sums.findLastIndex((sum) => sum > 0); b < end && left >= sums[b]!; b++) left -= sums[b]!;
  const from = b * BLOCK;
  const block = { max, blocks: blocks.subarray(b, b + 1) };
  const tokens = candidates(logits.subarray(from, from + BLOCK), block, temperature, 0, far);
  return from + pick(keptOf(tokens, { weight: least, token: last - from }), left);
}

/**
 * The edge of the fewest of the heaviest whose measures add up to more than `limit`; of equal weights the lower ids are in.
 * A selection (Hoare's find, on sums) and no sort: linear on average.
 */
function edgeOf({ tokens, weights }: Candidates, limit: number, measure: (weight: number) => number): Edge {
  if (tokens.length === 0) return { weight: 0, token: Infinity };
  const precedes = (a: number, b: number) => weights[a]! > weights[b]! || (weights[a]! === weights[b]! && a < b);
  const order = new Int32Array(tokens.length);
  for (let i = 0; i < order.length; i++) order[i] = i;
  let before = 0;
  let low = 0;
  let high = order.length - 1;
  while (low < high) {
    const middle = (low + high) >>> 1;
    const pivot = order[middle]!;
    order[middle] = order[high]!;
    let end = low; // order[low … end - 1] precede the pivot
    let sum = before;
    for (let i = low; i < high; i++) {
      const candidate = order[i]!;
      if (!precedes(candidate, pivot)) continue;
      order[i] = order[end]!;
      order[end++] = candidate;
      sum += measure(weights[candidate]!);
    }
    order[high] = order[end]!;
    order[end] = pivot;
    if (sum > limit) high = end - 1;
    else if (sum + measure(weights[pivot]!) > limit) low = high = end;
    else {
      before = sum + measure(weights[pivot]!);
      low = end + 1;
    }
  }
  const lightest = order[Math.min(low, order.length - 1)]!;
  return { weight: weights[lightest]!, token: tokens[lightest]! };
}

/** The edge of what top-p keeps (Holtzman et al. 2020, "The curious case of neural text degeneration": the nucleus). */
function nucleus(logits: Logits, peaks: Peaks, temperature: number, topP: number, far = LIKELY): Edge {
  const sums = weighed(logits, peaks, temperature, far);
  const sum = sumOf(sums);
  const { bin, before } = binAbove(sums, topP * sum);
  const last = candidates(logits, peaks, temperature, bin / BINS, (bin + 1) / BINS);
  const edge = edgeOf(last, topP * sum - before, itself);
  const rest = logits.length * Math.exp(-far); // at most, and however much it is: where that changes nothing, it is done
  if (far === NEGLIGIBLE || before + sumOf(keptOf(last, edge).weights) > topP * (sum + rest)) return edge;
  return nucleus(logits, peaks, temperature, topP, NEGLIGIBLE);
}

/** The ids of the `n` largest, best first; of equals the lower. */
function largest(logits: Logits, { blocks }: Peaks, n: number): number[] {
  const best: number[] = [];
  for (let i = 0; n > 0 && i < logits.length; i++) {
    const worst = best.length < n ? -Infinity : logits[best[n - 1]!]!;
    if (i % BLOCK === 0 && best.length === n && blocks[i / BLOCK]! <= worst) {
      i += BLOCK - 1;
      continue;
    }
    if (best.length === n && !(logits[i]! > worst)) continue;
    let at = best.length;
    while (at > 0 && logits[i]! > logits[best[at - 1]!]!) at--;
    best.splice(at, 0, i);
    if (best.length > n) best.pop();
  }
  return best;
}

// From the logits of one position to a token. V vocabulary

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
  #drawn = 0;

  /** Throws RequestError for a value that makes no sense. With a matcher, only tokens that it allows are chosen. */
  constructor(sampling: Sampling, prompt: Iterable<number>, vocabSize: number, matcher?: Matcher) {
    this.#options = checked(sampling, vocabSize);
    this.#matcher = matcher;
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
    const { temperature, seed } = this.#options;
    return temperature === 0 ? argmax(logits) : this.#draw(logits, uniform(seed, this.#drawn));
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
    if (!(topK > 0) && topP === 1) return drawn(logits, peaks, temperature, minP, u);
    let kept: Candidates;
    if (topK > 0) {
      const few = candidates(logits, peaks, temperature, behind(peaks, topK, temperature));
      kept = headOf(few, topK - 1, () => 1);
      if (topP < 1) kept = headOf(kept, topP * sumOf(kept.weights), itself);
    } else kept = nucleus(logits, peaks, temperature, topP);
    if (minP > 0) kept = filter(kept, (weight) => weight >= minP);
    return pick(kept, u * sumOf(kept.weights));
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
  return sums.map((sum, bin) => sum * weights[bin]!);
}

/** The bin that brings the sum above `limit`, or the last. */
function binAbove(sums: Float64Array, limit: number): number {
  let sum = 0;
  const bin = sums.findIndex((weight) => {
    sum += weight;
    return sum > limit;
  });
  return bin < 0 ? sums.length - 1 : bin;
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

/** Tokens less than `far` temperatures behind. */
function candidates(logits: Logits, { max, blocks }: Peaks, temperature: number, far: number): Candidates {
  const scale = scaleOf(temperature);
  let most = 0;
  for (let b = 0; b < blocks.length; b++) if ((max - blocks[b]!) * scale < far) most += BLOCK;
  const tokens = new Int32Array(most);
  const weights = new Float64Array(most);
  let n = 0;
  for (let b = 0; b < blocks.length; b++) {
    if ((max - blocks[b]!) * scale >= far) continue;
    const end = Math.min((b + 1) * BLOCK, logits.length);
    for (let i = b * BLOCK; i < end; i++) {
      const z = (max - logits[i]!) * scale;
      if (z >= far) continue;
      tokens[n] = i;
      weights[n++] = weightOf(z);
    }
  }
  return { tokens: tokens.subarray(0, n), weights: weights.subarray(0, n) };
}

function sumOf(weights: Float64Array): number {
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

/** Draws of all but what min-p drops: a block, then one of its tokens. */
function drawn(logits: Logits, { max, blocks }: Peaks, temperature: number, minP: number, u: number): number {
  const scale = scaleOf(temperature);
  const far = Math.min(NEGLIGIBLE, 1e-12 - Math.log(minP));
  const sums = blocks.map((peak, b) => {
    if ((max - peak) * scale >= far) return 0;
    const end = Math.min((b + 1) * BLOCK, logits.length);
    let sum = 0;
    for (let i = b * BLOCK; i < end; i++) {
      const z = (max - logits[i]!) * scale;
      if (z < far) sum += weightOf(z);
    }
    return sum;
  });
  const last = sums.findLastIndex((sum) => sum > 0);
  let left = u * sumOf(sums);
  let b = 0;
  while (b < last && left >= sums[b]!) left -= sums[b++]!;
  const [from, to] = [b * BLOCK, (b + 1) * BLOCK];
  const block = { max, blocks: blocks.subarray(b, b + 1) };
  return from + pick(candidates(logits.subarray(from, to), block, temperature, far), left);
}

/** Those that pass, in the same order and memory. */
function filter({ tokens, weights }: Candidates, passes: (weight: number, i: number) => boolean): Candidates {
  let n = 0;
  for (let i = 0; i < weights.length; i++) {
    if (!passes(weights[i]!, i)) continue;
    tokens[n] = tokens[i]!;
    weights[n++] = weights[i]!;
  }
  return { tokens: tokens.subarray(0, n), weights: weights.subarray(0, n) };
}

/**
 * The fewest of the heaviest whose measures add up to more than `limit`; of equal weights the lower ids. Those above
 * `edge` are among them. A selection (Hoare's find, on sums) and no sort: linear on average.
 */
function headOf(all: Candidates, limit: number, measure: (weight: number) => number, edge = Infinity): Candidates {
  const { weights } = all;
  const precedes = (a: number, b: number) => weights[a]! > weights[b]! || (weights[a]! === weights[b]! && a < b);
  let before = 0;
  let count = 0;
  const order = new Int32Array(weights.length);
  for (let i = 0; i < weights.length; i++) {
    if (weights[i]! > edge) before += measure(weights[i]!);
    else order[count++] = i;
  }
  if (count === 0) return all;
  let low = 0;
  let high = count - 1;
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
  const lightest = order[Math.min(low, count - 1)]!;
  const weight = weights[lightest]!;
  return filter(all, (w, i) => w > weight || (w === weight && i <= lightest));
}

/** What top-p keeps (Holtzman et al. 2020, "The curious case of neural text degeneration": the nucleus). */
function nucleus(logits: Logits, peaks: Peaks, temperature: number, topP: number, far = LIKELY): Candidates {
  const sums = weighed(logits, peaks, temperature, far);
  const sum = sumOf(sums);
  const last = binAbove(sums, topP * sum);
  const near = candidates(logits, peaks, temperature, (last + 1) / BINS);
  const head = headOf(near, topP * sum, itself, weights[last]);
  const rest = logits.length * Math.exp(-far); // at most, and however much it is: where that changes nothing, it is done
  if (far === NEGLIGIBLE || sumOf(head.weights) > topP * (sum + rest)) return head;
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

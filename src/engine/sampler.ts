// From the logits of one position to a token. V vocabulary

import { CheckpointError, RequestError } from "../tensor/errors.ts";
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
  #drawn = 0;

  /** Throws RequestError for a value that makes no sense. */
  constructor(sampling: Sampling, prompt: Iterable<number>, vocabSize: number) {
    this.#options = checked(sampling, vocabSize);
    this.#prompt = this.#options.repetitionPenalty === 1 ? new Set() : new Set(prompt);
  }

  /** The next token. `logits` `[V]` are changed. */
  sample(logits: Float32Array | Float64Array): number | Sample {
    const { logprobs } = this.#options;
    const normalizer = logprobs === undefined ? undefined : logSumExp(logits);
    const raw = normalizer === undefined ? undefined : logits.slice();
    const token = this.#choose(logits);
    this.#count(token, 1);
    if (!raw || normalizer === undefined) return token;
    const logprob = (id: number): Logprob => ({ token: id, logprob: raw[id]! - normalizer });
    return { ...logprob(token), top: largest(raw, logprobs!).map(logprob) };
  }

  /** What the next token would be after the `guessed` ones, if the logits were these; nothing is remembered. */
  guess(logits: Float32Array | Float64Array, guessed: readonly number[]): number {
    for (const token of guessed) this.#count(token, 1);
    const next = this.#choose(logits);
    for (const token of guessed) this.#count(token, -1);
    return next;
  }

  #choose(logits: Float32Array | Float64Array): number {
    const { temperature, seed } = this.#options;
    this.#adjust(logits);
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

  #draw(logits: Float32Array | Float64Array, u: number): number {
    const { temperature, topK, topP, minP } = this.#options;
    let kept = candidates(logits, temperature);
    if (topK > 0 && topK < kept.tokens.length) kept = headOf(kept, topK - 1, () => 1);
    if (topP < 1) {
      kept = headOf(kept, topP * sumOf(kept.weights), (weight) => weight);
    }
    const weights = minP > 0 ? kept.weights.map((weight) => (weight >= minP ? weight : 0)) : kept.weights;
    let left = u * sumOf(weights);
    for (let i = 0; i < weights.length; i++) {
      left -= weights[i]!;
      if (left < 0) return kept.tokens[i]!;
    }
    return kept.tokens[weights.findLastIndex((weight) => weight > 0)]!; // rounding has eaten the last sliver
  }
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

function argmax(logits: Logits): number {
  let best = -1;
  let max = -Infinity;
  for (let i = 0; i < logits.length; i++) {
    const logit = logits[i]!;
    if (!(logit < Infinity)) throw broken(`logit ${i} is ${logit}`); // NaN too
    if (logit > max) {
      max = logit;
      best = i;
    }
  }
  if (best < 0) throw broken(`all ${logits.length} logits are -Infinity`);
  return best;
}

function broken(found: string): CheckpointError {
  return new CheckpointError(`the weights are broken: ${found}; expected numbers, get the checkpoint anew`);
}

function logSumExp(logits: Logits): number {
  const max = logits[argmax(logits)]!;
  let sum = 0;
  for (let i = 0; i < logits.length; i++) sum += Math.exp(logits[i]! - max);
  return max + Math.log(sum);
}

/** Tokens in the order of their ids, and what each weighs beside the likeliest, which weighs 1. */
interface Candidates {
  readonly tokens: Int32Array;
  readonly weights: Float64Array;
}

// Below e⁻⁴⁰ of the likeliest, 202,048 tokens have together less than 10⁻¹² of the probability; they are left out.
const NEGLIGIBLE = 40;

function candidates(logits: Logits, temperature: number): Candidates {
  const max = logits[argmax(logits)]!;
  const least = max - NEGLIGIBLE * temperature;
  let count = 0;
  for (let i = 0; i < logits.length; i++) if (logits[i]! >= least) count++;
  const tokens = new Int32Array(count);
  const weights = new Float64Array(count);
  for (let i = 0, n = 0; n < count; i++) {
    if (!(logits[i]! >= least)) continue;
    tokens[n] = i;
    weights[n++] = Math.exp((logits[i]! - max) / temperature);
  }
  return { tokens, weights };
}

function sumOf(weights: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < weights.length; i++) sum += weights[i]!;
  return sum;
}

/** Those that pass, in the same order. */
function filter({ tokens, weights }: Candidates, passes: (weight: number, i: number) => boolean): Candidates {
  const [keptTokens, keptWeights] = [tokens.slice(), weights.slice()];
  let n = 0;
  for (let i = 0; i < weights.length; i++) {
    if (!passes(weights[i]!, i)) continue;
    keptTokens[n] = tokens[i]!;
    keptWeights[n++] = weights[i]!;
  }
  return { tokens: keptTokens.subarray(0, n), weights: keptWeights.subarray(0, n) };
}

/** The fewest of the heaviest whose measures add up to more than `limit`; of equal weights the lower ids. */
function headOf(all: Candidates, limit: number, measure: (weight: number) => number): Candidates {
  // Most often a few tokens weigh the most: look among the heavy ones first.
  for (let least = 0.1; least > Math.exp(-NEGLIGIBLE); least *= 0.1) {
    let sum = 0;
    for (const weight of all.weights) if (weight >= least) sum += measure(weight);
    if (sum <= limit) continue;
    return select(
      filter(all, (weight) => weight >= least),
      limit,
      measure,
    );
  }
  return select(all, limit, measure);
}

/** A selection (Hoare's find, on sums) and no sort: linear on average. */
function select(all: Candidates, limit: number, measure: (weight: number) => number): Candidates {
  const { weights } = all;
  const precedes = (a: number, b: number) => weights[a]! > weights[b]! || (weights[a]! === weights[b]! && a < b);
  const order = new Int32Array(weights.length);
  for (let i = 0; i < order.length; i++) order[i] = i;
  let low = 0;
  let high = order.length - 1;
  for (let before = 0; low < high; ) {
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
  return filter(all, (_, i) => !precedes(lightest, i));
}

/** The ids of the `n` largest, best first; of equals the lower. */
function largest(logits: Logits, n: number): number[] {
  const best: number[] = [];
  for (let i = 0; i < logits.length; i++) {
    if (best.length === n && !(logits[i]! > logits[best[n - 1]!]!)) continue;
    let at = best.length;
    while (at > 0 && logits[i]! > logits[best[at - 1]!]!) at--;
    best.splice(at, 0, i);
    if (best.length > n) best.pop();
  }
  return best;
}

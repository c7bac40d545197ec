// Byte-pair encoding learnt from text (Sennrich et al. 2016, arXiv:1508.07909), on bytes, inside the pieces of Llama 4's
// pre-tokeniser. The commonest pair of neighbours becomes a token, again and again. Counts change only where a merge
// touched a piece, and a heap knows the largest: no merge counts anew.

import { type MergeList, VocabularyWriter } from "../prompt/byte-pairs.ts";
import { LLAMA4_PATTERN, preTokenizer, sliceEnds } from "../prompt/pre-tokenizer.ts";
import { fittingSpecials, LLAMA4_SPECIAL_TOKENS } from "../prompt/special-tokens.ts";
import { Tokenizer } from "../prompt/tokenizer.ts";
import { RequestError } from "../tensor/errors.ts";

export interface TokenizerTraining {
  /** Tokens in all, special ones included; fewer come out where no pair is left that occurs twice. */
  readonly vocabSize: number;
  /** Of Llama 4's special tokens, those that a chat with images needs first. Default: 32. */
  readonly specials?: number;
  /** Called with tokens learnt so far and in all, a few times a second. */
  readonly onProgress?: (done: number, total: number) => void;
  readonly signal?: AbortSignal;
}

const mostTokens = 2 ** 20; // a pair's key, left · 2²⁰ + right, stays a whole number

/** Learns a vocabulary: the bytes, the merges in their order, Llama 4's special tokens. The same texts give the same ids. */
export async function trainTokenizer(
  texts: Iterable<string> | AsyncIterable<string>,
  { vocabSize, specials = 32, onProgress, signal }: TokenizerTraining,
): Promise<Tokenizer> {
  if (!Number.isInteger(vocabSize) || vocabSize < 256 + specials || vocabSize > mostTokens)
    throw new RequestError(
      `a vocabulary of ${vocabSize} tokens; expected from ${256 + specials} (the bytes and ${specials} special tokens) to ${mostTokens}`,
    );
  const breath = breather(signal);
  const counts = new PieceCounts();
  for await (const text of texts) {
    counts.add(text);
    await breath();
  }
  const learner = new Learner(counts.sorted());
  const wanted = vocabSize - specials - 256;
  while (learner.learnt < wanted && learner.merge())
    await breath(() => onProgress?.(256 + learner.learnt, vocabSize - specials));
  return tokenizerOf(learner, specials);
}

function tokenizerOf({ tokens, merges }: Learner, specials: number): Tokenizer {
  const writer = new VocabularyWriter();
  for (const token of tokens) {
    for (let i = 0; i < token.length; i++) writer.byte(token.charCodeAt(i));
    writer.endToken();
  }
  const names = fittingSpecials(LLAMA4_SPECIAL_TOKENS, specials);
  for (const name of names) writer.reserve(name);
  return new Tokenizer({
    vocabulary: writer.finish(),
    special: new Map(names.map((name, i) => [name, tokens.length + i])),
    merges: Int32Array.from(merges) satisfies MergeList,
    wholePieces: true, // as Llama 4's own
    pattern: LLAMA4_PATTERN,
  });
}

/** Lets the machine breathe every 50 ms, which is when a signal can arrive, and tells how far things are. */
function breather(signal: AbortSignal | undefined): (tell?: () => void) => Promise<void> {
  let next = performance.now() + 50;
  return async (tell) => {
    if (performance.now() < next) return;
    tell?.();
    await new Promise((resolve) => setTimeout(resolve));
    signal?.throwIfAborted();
    next = performance.now() + 50;
  };
}

const splitter = preTokenizer(LLAMA4_PATTERN);
const encoder = new TextEncoder();

/** How often each piece occurs: a hash table over their bytes, which makes no string for the millions that are known already. */
class PieceCounts {
  #bytes = new Uint8Array(1 << 16); // of all pieces, one behind the other
  #ends = new Int32Array(1 << 12); // where piece i ends
  #counts = new Float64Array(1 << 12);
  #size = 0;
  #table = new Int32Array(1 << 13); // piece + 1, 0 where free; at most half full

  /** Adds the pieces of a text. */
  add(text: string): void {
    const bytes = encoder.encode(text);
    let start = 0;
    for (const end of sliceEnds(bytes)) {
      const ends = new Int32Array(end - start);
      const n = splitter.split(bytes, start, end, ends);
      for (let i = 0; i < n; i++) {
        this.#count(bytes, start, ends[i]!);
        start = ends[i]!;
      }
    }
  }

  /** Every piece with a character for each byte, in the order of these, so that the order of the texts does not matter. */
  sorted(): [piece: string, count: number][] {
    const pieces = Array.from({ length: this.#size }, (_, i): [string, number] => [
      String.fromCharCode(...this.#bytes.subarray(this.#start(i), this.#ends[i]!)),
      this.#counts[i]!,
    ]);
    return pieces.sort(([a], [b]) => (a < b ? -1 : 1));
  }

  #count(bytes: Uint8Array, start: number, end: number): void {
    if (end - start < 2) return; // a byte has nothing to merge with
    const mask = this.#table.length - 1;
    for (let at = hashOf(bytes, start, end) & mask; ; at = (at + 1) & mask) {
      const piece = this.#table[at]! - 1;
      if (piece < 0) {
        this.#table[at] = this.#append(bytes, start, end) + 1;
        if (2 * this.#size > this.#table.length) this.#grow();
        return;
      }
      if (this.#equals(piece, bytes, start, end)) {
        this.#counts[piece]!++;
        return;
      }
    }
  }

  #start(piece: number): number {
    return piece === 0 ? 0 : this.#ends[piece - 1]!;
  }

  #equals(piece: number, bytes: Uint8Array, start: number, end: number): boolean {
    let at = this.#start(piece);
    if (this.#ends[piece]! - at !== end - start) return false;
    for (let i = start; i < end; i++) if (bytes[i] !== this.#bytes[at++]) return false;
    return true;
  }

  #append(bytes: Uint8Array, start: number, end: number): number {
    const piece = this.#size++;
    const at = this.#start(piece);
    while (at + end - start > this.#bytes.length) this.#bytes = doubled(this.#bytes);
    if (piece === this.#ends.length) {
      this.#ends = doubled(this.#ends);
      this.#counts = doubled(this.#counts);
    }
    this.#bytes.set(bytes.subarray(start, end), at);
    this.#ends[piece] = at + end - start;
    this.#counts[piece] = 1;
    return piece;
  }

  #grow(): void {
    this.#table = new Int32Array(2 * this.#table.length);
    const mask = this.#table.length - 1;
    for (let piece = 0; piece < this.#size; piece++) {
      let at = hashOf(this.#bytes, this.#start(piece), this.#ends[piece]!) & mask;
      while (this.#table[at] !== 0) at = (at + 1) & mask;
      this.#table[at] = piece + 1;
    }
  }
}

function hashOf(bytes: Uint8Array, start: number, end: number): number {
  let hash = end - start;
  for (let i = start; i < end; i++) hash = Math.imul(hash ^ bytes[i]!, 0x9e3779b1) ^ (hash >>> 15);
  return hash ^ (hash >>> 16);
}

function doubled<T extends Uint8Array<ArrayBuffer> | Int32Array<ArrayBuffer> | Float64Array<ArrayBuffer>>(
  numbers: T,
): T {
  const grown = new (numbers.constructor as new (n: number) => T)(2 * numbers.length);
  grown.set(numbers);
  return grown;
}

/** The pieces as tokens so far, and where each pair of neighbours occurs. */
class Learner {
  /** Each token's bytes, a character each. */
  readonly tokens: string[] = Array.from({ length: 256 }, (_, byte) => String.fromCharCode(byte));
  /** Three numbers a merge: left, right, merged. */
  readonly merges: number[] = [];
  readonly #known = new Set(this.tokens);
  readonly #words: Int32Array[] = []; // the tokens of each piece that is longer than a byte
  readonly #weights: number[] = []; // how often it occurs
  readonly #pairs = new Map<number, Pair>();
  readonly #heap = new Heap();

  constructor(pieces: readonly (readonly [piece: string, count: number])[]) {
    for (const [piece, weight] of pieces) {
      const word = Int32Array.from(piece, (byte) => byte.charCodeAt(0));
      for (let i = 0; i + 1 < word.length; i++) this.#add(word[i]!, word[i + 1]!, weight, this.#words.length);
      this.#words.push(word);
      this.#weights.push(weight);
    }
    for (const pair of this.#pairs.values()) this.#heap.push(pair.count, pair);
  }

  get learnt(): number {
    return this.tokens.length - 256;
  }

  /**
   * Merges the commonest pair that makes a new token; false where none occurs twice. Other cuts of a token's bytes stay
   * apart, so that each token has one merge and text is encoded as it was while learning.
   */
  merge(): boolean {
    for (;;) {
      const top = this.#heap.pop();
      if (!top) return false;
      const [count, pair] = top;
      if (count !== pair.count) {
        if (count > pair.count) this.#heap.push(pair.count, pair); // it has shrunk meanwhile
        continue;
      }
      if (count < 2) return false;
      const token = this.tokens[pair.left]! + this.tokens[pair.right]!;
      if (this.#known.has(token)) continue;
      this.#known.add(token);
      this.#apply(pair, this.tokens.push(token) - 1);
      return true;
    }
  }

  #apply(pair: Pair, merged: number): void {
    const { left, right } = pair;
    this.merges.push(left, right, merged);
    const grown = new Set<Pair>();
    let before = -1;
    for (const index of pair.words.sort()) {
      if (index === before) continue; // the pair stands in this piece twice
      before = index;
      this.#words[index] = this.#rewrite(this.#words[index]!, index, pair, merged, grown);
    }
    this.#pairs.delete(keyOf(left, right));
    for (const neighbour of grown) this.#heap.push(neighbour.count, neighbour);
  }

  /** The piece with every `left right` merged; counts of the neighbours move with it. */
  #rewrite(word: Int32Array, index: number, { left, right }: Pair, merged: number, grown: Set<Pair>): Int32Array {
    const weight = this.#weights[index]!;
    let n = 0;
    for (let i = 0; i < word.length; i++) {
      if (word[i] !== left || i + 1 === word.length || word[i + 1] !== right) {
        word[n++] = word[i]!;
        continue;
      }
      if (n > 0) {
        this.#remove(word[n - 1]!, left, weight);
        grown.add(this.#add(word[n - 1]!, merged, weight, index));
      }
      if (i + 2 < word.length) {
        this.#remove(right, word[i + 2]!, weight);
        grown.add(this.#add(merged, word[i + 2]!, weight, index));
      }
      word[n++] = merged;
      i++;
    }
    return word.subarray(0, n);
  }

  #add(left: number, right: number, weight: number, word: number): Pair {
    const key = keyOf(left, right);
    let pair = this.#pairs.get(key);
    if (!pair) {
      pair = { left, right, count: 0, words: new Indices() };
      this.#pairs.set(key, pair);
    }
    pair.count += weight;
    pair.words.push(word);
    return pair;
  }

  #remove(left: number, right: number, weight: number): void {
    const pair = this.#pairs.get(keyOf(left, right));
    if (pair) pair.count -= weight;
  }
}

const keyOf = (left: number, right: number) => left * mostTokens + right;

interface Pair {
  readonly left: number;
  readonly right: number;
  count: number;
  /** Pieces where it stood at some time; sorted and looked through when its turn comes. */
  readonly words: Indices;
}

/** A growing list of numbers, four bytes each. */
class Indices {
  #numbers = new Int32Array(4);
  #length = 0;

  push(value: number): void {
    if (this.#length === this.#numbers.length) this.#numbers = doubled(this.#numbers);
    this.#numbers[this.#length++] = value;
  }

  sort(): Int32Array {
    return this.#numbers.subarray(0, this.#length).sort();
  }
}

/** The largest count first; of equal ones the pair with the lower left token, then the lower right. */
class Heap {
  readonly #counts: number[] = [];
  readonly #pairs: Pair[] = [];

  push(count: number, pair: Pair): void {
    let i = this.#counts.length;
    this.#counts.push(count);
    this.#pairs.push(pair);
    while (i > 0) {
      const parent = (i - 1) >> 1;
      if (!this.#isBefore(i, parent)) break;
      this.#swap(i, parent);
      i = parent;
    }
  }

  pop(): [number, Pair] | undefined {
    if (this.#counts.length === 0) return undefined;
    this.#swap(0, this.#counts.length - 1);
    const top: [number, Pair] = [this.#counts.pop()!, this.#pairs.pop()!];
    const n = this.#counts.length;
    for (let i = 0, child = 1; child < n; child = 2 * i + 1) {
      if (child + 1 < n && this.#isBefore(child + 1, child)) child++;
      if (!this.#isBefore(child, i)) break;
      this.#swap(i, child);
      i = child;
    }
    return top;
  }

  #isBefore(i: number, j: number): boolean {
    const [a, b] = [this.#pairs[i]!, this.#pairs[j]!];
    return (this.#counts[j]! - this.#counts[i]! || a.left - b.left || a.right - b.right) < 0;
  }

  #swap(i: number, j: number): void {
    [this.#counts[i], this.#counts[j]] = [this.#counts[j]!, this.#counts[i]!];
    [this.#pairs[i], this.#pairs[j]] = [this.#pairs[j]!, this.#pairs[i]!];
  }
}

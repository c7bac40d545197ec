// Byte-pair encoding over one flat vocabulary: bytes <-> ids, and which neighbours merge.
import { CheckpointError } from "../tensor/errors.ts";

/** The vocabulary as one buffer: token `id` is `bytes[offsets[id] .. offsets[id + 1]]`; special and unused ids stand in it too. */
export interface Vocabulary {
  readonly bytes: Uint8Array;
  readonly offsets: Uint32Array;
  /** Ids that ordinary text never yields: the special tokens and holes in the numbering. */
  readonly reserved: ReadonlySet<number>;
}

/** Three numbers a merge, in order of priority: left id, right id, merged id. */
export type MergeList = Int32Array;

/** Reads a merge list that names tokens by their bytes, once these can be looked up. */
export type MergeReader = (tokens: BytePairs) => MergeList;

/** Writes a vocabulary token by token, in the order of the ids. */
export class VocabularyWriter {
  #bytes = new Uint8Array(1 << 12);
  #offsets = new Uint32Array(1 << 10);
  #length = 0;
  #count = 0;
  readonly #reserved = new Set<number>();

  byte(value: number): void {
    if (this.#length === this.#bytes.length) {
      const grown = new Uint8Array(2 * this.#length);
      grown.set(this.#bytes);
      this.#bytes = grown;
    }
    this.#bytes[this.#length++] = value;
  }

  bytes(values: Uint8Array): void {
    for (const value of values) this.byte(value);
  }

  /** Ends the token whose bytes came since the last one ended. */
  endToken(): void {
    if (++this.#count === this.#offsets.length) {
      const grown = new Uint32Array(2 * this.#count);
      grown.set(this.#offsets);
      this.#offsets = grown;
    }
    this.#offsets[this.#count] = this.#length;
  }

  /** A special token, or with no text a hole in the numbering. */
  reserve(text = ""): void {
    this.#reserved.add(this.#count);
    this.bytes(new TextEncoder().encode(text));
    this.endToken();
  }

  finish(): Vocabulary {
    return {
      bytes: this.#bytes.slice(0, this.#length),
      offsets: this.#offsets.slice(0, this.#count + 1),
      reserved: this.#reserved,
    };
  }
}

const NEVER = 0x7fffffff; // the rank of a pair that does not merge
const SHORT = 96; // bytes; up to here looking through all ranks for the lowest beats a heap

/**
 * What turns one piece of text into ids. Without a merge list any two neighbours whose bytes together are a token
 * merge, lowest id first (tiktoken's rule); with one, only the pairs in it, in its order.
 */
export class BytePairs {
  readonly vocabulary: Vocabulary;
  readonly merges: MergeList | undefined;
  /** Whether a piece that is a token as a whole becomes that token without merging. */
  readonly wholePieces: boolean;
  readonly #byteIds = new Int32Array(256).fill(-1);
  readonly #hashes: Int32Array; // of each token's bytes
  readonly #powers: Int32Array; // of BASE, up to the length of the longest token
  readonly #index: Int32Array; // hash table: id + 1 of the token there, 0 where free
  readonly #pairs: Int32Array; // hash table: place in `merges` + 1, 0 where free
  readonly #ids = new Int32Array(SHORT);
  readonly #ranks = new Int32Array(SHORT);

  constructor(
    vocabulary: Vocabulary,
    { merges: source, wholePieces }: { merges?: MergeList | MergeReader | undefined; wholePieces: boolean },
  ) {
    this.vocabulary = vocabulary;
    this.wholePieces = wholePieces;
    const { offsets } = vocabulary;
    this.#hashes = new Int32Array(offsets.length - 1);
    this.#powers = powersOfBase(offsets);
    this.#index = new Int32Array(powerOfTwo(2 * offsets.length));
    this.#indexTokens();
    let merges = typeof source === "function" ? source(this) : source;
    // A list that says no more than the ids do (Hugging Face derives such lists from tiktoken's ranks) is dropped,
    // so that all three file formats of one vocabulary break ties alike.
    if (merges && isSortedByMerged(merges) && merges.length === this.impliedMerges().length) merges = undefined;
    this.merges = merges;
    this.#pairs = pairTable(merges ?? new Int32Array(0));
  }

  /** The id of the ordinary token with these bytes, or -1. */
  find(bytes: Uint8Array, start: number, end: number): number {
    return this.#findHashed(hashOf(bytes, start, end), bytes, start, end);
  }

  /** Writes the ids of the piece `bytes[start .. end]` to `out` from `at` on (at most one a byte); returns where they end. */
  encode(bytes: Uint8Array, start: number, end: number, out: Int32Array, at: number): number {
    if (end - start === 1) {
      out[at] = this.#byteIds[bytes[start]!]!;
      return at + 1;
    }
    if (this.wholePieces) {
      const id = this.find(bytes, start, end);
      if (id >= 0) {
        out[at] = id;
        return at + 1;
      }
    }
    return end - start <= SHORT ? this.#scan(bytes, start, end, out, at) : this.#heap(bytes, start, end, out, at);
  }

  /** The pairs that the ids alone imply: every cut of every token into two tokens, in order of the token's id. */
  impliedMerges(): MergeList {
    const { bytes, offsets, reserved } = this.vocabulary;
    let merges = new Int32Array(1 << 16);
    let length = 0;
    for (let id = 0; id < offsets.length - 1; id++) {
      if (reserved.has(id)) continue;
      const start = offsets[id]!;
      const end = offsets[id + 1]!;
      let prefix = 0; // the hash of what is left of the cut
      for (let cut = start + 1; cut < end; cut++) {
        prefix = (Math.imul(prefix, BASE) + bytes[cut - 1]! + 1) | 0;
        const left = this.#findHashed(prefix, bytes, start, cut);
        if (left < 0) continue;
        const suffix = (this.#hashes[id]! - Math.imul(prefix, this.#powers[end - cut]!)) | 0;
        const right = this.#findHashed(suffix, bytes, cut, end);
        if (right < 0) continue;
        if (length + 3 > merges.length) {
          const grown = new Int32Array(2 * merges.length);
          grown.set(merges);
          merges = grown;
        }
        merges[length++] = left;
        merges[length++] = right;
        merges[length++] = id;
      }
    }
    return merges.subarray(0, length);
  }

  #indexTokens(): void {
    const { bytes, offsets, reserved } = this.vocabulary;
    const index = this.#index;
    const mask = index.length - 1;
    for (let id = 0; id < offsets.length - 1; id++) {
      if (reserved.has(id)) continue;
      const start = offsets[id]!;
      const end = offsets[id + 1]!;
      if (end === start) throw new CheckpointError(`tokenizer: token ${id} is empty; expected at least one byte`);
      const hash = hashOf(bytes, start, end);
      let at = mix(hash) & mask;
      for (let probes = 0; index[at] !== 0; at = (at + 1) & mask) {
        checkProbes(++probes);
        const other = index[at]! - 1;
        if (this.#hashes[other] === hash && this.#equals(other, bytes, start, end))
          throw new CheckpointError(
            `tokenizer: tokens ${other} and ${id} have the same bytes; expected every token once`,
          );
      }
      index[at] = id + 1;
      this.#hashes[id] = hash;
      if (end - start === 1) this.#byteIds[bytes[start]!] = id;
    }
    const missing = this.#byteIds.indexOf(-1);
    if (missing >= 0)
      throw new CheckpointError(
        `tokenizer: no token for the single byte 0x${missing.toString(16).padStart(2, "0")}; expected a byte-level vocabulary, which has all 256`,
      );
  }

  #findHashed(hash: number, bytes: Uint8Array, start: number, end: number): number {
    const index = this.#index;
    const mask = index.length - 1;
    for (let at = mix(hash) & mask; ; at = (at + 1) & mask) {
      const id = index[at]! - 1;
      if (id < 0) return -1;
      if (this.#hashes[id] === hash && this.#equals(id, bytes, start, end)) return id;
    }
  }

  #equals(id: number, bytes: Uint8Array, start: number, end: number): boolean {
    const { bytes: own, offsets } = this.vocabulary;
    const from = offsets[id]!;
    if (offsets[id + 1]! - from !== end - start) return false;
    for (let i = start, j = from; i < end; i++, j++) if (bytes[i] !== own[j]) return false;
    return true;
  }

  /** The rank of a pair of neighbours, NEVER where they do not merge. */
  #rank(left: number, right: number): number {
    return this.merges ? this.#listedRank(this.merges, left, right) : this.#impliedRank(left, right);
  }

  #merged(rank: number): number {
    return this.merges ? this.merges[3 * rank + 2]! : rank;
  }

  #listedRank(merges: MergeList, left: number, right: number): number {
    const pairs = this.#pairs;
    const mask = pairs.length - 1;
    for (let at = mixPair(left, right) & mask; ; at = (at + 1) & mask) {
      const rank = pairs[at]! - 1;
      if (rank < 0) return NEVER;
      if (merges[3 * rank] === left && merges[3 * rank + 1] === right) return rank;
    }
  }

  // The id of the token whose bytes are the two tokens' together: the hash of a concatenation follows from the parts'.
  #impliedRank(left: number, right: number): number {
    const { bytes, offsets } = this.vocabulary;
    const start = offsets[right]!;
    const rightLength = offsets[right + 1]! - start;
    const leftLength = offsets[left + 1]! - offsets[left]!;
    if (leftLength + rightLength >= this.#powers.length) return NEVER;
    const hash = (Math.imul(this.#hashes[left]!, this.#powers[rightLength]!) + this.#hashes[right]!) | 0;
    const index = this.#index;
    const mask = index.length - 1;
    for (let at = mix(hash) & mask; ; at = (at + 1) & mask) {
      const id = index[at]! - 1;
      if (id < 0) return NEVER;
      if (this.#hashes[id] !== hash) continue;
      const cut = offsets[id]! + leftLength;
      if (offsets[id + 1]! - cut !== rightLength) continue;
      if (this.#equals(left, bytes, offsets[id]!, cut) && this.#equals(right, bytes, cut, cut + rightLength)) return id;
    }
  }

  // Short pieces: look for the lowest rank, merge there, look again.
  #scan(bytes: Uint8Array, start: number, end: number, out: Int32Array, at: number): number {
    const ids = this.#ids;
    const ranks = this.#ranks; // of token i and the next
    let n = end - start;
    for (let i = 0; i < n; i++) ids[i] = this.#byteIds[bytes[start + i]!]!;
    for (let i = 0; i < n - 1; i++) ranks[i] = this.#rank(ids[i]!, ids[i + 1]!);
    while (n > 1) {
      let best = 0;
      for (let i = 1; i < n - 1; i++) if (ranks[i]! < ranks[best]!) best = i;
      if (ranks[best] === NEVER) break;
      ids[best] = this.#merged(ranks[best]!);
      n--;
      for (let i = best + 1; i < n; i++) {
        ids[i] = ids[i + 1]!;
        ranks[i] = ranks[i + 1]!;
      }
      if (best < n - 1) ranks[best] = this.#rank(ids[best]!, ids[best + 1]!);
      if (best > 0) ranks[best - 1] = this.#rank(ids[best - 1]!, ids[best]!);
    }
    for (let i = 0; i < n; i++) out[at + i] = ids[i]!;
    return at + n;
  }

  // Long pieces: a linked list of tokens and a heap of (rank, place), n log n whatever the text. An entry of the heap
  // is stale when its place has died or has another rank by now.
  #heap(bytes: Uint8Array, start: number, end: number, out: Int32Array, at: number): number {
    const n = end - start;
    const ids = new Int32Array(n);
    const next = new Int32Array(n);
    const previous = new Int32Array(n);
    const ranks = new Int32Array(n);
    const heap = new Float64Array(3 * n); // n pairs at first, two more a merge
    let size = 0;
    const rankAt = (i: number) => {
      ranks[i] = next[i]! < n ? this.#rank(ids[i]!, ids[next[i]!]!) : NEVER;
      if (ranks[i] !== NEVER) size = push(heap, size, ranks[i]! * PLACES + i);
    };
    for (let i = 0; i < n; i++) {
      ids[i] = this.#byteIds[bytes[start + i]!]!;
      next[i] = i + 1;
      previous[i] = i - 1;
    }
    for (let i = 0; i < n; i++) rankAt(i);
    while (size > 0) {
      const key = heap[0]!;
      size = pop(heap, size);
      const i = key % PLACES;
      if (ranks[i] !== (key - i) / PLACES) continue;
      const gone = next[i]!;
      ids[i] = this.#merged(ranks[i]!);
      ranks[gone] = NEVER;
      next[i] = next[gone]!;
      if (next[i]! < n) previous[next[i]!] = i;
      rankAt(i);
      if (previous[i]! >= 0) rankAt(previous[i]!);
    }
    for (let i = 0; i < n; i = next[i]!) out[at++] = ids[i]!;
    return at;
  }
}

const PLACES = 2 ** 24; // a slice has at most 400,000 characters of 4 bytes; rank · 2²⁴ + place is exact in an f64

function push(heap: Float64Array, size: number, key: number): number {
  let i = size;
  while (i > 0) {
    const parent = (i - 1) >> 1;
    if (heap[parent]! <= key) break;
    heap[i] = heap[parent]!;
    i = parent;
  }
  heap[i] = key;
  return size + 1;
}

function pop(heap: Float64Array, size: number): number {
  const last = heap[--size]!;
  let i = 0;
  for (let child = 1; child < size; child = 2 * i + 1) {
    if (child + 1 < size && heap[child + 1]! < heap[child]!) child++;
    if (heap[child]! >= last) break;
    heap[i] = heap[child]!;
    i = child;
  }
  heap[i] = last;
  return size;
}

function pairTable(merges: MergeList): Int32Array {
  const pairs = new Int32Array(powerOfTwo((2 * merges.length) / 3));
  const mask = pairs.length - 1;
  for (let rank = 0; rank < merges.length / 3; rank++) {
    const left = merges[3 * rank]!;
    const right = merges[3 * rank + 1]!;
    let at = mixPair(left, right) & mask;
    for (let probes = 0; pairs[at] !== 0; at = (at + 1) & mask) {
      checkProbes(++probes);
      const other = pairs[at]! - 1;
      if (merges[3 * other] === left && merges[3 * other + 1] === right)
        throw new CheckpointError(`tokenizer: merges ${other} and ${rank} are the same pair; expected every pair once`);
    }
    pairs[at] = rank + 1;
  }
  return pairs;
}

// A half-filled table needs a few probes. Thousands mean tokens made to collide, and a search of hours.
function checkProbes(probes: number): void {
  if (probes > 10_000)
    throw new CheckpointError(
      "tokenizer: 10,000 tokens or merges have the same hash; expected a vocabulary not made to be slow",
    );
}

function isSortedByMerged(merges: MergeList): boolean {
  for (let i = 5; i < merges.length; i += 3) if (merges[i]! < merges[i - 3]!) return false;
  return true;
}

const powerOfTwo = (atLeast: number): number => 2 ** Math.ceil(Math.log2(Math.max(2, atLeast)));

// A polynomial in BASE modulo 2³², so that hash(left + right) = hash(left) · BASE^length(right) + hash(right).
const BASE = 0x01000193;

function hashOf(bytes: Uint8Array, start: number, end: number): number {
  let hash = 0;
  for (let i = start; i < end; i++) hash = (Math.imul(hash, BASE) + bytes[i]! + 1) | 0;
  return hash;
}

function powersOfBase(offsets: Uint32Array): Int32Array {
  let longest = 0;
  for (let id = 0; id < offsets.length - 1; id++) longest = Math.max(longest, offsets[id + 1]! - offsets[id]!);
  const powers = new Int32Array(longest + 1).fill(1);
  for (let i = 1; i <= longest; i++) powers[i] = Math.imul(powers[i - 1]!, BASE);
  return powers;
}

// Murmur3's last steps: the polynomial's low bits alone cluster.
function mix(hash: number): number {
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return hash ^ (hash >>> 16);
}

const mixPair = (left: number, right: number): number =>
  mix(Math.imul(left, 0x9e3779b1) ^ Math.imul(right, 0x85ebca77));

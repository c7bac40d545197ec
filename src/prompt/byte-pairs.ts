// Byte-pair encoding over one flat vocabulary: bytes <-> ids, and the pairs of ids that merge.
import { CheckpointError } from "../tensor/errors.ts";

/** The vocabulary as one buffer: token `id` is `bytes[offsets[id] .. offsets[id + 1]]`; special and unused ids stand in it too. */
export interface Vocabulary {
  readonly bytes: Uint8Array;
  readonly offsets: Uint32Array;
  /** Ids that ordinary text never yields: the special tokens and holes in the numbering. */
  readonly reserved: ReadonlySet<number>;
}

/** Writes a vocabulary token by token, in the order of the ids. */
export class VocabularyWriter {
  #bytes = new Uint8Array(1 << 12);
  #length = 0;
  readonly #offsets: number[] = [0];
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
  endToken({ reserved = false } = {}): void {
    if (reserved) this.#reserved.add(this.#offsets.length - 1);
    this.#offsets.push(this.#length);
  }

  /** A special token, or with no text a hole in the numbering. */
  reserve(text = ""): void {
    this.bytes(new TextEncoder().encode(text));
    this.endToken({ reserved: true });
  }

  finish(): Vocabulary {
    return {
      bytes: this.#bytes.slice(0, this.#length),
      offsets: Uint32Array.from(this.#offsets),
      reserved: this.#reserved,
    };
  }
}

/** Three numbers a merge, in order of priority: left id, right id, merged id. */
export type MergeList = Int32Array;

const EMPTY: MergeList = new Int32Array(0);
const NEVER = 0x7fffffff; // the rank of a pair that does not merge
const SHORT = 96; // bytes; below it a scan for the lowest rank beats the heap (bench/tokenizer.ts)
const SLOT = 4; // left, right, merged, rank

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
  readonly #index: Int32Array; // [hash, id] a slot
  readonly #pairs: Int32Array; // [left, right, merged, rank] a slot
  readonly #ids = new Int32Array(SHORT);
  readonly #merged = new Int32Array(SHORT);
  readonly #ranks = new Int32Array(SHORT);

  constructor(vocabulary: Vocabulary, { merges, wholePieces }: { merges?: MergeList | undefined; wholePieces: boolean }) {
    this.vocabulary = vocabulary;
    this.wholePieces = wholePieces;
    this.#index = this.#buildIndex();
    // A list that says no more than the ids do (Hugging Face derives such lists from tiktoken's ranks) is dropped,
    // so that all three file formats of one vocabulary break ties alike.
    const implied = !merges || isSortedByMerged(merges) ? this.impliedMerges() : undefined;
    const says = merges && merges.length !== implied?.length ? merges : undefined;
    this.merges = says;
    this.#pairs = pairTable(says ?? implied ?? EMPTY, says !== undefined);
  }

  /** The id of the ordinary token with these bytes, or -1. */
  find(bytes: Uint8Array, start: number, end: number): number {
    const hash = hashOf(bytes, start, end);
    const index = this.#index;
    const mask = index.length - 1;
    for (let at = (mix(hash) << 1) & mask; ; at = (at + 2) & mask) {
      const id = index[at + 1]! - 1;
      if (id < 0) return -1;
      if (index[at] === hash && this.#equals(id, bytes, start, end)) return id;
    }
  }

  /** Writes the ids of the piece `bytes[start .. end]` to `out` from `at` on (at most one a byte); returns where they end. */
  encode(bytes: Uint8Array, start: number, end: number, out: Int32Array, at: number): number {
    const length = end - start;
    if (length === 1) {
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
    return length <= SHORT ? this.#scan(bytes, start, end, out, at) : this.#heap(bytes, start, end, out, at);
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
      for (let cut = start + 1; cut < end; cut++) {
        const left = this.find(bytes, start, cut);
        if (left < 0) continue;
        const right = this.find(bytes, cut, end);
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

  #buildIndex(): Int32Array {
    const { bytes, offsets, reserved } = this.vocabulary;
    const n = offsets.length - 1;
    const index = new Int32Array(2 * powerOfTwo(2 * n));
    const mask = index.length - 1;
    for (let id = 0; id < n; id++) {
      if (reserved.has(id)) continue;
      const start = offsets[id]!;
      const end = offsets[id + 1]!;
      if (end === start) throw new CheckpointError(`tokenizer: token ${id} is empty; expected at least one byte`);
      const hash = hashOf(bytes, start, end);
      let at = (mix(hash) << 1) & mask;
      for (; index[at + 1] !== 0; at = (at + 2) & mask) {
        const other = index[at + 1]! - 1;
        if (index[at] === hash && this.#equals(other, bytes, start, end))
          throw new CheckpointError(`tokenizer: tokens ${other} and ${id} have the same bytes; expected every token once`);
      }
      index[at] = hash;
      index[at + 1] = id + 1;
      if (end - start === 1) this.#byteIds[bytes[start]!] = id;
    }
    const missing = this.#byteIds.indexOf(-1);
    if (missing >= 0)
      throw new CheckpointError(
        `tokenizer: no token for the single byte 0x${missing.toString(16).padStart(2, "0")}; expected a byte-level vocabulary, which has all 256`,
      );
    return index;
  }

  #equals(id: number, bytes: Uint8Array, start: number, end: number): boolean {
    const { bytes: own, offsets } = this.vocabulary;
    const from = offsets[id]!;
    if (offsets[id + 1]! - from !== end - start) return false;
    for (let i = start, j = from; i < end; i++, j++) if (bytes[i] !== own[j]) return false;
    return true;
  }

  /** The slot of a pair, or -1. */
  #pair(left: number, right: number): number {
    const pairs = this.#pairs;
    const mask = pairs.length - 1;
    for (let at = (mixPair(left, right) << 2) & mask; ; at = (at + SLOT) & mask) {
      if (pairs[at] === left && pairs[at + 1] === right) return at;
      if (pairs[at + 3] === 0) return -1;
    }
  }

  // Short pieces: look for the lowest rank, merge there, look again.
  #scan(bytes: Uint8Array, start: number, end: number, out: Int32Array, at: number): number {
    const ids = this.#ids;
    const merged = this.#merged; // of token i and the next
    const ranks = this.#ranks; // of token i and the next
    let n = end - start;
    for (let i = 0; i < n; i++) ids[i] = this.#byteIds[bytes[start + i]!]!;
    for (let i = 0; i < n; i++) this.#rankAt(i, n);
    while (n > 1) {
      let best = 0;
      let lowest = NEVER;
      for (let i = 0; i < n - 1; i++) {
        if (ranks[i]! < lowest) {
          lowest = ranks[i]!;
          best = i;
        }
      }
      if (lowest === NEVER) break;
      ids[best] = merged[best]!;
      n--;
      for (let i = best + 1; i < n; i++) {
        ids[i] = ids[i + 1]!;
        merged[i] = merged[i + 1]!;
        ranks[i] = ranks[i + 1]!;
      }
      this.#rankAt(best, n);
      if (best > 0) this.#rankAt(best - 1, n);
    }
    for (let i = 0; i < n; i++) out[at + i] = ids[i]!;
    return at + n;
  }

  #rankAt(i: number, n: number): void {
    const slot = i + 1 < n ? this.#pair(this.#ids[i]!, this.#ids[i + 1]!) : -1;
    this.#ranks[i] = slot < 0 ? NEVER : this.#pairs[slot + 3]! - 1;
    this.#merged[i] = slot < 0 ? -1 : this.#pairs[slot + 2]!;
  }

  // Long pieces: a linked list of tokens and a heap of (rank, place), n log n whatever the text. An entry of the heap
  // is stale when its place has died or has another rank by now.
  #heap(bytes: Uint8Array, start: number, end: number, out: Int32Array, at: number): number {
    const n = end - start;
    const ids = new Int32Array(n);
    const next = new Int32Array(n);
    const previous = new Int32Array(n);
    const ranks = new Int32Array(n).fill(NEVER);
    const merged = new Int32Array(n);
    const heap = new Float64Array(3 * n); // n pairs at first, two more a merge
    let size = 0;
    const rankAt = (i: number) => {
      const j = next[i]!;
      const slot = j < n ? this.#pair(ids[i]!, ids[j]!) : -1;
      ranks[i] = slot < 0 ? NEVER : this.#pairs[slot + 3]! - 1;
      if (slot < 0) return;
      merged[i] = this.#pairs[slot + 2]!;
      size = push(heap, size, ranks[i]! * PLACES + i);
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
      ids[i] = merged[i]!;
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

function pairTable(merges: MergeList, ranked: boolean): Int32Array {
  const pairs = new Int32Array(SLOT * powerOfTwo((2 * merges.length) / 3));
  const mask = pairs.length - 1;
  for (let i = 0; i < merges.length; i += 3) {
    const left = merges[i]!;
    const right = merges[i + 1]!;
    let at = (mixPair(left, right) << 2) & mask;
    while (pairs[at + 3] !== 0 && !(pairs[at] === left && pairs[at + 1] === right)) at = (at + SLOT) & mask;
    if (pairs[at + 3] !== 0) throw new CheckpointError(`tokenizer: merge ${i / 3} repeats an earlier pair; expected every pair once`);
    pairs[at] = left;
    pairs[at + 1] = right;
    pairs[at + 2] = merges[i + 2]!;
    pairs[at + 3] = 1 + (ranked ? i / 3 : merges[i + 2]!); // 0 marks a free slot
  }
  return pairs;
}

function isSortedByMerged(merges: MergeList): boolean {
  for (let i = 5; i < merges.length; i += 3) if (merges[i]! < merges[i - 3]!) return false;
  return true;
}

const powerOfTwo = (atLeast: number): number => 2 ** Math.ceil(Math.log2(Math.max(2, atLeast)));

function hashOf(bytes: Uint8Array, start: number, end: number): number {
  let hash = 0x811c9dc5 | 0; // FNV-1a
  for (let i = start; i < end; i++) hash = Math.imul(hash ^ bytes[i]!, 0x01000193);
  return hash;
}

// Murmur3's last steps: FNV's low bits alone cluster.
function mix(hash: number): number {
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  return hash ^ (hash >>> 13);
}

const mixPair = (left: number, right: number): number => mix(Math.imul(left, 0x9e3779b1) ^ Math.imul(right, 0x85ebca77));

// A vocabulary's tokens as a trie over their bytes, in the order of a walk: a node's subtree is what follows it up to its end.

import type { Tokenizer } from "../../prompt/tokenizer.ts";
import { classOf, MALFORMED } from "./self-loops.ts";
import { isPlainByte } from "./strings.ts";

/** More characters than any token has. */
const ENDLESS = 255;

export class TokenTrie {
  readonly vocabSize: number;
  /** Bytes of the longest token. */
  readonly longest: number;
  /** Nodes; node 0 is the root. */
  readonly size: number;
  /** The byte that leads to a node. */
  readonly bytes: Uint8Array;
  /** How many bytes lead to it. */
  readonly depths: Uint16Array;
  /** The node that it is reached from; the root's is itself. */
  readonly parents: Int32Array;
  /** The nodes of each byte. */
  readonly byByte: readonly Int32Array[];
  /** How many bytes lead to the deepest node of its subtree. */
  readonly reaches: Uint16Array;
  /** The first node behind its subtree. */
  readonly ends: Int32Array;
  /** Tokens in the order of their nodes; those of node n are `firsts[n] … firsts[n + 1] − 1`. */
  readonly tokens: Int32Array;
  readonly firsts: Int32Array;
  /**
   * Where the bytes of all tokens below a node are plain characters of a JSON string, at most how many, one cut off at the
   * end included; else 255.
   */
  readonly plain: Uint8Array;
  /** Classes of the bytes below a node, `MALFORMED` where not all is UTF-8, or the node stands inside a character. */
  readonly below: Int32Array;

  readonly #longestFirst: Int32Array;
  /** How many tokens have more bytes, by their number. */
  readonly #longerThan: Int32Array;

  /** Special tokens, and others without bytes, are not in it. */
  constructor(tokenizer: Pick<Tokenizer, "vocabSize" | "tokenBytes" | "isSpecial">) {
    const { vocabSize } = tokenizer;
    const all: Uint8Array[] = [];
    const ordinary: number[] = [];
    for (let id = 0; id < vocabSize; id++) {
      const bytes = tokenizer.tokenBytes(id);
      all.push(bytes);
      if (bytes.length > 0 && !tokenizer.isSpecial(id)) ordinary.push(id);
    }
    const compare = (a: number, b: number) => {
      const [x, y] = [all[a]!, all[b]!];
      const length = Math.min(x.length, y.length);
      for (let i = 0; i < length; i++) if (x[i] !== y[i]) return x[i]! - y[i]!;
      return x.length - y.length || a - b;
    };
    this.vocabSize = vocabSize;
    this.tokens = Int32Array.from(ordinary).sort(compare);
    const shared = (i: number) => (i === 0 ? 0 : common(all[this.tokens[i - 1]!]!, all[this.tokens[i]!]!));
    let size = 1;
    for (let i = 0; i < this.tokens.length; i++) size += all[this.tokens[i]!]!.length - shared(i);
    this.size = size;
    this.bytes = new Uint8Array(size);
    this.depths = new Uint16Array(size);
    this.ends = new Int32Array(size).fill(size);
    this.firsts = new Int32Array(size + 1).fill(this.tokens.length);
    this.firsts[0] = 0;
    const path = [0]; // the nodes that lead to the last token
    let node = 1;
    for (let i = 0; i < this.tokens.length; i++) {
      const bytes = all[this.tokens[i]!]!;
      const kept = shared(i);
      while (path.length > kept + 1) this.ends[path.pop()!] = node;
      for (let depth = kept; depth < bytes.length; depth++, node++) {
        this.bytes[node] = bytes[depth]!;
        this.depths[node] = depth + 1;
        this.firsts[node] = i;
        path.push(node);
      }
    }
    this.longest = this.depths.reduce((most, depth) => Math.max(most, depth), 0);
    const { longestFirst, longerThan } = this.#byLength();
    this.#longestFirst = longestFirst;
    this.#longerThan = longerThan;
    this.parents = this.#parents();
    this.reaches = this.#reaches();
    this.byByte = this.#byByte();
    const missing = this.#missing();
    this.plain = this.#plainCosts(missing);
    this.below = this.#classesBelow(missing);
  }

  /** The tokens of more than so many bytes, in no order. */
  longerThan(length: number): Int32Array {
    return this.#longestFirst.subarray(0, this.#longerThan[length]);
  }

  /** Counts tokens by their lengths, and puts them in that order. */
  #byLength(): { longestFirst: Int32Array; longerThan: Int32Array } {
    const longerThan = new Int32Array(this.longest + 1);
    for (let node = 1; node < this.size; node++)
      longerThan[this.depths[node]! - 1]! += this.firsts[node + 1]! - this.firsts[node]!;
    for (let length = this.longest - 1; length >= 0; length--) longerThan[length]! += longerThan[length + 1]!;
    const places = longerThan.slice(1);
    const longestFirst = new Int32Array(this.tokens.length);
    for (let node = 1; node < this.size; node++)
      for (let i = this.firsts[node]!; i < this.firsts[node + 1]!; i++)
        longestFirst[places[this.depths[node]! - 1]!++] = this.tokens[i]!;
    return { longestFirst, longerThan };
  }

  #parents(): Int32Array {
    const parents = new Int32Array(this.size);
    const path = [0];
    for (let node = 1; node < this.size; node++) {
      const depth = this.depths[node]!;
      path[depth] = node;
      parents[node] = path[depth - 1]!;
    }
    return parents;
  }

  #reaches(): Uint16Array {
    const reaches = this.depths.slice();
    for (let node = this.size - 1; node > 0; node--) {
      const parent = this.parents[node]!;
      reaches[parent] = Math.max(reaches[parent]!, reaches[node]!);
    }
    return reaches;
  }

  #byByte(): Int32Array[] {
    const counts = new Int32Array(256);
    for (let node = 1; node < this.size; node++) counts[this.bytes[node]!]!++;
    const lists = Array.from(counts, (count) => new Int32Array(count));
    counts.fill(0);
    for (let node = 1; node < this.size; node++) {
      const byte = this.bytes[node]!;
      lists[byte]![counts[byte]!++] = node;
    }
    return lists;
  }

  /** Of each node, bytes of a character that is begun; −1: none that UTF-8 has. */
  #missing(): Int8Array {
    const { parents, bytes } = this;
    const missing = new Int8Array(this.size);
    for (let node = 1; node < this.size; node++) {
      const parent = parents[node]!;
      missing[node] = missing[parent]! < 0 ? -1 : missingBehind(missing[parent]!, bytes[parent]!, bytes[node]!);
    }
    return missing;
  }

  // From the last node to the first, so that a node's children are known before it.
  #plainCosts(missing: Int8Array): Uint8Array {
    const { parents, bytes } = this;
    const costs = new Uint8Array(this.size);
    for (let node = this.size - 1; node > 0; node--) {
      const byte = bytes[node]!;
      const isStart = byte < 0x80 || byte >= 0xc0;
      const isPlain = missing[node]! >= 0 && isPlainByte(byte);
      const cost = isPlain ? Math.min(ENDLESS, costs[node]! + (isStart ? 1 : 0)) : ENDLESS;
      const parent = parents[node]!;
      costs[parent] = Math.max(costs[parent]!, cost);
    }
    return costs;
  }

  #classesBelow(missing: Int8Array): Int32Array {
    const below = new Int32Array(this.size);
    for (let node = this.size - 1; node > 0; node--) {
      below[this.parents[node]!]! |= below[node]! | (missing[node]! < 0 ? MALFORMED : classOf(this.bytes[node]!));
      if (missing[node] !== 0) below[node]! |= MALFORMED;
    }
    return below;
  }
}

function common(a: Uint8Array, b: Uint8Array): number {
  let i = 0;
  while (i < a.length && i < b.length && a[i] === b[i]) i++;
  return i;
}

/** How many bytes of a character are missing behind a byte, if `missing` were before it; −1 where UTF-8 has no such bytes. */
function missingBehind(missing: number, before: number, byte: number): number {
  if (byte < 0x80) return missing > 0 ? -1 : 0;
  if (byte >= 0xc0) {
    if (missing > 0 || byte < 0xc2 || byte > 0xf4) return -1;
    return byte < 0xe0 ? 1 : byte < 0xf0 ? 2 : 3;
  }
  if (missing <= 0) return -1;
  const [low, high] =
    before === 0xe0
      ? [0xa0, 0xbf]
      : before === 0xed
        ? [0x80, 0x9f]
        : before === 0xf0
          ? [0x90, 0xbf]
          : before === 0xf4
            ? [0x80, 0x8f]
            : [0x80, 0xbf];
  return byte >= low && byte <= high ? missing - 1 : -1;
}

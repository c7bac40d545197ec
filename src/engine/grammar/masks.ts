// Which tokens may come in a state. Most tokens are read within one term, wherever it stands: what a term allows is computed
// once in a grammar, by a walk over the vocabulary's trie. Only tokens that go beyond the term need the stack: the walk
// notes where it ended, and each state goes on from there (after Dong et al. 2024, "XGrammar", who tell the two kinds of
// tokens apart, and llguidance, which walks a trie). Terms of the same form, in whichever grammar, are walked once.

import type { Automaton, State } from "./automaton.ts";
import type { Regex, Regexes } from "./regex.ts";
import { selfLoops } from "./self-loops.ts";
import { Shapes } from "./shapes.ts";
import type { TokenTrie } from "./vocabulary.ts";

/** A set of tokens. */
export class TokenMask {
  readonly vocabSize: number;
  readonly count: number;
  /** Its tokens, ascending, where they are few. */
  readonly ids: Int32Array | undefined;
  /** A bit a token, where they are many. */
  readonly bits: Uint32Array | undefined;
  /** The lesser part, once it has been asked for: its tokens, or all others. */
  #list: Int32Array | undefined;

  constructor(bits: Uint32Array, vocabSize: number) {
    let count = 0;
    for (let i = 0; i < bits.length; i++) count += ones(bits[i]!);
    this.vocabSize = vocabSize;
    this.count = count;
    if (count * 32 > vocabSize) this.bits = bits;
    else this.ids = idsOf(bits, count);
  }

  get byteLength(): number {
    return this.bits
      ? this.bits.byteLength + 4 * Math.min(this.count, this.vocabSize - this.count)
      : this.ids!.byteLength;
  }

  has(token: number): boolean {
    if (this.bits) return ((this.bits[token >> 5]! >>> (token & 31)) & 1) === 1;
    return this.ids!.includes(token);
  }

  addTo(bits: Uint32Array): void {
    if (this.bits) for (let i = 0; i < bits.length; i++) bits[i]! |= this.bits[i]!;
    else for (const id of this.ids!) bits[id >> 5]! |= 1 << (id & 31);
  }

  /**
   * What there is to choose from, and which token a place in it stands for, ascending. Where its tokens are the lesser part,
   * these are moved together and the rest is not looked at; else all others are -Infinity. `logits` `[V]` are changed.
   */
  choices<L extends Float32Array | Float64Array>(logits: L): { logits: L; tokenAt: (place: number) => number } {
    if (2 * this.count < this.vocabSize) {
      this.#list ??= this.ids ?? idsOf(this.bits!, this.count);
      const ids = this.#list;
      for (let i = 0; i < ids.length; i++) logits[i] = logits[ids[i]!]!; // none is written before it has been read
      return { logits: logits.subarray(0, ids.length) as L, tokenAt: (place) => ids[place]! };
    }
    this.#list ??= idsOf(this.bits!, this.vocabSize - this.count, -1);
    const others = this.#list;
    for (let i = 0; i < others.length; i++) logits[others[i]!] = -Infinity;
    return { logits, tokenAt: (place) => place };
  }
}

function ones(word: number): number {
  word -= (word >>> 1) & 0x55555555;
  word = (word & 0x33333333) + ((word >>> 2) & 0x33333333);
  return Math.imul((word + (word >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}

/** The first `count` tokens whose bits are set, or with -1 for `flip` those whose are not. */
function idsOf(bits: Uint32Array, count: number, flip: 0 | -1 = 0): Int32Array {
  const ids = new Int32Array(count);
  let n = 0;
  for (let i = 0; i < bits.length; i++)
    for (let left = bits[i]! ^ flip; left !== 0 && n < count; left &= left - 1)
      ids[n++] = 32 * i + 31 - Math.clz32(left & -left);
  return ids;
}

/** What a term allows, whatever follows it. */
interface Local {
  readonly mask: TokenMask;
  /** Undefined where nothing follows, so that nobody asks. */
  readonly exits: Exits | undefined;
}

/** Nodes of the trie at which a term may have ended and tokens go on. */
interface Exits {
  readonly nodes: Int32Array;
  /** Also all nodes of these subtrees at which a character ends, given by their first nodes. */
  readonly subtrees: Int32Array;
}

const MANY_EXITS = 4096;
/** Where tokens of fewer bytes alone are the same for many counts, too many are left. */
const FEW_BYTES = 8;

/** Where a number stands in an ascending list, or would. */
function placeOf(list: Int32Array, value: number): number {
  let low = 0;
  let high = list.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (list[middle]! < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The numbers of an ascending list that are from `from` to before `to`. */
function within(list: Int32Array, from: number, to: number, into: number[]): void {
  for (let i = placeOf(list, from); i < list.length && list[i]! < to; i++) into.push(list[i]!);
}

const goesOn = (exits: Exits | undefined): exits is Exits =>
  exits !== undefined && exits.nodes.length + exits.subtrees.length > 0;

interface Kept {
  readonly value: TokenMask | Local;
  readonly bytes: number;
  /** Whose state it is about; undefined for what a term allows in any grammar. */
  readonly regexes: Regexes | undefined;
}

/** Masks that have been computed, the least recently used forgotten first where they take more than some bytes. */
export class Masks {
  readonly #trie: TokenTrie;
  readonly #stopTokens: readonly number[];
  readonly #mostBytes: number;
  /** By states, and by the shapes of terms. */
  readonly #kept = new Map<State | number, Kept>();
  readonly #shapes = new Shapes();
  #bytes = 0;
  /** Terms that were walked lately and allow much: others are often the same behind their first byte. */
  #walked: readonly { readonly term: Regex; readonly local: Local }[] = [];

  constructor(trie: TokenTrie, stopTokens: Iterable<number>, mostBytes = 64e6) {
    this.#trie = trie;
    this.#stopTokens = [...stopTokens];
    this.#mostBytes = mostBytes;
  }

  get byteLength(): number {
    return this.#bytes;
  }

  /** The tokens that may come in a state; where everything may end, those that end a reply too. */
  of(state: State, automaton: Automaton, regexes: Regexes): TokenMask {
    return this.#once(
      state,
      regexes,
      (mask) => mask.byteLength,
      () => this.#compute(state, automaton, regexes),
    );
  }

  /** Lets go of all that is about states of these terms. */
  forget(regexes: Regexes): void {
    for (const [key, { bytes, regexes: of }] of this.#kept)
      if (of === regexes) {
        this.#kept.delete(key);
        this.#bytes -= bytes;
      }
    this.#walked = [];
  }

  #compute(state: State, automaton: Automaton, regexes: Regexes): TokenMask {
    const locals = state.threads.map(({ term, rest }) => ({ ...this.#local(term, regexes, rest !== undefined), rest }));
    if (locals.length === 1 && !state.isFinal && !goesOn(locals[0]!.exits)) return locals[0]!.mask;
    const bits = this.#empty();
    for (const { mask, exits, rest } of locals) {
      mask.addTo(bits);
      if (rest && goesOn(exits)) this.#goOn(exits, automaton.at(rest), automaton, bits);
    }
    if (state.isFinal) for (const token of this.#stopTokens) bits[token >> 5]! |= 1 << (token & 31);
    return new TokenMask(bits, this.#trie.vocabSize);
  }

  // No token reaches a count that is farther away than its bytes, so that all such counts are one.
  #local(given: Regex, regexes: Regexes, wantsExits: boolean): Local {
    const term = regexes.near(given, this.#trie.longest);
    const shape = this.#shapes.of(term);
    return this.#once(
      wantsExits ? shape : -1 - shape,
      undefined,
      ({ mask, exits }) => mask.byteLength + (exits ? exits.nodes.byteLength + exits.subtrees.byteLength : 0),
      () => this.#walk(term, regexes, wantsExits),
    );
  }

  /** All tokens from a term on, as far as it goes. */
  #walk(term: Regex, regexes: Regexes, wantsExits: boolean): Local {
    const { size, bytes, depths, reaches, ends, plain, below } = this.#trie;
    const { empty } = regexes;
    const near = this.#nearer(term, regexes, wantsExits);
    const bits = this.#empty();
    if (near) this.#addShort(near, bits);
    const exits = wantsExits ? { nodes: [] as number[], subtrees: [] as number[] } : undefined;
    const terms: Regex[] = [term];
    for (let node = 1; node < size; ) {
      const end = ends[node]!;
      if (near && reaches[node]! <= near.length) {
        if (exits) this.#addExits(near.local.exits!, node, end, exits);
        node = end;
        continue;
      }
      const depth = depths[node]!;
      const before = terms[depth - 1]!;
      const here = before.next[bytes[node]!] ?? regexes.next(before, bytes[node]!);
      if (here === empty) {
        node = end;
        continue;
      }
      if (here.plainRun > 0 && plain[node]! < 255 && here.plainRun >= plain[node]!) {
        this.#allow(node, end, bits);
        node = end;
        continue;
      }
      if (here === before) here.loops ??= selfLoops(here, regexes);
      if (here.loops && (below[node]! & ~here.loops) === 0) {
        this.#allow(node, end, bits);
        if (here.isNullable) exits?.subtrees.push(node);
        node = end;
        continue;
      }
      if (depth === 1) {
        const same = this.#walked.find(
          ({ term, local }) => (local.exits || !exits) && term.next[bytes[node]!] === here,
        );
        if (same) {
          this.#repeat(same.local, node, end, bits);
          if (exits) this.#addExits(same.local.exits!, node, end, exits);
          node = end;
          continue;
        }
      }
      this.#allow(node, node + 1, bits);
      if (here.isNullable && end > node + 1) exits?.nodes.push(node);
      terms[depth] = here;
      node++;
    }
    const local = {
      mask: new TokenMask(bits, this.#trie.vocabSize),
      exits: exits && { nodes: Int32Array.from(exits.nodes), subtrees: Int32Array.from(exits.subtrees) },
    };
    if (local.mask.bits) this.#walked = [{ term, local }, ...this.#walked.slice(0, 7)];
    return local;
  }

  /** What is known, or found out for many terms at once, of tokens that are too short for a term's counts to matter. */
  #nearer(
    term: Regex,
    regexes: Regexes,
    wantsExits: boolean,
  ): { readonly local: Local; readonly length: number } | undefined {
    const length = regexes.countedBytes(term);
    if (length < FEW_BYTES) return undefined;
    const near = regexes.near(term, length);
    return near === term ? undefined : { local: this.#local(near, regexes, wantsExits), length };
  }

  /** What a term allows of the tokens of at most `length` bytes. */
  #addShort({ local, length }: { readonly local: Local; readonly length: number }, bits: Uint32Array): void {
    local.mask.addTo(bits);
    for (const token of this.#trie.longerThan(length)) bits[token >> 5]! &= ~(1 << (token & 31));
  }

  /** Another term's exits at the nodes from `from` to before `to`, a subtree, where both allow the same. */
  #addExits({ nodes, subtrees }: Exits, from: number, to: number, into: { nodes: number[]; subtrees: number[] }): void {
    within(nodes, from, to, into.nodes);
    const before = subtrees[placeOf(subtrees, from) - 1];
    if (before !== undefined && this.#trie.ends[before]! >= to) into.subtrees.push(from);
    else within(subtrees, from, to, into.subtrees);
  }

  /** What another term allows below a node of depth 1, behind which both are the same. */
  #repeat({ mask }: Local, from: number, to: number, bits: Uint32Array): void {
    const { tokens, firsts } = this.#trie;
    for (let i = firsts[from]!; i < firsts[to]!; i++) {
      const token = tokens[i]!;
      bits[token >> 5]! |= mask.bits![token >> 5]! & (1 << (token & 31));
    }
  }

  /** Tokens that have come as far as these exits and go on from a state. */
  #goOn({ nodes, subtrees }: Exits, from: State, automaton: Automaton, bits: Uint32Array): void {
    const { ends, bytes, parents, byByte } = this.#trie;
    const follow = (child: number) => {
      const state = automaton.next(from, bytes[child]!);
      if (state) this.#below(child, state, automaton, bits);
    };
    if (nodes.length < MANY_EXITS && subtrees.length === 0) {
      for (const top of nodes) for (let child = top + 1; child < ends[top]!; child = ends[child]!) follow(child);
      return;
    }
    // rather by the bytes that can come, which are few
    const isExit = new Uint8Array(this.#trie.size);
    for (const node of nodes) isExit[node] = 1;
    for (let byte = 0; byte < 256; byte++) {
      if (!automaton.next(from, byte)) continue;
      const isStart = byte < 0x80 || byte >= 0xc0;
      let i = 0;
      for (const child of byByte[byte]!) {
        while (i < subtrees.length && ends[subtrees[i]!]! <= child) i++;
        const isInside = isStart && i < subtrees.length && subtrees[i]! < child;
        if (isInside || isExit[parents[child]!]) follow(child);
      }
    }
  }

  /** Tokens that end at a node or below it, where the node has brought a state. */
  #below(top: number, at: State, automaton: Automaton, bits: Uint32Array): void {
    const { bytes, depths, ends } = this.#trie;
    const states: State[] = [at];
    this.#allow(top, top + 1, bits);
    for (let node = top + 1; node < ends[top]!; ) {
      const depth = depths[node]! - depths[top]!;
      const before = states[depth - 1]!;
      const known = before.next[bytes[node]!];
      const here = known === undefined ? automaton.next(before, bytes[node]!) : known;
      if (here === null) {
        node = ends[node]!;
        continue;
      }
      this.#allow(node, node + 1, bits);
      states[depth] = here;
      node++;
    }
  }

  /** The tokens of the nodes from `from` to before `to`. */
  #allow(from: number, to: number, bits: Uint32Array): void {
    const { tokens, firsts } = this.#trie;
    const end = firsts[to]!;
    for (let i = firsts[from]!; i < end; i++) bits[tokens[i]! >> 5]! |= 1 << (tokens[i]! & 31);
  }

  #empty(): Uint32Array {
    return new Uint32Array(Math.ceil(this.#trie.vocabSize / 32));
  }

  #once<T extends TokenMask | Local>(
    key: State | number,
    regexes: Regexes | undefined,
    bytesOf: (value: T) => number,
    compute: () => T,
  ): T {
    const known = this.#kept.get(key);
    if (known) {
      this.#kept.delete(key);
      this.#kept.set(key, known);
      return known.value as T; // a state's is a mask, a shape's a Local
    }
    const value = compute();
    const bytes = 200 + bytesOf(value);
    this.#kept.set(key, { value, bytes, regexes });
    this.#bytes += bytes;
    for (const [oldest, { bytes }] of this.#kept) {
      if (this.#bytes <= this.#mostBytes || oldest === key) break;
      this.#kept.delete(oldest);
      this.#bytes -= bytes;
    }
    return value;
  }
}

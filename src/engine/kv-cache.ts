// Which block of the cache holds which positions of which sequence, and which blocks requests with the same beginning
// share. Bookkeeping only: no key or value passes through here.
//
// Global layers keep every position: slot p. Chunk-local layers keep the current chunk only: slot p mod chunk, so their
// tables hold at most chunk / blockSize blocks, and nothing at a multiple of the chunk.

import type { Llama4Config } from "../model/config.ts";
import { type KVDType, slotBytes } from "../tensor/backend.ts";
import { CapacityError } from "../tensor/errors.ts";

export interface CacheSizes {
  /** Slots of a block; divides the chunk. */
  readonly blockSize: number;
  /** Positions of an attention chunk; Infinity where no layer is chunked. */
  readonly chunk: number;
  /** Blocks for the global layers; undefined where there are none. */
  readonly globalBlocks: number | undefined;
  /** Blocks for the chunk-local layers; undefined where there are none. */
  readonly localBlocks: number | undefined;
}

const kinds = ["global", "local"] as const;
type Kind = (typeof kinds)[number];
export type BlockCopy = (kind: Kind, from: number, to: number) => void;

/** A full block of tokens after a certain beginning, and the blocks that hold its keys and values. */
interface PrefixNode {
  readonly parent: PrefixNode | undefined;
  /** The block's tokens, two code units each; behind them the keys of the images that reach into it. */
  readonly key: string;
  readonly next: Map<string, PrefixNode>;
  readonly block: Record<Kind, number | undefined>;
  /** Sequences whose last full block this is. */
  ends: number;
}

interface Sequence {
  readonly held: Record<Kind, number[]>;
  readonly table: Record<Kind, Int32Array | undefined>;
  /** The node of its last full block that was computed. */
  node: PrefixNode;
  /** Positions computed. */
  length: number;
  /** Full blocks computed. */
  fullBlocks: number;
  readonly images: readonly ImageSpan[];
  /** Of a fork: the blocks that its original has begun, to be copied into the first of its own. */
  begun: Record<Kind, number | undefined> | undefined;
}

/** Positions from `from` to before `to` that an image fills: the same tokens with another image are another text. */
export interface ImageSpan {
  readonly key: string;
  readonly from: number;
  readonly to: number;
}

/** The block tables of the running sequences. */
export class KVCache {
  readonly sizes: CacheSizes;
  readonly #shares: boolean;
  readonly #copy: BlockCopy;
  readonly #pools: Record<Kind, BlockPool | undefined>;
  readonly #sequences = new Map<number, Sequence>();
  readonly #root: PrefixNode = newNode(undefined, "");
  #releases = 0;

  /** `copy` hears which blocks have to be copied: forks begin in the middle of one. */
  constructor(
    sizes: CacheSizes,
    { sharePrefixes = true, copy = () => {} }: { sharePrefixes?: boolean; copy?: BlockCopy } = {},
  ) {
    const { blockSize, chunk, globalBlocks, localBlocks } = sizes;
    if (chunk !== Infinity && chunk % blockSize !== 0)
      throw new RangeError(`blocks of ${blockSize} slots for a chunk of ${chunk}; expected a divisor`);
    this.sizes = sizes;
    this.#shares = sharePrefixes;
    this.#copy = copy;
    this.#pools = {
      global: globalBlocks === undefined ? undefined : new BlockPool(globalBlocks),
      local: localBlocks === undefined ? undefined : new BlockPool(localBlocks),
    };
  }

  /**
   * Begins a sequence; its first tokens, as many as the result says, are already in the cache. The last token never is,
   * so that there is one whose logits can be read.
   */
  open(sequence: number, tokens: ArrayLike<number>, images: readonly ImageSpan[] = []): number {
    const nodes = this.#shares ? this.#match(tokens, images) : [];
    const { blockSize, chunk } = this.sizes;
    const length = nodes.length * blockSize;
    const state: Sequence = {
      held: { global: [], local: [] },
      table: { global: undefined, local: undefined },
      node: nodes.at(-1) ?? this.#root,
      length,
      fullBlocks: nodes.length,
      images,
      begun: undefined,
    };
    state.node.ends++;
    const chunkStart = chunk === Infinity ? 0 : (length - (length % chunk)) / blockSize;
    for (const [kind, wanted] of [
      ["global", nodes],
      ["local", nodes.slice(chunkStart)],
    ] as const) {
      const pool = this.#pools[kind];
      if (pool) for (const node of wanted) state.held[kind].push(pool.hold(node.block[kind]!));
    }
    this.#sequences.set(sequence, state);
    return length;
  }

  /**
   * Begins a sequence with all that another one holds. Full blocks are shared; the one that it has begun is copied with the
   * first `reserve`, until when the other has to stay as it is.
   */
  fork(sequence: number, original: number): number {
    const { held, node, length, fullBlocks, images } = this.#get(original);
    const full = this.#blocksOf(length, Math.floor);
    const state: Sequence = {
      held: { global: held.global.slice(0, full.global), local: held.local.slice(0, full.local) },
      table: { global: undefined, local: undefined },
      begun:
        length % this.sizes.blockSize > 0
          ? { global: held.global[full.global], local: held.local[full.local] }
          : undefined,
      ...{ node, length, fullBlocks, images },
    };
    node.ends++;
    for (const kind of kinds) for (const block of state.held[kind]) this.#pools[kind]!.hold(block);
    this.#sequences.set(sequence, state);
    return length;
  }

  /** Makes room for the positions below `length`; false, and nothing changed, where the blocks do not suffice. */
  reserve(sequence: number, length: number): boolean {
    const state = this.#get(sequence);
    const missing = this.#missing(state, length);
    if (kinds.some((kind) => missing[kind] > (this.#pools[kind]?.available ?? 0))) return false;
    for (const kind of kinds) {
      if (missing[kind] <= 0) continue;
      for (let i = 0; i < missing[kind]; i++) {
        const block = this.#pools[kind]!.take(evict);
        if (i === 0 && state.begun) this.#copy(kind, state.begun[kind]!, block);
        state.held[kind].push(block);
      }
      state.table[kind] = undefined;
    }
    state.begun = undefined;
    return true;
  }

  /**
   * Says that the positions below `length` have been computed and stay; `tokens` are the sequence's from position 0.
   * Room beyond them goes back: what was written there was guessed, and is overwritten before anybody reads it.
   */
  commit(sequence: number, tokens: ArrayLike<number>, length: number): void {
    const state = this.#get(sequence);
    const { blockSize } = this.sizes;
    for (; this.#shares && (state.fullBlocks + 1) * blockSize <= length; state.fullBlocks++)
      this.#publish(state, keyOf(tokens, state.images, state.fullBlocks * blockSize, blockSize));
    state.length = length;
    const kept = this.#blocksOf(length, Math.ceil);
    for (const kind of kinds) if (state.held[kind].length > kept[kind]) this.#drop(state, kind, kept[kind]);
  }

  /** Ends a sequence. Its full blocks stay until their room is needed. */
  close(sequence: number): void {
    const state = this.#get(sequence);
    for (const kind of kinds) this.#drop(state, kind);
    this.#sequences.delete(sequence);
    state.node.ends--;
    prune(state.node);
  }

  /** The blocks of a sequence in the order of their slots; for LayerCache.table. */
  table(kind: Kind, sequence: number): Int32Array {
    const state = this.#get(sequence);
    state.table[kind] ??= Int32Array.from(state.held[kind]);
    return state.table[kind];
  }

  /** Whether all these sequences could grow to these lengths at the same time. */
  fits(lengths: Iterable<readonly [sequence: number, length: number]>): boolean {
    const missing = { global: 0, local: 0 };
    for (const [sequence, length] of lengths) {
      const more = this.#missing(this.#get(sequence), length);
      for (const kind of kinds) missing[kind] += more[kind];
    }
    return kinds.every((kind) => !this.#pools[kind] || missing[kind] <= this.#pools[kind].available);
  }

  /** Grows whenever a sequence gives blocks up or ends. */
  get releases(): number {
    return this.#releases;
  }

  /** Blocks that nobody reads now: free ones, and those kept for a request with the same beginning. */
  available(kind: Kind): number {
    return this.#pools[kind]?.available ?? 0;
  }

  /** Slots in all, and those that some sequence reads now. */
  occupation(): Record<Kind, { readonly used: number; readonly total: number } | undefined> {
    const { blockSize, globalBlocks, localBlocks } = this.sizes;
    const of = (kind: Kind, blocks: number | undefined) =>
      blocks === undefined
        ? undefined
        : { used: (blocks - this.available(kind)) * blockSize, total: blocks * blockSize };
    return { global: of("global", globalBlocks), local: of("local", localBlocks) };
  }

  /** Blocks that the first `length` positions fill, or reach into. */
  #blocksOf(length: number, round: (blocks: number) => number): Record<Kind, number> {
    const { blockSize, chunk } = this.sizes;
    const inChunk = chunk === Infinity ? length : length % chunk;
    return { global: round(length / blockSize), local: round(inChunk / blockSize) };
  }

  /** Blocks that `length` positions need beyond those held; for local layers, the most that any position on the way needs. */
  #missing(state: Sequence, length: number): Record<Kind, number> {
    const { blockSize, chunk } = this.sizes;
    const chunkStart = chunk === Infinity ? 0 : state.length - (state.length % chunk);
    const local = Math.min(length - chunkStart, chunk);
    const beyond = (kind: Kind, slots: number) =>
      this.#pools[kind] ? Math.max(0, Math.ceil(slots / blockSize) - state.held[kind].length) : 0;
    return { global: beyond("global", length), local: beyond("local", local) };
  }

  /** The nodes of the longest beginning that can be continued: global blocks from 0, local ones from the chunk's start. */
  #match(tokens: ArrayLike<number>, images: readonly ImageSpan[]): PrefixNode[] {
    const { blockSize, chunk } = this.sizes;
    const nodes: PrefixNode[] = [];
    let usable = 0;
    let localFrom = 0; // from here on, all local blocks are there
    for (let node: PrefixNode | undefined = this.#root; (nodes.length + 1) * blockSize < tokens.length; ) {
      node = node.next.get(keyOf(tokens, images, nodes.length * blockSize, blockSize));
      if (!node || (this.#pools.global && node.block.global === undefined)) break;
      nodes.push(node);
      const length = nodes.length * blockSize;
      if (this.#pools.local && node.block.local === undefined) localFrom = length;
      const chunkStart = chunk === Infinity ? 0 : length - (length % chunk);
      if (localFrom <= chunkStart) usable = nodes.length;
    }
    return nodes.slice(0, usable);
  }

  /** Lets later sequences find the next full block of this one. */
  #publish(state: Sequence, key: string): void {
    const { blockSize, chunk } = this.sizes;
    let node = state.node.next.get(key);
    if (!node) {
      node = newNode(state.node, key);
      state.node.next.set(key, node);
    }
    const localIndex = chunk === Infinity ? state.fullBlocks : state.fullBlocks % (chunk / blockSize);
    for (const [kind, index] of [
      ["global", state.fullBlocks],
      ["local", localIndex],
    ] as const) {
      if (!this.#pools[kind] || node.block[kind] !== undefined) continue;
      node.block[kind] = state.held[kind][index]!;
      this.#pools[kind].publish(node.block[kind], { node, kind });
    }
    state.node.ends--;
    node.ends++;
    state.node = node;
  }

  #drop(state: Sequence, kind: Kind, kept = 0): void {
    this.#releases++;
    // the last first: a beginning without its end is of use, an end without its beginning is not
    for (const block of state.held[kind].splice(kept).reverse()) this.#pools[kind]!.drop(block);
    state.table[kind] = undefined;
  }

  #get(sequence: number): Sequence {
    const state = this.#sequences.get(sequence);
    if (!state) throw new RangeError(`sequence ${sequence} is not in the cache`);
    return state;
  }
}

interface Publication {
  readonly node: PrefixNode;
  readonly kind: Kind;
}

/** Equal blocks of one pool: referenced by sequences, or idle but still findable, or free. */
class BlockPool {
  readonly #references: Int32Array;
  readonly #published: (Publication | undefined)[];
  readonly #free: number[];
  /** Published blocks without a reference, the longest unused first. */
  readonly #idle = new Set<number>();

  constructor(blocks: number) {
    this.#references = new Int32Array(blocks);
    this.#published = new Array(blocks).fill(undefined);
    this.#free = Array.from({ length: blocks }, (_, i) => blocks - 1 - i);
  }

  get available(): number {
    return this.#free.length + this.#idle.size;
  }

  /** A block for one sequence to write; `evict` hears what it was published as. */
  take(evict: (was: Publication) => void): number {
    let block = this.#free.pop();
    if (block === undefined) {
      block = this.#idle.values().next().value;
      if (block === undefined) throw new RangeError("no block is free; expected a look at `available` before");
      this.#idle.delete(block);
      evict(this.#published[block]!);
      this.#published[block] = undefined;
    }
    this.#references[block] = 1;
    return block;
  }

  /** One more sequence reads a published block. */
  hold(block: number): number {
    this.#references[block]!++;
    this.#idle.delete(block);
    return block;
  }

  drop(block: number): void {
    if (--this.#references[block]! > 0) return;
    if (this.#published[block]) this.#idle.add(block);
    else this.#free.push(block);
  }

  publish(block: number, as: Publication): void {
    this.#published[block] = as;
  }
}

function newNode(parent: PrefixNode | undefined, key: string): PrefixNode {
  return { parent, key, next: new Map(), block: { global: undefined, local: undefined }, ends: 0 };
}

function evict({ node, kind }: Publication): void {
  node.block[kind] = undefined;
  prune(node);
}

/** Forgets a node that says nothing any more, and its parents likewise. */
function prune(node: PrefixNode): void {
  for (let { parent } = node; parent && !isNeeded(node); { parent } = node) {
    parent.next.delete(node.key);
    node = parent;
  }
}

function isNeeded({ block, ends, next }: PrefixNode): boolean {
  return ends > 0 || next.size > 0 || block.global !== undefined || block.local !== undefined;
}

function keyOf(tokens: ArrayLike<number>, images: readonly ImageSpan[], from: number, count: number): string {
  const units: number[] = [];
  for (let i = from; i < from + count; i++) units.push(tokens[i]! & 0xffff, tokens[i]! >>> 16);
  const seen = images.filter((image) => image.from < from + count && image.to > from);
  return String.fromCharCode(...units) + seen.map(({ key }) => key).join();
}

/** The largest power of two up to 64 that divides the chunk. */
export function blockSizeFor(chunk: number): number {
  if (chunk === Infinity) return 64;
  let size = 64;
  while (chunk % size !== 0) size /= 2;
  return size;
}

/** The chunk of the layers that have one; Infinity where none has. */
export function chunkOf(c: Llama4Config): number {
  return c.layers.some((layer) => layer.chunked) ? c.attentionChunk : Infinity;
}

export interface CacheOptions {
  /** Tokens that the global layers hold, of all sequences together; also the longest that one sequence can be. */
  readonly context: number;
  readonly dtype: KVDType;
  /** Tokens that the local layers hold, of all sequences together; at most `context` are of use. */
  readonly localTokens?: number | undefined;
}

/** Blocks and bytes of a cache for a model. */
export function cacheSizes(c: Llama4Config, options: CacheOptions): CacheSizes & { readonly bytes: number } {
  const chunk = chunkOf(c);
  // two long sequences, or as many short ones as fit, do not wait for each other
  const { context, dtype, localTokens = Math.max(2 * chunk, 8192) } = options;
  const blockSize = blockSizeFor(chunk);
  const nLocal = c.layers.filter((layer) => layer.chunked).length;
  const nGlobal = c.layers.length - nLocal;
  const globalBlocks = nGlobal > 0 ? Math.ceil(context / blockSize) : undefined;
  const localBlocks = nLocal > 0 ? Math.ceil(Math.min(context, Math.max(localTokens, chunk)) / blockSize) : undefined;
  const slot = slotBytes({ heads: c.nKvHeads, headDim: c.headDim, dtype });
  const layerBytes = 2 * blockSize * slot; // of a block: keys and values
  const bytes = ((globalBlocks ?? 0) * nGlobal + (localBlocks ?? 0) * nLocal) * layerBytes;
  return { blockSize, chunk, globalBlocks, localBlocks, bytes };
}

/** The longest context whose cache takes at most `bytes`. */
export function contextFor(c: Llama4Config, bytes: number, options: Omit<CacheOptions, "context">): number {
  const takes = (context: number) => cacheSizes(c, { ...options, context }).bytes;
  let fits = 0;
  let tooLong = c.contextLength + 1;
  while (tooLong - fits > 1) {
    const middle = Math.floor((fits + tooLong) / 2);
    if (takes(middle) <= bytes) fits = middle;
    else tooLong = middle;
  }
  if (fits === 0)
    throw new CapacityError(
      `the key-value cache may take ${bytes.toLocaleString("en")} bytes; expected at least ${takes(1).toLocaleString("en")}, one block`,
    );
  return fits;
}

// Keys and values of the native backend, and how its attention is told who reads which of them.

import { type KVPool, type KVPoolSpec, type LayerCache, type Segment, slotBytes } from "../../tensor/backend.ts";
import type { Memory } from "./memory.ts";

/** Layers one after the other; in a layer blocks, laid out as native/kv-blocks.h draws them. */
export class NativePool implements KVPool {
  readonly spec: KVPoolSpec;
  readonly blockBytes: number;
  /** Bytes of the keys of a layer, and of its values. */
  readonly layerBytes: number;
  readonly keys: ArrayBuffer;
  readonly values: ArrayBuffer;
  readonly #memory: Memory;

  constructor(spec: KVPoolSpec, memory: Memory) {
    const block = slotBytes(spec) * spec.blockSize;
    this.spec = spec;
    this.blockBytes = 2 * spec.layers * block;
    this.layerBytes = spec.blocks * block;
    this.keys = memory.keep(spec.layers * this.layerBytes + poolSlack);
    this.values = memory.keep(spec.layers * this.layerBytes + poolSlack);
    this.#memory = memory;
  }

  copy(from: number, to: number): void {
    const { layers, blocks } = this.spec;
    for (const block of [from, to])
      if (!(block >= 0 && block < blocks)) throw new RangeError(`the cache has no block ${block} of ${blocks}`);
    const bytes = this.layerBytes / blocks;
    for (const buffer of [this.keys, this.values])
      for (let at = 0; at < layers * this.layerBytes; at += this.layerBytes)
        new Uint8Array(buffer, at + to * bytes, bytes).set(new Uint8Array(buffer, at + from * bytes, bytes));
  }

  close(): void {
    this.#memory.drop(this.keys);
    this.#memory.drop(this.values);
  }
}

const poolSlack = 64; // kPoolSlack of native/kernels.h

/** Segments and block tables as the addon takes them: row, length, position and where its table begins, of each segment. */
export function placesOf(
  segments: readonly Segment[],
  chunk: number,
  cache: LayerCache | undefined,
): { readonly flat: Int32Array; readonly tables: Int32Array } {
  const tables: Int32Array[] = [];
  const flat = new Int32Array(4 * segments.length);
  let start = 0;
  for (const [i, { row, length, position, sequence }] of segments.entries()) {
    flat.set([row, length, position, start], 4 * i);
    if (!cache) continue;
    const last = (chunk ? position % chunk : position) + length - 1;
    const table = cache.table(sequence).subarray(0, Math.floor(last / cache.pool.spec.blockSize) + 1);
    tables.push(table);
    start += table.length;
  }
  return { flat, tables: joined(tables) };
}

function joined(tables: readonly Int32Array[]): Int32Array {
  if (tables.length === 1) return tables[0]!;
  const all = new Int32Array(tables.reduce((n, table) => n + table.length, 0));
  let at = 0;
  for (const table of tables) {
    all.set(table, at);
    at += table.length;
  }
  return all;
}

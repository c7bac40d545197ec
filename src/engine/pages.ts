// A model's key-value cache: the block tables and the memory behind them.

import type { Llama4Config } from "../model/config.ts";
import type { Backend, KVPool, LayerCache } from "../tensor/backend.ts";
import { type CacheOptions, cacheSizes, KVCache } from "./kv-cache.ts";

/** Close it to free the memory. */
export interface Pages {
  readonly tables: KVCache;
  /** What `forward` takes. */
  readonly layers: readonly LayerCache[];
  close(): void;
}

export function openPages(
  backend: Backend,
  c: Llama4Config,
  { sharePrefixes = true, ...options }: CacheOptions & { readonly sharePrefixes?: boolean },
): Pages {
  const sizes = cacheSizes(c, options);
  const poolOf = (kind: "global" | "local"): KVPool | undefined => {
    const blocks = kind === "global" ? sizes.globalBlocks : sizes.localBlocks;
    if (blocks === undefined) return undefined;
    const layers = c.layers.filter((layer) => layer.chunked === (kind === "local")).length;
    const { blockSize } = sizes;
    return backend.kvPool({ layers, blocks, blockSize, heads: c.nKvHeads, headDim: c.headDim, dtype: options.dtype });
  };
  const pools = { global: poolOf("global"), local: poolOf("local") };
  const tables = new KVCache(sizes, { sharePrefixes, copy: (kind, from, to) => pools[kind]!.copy(from, to) });
  const next = { global: 0, local: 0 };
  return {
    tables,
    layers: c.layers.map(({ chunked }) => {
      const kind = chunked ? "local" : "global";
      return { pool: pools[kind]!, layer: next[kind]++, table: (sequence) => tables.table(kind, sequence) };
    }),
    close() {
      pools.global?.close();
      pools.local?.close();
    },
  };
}

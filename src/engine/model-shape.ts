// What is told of a model's layers to those who only see its replies.

import type { Llama4Config } from "../model/config.ts";

export interface ModelShape {
  readonly layers: number;
  /** Indices of those that see the whole context; the others see their chunk of it. */
  readonly globalLayers: readonly number[];
  /** Tokens of a chunk. */
  readonly attentionChunk: number;
  /** Indices of those with experts. */
  readonly expertLayers: readonly number[];
  readonly experts: number;
  readonly expertsPerToken: number;
}

export function modelShape({ layers, attentionChunk, nExperts, topK }: Llama4Config): ModelShape {
  const where = (is: (layer: Llama4Config["layers"][number]) => boolean) =>
    layers.flatMap((layer, i) => (is(layer) ? [i] : []));
  const expertLayers = where(({ moe }) => moe);
  return {
    layers: layers.length,
    globalLayers: where(({ chunked }) => !chunked),
    attentionChunk,
    expertLayers,
    experts: expertLayers.length > 0 ? nExperts : 0,
    expertsPerToken: expertLayers.length > 0 ? topK : 0,
  };
}

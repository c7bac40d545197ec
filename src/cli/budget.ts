// Where every byte of a model goes, from its config alone. Pure.
//
// D dim · H query heads · K key/value heads · d head dim · E experts · F expert width · V vocabulary · L layers

import type { Llama4Config } from "../model/config.ts";
import { countParameters } from "../model/config.ts";
import { byteLength, type DType, dtypes } from "../tensor/dtype.ts";

export type Part = "embeddings" | "attention" | "dense" | "shared" | "routed" | "norms" | "routers" | "vision";

/** A matrix or vector of the text model, as many equal ones as `count` says. */
export interface Weight {
  readonly part: Part;
  /** The field of parameters.ts. */
  readonly role: string;
  readonly layer: number | undefined;
  readonly rows: number;
  readonly columns: number;
  readonly count: number;
}

/** Every weight of the text model. */
export function weightsOf(c: Llama4Config): Weight[] {
  const { dim: D, headDim: d, vocabSize: V, expertDim: F } = c;
  const one = (part: Part, role: string, layer: number | undefined, rows: number, columns: number, count = 1) => ({
    ...{ part, role, layer, rows, columns, count },
  });
  const ffn = (part: Part, layer: number, width: number, count = 1) => [
    one(part, "w1", layer, width, D, count),
    one(part, "w3", layer, width, D, count),
    one(part, "w2", layer, D, width, count),
  ];
  const layers = c.layers.flatMap(({ moe }, i) => [
    one("norms", "attentionNorm", i, 1, D),
    one("norms", "ffnNorm", i, 1, D),
    one("attention", "wq", i, c.nHeads * d, D),
    one("attention", "wk", i, c.nKvHeads * d, D),
    one("attention", "wv", i, c.nKvHeads * d, D),
    one("attention", "wo", i, D, c.nHeads * d),
    ...(moe
      ? [one("routers", "router", i, c.nExperts, D), ...ffn("shared", i, F), ...ffn("routed", i, F, c.nExperts)]
      : ffn("dense", i, c.ffnDim)),
  ]);
  return [
    one("embeddings", "tokEmbeddings", undefined, V, D),
    ...(c.tied ? [] : [one("embeddings", "output", undefined, V, D)]),
    one("norms", "norm", undefined, 1, D),
    ...layers,
  ];
}

export const quantizations = ["q4_k_m", "q4_k", "q4_0", "q6_k", "q8_0", "bf16", "f16", "f32"] as const;
export type Quantization = (typeof quantizations)[number];

/** Whether llama.cpp's "_M" mixes give this layer more bits: the first and last eighth, and every third between. */
function usesMoreBits(layer: number, nLayers: number): boolean {
  const eighth = Math.floor(nLayers / 8);
  return layer < eighth || layer >= Math.floor((7 * nLayers) / 8) || (layer - eighth) % 3 === 2;
}

/** The type that a weight gets in a file of this quantization (gguf.md §7). */
export function typeOf(w: Weight, c: Llama4Config, quant: Quantization): DType {
  if (quant === "bf16" || quant === "f16" || quant === "f32") return quant;
  if (w.part === "norms" || w.part === "routers") return "f32";
  const output = w.role === "output" || (c.tied && w.role === "tokEmbeddings");
  const more = (w.role === "wv" || w.role === "w2") && usesMoreBits(w.layer!, c.layers.length);
  const wanted = {
    q4_k_m: output || more ? "q6_k" : "q4_k",
    q4_k: output ? "q6_k" : "q4_k",
    q4_0: output ? "q6_k" : "q4_0",
    q6_k: "q6_k",
    q8_0: "q8_0",
  } as const;
  const divides = (dtype: DType) => w.columns % dtypes[dtype].blockElements === 0;
  return divides(wanted[quant]) ? wanted[quant] : divides("q8_0") ? "q8_0" : "f16";
}

/** Bytes of each part. Vision stays 16-bit in a file of its own, whatever the text model's type. */
export function partBytes(c: Llama4Config, quant: Quantization): Record<Part, number> {
  const parts = { embeddings: 0, attention: 0, dense: 0, shared: 0, routed: 0, norms: 0, routers: 0, vision: 0 };
  let elements = 0;
  for (const w of weightsOf(c)) {
    const n = w.rows * w.columns * w.count;
    elements += n;
    parts[w.part] += byteLength(typeOf(w, c, quant), n);
  }
  parts.vision = (countParameters(c).total - elements) * (quant === "f32" ? 4 : 2);
  return parts;
}

/** Bytes that one token reads: everything but the embedding table, vision, and the experts not chosen. */
export function bytesPerToken(c: Llama4Config, quant: Quantization): number {
  let read = 0;
  for (const w of weightsOf(c)) {
    if (w.role === "tokEmbeddings" && !c.tied) continue;
    const count = w.part === "routed" ? c.topK : w.count;
    read += byteLength(typeOf(w, c, quant), w.rows * w.columns * count);
  }
  return read;
}

/** Bytes of keys and values for one sequence; chunk-local layers keep one chunk at most. */
export function kvBytes(c: Llama4Config, context: number, dtype: DType): { global: number; local: number } {
  const perTokenAndLayer = 2 * byteLength(dtype, c.nKvHeads * c.headDim);
  const local = c.layers.filter((layer) => layer.chunked).length;
  return {
    global: (c.layers.length - local) * context * perTokenAndLayer,
    local: local * Math.min(context, c.attentionChunk) * perTokenAndLayer,
  };
}

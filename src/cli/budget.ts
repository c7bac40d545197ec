// Where every byte of a model goes, from its config alone. Pure.
//
// D dim · H query heads · K key/value heads · d head dim · E experts · F expert width · V vocabulary · L layers

import { isPlain, type Mix, type Place, storedType } from "../checkpoint/mix.ts";
import type { Checkpoint } from "../checkpoint/open.ts";
import type { Llama4Config } from "../model/config.ts";
import { countParameters } from "../model/config.ts";
import { mapParameters, mapVision, type Parameters } from "../model/parameters.ts";
import { type KVDType, slotBytes } from "../tensor/backend.ts";
import { storedBytes, type Tensor, type TensorView } from "../tensor/tensor.ts";

export type Part = "embeddings" | "attention" | "dense" | "shared" | "routed" | "norms" | "routers" | "vision";

/** A matrix or vector of the text model, as many equal ones as `count` says. */
export interface Weight extends Place {
  readonly part: Part;
  readonly rows: number;
  readonly count: number;
}

/** Every weight of the text model. */
export function weightsOf(c: Llama4Config): Weight[] {
  const { dim: D, headDim: d, vocabSize: V, expertDim: F } = c;
  const one = (
    part: Part,
    role: Place["role"],
    layer: number | undefined,
    rows: number,
    columns: number,
    count = 1,
  ): Weight => ({
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

/** Bytes of one of a weight's matrices: in a folder, as published, where the mix is plain, else in a GGUF file. */
function matrixBytes(w: Weight, c: Llama4Config, mix: Mix): number {
  return storedBytes({ dtype: isPlain(mix) ? mix : storedType(mix, w, c), shape: [w.rows, w.columns] });
}

/** Bytes of each part. Vision stays 16-bit in a file of its own, whatever the text model's type. */
export function partBytes(c: Llama4Config, mix: Mix): Record<Part, number> {
  const parts = { embeddings: 0, attention: 0, dense: 0, shared: 0, routed: 0, norms: 0, routers: 0, vision: 0 };
  let elements = 0;
  for (const w of weightsOf(c)) {
    elements += w.count * w.rows * w.columns;
    parts[w.part] += w.count * matrixBytes(w, c, mix);
  }
  parts.vision = (countParameters(c).total - elements) * (mix === "f32" ? 4 : 2);
  return parts;
}

/** Bytes that one token reads: everything but the embedding table, vision, and the experts not chosen. */
export function bytesPerToken(c: Llama4Config, mix: Mix): number {
  let read = 0;
  for (const w of weightsOf(c)) {
    if (w.role === "tokEmbeddings" && !c.tied) continue;
    const count = w.part === "routed" ? c.topK : w.count;
    read += count * matrixBytes(w, c, mix);
  }
  return read;
}

/** Bytes of keys and values for one sequence; chunk-local layers keep one chunk at most. */
export function kvBytes(c: Llama4Config, context: number, dtype: KVDType): { global: number; local: number } {
  const perTokenAndLayer = 2 * slotBytes({ heads: c.nKvHeads, headDim: c.headDim, dtype });
  const local = c.layers.filter((layer) => layer.chunked).length;
  return {
    global: (c.layers.length - local) * context * perTokenAndLayer,
    local: local * Math.min(context, c.attentionChunk) * perTokenAndLayer,
  };
}

/**
 * Bytes of weights that a step reads, as they are in memory: one token's, or those that several tokens, each of another
 * sequence, are expected to read together, with experts chosen evenly.
 */
export function loadedBytesPerStep(
  p: Parameters<Pick<Tensor, "dtype" | "shape">>,
  c: Pick<Llama4Config, "tied" | "topK" | "nExperts">,
  tokens = 1,
): number {
  const touched = 1 - (1 - c.topK / c.nExperts) ** tokens; // of a layer's experts
  let read = c.tied ? 0 : -storedBytes(p.tokEmbeddings); // of the table single rows are read
  const seen = new Set<unknown>();
  mapParameters(p, (w) => {
    if (!seen.has(w)) read += storedBytes(w) * (w.shape.length === 3 ? touched : 1);
    seen.add(w);
  });
  return Math.round(read);
}

/** Bytes of each part as a checkpoint stores them. */
export function storedPartBytes({
  parameters: p,
  vision,
}: Pick<Checkpoint, "parameters" | "vision">): Record<Part, number> {
  const parts = { embeddings: 0, attention: 0, dense: 0, shared: 0, routed: 0, norms: 0, routers: 0, vision: 0 };
  const add = (part: Part, ...weights: readonly TensorView[]) => {
    for (const w of weights) parts[part] += storedBytes(w);
  };
  add("embeddings", ...new Set([p.tokEmbeddings, p.output]));
  add("norms", p.norm);
  for (const { attentionNorm, ffnNorm, wq, wk, wv, wo, ffn } of p.layers) {
    add("norms", attentionNorm, ffnNorm);
    add("attention", wq, wk, wv, wo);
    if (!("router" in ffn)) add("dense", ffn.w1, ffn.w2, ffn.w3);
    else {
      add("routers", ffn.router);
      add("shared", ffn.shared.w1, ffn.shared.w2, ffn.shared.w3);
      add("routed", ffn.experts.gate, ffn.experts.up, ffn.experts.down);
    }
  }
  if (vision) mapVision(vision, (w) => add("vision", w));
  return parts;
}

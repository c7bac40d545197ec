// The text decoder: one forward for prefill, decode, mixed batches and training (specification §§3-5).
//
// T tokens in the step · V vocabulary · D dim · H query heads · K key/value heads · d head dim

import type { LayerCache, Recording, Routes, Segment } from "../tensor/backend.ts";
import {
  add,
  attend,
  embed,
  exactLinear,
  experts,
  feedForward,
  linear,
  mul,
  qkv,
  reshape,
  rmsNorm,
  rope,
  route,
  rows,
  splice,
} from "../tensor/ops.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { LayerKind, Llama4Config } from "./config.ts";
import type { Block, FeedForward, MoE, Parameters } from "./parameters.ts";
import { ropeFrequencies, ropeRotations } from "./rope.ts";

/** What one forward pass computes: tokens of one or several sequences, flat. */
export interface Step {
  readonly tokens: Int32Array; // [T]
  /** Whose the tokens are and where they stand; together they cover every row. */
  readonly segments: readonly Segment[];
  /** Rows whose logits are wanted. */
  readonly wanted: Int32Array;
  /** Image features and the rows whose embeddings they replace (early fusion, specification §7). */
  readonly images?: { readonly rows: Tensor; readonly at: Int32Array };
  /** One for each layer; without it the step sees only itself. */
  readonly cache?: readonly LayerCache[];
  /** Chooses a layer's experts where it is not the logits alone that do: balanced training has biases beside them. */
  readonly choose?: (layer: number, logits: Tensor) => Routes;
  /** Hears which experts a layer's router chose, and from which logits `[T, E]`; these it may read before it resolves. */
  readonly routed?: (layer: number, routes: Routes, logits: Tensor) => Promise<void> | undefined;
}

/** Sees the residual stream `[T, D]`: of the embeddings (layer 0), then after each layer, at last after the final norm. */
export type Observer = (layer: number, h: Tensor) => Promise<void>;

/** The logits `[wanted, V]` of a step. */
export async function forward(p: Parameters, c: Llama4Config, step: Step, observe?: Observer): Promise<Tensor> {
  const { backend } = p.tokEmbeddings;
  return backend.scope(async () => {
    const place = placeTokens(p, c, step);
    let h = embed(p.tokEmbeddings, step.tokens); // [T, D]
    if (step.images) h = splice(h, step.images.rows, step.images.at);
    await observe?.(0, h);
    for (const [i, block] of p.layers.entries()) {
      h = await backend.scope(() => layer(h, block, c, i, place), h);
      await observe?.(i + 1, h);
    }
    const last = rmsNorm(rows(h, step.wanted), p.norm, c.normEps); // [wanted, D]
    await observe?.(p.layers.length + 1, last);
    return linear(last, p.output); // [wanted, V]
  });
}

async function layer(x: Tensor, block: Block, c: Llama4Config, i: number, place: Place): Promise<Tensor> {
  const h = add(x, attention(rmsNorm(x, block.attentionNorm, c.normEps), block, c, i, place));
  const normed = rmsNorm(h, block.ffnNorm, c.normEps);
  return add(h, "router" in block.ffn ? await moe(normed, block.ffn, c, i, place) : dense(normed, block.ffn));
}

function attention(x: Tensor, w: Block, c: Llama4Config, i: number, place: Place): Tensor {
  const [T] = x.shape as [number];
  const kind = c.layers[i]!;
  const projected = qkv(x, w.wq, w.wk, w.wv);
  let q = reshape(projected[0], [T, c.nHeads, c.headDim]); // [T, H, d]
  let k = reshape(projected[1], [T, c.nKvHeads, c.headDim]); // [T, K, d]
  const v = reshape(projected[2], [T, c.nKvHeads, c.headDim]); // [T, K, d]
  if (kind.rope) {
    const rotations = place.rotations(kind);
    q = rope(q, rotations);
    k = rope(k, rotations);
    if (c.qkNorm) {
      // Per head, after the rotation, without a learned weight (params.json `use_qk_norm`).
      q = rmsNorm(q, null, c.normEps);
      k = rmsNorm(k, null, c.normEps);
    }
  } else if (place.temperatures) {
    // Longer contexts sharpen the queries of layers without positions: after Nakanishi 2025, arXiv:2501.19399.
    q = mul(q, place.temperatures);
  }
  const cache = place.cache?.[i];
  const span = { segments: place.segments, ...(kind.chunked && { chunk: c.attentionChunk }), ...(cache && { cache }) };
  return linear(reshape(attend(q, k, v, span), [T, c.nHeads * c.headDim]), w.wo); // [T, D]
}

const dense = (x: Tensor, { w1, w2, w3 }: FeedForward) => feedForward(x, w1, w3, w2); // [T, D]

/** The router's sigmoid scores scale the experts' inputs, not their outputs; the shared expert sees x as it is. */
async function moe(x: Tensor, w: MoE, c: Llama4Config, i: number, place: Place): Promise<Tensor> {
  const logits = exactLinear(x, w.router); // [T, E]
  const routes = place.choose?.(i, logits) ?? route(logits, c.topK);
  await place.routed?.(i, routes, logits);
  const { w1, w2, w3 } = w.shared;
  return experts(x, w.experts, routes, { gate: w1, up: w3, down: w2 }); // [T, D]
}

/** A recorded step of as many tokens and wanted rows, run again with these: its logits, until the next run. `frequencies`: of ropeFrequencies(). */
export function forwardAgain(
  recording: Recording,
  c: Llama4Config,
  frequencies: Float64Array,
  { tokens, segments }: Omit<Step, "wanted">,
): Float32Array {
  const { local, absolute, temperatures } = placeNumbers(c, frequencies, positionsOf(tokens.length, segments));
  const numbers = [local, absolute, temperatures].filter((list) => list !== undefined); // in the order of placeTokens
  return recording.run(tokens, numbers, segments);
}

/** What the tokens' places mean to the layers, worked out once a step. */
interface Place extends Pick<Step, "segments" | "cache" | "choose" | "routed"> {
  rotations(kind: LayerKind): Tensor; // [T, d/2, 2]
  readonly temperatures?: Tensor; // [T, 1, 1]
}

function placeTokens(p: Parameters, c: Llama4Config, { tokens, segments, cache, choose, routed }: Step): Place {
  const { backend } = p.tokEmbeddings;
  const T = tokens.length;
  const numbers = placeNumbers(c, ropeFrequencies(c), positionsOf(T, segments));
  // Made before any layer's scope opens, so that every layer shares them.
  const rotations = (of: Float64Array | undefined) => of && backend.from(of, [T, c.headDim / 2, 2]);
  const local = rotations(numbers.local);
  const absolute = rotations(numbers.absolute);
  const tuned = numbers.temperatures && backend.from(numbers.temperatures, [T, 1, 1]);
  return {
    segments,
    ...(cache && { cache }),
    ...(choose && { choose }),
    ...(routed && { routed }),
    rotations: (kind) => (kind.chunked ? local : absolute)!,
    ...(tuned && { temperatures: tuned }),
  };
}

/** The position of every row `[T]`. */
function positionsOf(T: number, segments: readonly Segment[]): Int32Array {
  const positions = new Int32Array(T).fill(-1);
  for (const { row, length, position } of segments) {
    for (let t = 0; t < length; t++) positions[row + t] = position + t;
  }
  const orphan = positions.indexOf(-1);
  if (orphan >= 0)
    throw new RangeError(`forward: row ${orphan} of ${T} is in no segment; expected segments to cover every row`);
  return positions;
}

/** The rotations of layers with chunks and of those without `[T, d/2, 2]`, and the temperatures `[T]`, as far as some layer needs them. */
function placeNumbers(c: Llama4Config, frequencies: Float64Array, positions: Int32Array) {
  const rotate = (chunked: boolean) => {
    const used = c.layers.some((kind) => kind.rope && kind.chunked === chunked);
    return used ? ropeRotations(c, positions, chunked, frequencies) : undefined;
  };
  const tuned = c.temperature && c.layers.some((kind) => !kind.rope);
  return {
    local: rotate(true),
    absolute: rotate(false),
    temperatures: tuned ? temperatures(c, positions) : undefined,
  };
}

/** `1 + scale · ln(⌊(p + 1) / floor⌋ + 1)` at each position: 1 up to floor − 2, and slowly more beyond. */
export function temperatures({ temperature }: Llama4Config, positions: Int32Array): Float64Array {
  const { floor, scale } = temperature ?? { floor: 1, scale: 0 };
  return Float64Array.from(positions, (p) => 1 + scale * Math.log(Math.floor((p + 1) / floor) + 1));
}

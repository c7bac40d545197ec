// The names of tensors in each format, and how each format's bytes become the tree of weights. Names appear here only.
//
// V vocabulary · D dim · H heads · K key/value heads · d head dim · E experts · F expert width · G dense width

import type { Llama4Config } from "../model/config.ts";
import type { Block, FeedForward, MoE, Parameters, VisionParameters } from "../model/parameters.ts";
import { dtypes, rowBytes } from "../tensor/dtype.ts";
import { CheckpointError } from "../tensor/errors.ts";
import { type ByteSource, type Piece, type Shape, storedBytes, type TensorView } from "../tensor/tensor.ts";
import { show } from "./json.ts";
import {
  bindVision,
  type Cut,
  ggufVision,
  ggufVisionName,
  huggingFaceVision,
  legacyPositions,
  listVision,
  metaVision,
  visionShapes,
} from "./names-vision.ts";
import { sideBySide } from "./source.ts";

/** A tensor that a format expects: its name there, and its shape as stored, `[out, in]` for a matrix. */
export interface NamedShape {
  readonly name: string;
  readonly shape: Shape;
}

/** The trees of a checkpoint: the text model's, and the vision encoder's where there is one. */
export interface Bound {
  readonly parameters: Parameters<TensorView>;
  readonly vision?: VisionParameters<TensorView>;
}

// ---- Hugging Face (specification §12) ----

const hf = {
  tokEmbeddings: "model.embed_tokens.weight",
  norm: "model.norm.weight",
  output: "lm_head.weight",
  layer: (i: number) => {
    const at = (rest: string) => `model.layers.${i}.${rest}`;
    return {
      attentionNorm: at("input_layernorm.weight"),
      wq: at("self_attn.q_proj.weight"),
      wk: at("self_attn.k_proj.weight"),
      wv: at("self_attn.v_proj.weight"),
      wo: at("self_attn.o_proj.weight"),
      ffnNorm: at("post_attention_layernorm.weight"),
      dense: swigluNames(at("feed_forward.")),
      router: at("feed_forward.router.weight"),
      gateUp: at("feed_forward.experts.gate_up_proj"), // [E, D, 2F]: y = x · W, gate columns then up columns
      down: at("feed_forward.experts.down_proj"), // [E, F, D]
      shared: swigluNames(at("feed_forward.shared_expert.")),
      expert: (e: number) => swigluNames(at(`feed_forward.experts.${e}.`)), // unfused, [out, in]
    };
  },
};

function swigluNames(prefix: string) {
  return { w1: `${prefix}gate_proj.weight`, w2: `${prefix}down_proj.weight`, w3: `${prefix}up_proj.weight` };
}

/** Every tensor of a Hugging Face folder, in the order in which a model uses them; the vision encoder's last. */
export function huggingFaceTensors(c: Llama4Config): NamedShape[] {
  const nested = c.vision ? "language_model." : "";
  const text: NamedShape[] = [{ name: hf.tokEmbeddings, shape: [c.vocabSize, c.dim] }];
  for (const [i, kind] of c.layers.entries()) {
    const names = hf.layer(i);
    const shapes = blockShapes(c);
    for (const key of ["attentionNorm", "wq", "wk", "wv", "wo", "ffnNorm"] as const)
      text.push({ name: names[key], shape: shapes[key] });
    if (!kind.moe) text.push(...swigluShapes(names.dense, c.ffnDim, c.dim));
    else
      text.push(
        { name: names.router, shape: [c.nExperts, c.dim] },
        { name: names.gateUp, shape: [c.nExperts, c.dim, 2 * c.expertDim] },
        { name: names.down, shape: [c.nExperts, c.expertDim, c.dim] },
        ...swigluShapes(names.shared, c.expertDim, c.dim),
      );
  }
  text.push({ name: hf.norm, shape: [c.dim] });
  if (!c.tied) text.push({ name: hf.output, shape: [c.vocabSize, c.dim] });
  return [...text.map(({ name, shape }) => ({ name: nested + name, shape })), ...visionTensors(c)];
}

/** Those of the vision encoder and the projector; none where the config has none. */
function visionTensors(c: Llama4Config): NamedShape[] {
  if (!c.vision) return [];
  const shapes = listVision(visionShapes(c));
  return listVision(huggingFaceVision(c.vision.nLayers)).map((name, i) => ({ name, shape: shapes[i]! }));
}

function blockShapes(c: Llama4Config) {
  return {
    attentionNorm: [c.dim],
    wq: [c.nHeads * c.headDim, c.dim],
    wk: [c.nKvHeads * c.headDim, c.dim],
    wv: [c.nKvHeads * c.headDim, c.dim],
    wo: [c.dim, c.nHeads * c.headDim],
    ffnNorm: [c.dim],
  };
}

function swigluShapes(names: FeedForward<string>, width: number, dim: number): NamedShape[] {
  return [
    { name: names.w1, shape: [width, dim] },
    { name: names.w3, shape: [width, dim] },
    { name: names.w2, shape: [dim, width] },
  ];
}

// Re-exports put these before the names above, alone or one after the other.
const prefixes = ["language_model.", "model."];

/** A name as the tables above have it, whatever its exporter put before. */
function withoutPrefix(name: string): string {
  if (/^model\.(vision_model|multi_modal_projector)\./.test(name)) return name.slice("model.".length);
  if (name.startsWith("model.language_model.")) {
    const rest = name.slice("model.language_model.".length);
    return rest.startsWith("model.") || rest.startsWith("lm_head.") ? rest : `model.${rest}`;
  }
  for (const prefix of prefixes)
    if (name.startsWith(`${prefix}model.`) || name.startsWith(`${prefix}lm_head.`)) return name.slice(prefix.length);
  return name;
}

const isVision = /^(vision_model|multi_modal_projector)\./;

/** The trees of a Hugging Face checkpoint. A config may describe a vision encoder whose tensors an exporter left out. */
export function bindHuggingFace(c: Llama4Config, tensors: readonly TensorView[], file: string): Bound {
  const found = new Found(tensors, file, withoutPrefix);
  const { dim: D, nExperts: E, expertDim: F } = c;
  const matrix = ({ name, shape }: NamedShape) => found.take(name, shape);
  const swiglu = (names: FeedForward<string>, width: number): FeedForward<TensorView> => {
    const [w1, w3, w2] = swigluShapes(names, width, D).map(matrix) as [TensorView, TensorView, TensorView];
    return { w1, w2, w3 };
  };
  const experts = (names: ReturnType<typeof hf.layer>): MoE<TensorView>["experts"] => {
    if (!found.has(names.gateUp) && found.has(names.expert(0).w1)) {
      const stack = (key: "w1" | "w2" | "w3", shape: Shape) =>
        stacked(Array.from({ length: E }, (_, e) => found.take(names.expert(e)[key], shape)));
      return { gate: stack("w1", [F, D]), up: stack("w3", [F, D]), down: stack("w2", [D, F]) };
    }
    const gateUp = found.take(names.gateUp, [E, D, 2 * F]);
    const down = found.take(names.down, [E, F, D]);
    const element = dtypes[gateUp.dtype].blockBytes;
    const half = (offset: number) => ({ ...gateUp, shape: [E, F, D], strides: [2 * F * D, 1, 2 * F], offset });
    return {
      gate: half(gateUp.offset),
      up: half(gateUp.offset + F * element),
      down: { ...down, shape: [E, D, F], strides: [F * D, 1, D] },
    };
  };
  const tokEmbeddings = found.take(hf.tokEmbeddings, [c.vocabSize, D]);
  const layers = c.layers.map((kind, i): Block<TensorView> => {
    const names = hf.layer(i);
    return {
      ...takeBlock(found, names, c),
      ffn: kind.moe
        ? { router: found.take(names.router, [E, D]), experts: experts(names), shared: swiglu(names.shared, F) }
        : swiglu(names.dense, c.ffnDim),
    };
  });
  const norm = found.take(hf.norm, [D]);
  // Some exporters store the table twice although it is tied; the config decides.
  const stored = c.tied && !found.has(hf.output) ? tokEmbeddings : found.take(hf.output, [c.vocabSize, D]);
  const parameters = { tokEmbeddings, layers, norm, output: c.tied ? tokEmbeddings : stored };
  if (!c.vision || !tensors.some(({ name }) => isVision.test(withoutPrefix(name)))) {
    found.refuse((name) => !isVision.test(name));
    return { parameters };
  }
  const take = (name: string, shape: Shape) => found.take(name, shape);
  const vision = bindVision(c, huggingFaceVision(c.vision.nLayers), take);
  found.refuse(() => true);
  return { parameters, vision };
}

function takeBlock(
  found: Found,
  names: Readonly<Record<keyof ReturnType<typeof blockShapes>, string>>,
  c: Llama4Config,
) {
  const shapes = blockShapes(c);
  const take = (key: keyof typeof shapes) => found.take(names[key], shapes[key]);
  return {
    attentionNorm: take("attentionNorm"),
    wq: take("wq"),
    wk: take("wk"),
    wv: take("wv"),
    wo: take("wo"),
    ffnNorm: take("ffnNorm"),
  };
}

// ---- GGUF (gguf.md §3) ----

const gguf = {
  tokEmbeddings: "token_embd.weight",
  norm: "output_norm.weight",
  output: "output.weight",
  ropeFreqs: "rope_freqs.weight",
  layer: (i: number) => {
    const at = (rest: string) => `blk.${i}.${rest}.weight`;
    const swiglu = (suffix: string) => ({
      w1: at(`ffn_gate${suffix}`),
      w2: at(`ffn_down${suffix}`),
      w3: at(`ffn_up${suffix}`),
    });
    return {
      attentionNorm: at("attn_norm"),
      wq: at("attn_q"),
      wk: at("attn_k"),
      wv: at("attn_v"),
      wqkv: at("attn_qkv"),
      wo: at("attn_output"),
      ffnNorm: at("ffn_norm"),
      dense: swiglu(""),
      router: at("ffn_gate_inp"),
      experts: swiglu("_exps"),
      shared: swiglu("_shexp"),
    };
  },
};

/** The tensor of divisors of the rotary frequencies. */
export const ropeFreqsName = gguf.ropeFreqs;

/** True if the file has a matrix of its own for the output. */
export function hasGgufOutput(tensors: readonly TensorView[]): boolean {
  return tensors.some(({ name }) => name === gguf.output);
}

/** The rows of the embedding table, under any format's name for it; 0 where there is none. */
export function vocabRows(tensors: readonly TensorView[]): number {
  const names = [gguf.tokEmbeddings, hf.tokEmbeddings, meta.tokEmbeddings];
  return tensors.find(({ name }) => names.includes(withoutPrefix(name)))?.shape[0] ?? 0;
}

/** The tree of weights by GGUF's names: what a writer goes through, in the order of llama.cpp's own files. */
export function ggufNames(c: Llama4Config): { readonly parameters: Parameters<string>; readonly ropeFreqs: string } {
  const layers = c.layers.map(({ moe }, i): Block<string> => {
    const { dense, router, experts, shared, wqkv: _, ...rest } = gguf.layer(i);
    const { w1: gate, w2: down, w3: up } = experts;
    return { ...rest, ffn: moe ? { router, experts: { gate, up, down }, shared } : dense };
  });
  const { tokEmbeddings, norm, output, ropeFreqs } = gguf;
  return { parameters: { tokEmbeddings, layers, norm, output: c.tied ? tokEmbeddings : output }, ropeFreqs };
}

/** The tree of a GGUF checkpoint. */
export function bindGguf(c: Llama4Config, tensors: readonly TensorView[], file: string): Parameters<TensorView> {
  const found = new Found(tensors, file);
  const { dim: D, nExperts: E, expertDim: F } = c;
  const swiglu = (names: FeedForward<string>, width: number, before: Shape = []): FeedForward<TensorView> => ({
    w1: found.take(names.w1, [...before, width, D]),
    w2: found.take(names.w2, [...before, D, width]),
    w3: found.take(names.w3, [...before, width, D]),
  });
  const block = (i: number, moe: boolean): Block<TensorView> => {
    const names = gguf.layer(i);
    const experts = () => {
      const { w1: gate, w2: down, w3: up } = swiglu(names.experts, F, [E]);
      return { gate, up, down };
    };
    if (found.has(names.wqkv)) found.split(names.wqkv, [names.wq, names.wk, names.wv], c);
    return {
      ...takeBlock(found, names, c),
      ffn: moe
        ? { router: found.take(names.router, [E, D]), experts: experts(), shared: swiglu(names.shared, F) }
        : swiglu(names.dense, c.ffnDim),
    };
  };
  const tokEmbeddings = found.take(gguf.tokEmbeddings, [c.vocabSize, D]);
  const layers = c.layers.map((kind, i) => block(i, kind.moe));
  const norm = found.take(gguf.norm, [D]);
  const output = c.tied ? tokEmbeddings : found.take(gguf.output, [c.vocabSize, D]);
  if (found.has(gguf.ropeFreqs)) found.take(gguf.ropeFreqs, [c.headDim / 2]);
  found.refuse((name) => !/^(v|mm)\./.test(name)); // some writers put a vision encoder of their own naming into the file
  return { tokEmbeddings, layers, norm, output };
}

/** Rows of the adapter's matrices in a mmproj file, whose metadata leaves them out; 0 where there are none. */
export function adapterRows(tensors: readonly TensorView[]): { readonly fc1: number; readonly fc2: number } {
  const { fc1, fc2 } = ggufVision(0).adapter;
  const rows = (wanted: string) => tensors.find(({ name }) => name === wanted)?.shape[0] ?? 0;
  return { fc1: rows(fc1), fc2: rows(fc2) };
}

/** The vision tree of a mmproj file (gguf.md §4). */
export function bindMmproj(
  c: Llama4Config,
  tensors: readonly TensorView[],
  file: string,
): VisionParameters<TensorView> {
  const found = new Found(tensors, file, ggufVisionName);
  const vision = bindVision(c, ggufVision(c.vision!.nLayers), (name, shape) => found.take(name, shape));
  found.refuse(() => true);
  return vision;
}

// ---- Meta (specification §13) ----

const meta = {
  tokEmbeddings: "tok_embeddings.weight",
  norm: "norm.weight",
  output: "output.weight",
  layer: (i: number) => {
    const at = (rest: string) => `layers.${i}.${rest}`;
    return {
      attentionNorm: at("attention.wqkv.layer_norm_weight"),
      wqkv: at("attention.wqkv.weight"), // in each shard its heads' q rows, k rows, v rows
      wo: at("attention.wo.weight"),
      ffnNorms: [at("feed_forward.norm.weight"), at("feed_forward.mlp.layer_norm_weight")],
      gateUp: at("feed_forward.mlp.fc1_weight"), // in each shard gate rows, up rows
      down: at("feed_forward.mlp.fc2_weight"),
      router: at("feed_forward.router_DE"),
      experts: {
        w1: at("feed_forward.experts.moe_w_in_eD_F"),
        w2: at("feed_forward.experts.moe_w_out_eF_D"),
        w3: at("feed_forward.experts.moe_w_swiglu_eD_F"),
      },
      shared: {
        w1: at("feed_forward.w_in_shared_FD.weight"),
        w2: at("feed_forward.w_out_shared_DF.weight"),
        w3: at("feed_forward.w_swiglu_FD.weight"),
      },
    };
  },
  // Statistics of training and tables that are computed.
  dropped: /(^rope\.freqs|_extra_state|global_gate_stats_3E|running_gate_stats_3E|expert_activation_DE)$/,
  vision: /^vision_(embeddings|projection)\./,
};

/** The trees of a Meta checkpoint whose `shards` split heads and widths between them (model parallelism). */
export function bindMeta(c: Llama4Config, shards: readonly (readonly TensorView[])[], folder: string): Bound {
  const found = shards.map((tensors, i) => new Found(tensors, `${folder}: shard ${i}`));
  const n = shards.length;
  const { dim: D, nExperts: E } = c;
  const part = (size: number, what: string) => {
    if (size % n) throw new CheckpointError(`${folder}: ${size} ${what} in ${n} shards; expected a multiple`);
    return size / n;
  };
  const q = part(c.nHeads * c.headDim, "query rows"); // of a shard, as all below
  const kv = part(c.nKvHeads * c.headDim, "key rows");
  const [F, G] = [part(c.expertDim, "expert columns"), part(c.ffnDim, "feed-forward columns")];
  const V = part(c.vocabSize, "words");

  const whole = (name: string, shape: Shape) => found.map((shard) => shard.take(name, shape))[0]!; // replicated
  const all = (name: string, shape: Shape) => found.map((shard) => shard.take(name, shape));
  /** The same `rows` of every shard, end to end. */
  const rowsOf = (parts: readonly TensorView[], from: number, rows: number) =>
    joined(parts, 1, from, rows, [n * rows, ...parts[0]!.shape.slice(1)]);
  /** Columns side by side. */
  const columnsOf = (parts: readonly TensorView[]) => {
    const [rows, columns] = parts[0]!.shape as [number, number];
    return joined(parts, rows, 0, 1, [rows, n * columns]);
  };
  const turned = (view: TensorView, [experts, rows, columns]: [number, number, number]): TensorView => ({
    ...view,
    shape: experts === 0 ? [columns, rows] : [experts, columns, rows],
    strides: experts === 0 ? [1, columns] : [rows * columns, 1, columns],
  });

  const block = (i: number, moe: boolean): Block<TensorView> => {
    const names = meta.layer(i);
    const wqkv = all(names.wqkv, [q + 2 * kv, D]);
    const dense = (): FeedForward<TensorView> => {
      const gateUp = all(names.gateUp, [2 * G, D]);
      return {
        w1: rowsOf(gateUp, 0, G),
        w2: columnsOf(all(names.down, [D, G])),
        w3: rowsOf(gateUp, G, G),
      };
    };
    const experts = (): MoE<TensorView> => {
      const [gate, up] = [names.experts.w1, names.experts.w3].map((name) => columnsOf(all(name, [E * D, F])));
      // A shard's rows are [E, F / n, D]: its part of every expert, end to end.
      const down = joined(all(names.experts.w2, [E * F, D]), E, 0, F, [E * F * n, D]);
      const { w1, w2, w3 } = names.shared;
      return {
        router: turned(whole(names.router, [D, E]), [0, D, E]),
        experts: {
          gate: turned(gate!, [E, D, F * n]),
          up: turned(up!, [E, D, F * n]),
          down: turned(down, [E, F * n, D]),
        },
        shared: {
          w1: rowsOf(all(w1, [F, D]), 0, F),
          w2: columnsOf(all(w2, [D, F])),
          w3: rowsOf(all(w3, [F, D]), 0, F),
        },
      };
    };
    const ffnNorm = names.ffnNorms.find((name) => found[0]!.has(name)) ?? names.ffnNorms[0]!;
    return {
      attentionNorm: whole(names.attentionNorm, [D]),
      wq: rowsOf(wqkv, 0, q),
      wk: rowsOf(wqkv, q, kv),
      wv: rowsOf(wqkv, q + kv, kv),
      wo: columnsOf(all(names.wo, [D, q])),
      ffnNorm: whole(ffnNorm, [D]),
      ffn: moe ? experts() : dense(),
    };
  };
  const parameters = {
    tokEmbeddings: rowsOf(all(meta.tokEmbeddings, [V, D]), 0, V),
    layers: c.layers.map((kind, i) => block(i, kind.moe)),
    norm: whole(meta.norm, [D]),
    output: rowsOf(all(meta.output, [V, D]), 0, V),
  };
  const cut = ({ name, by }: Cut, [rows, ...columns]: Shape): TensorView => {
    if (by === "none") return whole(name, [rows!, ...columns]);
    if (by === "columns") return columnsOf(all(name, [rows!, part(columns[0]!, "vision columns")]));
    const each = part(rows!, "vision rows");
    return rowsOf(all(name, [each, ...columns]), 0, each);
  };
  const hasVision = c.vision && shards[0]!.some(({ name }) => meta.vision.test(name));
  const names = c.vision && metaVision(c.vision.nLayers);
  if (names && found[0]!.has(legacyPositions) && !found[0]!.has(names.positionEmbedding.name))
    throw new CheckpointError(
      `${folder}: ${show(legacyPositions)} is the table from before the encoder was fitted to tiles; ` +
        `expected ${show(names.positionEmbedding.name)}, as the published checkpoints have it`,
    );
  const vision = hasVision && names && bindVision(c, names, cut);
  const dropped = (name: string) => meta.dropped.test(name) || name === legacyPositions;
  for (const shard of found) shard.refuse((name) => !dropped(name) && (hasVision || !meta.vision.test(name)));
  return { parameters, ...(vision && { vision }) };
}

/**
 * In each of `parts`, its rows cut into `groups` equal groups; of each group the same range of `of` `run` rows' bytes
 * stands beside the other parts'. One part alone stays a view of its file.
 */
function joined(parts: readonly TensorView[], groups: number, from: number, run: number, shape: Shape): TensorView {
  const first = parts[0]!;
  const different = parts.find(({ dtype }) => dtype !== first.dtype);
  if (different)
    throw new CheckpointError(
      `${different.source.name}: ${show(different.name)} is ${different.dtype}, in another shard ${first.dtype}; expected one dtype`,
    );
  // With several groups (columns, experts) a part gives all its bytes, a group's worth at a time.
  const runBytes = groups === 1 ? run * rowBytes(first.dtype, first.shape[1]!) : storedBytes(first) / groups;
  const skip = from * rowBytes(first.dtype, first.shape[1]!);
  if (parts.length === 1) return { ...first, shape, offset: first.offset + skip };
  const pieces = parts.map(({ source, offset }): Piece => ({ source, offset: offset + skip, run: runBytes }));
  return { name: first.name, dtype: first.dtype, shape, source: sideBySide(first.name, groups, pieces), offset: 0 };
}

// ---- looking up ----

/** A file's tensors by name; remembers which were asked for. */
class Found {
  readonly #views = new Map<string, TensorView>();
  readonly #rest = new Set<string>();
  readonly #file: string;

  constructor(views: readonly TensorView[], file: string, rename: (name: string) => string = (name) => name) {
    this.#file = file;
    for (const view of views) this.#add(rename(view.name), view);
  }

  #add(name: string, view: TensorView): void {
    if (this.#views.has(name))
      throw new CheckpointError(
        `${this.#file}: ${show(name)} is there twice, the second time as ${show(view.name)}; expected each tensor once`,
      );
    this.#views.set(name, view);
    this.#rest.add(name);
  }

  has(name: string): boolean {
    return this.#views.has(name);
  }

  take(name: string, shape: Shape): TensorView {
    const view = this.#views.get(name);
    if (!view) throw new CheckpointError(`${this.#file}: no tensor ${show(name)}; ${this.#nearest(name)}`);
    if (view.shape.join() !== shape.join())
      throw new CheckpointError(
        `${this.#file}: ${show(view.name)} is [${view.shape.join(", ")}]; expected [${shape.join(", ")}] by the config`,
      );
    this.#rest.delete(name);
    return view;
  }

  /** Puts views of a fused matrix's q, k and v rows in its place. */
  split(fused: string, names: readonly string[], c: Llama4Config): void {
    const [q, kv] = [c.nHeads * c.headDim, c.nKvHeads * c.headDim];
    const view = this.take(fused, [q + 2 * kv, c.dim]);
    let row = 0;
    for (const [i, rows] of [q, kv, kv].entries()) {
      this.#add(names[i]!, { ...view, shape: [rows, c.dim], offset: view.offset + row * rowBytes(view.dtype, c.dim) });
      row += rows;
    }
  }

  /** Throws for a tensor that nobody asked for and that `isUnknown` does not let pass. */
  refuse(isUnknown: (name: string) => boolean | undefined): void {
    const unknown = [...this.#rest].filter(isUnknown);
    if (unknown.length === 0) return;
    const scales = unknown.find((name) => /_scale$/.test(name));
    if (scales)
      throw new CheckpointError(
        `${this.#file}: ${show(scales)} scales an 8-bit matrix; fp8 checkpoints are not read, get the bf16 one or a GGUF`,
      );
    throw new CheckpointError(
      `${this.#file}: ${show(unknown[0])} belongs to no tensor of this config (${unknown.length} such); expected the config of the same model`,
    );
  }

  #nearest(name: string): string {
    // Of a large checkpoint only names of a similar length can be near.
    const candidates = [...this.#rest].filter((other) => Math.abs(other.length - name.length) < 32).slice(0, 4096);
    let best: string | undefined;
    let least = Number.POSITIVE_INFINITY;
    for (const other of candidates) {
      const distance = editDistance(name, other);
      if (distance < least) [best, least] = [other, distance];
    }
    return best === undefined ? "the file holds no name like it" : `nearest is ${show(best)}`;
  }
}

/** Levenshtein's: insertions, deletions and substitutions. */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++)
      next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)));
    row = next;
  }
  return row[b.length]!;
}

/** Equal matrices one after the other, as one tensor. */
function stacked(views: readonly TensorView[]): TensorView {
  const first = views[0]!;
  const odd = views.find(({ dtype }) => dtype !== first.dtype);
  if (odd) throw new CheckpointError(`${show(odd.name)} is ${odd.dtype}; expected ${first.dtype} as in expert 0`);
  const run = storedBytes(first);
  const pieces = views.map(({ source, offset }): Piece => ({ source, offset, run }));
  const source: ByteSource = sideBySide(first.name, 1, pieces);
  return { name: first.name, dtype: first.dtype, shape: [views.length, ...first.shape], source, offset: 0 };
}

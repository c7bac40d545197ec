// The names of tensors in a Hugging Face folder, and its tree of weights (specification §12).
//
// V vocabulary · D dim · E experts · F expert width

import type { Llama4Config } from "../model/config.ts";
import type { Block, FeedForward, MoE, Slot } from "../model/parameters.ts";
import { dtypes } from "../tensor/dtype.ts";
import { CheckpointError } from "../tensor/errors.ts";
import { type Piece, type Shape, storedBytes, type TensorView } from "../tensor/tensor.ts";
import { type Bound, blockShapes, Found, takeBlock } from "./found.ts";
import { scaledRows } from "./fp8.ts";
import { show } from "./json.ts";
import { bindVision, huggingFaceVision, listVision, visionShapes } from "./names-vision.ts";
import { sideBySide } from "./source.ts";

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

/** A tensor that a format expects: its name there, and its shape as stored, `[out, in]` for a matrix. */
export interface NamedShape {
  readonly name: string;
  readonly shape: Shape;
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

/** The tensor of a slot for low-rank changes; undefined where the layer has none. */
export function slotTensor(c: Llama4Config, layer: number, slot: Slot): string | undefined {
  const names = hf.layer(layer);
  const { moe } = c.layers[layer]!;
  const nested = c.vision ? "language_model." : "";
  if (slot === "gateUp" || slot === "down") return moe ? nested + names[slot] : undefined;
  if (slot === "w1" || slot === "w2" || slot === "w3") return nested + (moe ? names.shared : names.dense)[slot];
  return nested + names[slot];
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
export function withoutPrefix(name: string): string {
  if (/^model\.(vision_model|multi_modal_projector)\./.test(name)) return name.slice("model.".length);
  if (name.startsWith("model.language_model.")) {
    const rest = name.slice("model.language_model.".length);
    return rest.startsWith("model.") || rest.startsWith("lm_head.") ? rest : `model.${rest}`;
  }
  for (const prefix of prefixes)
    if (name.startsWith(`${prefix}model.`) || name.startsWith(`${prefix}lm_head.`)) return name.slice(prefix.length);
  return name;
}

/** The factors of an 8-bit float matrix. */
const scaleOf = (weight: string) => `${weight}_scale`;

/** The tensors with 8-bit float matrices as what they stand for, their factors gone into them. */
function unscaled(tensors: readonly TensorView[], file: string): TensorView[] {
  const scales = new Map(tensors.map((view) => [view.name, view]));
  const dequantized = tensors.map((view) => {
    if (view.dtype !== "f8_e4m3") return view;
    const scale = scales.get(scaleOf(view.name));
    if (!scale)
      throw new CheckpointError(
        `${file}: ${show(view.name)} is f8_e4m3; expected its factors as ${show(scaleOf(view.name))}; get the bf16 checkpoint or a GGUF`,
      );
    scales.delete(scale.name);
    return scaledRows(view, scale);
  });
  return dequantized.filter(({ name }) => scales.has(name));
}

const isVision = /^(vision_model|multi_modal_projector)\./;

/**
 * The trees of a Hugging Face checkpoint. A config may describe a vision encoder whose tensors an exporter left out.
 * `change` sees the matrices as they stand in the file, 8-bit floats decoded: see adapter.ts.
 */
export function bindHuggingFace(
  c: Llama4Config,
  tensors: readonly TensorView[],
  file: string,
  change: (tensors: readonly TensorView[]) => readonly TensorView[] = (tensors) => tensors,
): Bound {
  const found = new Found(change(unscaled(tensors, file)), file, withoutPrefix);
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

/** Equal matrices one after the other, as one tensor. */
function stacked(views: readonly TensorView[]): TensorView {
  const first = views[0]!;
  const odd = views.find(({ dtype }) => dtype !== first.dtype);
  if (odd) throw new CheckpointError(`${show(odd.name)} is ${odd.dtype}; expected ${first.dtype} as in expert 0`);
  const run = storedBytes(first);
  const pieces = views.map(({ source, offset }): Piece => ({ source, offset, run }));
  const source = sideBySide(first.name, 1, pieces);
  return { name: first.name, dtype: first.dtype, shape: [views.length, ...first.shape], source, offset: 0 };
}

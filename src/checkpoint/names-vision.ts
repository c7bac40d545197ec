// The names of the vision encoder's tensors in each format, as the tree that the model reads (specification §12, §13;
// gguf.md §4). Names appear here and in names-<format>.ts only.

import type { Llama4Config } from "../model/config.ts";
import { type Affine, mapVision, type VisionParameters } from "../model/parameters.ts";
import { CheckpointError } from "../tensor/errors.ts";
import type { Shape, TensorView } from "../tensor/tensor.ts";

/** The leaves of a tree in the order in which mapVision visits them. */
export function listVision<W>(tree: VisionParameters<W>): W[] {
  const list: W[] = [];
  mapVision(tree, (leaf) => list.push(leaf));
  return list;
}

/** Shapes as all formats store them, `[out, in]` for a matrix. Throws where the config has no vision encoder. */
export function visionShapes({ vision: v, dim }: Llama4Config): VisionParameters<Shape> {
  if (!v) throw new CheckpointError("the config has no vision encoder");
  const affine = (...shape: number[]): Affine<Shape> => ({ weight: shape, bias: [shape[0]!] });
  const square = affine(v.dim, v.dim);
  const block = {
    attentionNorm: affine(v.dim),
    wq: square,
    wk: square,
    wv: square,
    wo: square,
    mlpNorm: affine(v.dim),
    fc1: affine(v.ffnDim, v.dim),
    fc2: affine(v.dim, v.ffnDim),
  };
  return {
    patchEmbedding: [v.dim, v.nChannels * v.patchSize ** 2],
    classEmbedding: [v.dim],
    positionEmbedding: [(v.imageSize / v.patchSize) ** 2 + 1, v.dim],
    normPre: affine(v.dim),
    layers: Array.from({ length: v.nLayers }, () => block),
    normPost: affine(v.dim),
    adapter: { fc1: [v.adapterDim, v.dim * v.shuffle ** 2], fc2: [v.outputDim, v.adapterDim] },
    projector: [dim, v.outputDim],
  };
}

const named = (name: string): Affine<string> => ({ weight: `${name}.weight`, bias: `${name}.bias` });

export function huggingFaceVision(nLayers: number): VisionParameters<string> {
  const block = (j: number) => {
    const at = (rest: string) => named(`vision_model.model.layers.${j}.${rest}`);
    return {
      attentionNorm: at("input_layernorm"),
      wq: at("self_attn.q_proj"),
      wk: at("self_attn.k_proj"),
      wv: at("self_attn.v_proj"),
      wo: at("self_attn.o_proj"),
      mlpNorm: at("post_attention_layernorm"),
      fc1: at("mlp.fc1"),
      fc2: at("mlp.fc2"),
    };
  };
  return {
    patchEmbedding: "vision_model.patch_embedding.linear.weight",
    classEmbedding: "vision_model.class_embedding",
    positionEmbedding: "vision_model.positional_embedding_vlm",
    normPre: named("vision_model.layernorm_pre"),
    layers: Array.from({ length: nLayers }, (_, j) => block(j)),
    normPost: named("vision_model.layernorm_post"),
    adapter: {
      fc1: "vision_model.vision_adapter.mlp.fc1.weight",
      fc2: "vision_model.vision_adapter.mlp.fc2.weight",
    },
    projector: "multi_modal_projector.linear_1.weight",
  };
}

export function ggufVision(nLayers: number): VisionParameters<string> {
  const block = (j: number) => {
    const at = (rest: string) => named(`v.blk.${j}.${rest}`);
    return {
      attentionNorm: at("ln1"),
      wq: at("attn_q"),
      wk: at("attn_k"),
      wv: at("attn_v"),
      wo: at("attn_out"),
      mlpNorm: at("ln2"),
      fc1: at("ffn_up"),
      fc2: at("ffn_down"),
    };
  };
  return {
    patchEmbedding: "v.patch_embd.weight",
    classEmbedding: "v.class_embd",
    positionEmbedding: "v.position_embd.weight",
    normPre: named("v.pre_ln"),
    layers: Array.from({ length: nLayers }, (_, j) => block(j)),
    normPost: named("v.post_ln"),
    adapter: { fc1: "mm.model.mlp.1.weight", fc2: "mm.model.mlp.2.weight" },
    projector: "mm.model.fc.weight",
  };
}

/** A name in a mmproj file as the table above has it: some writers differ (gguf.md §4). */
export function ggufVisionName(name: string): string {
  if (name === "v.class_embd.weight") return "v.class_embd";
  return name.replace(/^(v\.blk\.\d+\.)attn_post_norm\./, "$1ln2.");
}

/** How a tensor is cut between model-parallel shards: its rows, its columns, or not at all. */
export interface Cut {
  readonly name: string;
  readonly by: "rows" | "columns" | "none";
}

export function metaVision(nLayers: number): VisionParameters<Cut> {
  const whole = (name: string): Cut => ({ name, by: "none" });
  const rows = (name: string): Cut => ({ name, by: "rows" });
  const columns = (name: string): Cut => ({ name, by: "columns" });
  const norm = (name: string) => ({ weight: whole(`${name}.weight`), bias: whole(`${name}.bias`) });
  const byRows = (name: string) => ({ weight: rows(`${name}.weight`), bias: rows(`${name}.bias`) });
  const byColumns = (name: string) => ({ weight: columns(`${name}.weight`), bias: whole(`${name}.bias`) });
  const encoder = (rest: string) => `vision_embeddings.vision_encoder.${rest}`;
  const block = (j: number) => {
    const at = (rest: string) => encoder(`transformer.resblocks.${j}.${rest}`);
    return {
      attentionNorm: norm(at("ln_1")),
      wq: byRows(at("attn.wq")),
      wk: byRows(at("attn.wk")),
      wv: byRows(at("attn.wv")),
      wo: byColumns(at("attn.wo")),
      mlpNorm: norm(at("ln_2")),
      fc1: byRows(at("mlp.c_fc")),
      fc2: byColumns(at("mlp.c_proj")),
    };
  };
  return {
    patchEmbedding: rows(encoder("conv1._linear.weight")),
    classEmbedding: whole(encoder("class_embedding")),
    positionEmbedding: whole(encoder("positional_embedding_vlm")),
    normPre: norm(encoder("ln_pre")),
    layers: Array.from({ length: nLayers }, (_, j) => block(j)),
    normPost: norm(encoder("ln_post")),
    adapter: {
      fc1: rows("vision_embeddings.vision_adapter.mlp.c_fc.weight"),
      fc2: columns("vision_embeddings.vision_adapter.mlp.c_proj.weight"),
    },
    projector: rows("vision_projection.weight"),
  };
}

/** The table of positions before it was made for tiles: [class row first]; no published file has it alone. */
export const legacyPositions = "vision_embeddings.vision_encoder.positional_embedding";

/** The tree of views that `take` finds by a format's names and the shapes of the config. */
export function bindVision<N>(
  c: Llama4Config,
  names: VisionParameters<N>,
  take: (name: N, shape: Shape) => TensorView,
): VisionParameters<TensorView> {
  const shapes = listVision(visionShapes(c));
  let next = 0;
  return mapVision(names, (name) => take(name, shapes[next++]!));
}

// Which type each weight of a file gets: the mixes of specification gguf.md §7, generalised to any number of layers.

import { type DType, dtypes } from "../tensor/dtype.ts";

export const mixes = ["q4_k_m", "q4_k", "q4_0", "q6_k", "q8_0", "bf16", "f16", "f32"] as const;
export type Mix = (typeof mixes)[number];

/** A field of model/parameters.ts; routed experts' gate, up and down are w1, w3 and w2. */
export type Role =
  | "tokEmbeddings"
  | "output"
  | "norm"
  | "attentionNorm"
  | "wq"
  | "wk"
  | "wv"
  | "wo"
  | "ffnNorm"
  | "router"
  | "w1"
  | "w2"
  | "w3";

/**
 * The type of a weight whose rows have `columns` elements; `layer` does not matter outside of layers. An embedding table
 * that is the output matrix too (tied) has the role "output".
 */
export function storedType(mix: Mix, role: Role, layer: number, nLayers: number, columns: number): DType {
  if (role === "router" || role.toLowerCase().endsWith("norm")) return "f32";
  if (mix === "bf16" || mix === "f16" || mix === "f32") return mix;
  const wanted = wantedType(mix, role, layer, nLayers);
  const fallbacks: readonly DType[] = [wanted, mix === "q4_k_m" && wanted === "q4_k" ? "q5_0" : "q8_0"];
  return fallbacks.find((dtype) => columns % dtypes[dtype].blockElements === 0) ?? "f16";
}

function wantedType(mix: Exclude<Mix, "bf16" | "f16" | "f32">, role: Role, layer: number, nLayers: number): DType {
  switch (mix) {
    case "q4_k_m":
      return role === "output" || ((role === "wv" || role === "w2") && usesMoreBits(layer, nLayers)) ? "q6_k" : "q4_k";
    case "q4_k":
    case "q4_0":
      return role === "output" ? "q6_k" : mix;
    default:
      return mix;
  }
}

/** The layers to which llama.cpp's "_M" mixes give more bits: the first and last eighth, and every third between. */
export function usesMoreBits(layer: number, nLayers: number): boolean {
  const eighth = Math.floor(nLayers / 8);
  return layer < eighth || layer >= Math.floor((7 * nLayers) / 8) || (layer - eighth) % 3 === 2;
}

/** The label `general.file_type` of a file; what counts is each tensor's own type. */
export const fileTypes: Readonly<Record<Mix, number>> = {
  f32: 0,
  f16: 1,
  q4_0: 2,
  q8_0: 7,
  q4_k: 14,
  q4_k_m: 15,
  q6_k: 18,
  bf16: 32,
};

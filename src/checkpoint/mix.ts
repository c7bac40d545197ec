// Which type each weight of a file gets: the mixes of specification gguf.md §7, generalised to any number of layers.

import type { Llama4Config } from "../model/config.ts";
import { type DType, dtypes } from "../tensor/dtype.ts";

export const mixes = ["q4_k_m", "q4_k", "q4_0", "q6_k", "q8_0", "bf16", "f16", "f32"] as const;
export type Mix = (typeof mixes)[number];
export type PlainMix = "bf16" | "f16" | "f32";

/** True for the types that a folder can hold, each for all of its tensors alike. */
export function isPlain(mix: Mix): mix is PlainMix {
  return mix === "bf16" || mix === "f16" || mix === "f32";
}

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

/** Where a weight stands: in which layer, if in one, and the elements of its rows. */
export interface Place {
  readonly role: Role;
  readonly layer?: number | undefined;
  readonly columns: number;
}

/** The type of a weight in a GGUF file. */
export function storedType(
  mix: Mix,
  { role, layer = 0, columns }: Place,
  c: Pick<Llama4Config, "layers" | "tied">,
): DType {
  if (role === "router" || role.toLowerCase().endsWith("norm")) return "f32";
  if (isPlain(mix)) return mix;
  const isOutput = role === "output" || (c.tied && role === "tokEmbeddings");
  const wanted = wantedType(mix, isOutput ? "output" : role, layer, c.layers.length);
  const fallbacks: readonly DType[] = [wanted, mix === "q4_k_m" && wanted === "q4_k" ? "q5_0" : "q8_0"];
  return fallbacks.find((dtype) => columns % dtypes[dtype].blockElements === 0) ?? "f16";
}

function wantedType(mix: Exclude<Mix, PlainMix>, role: Role, layer: number, nLayers: number): DType {
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

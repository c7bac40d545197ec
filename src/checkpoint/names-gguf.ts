// The names of tensors in GGUF files, and their trees of weights (gguf.md §3).
//
// V vocabulary · D dim · E experts · F expert width

import type { Llama4Config } from "../model/config.ts";
import type { Block, FeedForward, Parameters, VisionParameters } from "../model/parameters.ts";
import type { Shape, TensorView } from "../tensor/tensor.ts";
import { Found, takeBlock } from "./found.ts";
import { bindVision, ggufVision, ggufVisionName } from "./names-vision.ts";

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

/** The rows of the embedding table; 0 where there is none. */
export function ggufVocabRows(tensors: readonly TensorView[]): number {
  return tensors.find(({ name }) => name === gguf.tokEmbeddings)?.shape[0] ?? 0;
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

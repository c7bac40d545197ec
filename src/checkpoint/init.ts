// Random initialisation: every model that tests and benchmarks run comes from here, and training starts here.

import { type Llama4Config, layerKinds, presets, type VisionConfig } from "../model/config.ts";
import { type DType, dtypes, f32ToBf16, f32ToF16 } from "../tensor/dtype.ts";
import { RequestError } from "../tensor/errors.ts";
import { elementCount, type Shape } from "../tensor/tensor.ts";
import { mostLayers } from "./config.ts";
import type { OutTensor } from "./writers.ts";

/** What `init` may change about a preset; what is left out follows the preset's proportions to `dim`. */
export interface Overrides {
  readonly layers?: number;
  readonly dim?: number;
  readonly heads?: number;
  readonly kvHeads?: number;
  readonly headDim?: number;
  readonly ffn?: number;
  readonly expertFfn?: number;
  readonly experts?: number;
  readonly topK?: number;
  /** Every n-th layer has experts; 0 = none. */
  readonly moeStep?: number;
  readonly chunk?: number;
  readonly vocab?: number;
  readonly vision?: boolean;
  /** Of the vision encoder, which any of these asks for. */
  readonly visionLayers?: number;
  readonly visionDim?: number;
  readonly visionHeads?: number;
  /** Pixels along a tile's side. */
  readonly visionTile?: number;
}

/** A preset with overrides. Throws RequestError for sizes that make no model. */
export function overridePreset(name: keyof typeof presets, overrides: Overrides): Llama4Config {
  const preset = presets[name];
  for (const [key, value] of Object.entries(overrides)) {
    const least = key === "experts" || key === "moeStep" ? 0 : 1;
    if (typeof value === "number" && !(Number.isInteger(value) && value >= least)) {
      throw new RequestError(`init: ${key} is ${value}; expected a whole number of at least ${least}`);
    }
  }
  if (overrides.layers !== undefined && overrides.layers > mostLayers)
    throw new RequestError(`init: layers is ${overrides.layers}; expected at most ${mostLayers}`);
  const dim = overrides.dim ?? preset.dim;
  const headDim = overrides.headDim ?? Math.min(dim, preset.headDim);
  const scaled = (width: number) => Math.max(32, Math.round((width * dim) / preset.dim / 32) * 32);
  const nHeads = overrides.heads ?? Math.max(1, Math.round((preset.nHeads * dim) / preset.dim));
  const nExperts = overrides.experts ?? preset.nExperts;
  const presetStep = preset.layers.findIndex((kind) => kind.moe) + 1;
  const moeStep = nExperts === 0 ? 0 : (overrides.moeStep ?? presetStep);
  const nopeInterval = preset.layers.findIndex((kind) => !kind.rope) + 1;
  const { vision, ...text } = preset;
  const { visionLayers, visionDim, visionHeads, visionTile } = overrides;
  const isSized = [visionLayers, visionDim, visionHeads, visionTile].some((size) => size !== undefined);
  const wantsVision = overrides.vision ?? isSized;
  const config: Llama4Config = {
    ...text,
    dim,
    headDim,
    nHeads,
    nKvHeads: overrides.kvHeads ?? largestDivisor(nHeads, Math.ceil((nHeads * preset.nKvHeads) / preset.nHeads)),
    ffnDim: overrides.ffn ?? scaled(preset.ffnDim),
    expertDim: overrides.expertFfn ?? scaled(preset.expertDim),
    nExperts,
    topK: overrides.topK ?? preset.topK,
    layers: layerKinds(overrides.layers ?? preset.layers.length, nopeInterval, moeStep),
    attentionChunk: overrides.chunk ?? preset.attentionChunk,
    vocabSize: overrides.vocab ?? preset.vocabSize,
    ...(wantsVision && vision && { vision: overrideVision(vision, overrides) }),
  };
  if (config.headDim % 2)
    throw new RequestError(`init: head-dim is ${config.headDim}; expected an even number (rotary pairs)`);
  if (config.nHeads % config.nKvHeads)
    throw new RequestError(
      `init: ${config.nHeads} heads cannot share ${config.nKvHeads} key/value heads; expected a divisor`,
    );
  if (config.nExperts > 0 && config.topK > config.nExperts)
    throw new RequestError(`init: top-k is ${config.topK} of ${config.nExperts} experts`);
  if (wantsVision && !vision)
    throw new RequestError(`init: the preset ${name} has no vision encoder; leave out --vision on`);
  if (isSized && !wantsVision) throw new RequestError("init: sizes of a vision encoder with --vision off");
  return config;
}

/** The encoder at another width keeps the proportions of the published one: heads near 88, adapter and feed-forward to scale. */
function overrideVision(published: VisionConfig, overrides: Overrides): VisionConfig {
  const { visionLayers: nLayers = published.nLayers, visionDim: dim = published.dim } = overrides;
  const { visionTile: imageSize = published.imageSize } = overrides;
  const cell = published.patchSize * published.shuffle; // pixels along a side of what becomes one token
  if (dim % 4)
    throw new RequestError(`init: vision-dim is ${dim}; expected a multiple of 4 (rotary pairs of two axes)`);
  if (imageSize % cell) throw new RequestError(`init: vision-tile is ${imageSize}; expected a multiple of ${cell}`);
  const nHeads =
    overrides.visionHeads ?? largestDivisor(dim / 4, Math.max(1, Math.round((published.nHeads * dim) / published.dim)));
  if (dim % (4 * nHeads))
    throw new RequestError(
      `init: vision-heads is ${nHeads}; expected a divisor of ${dim / 4}, a quarter of the width (rotary pairs of two axes)`,
    );
  const scaled = (width: number) => Math.max(32, Math.round((width * dim) / published.dim / 32) * 32);
  return {
    ...published,
    ...{ nLayers, dim, nHeads, imageSize },
    ffnDim: dim * published.shuffle ** 2, // as the adapter's input is wide: Hugging Face's config has one word for both
    adapterDim: scaled(published.adapterDim),
    outputDim: scaled(published.outputDim),
  };
}

function largestDivisor(n: number, most: number): number {
  let divisor = most;
  while (n % divisor) divisor--;
  return divisor;
}

/**
 * Random tensors for names and shapes of Hugging Face's layout. Matrices have mean 0 and variance 1/fan-in, those that
 * write into the residual stream a further 1/(2L), embeddings 1; gains are 1, biases 0. The bytes depend on the seed, the
 * tensor's name and its dtype only.
 */
export function randomTensors(
  tensors: readonly { readonly name: string; readonly shape: Shape }[],
  nLayers: number,
  dtype: "f32" | "f16" | "bf16",
  seed: number,
): OutTensor[] {
  return tensors.map(({ name, shape }) => ({
    name,
    dtype,
    shape,
    chunks: () => randomBytes(shape, dtype, standardDeviation(name, shape, nLayers), hashName(name, seed)),
  }));
}

/** The standard deviation of a tensor's elements; 0 stands for a constant: 1 for a gain, 0 for a bias. */
function standardDeviation(name: string, shape: Shape, nLayers: number): { sigma: number; constant: number } {
  if (name.endsWith(".bias")) return { sigma: 0, constant: 0 };
  if (/embed_tokens|embedding/.test(name) && !/patch_embedding/.test(name))
    return { sigma: name.includes("embed_tokens") ? 1 : 0.02, constant: 0 };
  if (shape.length === 1) return { sigma: 0, constant: 1 };
  const fanIn = shape[1]!; // experts stand [E, in, out], other matrices [out, in]
  const residual = /(o_proj|down_proj|fc2)(\.weight)?$/.test(name) && !name.includes("adapter");
  return { sigma: 1 / Math.sqrt(fanIn * (residual ? 2 * nLayers : 1)), constant: 0 };
}

const blockElements = 1 << 20;

// The sum of four random bytes: bell-shaped, symmetric about 510, standard deviation √(4·(256² − 1)/12).
const sums = 1021;
const sumMean = 510;
const sumSigma = Math.sqrt((256 ** 2 - 1) / 3);

async function* randomBytes(
  shape: Shape,
  dtype: DType,
  { sigma, constant }: { sigma: number; constant: number },
  key: number,
): AsyncGenerator<Uint8Array> {
  const n = elementCount(shape);
  const levels = Float32Array.from({ length: sums }, (_, sum) => constant + ((sum - sumMean) / sumSigma) * sigma);
  const Elements = dtype === "f32" ? Float32Array : Uint16Array;
  const table = new Elements(sums);
  for (let i = 0; i < sums; i++)
    table[i] = dtype === "bf16" ? f32ToBf16(levels[i]!) : dtype === "f16" ? f32ToF16(levels[i]!) : levels[i]!;
  for (let at = 0, block = 0; at < n; at += blockElements, block++) {
    const out = new Elements(Math.min(blockElements, n - at));
    const blockKey = mix(key ^ mix(block));
    for (let i = 0; i < out.length; i++) {
      const random = mix((blockKey + Math.imul(i, 0x9e3779b9)) | 0);
      const pairs = (random & 0x00ff00ff) + ((random >>> 8) & 0x00ff00ff);
      out[i] = table[(pairs & 0xffff) + (pairs >>> 16)]!;
    }
    yield new Uint8Array(out.buffer, 0, out.length * dtypes[dtype].blockBytes);
  }
}

/** A bijection of 32-bit integers in which every input bit moves every output bit (the finaliser of MurmurHash3). */
function mix(x: number): number {
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return x ^ (x >>> 16);
}

function hashName(name: string, seed: number): number {
  let hash = mix(seed | 0);
  for (let i = 0; i < name.length; i++) hash = mix(hash ^ name.charCodeAt(i));
  return hash;
}

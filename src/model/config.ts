// What a Llama 4 model is: sizes and choices, in the paper's words. Checkpoint formats are turned into this by
// checkpoint/config-*.ts, so that the model never sees a key of a file.

/** How positions enter a layer, what it may see, and which feed-forward it has. Derived once, by `layerKinds`. */
export interface LayerKind {
  /** Rotary positions; a layer without them (NoPE) tunes its attention temperature instead. */
  readonly rope: boolean;
  /** Keys are visible only inside the query's chunk of `attentionChunk` positions. */
  readonly chunked: boolean;
  /** Routed experts beside a shared one; otherwise one dense feed-forward. */
  readonly moe: boolean;
}

/** Frequencies of long wavelengths are divided by `factor` (Llama 3's rule; specification §3.4). */
export interface RopeScaling {
  readonly factor: number;
  readonly lowFreqFactor: number;
  readonly highFreqFactor: number;
  readonly originalContext: number;
}

/** How images become the encoder's tiles. */
export interface Preprocessing {
  /** Most tiles of an image, the global one not counted. */
  readonly maxTiles: number;
  /** Whether images are enlarged to the largest canvas that fits them. */
  readonly toMaxCanvas: boolean;
  /** Of each channel, whose values in [0, 1] become (value − mean) / std. */
  readonly mean: readonly number[];
  readonly std: readonly number[];
}

export interface VisionConfig {
  readonly dim: number;
  readonly nLayers: number;
  readonly nHeads: number;
  readonly ffnDim: number;
  /** Pixels along a side of a tile, and of a patch. */
  readonly imageSize: number;
  readonly patchSize: number;
  readonly nChannels: number;
  readonly normEps: number;
  readonly ropeTheta: number;
  /** Side of the square of patches that becomes one token: 1 / pixel_shuffle_ratio. */
  readonly shuffle: number;
  /** Widths of the adapter's two layers. */
  readonly adapterDim: number;
  readonly outputDim: number;
  readonly preprocessing: Preprocessing;
}

/** Ids that the checkpoint's configuration names; a tokenizer finds the rest by their text. */
export interface TokenIds {
  readonly bos?: number;
  readonly eos: readonly number[];
  readonly imageStart?: number;
  readonly imageEnd?: number;
  /** `<|patch|>`: its rows are replaced by image features. */
  readonly patch?: number;
}

export interface Llama4Config {
  readonly vocabSize: number;
  readonly dim: number;
  readonly nHeads: number;
  readonly nKvHeads: number;
  readonly headDim: number;
  /** Width of a dense layer's feed-forward. */
  readonly ffnDim: number;
  /** Width of a routed expert, and of the shared one. */
  readonly expertDim: number;
  readonly nExperts: number;
  readonly topK: number;
  readonly layers: readonly LayerKind[];
  /** Positions of an attention chunk, where a layer is chunked. */
  readonly attentionChunk: number;
  readonly normEps: number;
  /** q and k of rotary layers are normalised per head, after the rotation, without a weight. */
  readonly qkNorm: boolean;
  readonly ropeTheta: number;
  readonly ropeScaling?: RopeScaling;
  /** Divisors of the d/2 rotary frequencies as a file gives them; win over `ropeScaling`. */
  readonly ropeDivisors?: readonly number[];
  /** Queries of NoPE layers are scaled by `1 + scale · ln(⌊(p + 1) / floor⌋ + 1)`. */
  readonly temperature?: { readonly floor: number; readonly scale: number };
  /** The output matrix is the embedding table. */
  readonly tied: boolean;
  /** Longest context, in tokens, that the model was made for. */
  readonly contextLength: number;
  readonly tokens: TokenIds;
  readonly vision?: VisionConfig;
}

/** The usual pattern: every `nopeInterval`-th layer is global without rotation, every `moeStep`-th has experts; 0 = none. */
export function layerKinds(nLayers: number, nopeInterval: number, moeStep: number): LayerKind[] {
  const every = (layer: number, step: number) => step > 0 && (layer + 1) % step === 0;
  return Array.from({ length: nLayers }, (_, layer) => {
    const nope = every(layer, nopeInterval);
    return { rope: !nope, chunked: !nope, moe: every(layer, moeStep) };
  });
}

/** Specification §8. */
export const publishedPreprocessing: Preprocessing = {
  maxTiles: 16,
  toMaxCanvas: false,
  mean: [0.5, 0.5, 0.5],
  std: [0.5, 0.5, 0.5],
};

const released = {
  vocabSize: 202048,
  dim: 5120,
  nHeads: 40,
  nKvHeads: 8,
  headDim: 128,
  ffnDim: 16384,
  expertDim: 8192,
  topK: 1,
  attentionChunk: 8192,
  normEps: 1e-5,
  ropeTheta: 500000,
  temperature: { floor: 8192, scale: 0.1 },
  tied: false,
  tokens: { bos: 200000, eos: [200001, 200007, 200008], imageStart: 200080, imageEnd: 200081, patch: 200092 },
  vision: {
    dim: 1408,
    nLayers: 34,
    nHeads: 16,
    ffnDim: 5632,
    imageSize: 336,
    patchSize: 14,
    nChannels: 3,
    normEps: 1e-5,
    ropeTheta: 10000,
    shuffle: 2,
    adapterDim: 4096,
    outputDim: 4096,
    preprocessing: publishedPreprocessing,
  },
} as const;

/** The published models (specification §1), and a Behemoth whose dimensions are hypothetical: it was never released. */
export const presets: Readonly<Record<"scout" | "maverick" | "behemoth", Llama4Config>> = {
  scout: {
    ...released,
    nExperts: 16,
    layers: layerKinds(48, 4, 1),
    qkNorm: true,
    ropeScaling: { factor: 16, lowFreqFactor: 1, highFreqFactor: 1, originalContext: 8192 },
    contextLength: 10485760,
  },
  maverick: { ...released, nExperts: 128, layers: layerKinds(48, 4, 2), qkNorm: false, contextLength: 1048576 },
  // Only "288B active, nearly 2T in all, 16 experts" is public; these widths satisfy that (specification §18).
  behemoth: (({ vision: _, ...text }) => ({
    ...text,
    dim: 13312,
    nHeads: 104,
    expertDim: 20480,
    ffnDim: 40960,
    nExperts: 16,
    layers: layerKinds(140, 4, 1),
    qkNorm: true,
    contextLength: 1048576,
  }))(released),
};

/** Rows of the text model that a tile becomes: `<|patch|>` tokens. */
export function tokensPerTile({ imageSize, patchSize, shuffle }: VisionConfig): number {
  return (imageSize / patchSize / shuffle) ** 2;
}

/** Exact parameter counts, by specification §2: `active` are those that one text token passes, its embedding row's table included. */
export function countParameters(c: Llama4Config): { total: number; active: number } {
  const { dim, headDim } = c;
  const attention = 2 * dim * c.nHeads * headDim + 2 * dim * c.nKvHeads * headDim + 2 * dim;
  const expert = 3 * dim * c.expertDim;
  let total = c.vocabSize * dim * (c.tied ? 1 : 2) + dim;
  let active = total;
  for (const layer of c.layers) {
    const always = attention + (layer.moe ? expert + dim * c.nExperts : 3 * dim * c.ffnDim);
    total += always + (layer.moe ? c.nExperts * expert : 0);
    active += always + (layer.moe ? c.topK * expert : 0);
  }
  return { total: total + countVision(c), active };
}

function countVision({ vision: v, dim }: Llama4Config): number {
  if (!v) return 0;
  const block = 4 * (v.dim ** 2 + v.dim) + 2 * v.dim * v.ffnDim + v.ffnDim + v.dim + 4 * v.dim;
  const patches = (v.imageSize / v.patchSize) ** 2;
  const stem = v.nChannels * v.patchSize ** 2 * v.dim + v.dim + (patches + 1) * v.dim + 4 * v.dim;
  const adapter = v.dim * v.shuffle ** 2 * v.adapterDim + v.adapterDim * v.outputDim;
  return stem + v.nLayers * block + adapter + v.outputDim * dim;
}

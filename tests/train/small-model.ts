// A small Llama 4 that has everything: dense layers and layers with experts, chunk-local and global ones, a vision encoder.
// A step of it: two sequences, past a chunk boundary, one with an image of two tiles.

import { type Llama4Config, layerKinds, publishedPreprocessing, tokensPerTile } from "../../src/model/config.ts";
import type { Parameters, VisionParameters } from "../../src/model/parameters.ts";
import { forward } from "../../src/model/transformer.ts";
import { encodeImage } from "../../src/model/vision.ts";
import { crossEntropy } from "../../src/tensor/ops.ts";
import type { Shape, Tensor } from "../../src/tensor/tensor.ts";
import { integers, numbers } from "../backends/drawn.ts";

const vision = {
  ...{ dim: 16, nLayers: 2, nHeads: 2, ffnDim: 12, imageSize: 8, patchSize: 2, nChannels: 3, normEps: 1e-5 },
  ...{ ropeTheta: 100, shuffle: 2, adapterDim: 10, outputDim: 9, preprocessing: publishedPreprocessing },
};

export const config: Llama4Config = {
  vocabSize: 13,
  dim: 12,
  nHeads: 4,
  nKvHeads: 2,
  headDim: 6,
  ffnDim: 14,
  expertDim: 7,
  nExperts: 3,
  topK: 1,
  layers: layerKinds(4, 4, 2),
  attentionChunk: 4,
  normEps: 1e-5,
  qkNorm: true,
  ropeTheta: 100,
  temperature: { floor: 3, scale: 0.4 },
  tied: false,
  contextLength: 64,
  tokens: { eos: [] },
  vision,
};

export interface Weights<W> {
  readonly text: Parameters<W>;
  readonly vision: VisionParameters<W>;
}

/** Both trees, each weight made from its shape and name; a tied output is the table itself. */
export function weights<W>(c: Llama4Config, make: (shape: Shape, name: string) => W): Weights<W> {
  const { dim, headDim } = c;
  const v = c.vision ?? vision;
  const of = (name: string, ...shape: number[]) => make(shape, name);
  const feedForward = (name: string, width: number) => ({
    w1: of(`${name}.w1`, width, dim),
    w2: of(`${name}.w2`, dim, width),
    w3: of(`${name}.w3`, width, dim),
  });
  const affine = (name: string, out: number, ...rest: number[]) => ({
    weight: of(`${name}.weight`, out, ...rest),
    bias: of(`${name}.bias`, out),
  });
  const tokEmbeddings = of("tokEmbeddings", c.vocabSize, dim);
  return {
    text: {
      tokEmbeddings,
      layers: c.layers.map(({ moe }, i) => ({
        attentionNorm: of(`${i}.attentionNorm`, dim),
        wq: of(`${i}.wq`, c.nHeads * headDim, dim),
        wk: of(`${i}.wk`, c.nKvHeads * headDim, dim),
        wv: of(`${i}.wv`, c.nKvHeads * headDim, dim),
        wo: of(`${i}.wo`, dim, c.nHeads * headDim),
        ffnNorm: of(`${i}.ffnNorm`, dim),
        ffn: moe
          ? {
              router: of(`${i}.router`, c.nExperts, dim),
              experts: {
                gate: of(`${i}.gate`, c.nExperts, c.expertDim, dim),
                up: of(`${i}.up`, c.nExperts, c.expertDim, dim),
                down: of(`${i}.down`, c.nExperts, dim, c.expertDim),
              },
              shared: feedForward(`${i}.shared`, c.expertDim),
            }
          : feedForward(`${i}`, c.ffnDim),
      })),
      norm: of("norm", dim),
      output: c.tied ? tokEmbeddings : of("output", c.vocabSize, dim),
    },
    vision: {
      patchEmbedding: of("patchEmbedding", v.dim, v.nChannels * v.patchSize ** 2),
      classEmbedding: of("classEmbedding", v.dim),
      positionEmbedding: of("positionEmbedding", (v.imageSize / v.patchSize) ** 2 + 1, v.dim),
      normPre: affine("normPre", v.dim),
      layers: Array.from({ length: v.nLayers }, (_, i) => ({
        attentionNorm: affine(`vision ${i}.attentionNorm`, v.dim),
        wq: affine(`vision ${i}.wq`, v.dim, v.dim),
        wk: affine(`vision ${i}.wk`, v.dim, v.dim),
        wv: affine(`vision ${i}.wv`, v.dim, v.dim),
        wo: affine(`vision ${i}.wo`, v.dim, v.dim),
        mlpNorm: affine(`vision ${i}.mlpNorm`, v.dim),
        fc1: affine(`vision ${i}.fc1`, v.ffnDim, v.dim),
        fc2: affine(`vision ${i}.fc2`, v.dim, v.ffnDim),
      })),
      normPost: affine("normPost", v.dim),
      adapter: {
        fc1: of("adapter.fc1", v.adapterDim, v.dim * v.shuffle ** 2),
        fc2: of("adapter.fc2", v.outputDim, v.adapterDim),
      },
      projector: of("projector", dim, v.outputDim),
    },
  };
}

const tiles = 2;
export const tokens = integers(24, 13, 1);
export const segments = [
  { row: 0, length: 14, position: 0, sequence: 0 },
  { row: 14, length: 10, position: 0, sequence: 1 },
];
const targets = integers(24, 13, 2).map((target, row) => (row > 1 && row < 12 ? -1 : target)); // not the image's

/** The loss of the step on the tensors' own backend. */
export async function lossOf(p: Weights<Tensor>, c: Llama4Config): Promise<Tensor> {
  const { backend } = p.text.tokEmbeddings;
  const { nChannels, imageSize } = vision;
  const pixels = backend.from(numbers(tiles * nChannels * imageSize ** 2, 3), [tiles, nChannels, imageSize, imageSize]);
  const images = {
    rows: await encodeImage(p.vision, c, pixels),
    at: Int32Array.from({ length: tiles * tokensPerTile(vision) }, (_, i) => 3 + i),
  };
  const wanted = tokens.map((_, row) => row);
  return crossEntropy(await forward(p.text, c, { tokens, segments, images, wanted }), targets);
}

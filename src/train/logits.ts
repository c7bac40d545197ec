// A batch through the model, by the same forward as inference.

import type { Llama4Config } from "../model/config.ts";
import { forward, type Step } from "../model/transformer.ts";
import { encodeImage } from "../model/vision.ts";
import { normalise } from "../prompt/image.ts";
import type { Backend } from "../tensor/backend.ts";
import { TrainingError } from "../tensor/errors.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { Batch } from "./batches.ts";
import type { Weights } from "./leaves.ts";

/** The logits `[wanted, V]` of the rows that are wanted. */
export async function logitsOf(
  backend: Backend,
  weights: Weights,
  c: Llama4Config,
  { tokens, segments, wanted, images }: Batch,
  choose?: Step["choose"],
): Promise<Tensor> {
  const step = { tokens, segments, wanted, ...(choose && { choose }) };
  if (!images) return forward(weights.text, c, step);
  return forward(weights.text, c, {
    ...step,
    images: { rows: await imageRows(backend, weights, c, images), at: images.at },
  });
}

/** What stands for images in a step. */
export async function imageRows(
  backend: Backend,
  { vision }: Weights,
  c: Llama4Config,
  images: NonNullable<Batch["images"]>,
): Promise<Tensor> {
  if (!vision || !c.vision) throw new TrainingError("a document with images for a model without a vision encoder");
  const { imageSize: S, nChannels: C, preprocessing } = c.vision;
  const pixels = backend.from(normalise(images.pixels, S, preprocessing), [images.tiles, C, S, S]);
  return encodeImage(vision, c, pixels);
}

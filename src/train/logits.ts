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
  { text, vision }: Weights,
  c: Llama4Config,
  { tokens, segments, wanted, images }: Batch,
  choose?: Step["choose"],
): Promise<Tensor> {
  const step = { tokens, segments, wanted, ...(choose && { choose }) };
  if (!images) return forward(text, c, step);
  if (!vision || !c.vision) throw new TrainingError("a document with images for a model without a vision encoder");
  const { imageSize: S, nChannels: C, preprocessing } = c.vision;
  const pixels = backend.from(normalise(images.pixels, S, preprocessing), [images.tiles, C, S, S]);
  return forward(text, c, { ...step, images: { rows: await encodeImage(vision, c, pixels), at: images.at } });
}

// Hugging Face's preprocessor_config.json: how images become the tiles that the encoder was trained on (specification §8.5).

import { type Preprocessing, publishedPreprocessing, type VisionConfig } from "../model/config.ts";
import { Fields, type Json } from "./json.ts";

const mostTiles = 64; // of an image: four times the published, and the canvases to choose from are 500

/** Keys that are absent or `null` mean what was published. Steps other than the published ones are refused. */
export function readPreprocessorConfig(
  json: Json,
  { imageSize, nChannels }: Pick<VisionConfig, "imageSize" | "nChannels">,
  name = "preprocessor_config.json",
): Preprocessing {
  const fields = new Fields(json, name);
  for (const step of ["do_convert_rgb", "do_resize", "do_rescale", "do_normalize"])
    if (fields.has(step) && !fields.flag(step)) throw fields.wrong(step, "true");
  if (fields.has("do_center_crop") && fields.flag("do_center_crop")) throw fields.wrong("do_center_crop", "false");
  if (fields.has("resample") && fields.raw("resample") !== 2) throw fields.wrong("resample", "2, bilinear");
  if (fields.has("rescale_factor") && Math.abs(fields.positive("rescale_factor") * 255 - 1) > 1e-6)
    throw fields.wrong("rescale_factor", "1/255");
  const size = fields.object("size");
  for (const side of size ? ["height", "width"] : [])
    if (size?.raw(side) !== imageSize) throw size!.wrong(side, `${imageSize}, the side of the encoder's tiles`);
  const { maxTiles, toMaxCanvas, mean, std } = publishedPreprocessing;
  return {
    maxTiles: fields.has("max_patches") ? fields.count("max_patches", { most: mostTiles }) : maxTiles,
    toMaxCanvas: fields.has("resize_to_max_canvas") ? fields.flag("resize_to_max_canvas") : toMaxCanvas,
    mean: perChannel(fields, "image_mean", nChannels, Number.NEGATIVE_INFINITY) ?? mean,
    std: perChannel(fields, "image_std", nChannels, 0) ?? std,
  };
}

/** One number for each channel, or one for all, above `least`. */
function perChannel(fields: Fields, key: string, nChannels: number, least: number): number[] | undefined {
  const value = fields.raw(key);
  if (value === undefined) return undefined;
  const values = Array.isArray(value) ? value : Array.from({ length: nChannels }, () => value);
  const fits = (x: unknown) => typeof x === "number" && Number.isFinite(x) && x > least;
  if (values.length !== nChannels || !values.every(fits))
    throw fields.wrong(key, `${nChannels} numbers${least === 0 ? " above 0" : ""}, one for each channel`);
  return values;
}

/** `preprocessor_config.json` for an encoder. */
export function toPreprocessorConfig({ imageSize, preprocessing }: VisionConfig): Json {
  const { maxTiles, toMaxCanvas, mean, std } = preprocessing;
  return {
    image_processor_type: "Llama4ImageProcessorFast",
    processor_class: "Llama4Processor",
    do_convert_rgb: true,
    do_resize: true,
    size: { height: imageSize, width: imageSize },
    resample: 2,
    max_patches: maxTiles,
    resize_to_max_canvas: toMaxCanvas,
    do_rescale: true,
    rescale_factor: 1 / 255,
    do_normalize: true,
    image_mean: mean,
    image_std: std,
  };
}

// Images and videos on the command line: which the options name, where they stand, and what they look like.

import { closeSync, existsSync, openSync, readSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { type Command, Option } from "commander";
import { type ContentPart, type Llama4, type MediaOptions, shippedModel } from "../index.ts";
import { checkBytes, existing, formatOf, named, openImage } from "../prompt/decode-image.ts";
import { openVideo } from "../prompt/decode-video.ts";
import { layoutOf } from "../prompt/image.ts";
import { imageTokenCount, tileOptions, VIDEO_TOKENS } from "../prompt/media.ts";
import { type Pixels, resize } from "../prompt/resize.ts";
import { planFrames } from "../prompt/video.ts";
import { RequestError } from "../tensor/errors.ts";
import { collect, whole } from "./options.ts";
import { isFile } from "./output.ts";

export interface ImageOptions {
  readonly image?: readonly string[];
  readonly video?: readonly string[];
  readonly maxTiles?: number;
  readonly maxPixels?: number;
  readonly maxCanvas?: true;
  readonly orient?: boolean;
  readonly videoTokens?: number;
}

export function withImages(command: Command): Command {
  return command
    .option(
      "--image <file>",
      "an image before the text, or for the next <|image|> of a --raw prompt; may stand several times",
      collect,
    )
    .option(
      "--video <file>",
      "a video, as frames with their times, after the images and before the text; before all in a --raw prompt with <|image|>; may stand several times",
      collect,
    )
    .option(
      "--max-tiles <n>",
      "most tiles of an image: fewer take fewer tokens (default: the checkpoint's, else 16)",
      whole(1, 64),
    )
    .option("--max-pixels <n>", "most pixels of an image or of a video's frame (default: 50 million)", whole(1))
    .option("--max-canvas", "enlarges images to the largest canvas that fits them")
    .option("--no-orient", "leaves photographs as they are stored, whatever their EXIF orientation says")
    .addOption(
      new Option("--video-tokens <n>", `tokens that a video may take (default: ${VIDEO_TOKENS})`).argParser(whole(1)),
    );
}

export const mediaOf = ({ maxTiles, maxPixels, maxCanvas, orient, videoTokens }: ImageOptions): MediaOptions => ({
  ...{ maxTiles, maxPixels, orient, videoTokens },
  toMaxCanvas: maxCanvas,
});

/** The images and then the videos that the options name. Throws RequestError where a file is not there, or an image is none. */
export function partsOf({ image = [], video = [] }: ImageOptions): ContentPart[] {
  const part = (type: "image" | "video", path: string) => {
    if (!existsSync(path)) throw new RequestError(`--${type}: there is no file ${path}; check the path`);
    if (!isFile(path)) throw new RequestError(`--${type}: ${path} is no file; expected one`);
    return { type, path };
  };
  for (const path of image) {
    part("image", path);
    checkKind(path); // before a model is loaded for it
  }
  return [...image.map((path) => part("image", path)), ...video.map((path) => part("video", path))];
}

/** Refuses what does not begin as an image does. */
function checkKind(path: string): void {
  const head = new Uint8Array(512);
  const file = openSync(path, "r");
  try {
    const length = readSync(file, head);
    formatOf(head.subarray(0, length));
  } catch (error) {
    throw error instanceof RequestError ? new RequestError(`${path}: ${error.message}`, { cause: error }) : error;
  } finally {
    closeSync(file);
  }
}

/** A prompt as it stands: each `<|image|>` is the next image; without any, images come first. Videos stand before all. */
export function rawParts(prompt: string, parts: readonly ContentPart[]): ContentPart[] {
  const texts = prompt.split("<|image|>").map((text) => ({ type: "text", text }) as const);
  const images = parts.filter(({ type }) => type === "image");
  if (texts.length === 1) return [...parts, ...texts];
  if (texts.length - 1 !== images.length)
    throw new RequestError(
      `the prompt has ${texts.length - 1} <|image|> and ${images.length} --image are given; expected as many, or no <|image|> at all`,
    );
  const videos = parts.filter(({ type }) => type === "video");
  return [...videos, ...texts.flatMap((text, i) => (i === 0 ? [text] : [images[i - 1]!, text]))];
}

const KEPT_BYTES = 100e6; // of a file that a conversation goes on with

/**
 * A file for a conversation, as it is now: it may change or go before the next turn. A video of more than 100 MB stays
 * where it is. Throws RequestError for what cannot be decoded, and for a model that reads text only.
 */
export async function attached(
  part: ContentPart,
  model: Llama4,
  options: MediaOptions,
  signal: AbortSignal,
): Promise<ContentPart> {
  if (part.type === "text" || part.path === undefined) return part;
  if (!model.info.vision) throw textOnly(part.type);
  const { size } = await existing(part.type, part.path);
  if (part.type === "image") checkBytes(size, options);
  const isKept = part.type === "image" || size <= KEPT_BYTES;
  const kept = isKept ? ({ type: part.type, data: new Uint8Array(await readFile(part.path)) } as const) : part;
  await named(part.path, () => show(kept, part.path, model.info.vision!, options, signal));
  return kept;
}

/** Refuses images and videos for a model that reads text only, by the headers of its files: before it is loaded. */
export async function checkSees(
  { model, mmproj }: { readonly model?: string; readonly mmproj?: string },
  parts: readonly ContentPart[],
): Promise<void> {
  const seen = parts.find(({ type }) => type !== "text");
  if (!seen) return;
  const { openCheckpoint } = await import("../checkpoint/open.ts"); // few need it
  const checkpoint = await openCheckpoint(model ?? shippedModel(), { mmproj });
  await checkpoint.close();
  if (!checkpoint.config.vision) throw textOnly(seen.type);
}

const textOnly = (type: string) =>
  new RequestError(
    `${type === "image" ? "an image" : "a video"} for a model that reads text only; expected a checkpoint with a vision ` +
      "encoder (a GGUF model's is in its mmproj file, `mmproj`), or text alone",
  );

/** Says what the model sees: size, tiles and tokens, with a small preview where the terminal shows colours. */
async function show(
  part: Exclude<ContentPart, { type: "text" }>,
  path: string,
  vision: NonNullable<Llama4["info"]["vision"]>,
  options: MediaOptions,
  signal: AbortSignal,
): Promise<void> {
  const say = (text: string) => process.stderr.write(`${path}: ${text}\n`);
  const size = ({ width, height }: Pick<Pixels, "width" | "height">) =>
    `${width.toLocaleString("en")} × ${height.toLocaleString("en")}`;
  const tiling = tileOptions(vision, options);
  if (part.type === "image") {
    const image = await openImage(part, options);
    const pixels = await image.pixels(); // before anything is said: it may be broken
    const { nTiles } = layoutOf(image, tiling);
    const tokens = imageTokenCount(image, vision, options).toLocaleString("en");
    say(`${size(image)}, ${nTiles} ${nTiles === 1 ? "tile" : "tiles"}, ${tokens} tokens`);
    if (process.stderr.isTTY && process.stderr.getColorDepth() >= 24) process.stderr.write(preview(pixels));
    return;
  }
  const video = await openVideo(part, options, signal);
  try {
    const { videoTokens = VIDEO_TOKENS } = options;
    const { times, maxTiles } = planFrames(video.length, { ...vision, ...tiling, videoTokens });
    const { nTiles } = layoutOf(video.length, { ...tiling, maxTiles });
    const tokens = times.length * imageTokenCount(video.length, vision, { ...options, maxTiles });
    say(
      `${size(video.length)}, ${video.length.duration.toFixed(1)} s, ${times.length} ${times.length === 1 ? "frame" : "frames"} of ` +
        `${nTiles} ${nTiles === 1 ? "tile" : "tiles"}, ${tokens.toLocaleString("en")} tokens and the times between`,
    );
  } finally {
    await video.close();
  }
}

const PREVIEW_COLUMNS = 40;

/** Two pixels in a character: an upper half block, its colour above, its background below. */
export function preview(image: Pixels): string {
  const width = Math.min(PREVIEW_COLUMNS, image.width);
  const height = Math.min(PREVIEW_COLUMNS, Math.max(1, Math.round((image.height * width) / image.width)));
  const { data } = resize(image, width, height);
  const colour = (x: number, y: number) =>
    Array.from(data.subarray((y * width + x) * 3, (y * width + x) * 3 + 3)).join(";");
  let text = "";
  for (let y = 0; y < height; y += 2) {
    for (let x = 0; x < width; x++)
      text += `\x1b[38;2;${colour(x, y)}m${y + 1 < height ? `\x1b[48;2;${colour(x, y + 1)}m` : ""}▀`;
    text += "\x1b[0m\n";
  }
  return text;
}

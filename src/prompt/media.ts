// Messages with images and videos to ids and tiles. How files are decoded is handed in, so that this runs anywhere.

import { CheckpointError, RequestError } from "../tensor/errors.ts";
import type { ChatPrompt, ContentPart, ImagePart, Media, Message, PlainPart, VideoPart } from "./chat-format.ts";
import { type Canvas, imageTokens, layoutOf, type TiledImage, type TileOptions, tileImage } from "./image.ts";
import type { Pixels } from "./resize.ts";
import type { Tokenizer } from "./tokenizer.ts";
import { type FramePlan, planFrames, timestamp, type VideoLength } from "./video.ts";

/** What an image may be; more is refused before it is decoded. */
export interface ImageLimits {
  /** Pixels of the image or of a video's frame; default 50 million, 150 MB as RGB. */
  readonly maxPixels?: number | undefined;
  /** Pixels along a side; default 32,767. */
  readonly maxSide?: number | undefined;
  /** Bytes of an image's file; default 100 million. */
  readonly maxBytes?: number | undefined;
}

/** How images become tokens. */
export interface MediaOptions extends ImageLimits {
  /** Most tiles of an image, the global one not counted; fewer cost fewer tokens. Default: 16. */
  readonly maxTiles?: number | undefined;
  /** Enlarges images to the largest canvas that fits them. */
  readonly toMaxCanvas?: boolean | undefined;
  /** Turns photographs as their EXIF orientation says. Default: yes. */
  readonly orient?: boolean | undefined;
  /** Tokens that a video may take; default 8,000. */
  readonly videoTokens?: number | undefined;
}

/** An image as the engine takes it. */
export interface ProcessedImage extends TiledImage {
  /** The digest of its tiles. */
  readonly key: string;
}

/** A video that is open: its length and size, and its frames at some times, in order. */
export interface OpenVideo {
  readonly length: VideoLength;
  frames(plan: FramePlan): AsyncIterable<{ readonly seconds: number; readonly pixels: Pixels }>;
  close(): Promise<void>;
}

export interface Decoders {
  image(media: Media, options: MediaOptions): Promise<Pixels>;
  video(media: Media, options: MediaOptions, signal?: AbortSignal): Promise<OpenVideo>;
}

/** What a model's vision encoder asks of images. */
export interface ImageProcessorConfig {
  /** Pixels along a tile's side. */
  readonly tileSize: number;
  readonly tokensPerTile: number;
}

/** A prompt with images, ready for the engine. */
export interface ProcessedPrompt {
  readonly ids: Int32Array;
  readonly images: readonly ProcessedImage[];
}

export const VIDEO_TOKENS = 8000;

/** Reads the images and videos of messages: a video becomes its frames, each behind its time. */
export class ImageProcessor {
  readonly #given: ImageProcessorConfig | undefined;
  readonly #decoders: Decoders;

  /** Without a config, images are refused. */
  constructor(config: ImageProcessorConfig | undefined, decoders: Decoders) {
    this.#given = config;
    this.#decoders = decoders;
  }

  get #config(): ImageProcessorConfig {
    if (this.#given) return this.#given;
    throw new RequestError(
      "an image or a video for a model that reads text only; expected a checkpoint with a vision encoder (a GGUF model's is in its mmproj file, `mmproj`), or no images",
    );
  }

  async messages(messages: readonly Message[], options: MediaOptions, signal?: AbortSignal) {
    const images: ProcessedImage[] = [];
    const plain: Message<PlainPart>[] = [];
    for (const message of messages) {
      if (typeof message.content === "string" || !Array.isArray(message.content))
        plain.push(message as Message<PlainPart>); // what is no list of parts is refused by the chat format
      else plain.push({ ...message, content: await this.parts(message.content, images, options, signal) });
    }
    return { messages: plain, images };
  }

  /** Parts without videos; their images are added to `images`, in order. */
  async parts(
    parts: readonly ContentPart[],
    images: ProcessedImage[],
    options: MediaOptions,
    signal?: AbortSignal,
  ): Promise<PlainPart[]> {
    const plain: PlainPart[] = [];
    for (const part of parts) {
      signal?.throwIfAborted();
      if (typeof part !== "object" || part === null)
        throw new RequestError(`a part of the content is ${part}; expected { type: "text" | "image" | "video", … }`);
      if (part.type === "image") {
        images.push(await this.#image(part, options));
        plain.push({ type: "image" });
      } else if (part.type === "video") plain.push(...(await this.#video(part, images, options, signal)));
      else plain.push(part);
    }
    return plain;
  }

  async #video(
    part: VideoPart,
    images: ProcessedImage[],
    options: MediaOptions,
    signal?: AbortSignal,
  ): Promise<PlainPart[]> {
    const config = this.#config;
    const { videoTokens = VIDEO_TOKENS, maxTiles, toMaxCanvas } = options;
    const video = await this.#decoders.video(part, options, signal);
    try {
      const plan = planFrames(video.length, { ...config, maxTiles, toMaxCanvas, videoTokens });
      const parts: PlainPart[] = [];
      for await (const { seconds, pixels } of video.frames(plan)) {
        signal?.throwIfAborted();
        parts.push({ type: "text", text: timestamp(seconds) }, { type: "image" });
        images.push(await tiled(pixels, { ...config, toMaxCanvas, maxTiles: plan.maxTiles }));
      }
      if (parts.length === 0) throw new RequestError("video: no frame of it can be read; expected a whole file");
      return parts;
    } finally {
      await video.close();
    }
  }

  async #image(part: ImagePart, options: MediaOptions): Promise<ProcessedImage> {
    const { tileSize } = this.#config;
    const { maxTiles, toMaxCanvas } = options;
    return tiled(await this.#decoders.image(part, options), { tileSize, maxTiles, toMaxCanvas });
  }
}

async function tiled(pixels: Pixels, options: TileOptions): Promise<ProcessedImage> {
  const image = tileImage(pixels, options);
  const bytes = await crypto.subtle.digest("SHA-256", image.tiles as Uint8Array<ArrayBuffer>); // our own, not shared memory
  const key = Array.from(new Uint8Array(bytes), (byte) => byte.toString(16).padStart(2, "0")).join("");
  return { ...image, key };
}

/** How many tokens an image of this size takes. */
export function imageTokenCount(
  size: Pick<Pixels, "width" | "height">,
  config: ImageProcessorConfig,
  options: MediaOptions = {},
): number {
  return tokenCount(layoutOf(size, { ...options, tileSize: config.tileSize }), config.tokensPerTile);
}

const tokenCount = (canvas: Canvas, tokensPerTile: number) =>
  imageTokens(canvas, tokensPerTile).reduce((sum, [, count]) => sum + count, 0);

/** The prompt with each `<|image|>` replaced by all tokens of its image. */
export function expandImages(
  { ids, images: places }: ChatPrompt,
  images: readonly ProcessedImage[],
  tokenizer: Tokenizer,
  config: ImageProcessorConfig | undefined,
): ProcessedPrompt {
  const { tokensPerTile = 0 } = config ?? {};
  if (places.length !== images.length)
    throw new CheckpointError(`chat format: ${places.length} places for ${images.length} images; expected as many`);
  const added = images.reduce((sum, image) => sum + tokenCount(image, tokensPerTile) - 1, 0);
  const all = new Int32Array(ids.length + added);
  let from = 0;
  let to = 0;
  for (const [i, image] of images.entries()) {
    all.set(ids.subarray(from, places[i]), to);
    to += places[i]! - from;
    from = places[i]! + 1;
    for (const [token, count] of imageTokens(image, tokensPerTile)) {
      all.fill(tokenizer.specialId(token), to, to + count);
      to += count;
    }
  }
  all.set(ids.subarray(from), to);
  return { ids: all, images };
}

/** Parts one behind the other, without chat format: texts as they stand, `<|image|>` for each image. */
export function encodeParts(parts: readonly PlainPart[], tokenizer: Tokenizer, { bos = false } = {}): ChatPrompt {
  const ids: number[] = bos ? [...tokenizer.encode("", { bos })] : [];
  const images: number[] = [];
  for (const part of parts) {
    if (part.type === "text") for (const id of tokenizer.encode(part.text)) ids.push(id);
    else images.push(ids.push(tokenizer.specialId("<|image|>")) - 1);
  }
  return { ids: Int32Array.from(ids), images };
}

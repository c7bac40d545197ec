// Messages with images and videos to ids and tiles. How files are decoded is handed in, so that this runs anywhere.

import { CapacityError, CheckpointError, RequestError } from "../tensor/errors.ts";
import type { ChatPrompt, ContentPart, ImagePart, Media, Message, PlainPart, VideoPart } from "./chat-format.ts";
import { type Canvas, imageTokens, layoutOf, type TiledImage, type TileOptions, tileImage } from "./image.ts";
import { RecentlyUsed } from "./recently-used.ts";
import type { Pixels } from "./resize.ts";
import { shown } from "./shown.ts";
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
  /** Most tiles of an image, the global one not counted; fewer cost fewer tokens. Default: the checkpoint's, 16 as published. */
  readonly maxTiles?: number | undefined;
  /** Enlarges images to the largest canvas that fits them. Default: the checkpoint's, no as published. */
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

/** An image's file that has been looked into. */
export interface OpenImage {
  readonly bytes: Uint8Array;
  /** As its pixels will be: upright, unless told not to. */
  readonly width: number;
  readonly height: number;
  pixels(): Promise<Pixels>;
}

/** A video that is open: its length and size, and its frames at some times, in order. */
export interface OpenVideo {
  /** The same for the same video, and for no other; of bytes, their `digest`. */
  readonly key: string;
  readonly length: VideoLength;
  frames(plan: FramePlan): AsyncIterable<{ readonly seconds: number; readonly pixels: Pixels }>;
  close(): Promise<void>;
}

export interface Decoders {
  image(media: Media, options: MediaOptions): Promise<OpenImage>;
  video(media: Media, options: MediaOptions, signal?: AbortSignal): Promise<OpenVideo>;
}

/** What a model's vision encoder asks of images. */
export interface ImageProcessorConfig extends Required<TileOptions> {
  readonly tokensPerTile: number;
}

export interface ProcessOptions extends MediaOptions {
  /** Images that take more are refused before one is decoded. */
  readonly mostTokens?: number | undefined;
}

/** A prompt with images, ready for the engine. */
export interface ProcessedPrompt {
  readonly ids: Int32Array;
  readonly images: readonly ProcessedImage[];
}

interface Frame {
  readonly seconds: number;
  readonly image: ProcessedImage;
}

export const VIDEO_TOKENS = 8000;

/** Bytes of tiles that are kept for files that come again, as in each turn of a conversation: 189 of the published size. */
const TILE_CACHE_BYTES = 64e6;

/** Turns the images and videos of messages into tiles: a video becomes its frames, each behind its time. */
export class ImageProcessor {
  readonly #given: ImageProcessorConfig | undefined;
  readonly #decoders: Decoders;
  readonly #images = new RecentlyUsed<ProcessedImage>(TILE_CACHE_BYTES);
  readonly #videos = new RecentlyUsed<readonly Frame[]>(TILE_CACHE_BYTES);

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

  /** Messages with a place for each image, and the images, in order. */
  async messages(messages: readonly Message[], options: ProcessOptions, signal?: AbortSignal) {
    if (!Array.isArray(messages))
      throw new RequestError(
        `messages is ${messages === null ? "null" : typeof messages}; expected a list of messages`,
      );
    // what is no list of parts is refused by the chat format
    const contents = messages.map(({ content }) => (Array.isArray(content) ? content : []));
    const { contents: plain, images } = await this.contents(contents, options, signal);
    const withPlaces = (message: Message, i: number) =>
      (Array.isArray(message.content) ? { ...message, content: plain[i]! } : message) as Message<PlainPart>;
    return { messages: messages.map(withPlaces), images };
  }

  /** Lists of parts with a place for each image, and the images of all, in order. */
  async contents(
    contents: readonly (readonly ContentPart[])[],
    { mostTokens = Infinity, ...options }: ProcessOptions,
    signal?: AbortSignal,
  ): Promise<{ contents: PlainPart[][]; images: ProcessedImage[] }> {
    for (const parts of contents) checkParts(parts);
    const named = numbered(contents.flat());
    const images: ProcessedImage[] = [];
    const plain: PlainPart[][] = [];
    let room = mostTokens - (await this.#countTokens(contents.flat(), named, options, mostTokens, signal));
    for (const parts of contents) {
      const withPlaces: PlainPart[] = [];
      for (const part of parts) {
        signal?.throwIfAborted();
        if (part.type === "image") {
          images.push(await named(part, () => this.#image(part, options)));
          withPlaces.push({ type: "image" });
        } else if (part.type === "video") {
          for (const { seconds, image } of await named(part, () => this.#video(part, options, room, signal))) {
            images.push(image);
            withPlaces.push({ type: "text", text: timestamp(seconds) }, { type: "image" });
            room -= tokenCount(image, this.#config.tokensPerTile);
          }
        } else withPlaces.push(part);
      }
      plain.push(withPlaces);
    }
    return { contents: plain, images };
  }

  /** The tokens of all images but those of videos, by their files' headers. */
  async #countTokens(
    parts: readonly ContentPart[],
    named: ReturnType<typeof numbered>,
    options: MediaOptions,
    most: number,
    signal?: AbortSignal,
  ) {
    let tokens = 0;
    for (const part of parts) {
      signal?.throwIfAborted();
      if (part.type !== "image") continue;
      const config = this.#config;
      tokens += imageTokenCount(await named(part, () => this.#decoders.image(part, options)), config, options);
      if (tokens > most) throw tooManyTokens("images", tokens, most);
    }
    return tokens;
  }

  async #image(part: ImagePart, options: MediaOptions): Promise<ProcessedImage> {
    const tiling = tileOptions(this.#config, options);
    const file = await this.#decoders.image(part, options);
    const key = `${await digest(file.bytes)} ${JSON.stringify([tiling, options.orient])}`;
    const known = this.#images.get(key);
    if (known) return known;
    const image = await tiled(await file.pixels(), tiling);
    this.#images.set(key, image, image.tiles.length);
    return image;
  }

  async #video(part: VideoPart, options: MediaOptions, room: number, signal?: AbortSignal): Promise<readonly Frame[]> {
    const config = this.#config;
    const tiling = tileOptions(config, options);
    const { videoTokens = VIDEO_TOKENS } = options;
    const keyOf = (key: string) => `${key} ${JSON.stringify([tiling, videoTokens])}`;
    const early = part.data instanceof Uint8Array ? this.#videos.get(keyOf(await digest(part.data))) : undefined;
    if (early) return early;
    const video = await this.#decoders.video(part, options, signal);
    try {
      const key = keyOf(video.key);
      const known = this.#videos.get(key);
      if (known) return known;
      const { length } = video;
      const plan = planFrames(length, { ...config, ...tiling, videoTokens });
      const tokens = plan.times.length * imageTokenCount(length, config, { ...tiling, maxTiles: plan.maxTiles });
      if (tokens > room) throw tooManyTokens("frames of its video", tokens, room);
      const frames: Frame[] = [];
      for await (const { seconds, pixels } of video.frames(plan)) {
        signal?.throwIfAborted();
        frames.push({ seconds, image: await tiled(pixels, { ...tiling, maxTiles: plan.maxTiles }) });
      }
      this.#videos.set(
        key,
        frames,
        frames.reduce((sum, { image }) => sum + image.tiles.length, 0),
      );
      return frames;
    } finally {
      await video.close();
    }
  }
}

/** What is wrong with one of several images, or videos, says which it is: "image 2: …", counted from 1. A path says that itself. */
function numbered(parts: readonly ContentPart[]) {
  const numbers = new Map<ContentPart, number>();
  const counts = { text: 0, image: 0, video: 0 };
  for (const part of parts) {
    const number = ++counts[part.type];
    if (part.type !== "text" && !numbers.has(part)) numbers.set(part, number);
  }
  return async <T>(part: ImagePart | VideoPart, work: () => Promise<T>): Promise<T> => {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof RequestError) || part.path !== undefined || counts[part.type] === 1) throw error;
      const message = error.message.replace(/^(?:image|video)(?=: )/, `${part.type} ${numbers.get(part)}`);
      throw new RequestError(message, { cause: error });
    }
  };
}

/** Checks what came from outside; the types alone do not hold there. */
function checkParts(parts: readonly ContentPart[]): void {
  const expected = 'expected { type: "text", text }, or { type: "image" or "video", path or data }';
  if (!Array.isArray(parts))
    throw new RequestError(`the content is ${shown(parts)}; expected a text or a list of parts`);
  for (const part of parts as readonly unknown[]) {
    if (typeof part !== "object" || part === null)
      throw new RequestError(`a part of the content is ${shown(part)}; ${expected}`);
    const { type, text } = part as { type?: unknown; text?: unknown };
    if (type !== "text" && type !== "image" && type !== "video")
      throw new RequestError(`the type of a part of the content is ${shown(type)}; ${expected}`);
    if (type === "text" && typeof text !== "string")
      throw new RequestError(`the text of a part of the content is ${shown(text)}; ${expected}`);
  }
}

function tooManyTokens(what: string, tokens: number, room: number): CapacityError {
  const count = (n: number) => n.toLocaleString("en");
  return new CapacityError(
    `the prompt's ${what} take ${count(tokens)} tokens or more, and there is room for ${count(room)}; give fewer, ` +
      "take fewer tiles of each (`maxTiles`, `videoTokens`), or open the model with a larger `context`",
  );
}

/** What the caller asks for, else what the checkpoint says. */
export function tileOptions(config: ImageProcessorConfig, options: MediaOptions): Required<TileOptions> {
  const { tileSize, maxTiles, toMaxCanvas } = config;
  return { tileSize, maxTiles: options.maxTiles ?? maxTiles, toMaxCanvas: options.toMaxCanvas ?? toMaxCanvas };
}

async function tiled(pixels: Pixels, options: TileOptions): Promise<ProcessedImage> {
  const image = tileImage(pixels, options);
  return { ...image, key: await digest(image.tiles) };
}

/** SHA-256, in hexadecimal. */
export async function digest(bytes: Uint8Array): Promise<string> {
  const hash = await crypto.subtle.digest("SHA-256", bytes as Uint8Array<ArrayBuffer>); // shared memory is none of it
  return Array.from(new Uint8Array(hash), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** How many tokens an image of this size takes. */
export function imageTokenCount(
  size: Pick<Pixels, "width" | "height">,
  config: ImageProcessorConfig,
  options: MediaOptions = {},
): number {
  return tokenCount(layoutOf(size, tileOptions(config, options)), config.tokensPerTile);
}

const tokenCount = (canvas: Canvas, tokensPerTile: number) =>
  imageTokens(canvas, tokensPerTile).reduce((sum, [, count]) => sum + count, 0);

/** The prompt with each `<|image|>` replaced by all tokens of its image. */
export function expandImages<Image extends Canvas>(
  { ids, images: places }: ChatPrompt,
  images: readonly Image[],
  tokenizer: Tokenizer,
  config: Pick<ImageProcessorConfig, "tokensPerTile"> | undefined,
): { readonly ids: Int32Array; readonly images: readonly Image[] } {
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

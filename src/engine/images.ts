// What the engine knows of images: where they stand in a prompt, and their features, computed once for each image.
//
// N tiles · R rows of a tile · D width of the text model

import { type Llama4Config, tokensPerTile, type VisionConfig } from "../model/config.ts";
import type { VisionParameters } from "../model/parameters.ts";
import { encodeImage } from "../model/vision.ts";
import { normalise, type TiledImage } from "../prompt/image.ts";
import { RecentlyUsed } from "../prompt/recently-used.ts";
import { RequestError } from "../tensor/errors.ts";

/** An image in a prompt; its rows replace the embeddings of its `<|patch|>` tokens. */
export interface PromptImage extends Pick<TiledImage, "tiles" | "nTiles"> {
  /** The digest of its tiles: the same for the same image, and for no other. */
  readonly key: string;
}

/** Where an image stands: its patches are among the positions from `from` to before `to`. */
export interface PlacedImage extends PromptImage {
  readonly from: number;
  readonly to: number;
}

/** The images of a prompt, once their number of patches is known to be right. */
export class PromptImages {
  readonly placed: readonly PlacedImage[];
  /** Positions of all patches. */
  readonly #patches: Int32Array;
  readonly #rowsPerTile: number;
  /** `[N · R, D]` of the images that have been encoded. */
  readonly #features: (Float32Array | undefined)[];

  constructor(tokens: ArrayLike<number>, images: readonly PromptImage[], c: Llama4Config) {
    const { vision, tokens: ids } = c;
    if (!vision || ids.patch === undefined)
      throw new RequestError("images need a vision encoder and a token <|patch|>; expected a config that has both");
    this.#rowsPerTile = tokensPerTile(vision);
    const tileBytes = vision.nChannels * vision.imageSize ** 2;
    for (const { tiles, nTiles } of images)
      if (tiles.length !== nTiles * tileBytes)
        throw new RequestError(`an image of ${nTiles} tiles has ${tiles.length} bytes; expected ${nTiles * tileBytes}`);
    const expected = images.reduce((sum, { nTiles }) => sum + nTiles * this.#rowsPerTile, 0);
    this.#patches = Int32Array.from(
      Array.from(tokens, (token, position) => (token === ids.patch ? position : -1)).filter((p) => p >= 0),
    );
    if (this.#patches.length !== expected)
      throw new RequestError(
        `the prompt has ${this.#patches.length} patches and its ${images.length} images have ${expected}; expected as many`,
      );
    let next = 0;
    this.placed = images.map((image) => {
      const from = this.#patches[next]!;
      next += image.nTiles * this.#rowsPerTile;
      return { ...image, from, to: this.#patches[next - 1]! + 1 };
    });
    this.#features = images.map(() => undefined);
  }

  /** The images that reach into the positions from `position` to before `end` and have no features. */
  unencoded(position: number, end = Infinity): PlacedImage[] {
    return this.placed.filter(({ from, to }, i) => to > position && from < end && !this.#features[i]);
  }

  /** The features that it holds. */
  held(): Float32Array[] {
    return this.#features.filter((features) => features !== undefined);
  }

  /** Gives up the features of images that have been read. A sequence that starts again asks for them again. */
  forgetBefore(position: number): void {
    for (const [i, { to }] of this.placed.entries()) if (to <= position) this.#features[i] = undefined;
  }

  isRead(position: number): boolean {
    return this.placed.every(({ to }) => to <= position);
  }

  /** Takes the features of an image, wherever it stands. */
  setFeatures(key: string, features: Float32Array): void {
    for (const [i, image] of this.placed.entries()) if (image.key === key) this.#features[i] = features;
  }

  /** The patches among the positions from `position` to before `end`: appends their features and their places. */
  collect(position: number, end: number, D: number, rows: Float32Array[], places: number[]): void {
    let patch = 0; // of the image's first one
    for (const [i, { from, to, nTiles }] of this.placed.entries()) {
      const count = nTiles * this.#rowsPerTile;
      if (from < end && to > position)
        for (let row = 0; row < count; row++) {
          const at = this.#patches[patch + row]!;
          if (at < position || at >= end) continue;
          places.push(at - position);
          rows.push(this.#features[i]!.subarray(row * D, (row + 1) * D));
        }
      patch += count;
    }
  }
}

/** Bytes of features that are kept unless the caller says otherwise: five photographs of 17 tiles, 5,120 wide. */
export const IMAGE_CACHE_BYTES = 256e6;

/** Tiles encoded between two steps, while others' tokens wait: 2,308 rows of the published encoder. */
const TILES_AT_ONCE = 4;

/** What an encoder has done, and what it keeps. */
export interface ImageStats {
  readonly tilesEncoded: number;
  /** Images whose features were there already. */
  readonly found: number;
  /** Images whose features are kept, their bytes, and how many bytes there may be. */
  readonly kept: number;
  readonly bytes: number;
  readonly mostBytes: number;
}

/** Turns tiles into features, and keeps those of the images used last. */
export class ImageEncoder {
  readonly #parameters: VisionParameters;
  readonly #config: Llama4Config;
  readonly #vision: VisionConfig;
  readonly #tileBytes: number;
  readonly #kept: RecentlyUsed<Float32Array>;
  #found = 0;
  #tilesEncoded = 0;
  /** Images of which some tiles are done. */
  readonly #begun = new Map<string, { readonly features: Float32Array; tiles: number }>();

  constructor(parameters: VisionParameters, config: Llama4Config, mostBytes: number) {
    if (!config.vision) throw new RangeError("ImageEncoder: the config has no vision encoder");
    this.#parameters = parameters;
    this.#config = config;
    this.#vision = config.vision;
    this.#tileBytes = config.vision.nChannels * config.vision.imageSize ** 2;
    if (!(mostBytes >= 0))
      throw new RequestError(`imageCacheBytes is ${mostBytes}; expected bytes for images' features, from 0`);
    this.#kept = new RecentlyUsed(mostBytes);
  }

  /** The features of an image that was encoded not long ago. */
  find(key: string): Float32Array | undefined {
    const features = this.#kept.get(key);
    if (features) this.#found++;
    return features;
  }

  stats(): ImageStats {
    return { tilesEncoded: this.#tilesEncoded, found: this.#found, ...this.#kept.occupation };
  }

  /** Encodes some tiles of these images, the first ones first. How many, and the images that are whole now. */
  async encodeSome(images: readonly PromptImage[]): Promise<{ tiles: number; whole: Map<string, Float32Array> }> {
    const parts = this.#nextTiles(images);
    const rows = await this.#encode(
      parts.map(({ image, from, to }) => image.tiles.subarray(from * this.#tileBytes, to * this.#tileBytes)),
    );
    const perTile = tokensPerTile(this.#vision) * this.#config.dim;
    const whole = new Map<string, Float32Array>();
    let tiles = 0;
    for (const { image, from, to } of parts) {
      const { key, nTiles } = image;
      const { features } = this.#begun.get(key) ?? { features: new Float32Array(nTiles * perTile) };
      features.set(rows.subarray(tiles * perTile, (tiles + to - from) * perTile), from * perTile);
      tiles += to - from;
      if (to < nTiles) this.#begun.set(key, { features, tiles: to });
      else {
        this.#begun.delete(key);
        this.#kept.set(key, features, features.byteLength);
        whole.set(key, features);
      }
    }
    this.#tilesEncoded += tiles;
    return { tiles, whole };
  }

  /** What is to be encoded next: tiles `from` to before `to` of each image. */
  #nextTiles(images: readonly PromptImage[]): { image: PromptImage; from: number; to: number }[] {
    const parts: { image: PromptImage; from: number; to: number }[] = [];
    let room = TILES_AT_ONCE;
    for (const image of new Map(images.map((image) => [image.key, image])).values()) {
      const from = this.#begun.get(image.key)?.tiles ?? 0;
      const to = Math.min(from + room, image.nTiles);
      if (to > from) parts.push({ image, from, to });
      room -= to - from;
    }
    return parts;
  }

  async #encode(parts: readonly Uint8Array[]): Promise<Float32Array | Float64Array> {
    const { nChannels, imageSize, preprocessing } = this.#vision;
    const { backend } = this.#parameters.projector;
    const pixels = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) {
      pixels.set(part, at);
      at += part.length;
    }
    const shape = [pixels.length / this.#tileBytes, nChannels, imageSize, imageSize];
    let rows: Float32Array | Float64Array = new Float32Array();
    await backend.scope(async () => {
      const tiles = backend.from(normalise(pixels, imageSize, preprocessing), shape);
      rows = await backend.read(await encodeImage(this.#parameters, this.#config, tiles));
    });
    return rows;
  }

  get begunBytes(): number {
    return [...this.#begun.values()].reduce((sum, { features }) => sum + features.byteLength, 0);
  }

  /** Forgets half-encoded images that nobody waits for any more. */
  forgetBegun(isWanted: (key: string) => boolean): void {
    for (const key of [...this.#begun.keys()]) if (!isWanted(key)) this.#begun.delete(key);
  }
}

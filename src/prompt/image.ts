// An image to tiles, and to the tokens that stand for it (specification §8).
//
// N tiles · S pixels along a tile's side

import { RequestError } from "../tensor/errors.ts";
import { type Pixels, resize } from "./resize.ts";

/** Tiles in rows and columns, over which an image is laid. */
export interface Canvas {
  readonly rows: number;
  readonly cols: number;
}

export interface TileOptions {
  /** Pixels along a tile's side. */
  readonly tileSize: number;
  /** Most tiles of an image, the global one not counted. Default: 16, as in training. */
  readonly maxTiles?: number | undefined;
  /** Enlarges the image to the largest canvas that fits it; else it is enlarged up to one tile's side at most. */
  readonly toMaxCanvas?: boolean | undefined;
}

/** How an image will be cut, before any pixel is touched. */
export interface Layout extends Canvas {
  /** The global tile included, which is there where rows · cols > 1. */
  readonly nTiles: number;
  /** Size of the image on its canvas; the rest, right and below, is black. */
  readonly width: number;
  readonly height: number;
}

/** An image as the encoder takes it. */
export interface TiledImage extends Layout {
  /** `[N, 3, S, S]`: row by row, then the whole image squeezed into one tile, the global one. */
  readonly tiles: Uint8Array;
}

const MAX_TILES = 16; // in training
const MOST_TILES = 64; // that may be asked for

/** All canvases of at most `maxTiles` tiles, each number of tiles with all its factor pairs. */
export function canvases(maxTiles: number): Canvas[] {
  const found: Canvas[] = [];
  for (let n = maxTiles; n >= 1; n--)
    for (let rows = 1; rows <= n; rows++) if (n % rows === 0) found.push({ rows, cols: n / rows });
  return found;
}

/** Where an image of this size comes to lie. */
export function layoutOf({ width, height }: Pick<Pixels, "width" | "height">, options: TileOptions): Layout {
  const { tileSize, maxTiles = MAX_TILES, toMaxCanvas = false } = options;
  if (!(width >= 1 && height >= 1)) throw new RequestError(`image: it has ${width} × ${height} pixels; expected some`);
  if (!Number.isInteger(maxTiles) || maxTiles < 1 || maxTiles > MOST_TILES)
    throw new RequestError(`maxTiles is ${maxTiles}; expected a whole number from 1 to ${MOST_TILES}`);
  const { rows, cols } = chooseCanvas({ width, height }, { tileSize, maxTiles, toMaxCanvas });
  const canvasWidth = cols * tileSize;
  const canvasHeight = rows * tileSize;
  const mostWidth = toMaxCanvas ? canvasWidth : Math.min(Math.max(width, tileSize), canvasWidth);
  const mostHeight = toMaxCanvas ? canvasHeight : Math.min(Math.max(height, tileSize), canvasHeight);
  const sw = mostWidth / width;
  const sh = mostHeight / height;
  const fitted =
    sw < sh
      ? { width: mostWidth, height: Math.min(Math.floor(height * sw), mostHeight) }
      : { width: Math.min(Math.floor(width * sh), mostWidth), height: mostHeight };
  return {
    ...{ rows, cols },
    nTiles: rows * cols + (rows * cols > 1 ? 1 : 0),
    width: Math.max(fitted.width, 1),
    height: Math.max(fitted.height, 1),
  };
}

/** The smallest enlargement (or with `toMaxCanvas` the largest), else the smallest reduction; then the smallest area. */
function chooseCanvas(
  { width, height }: Pick<Pixels, "width" | "height">,
  { tileSize, maxTiles, toMaxCanvas }: { tileSize: number; maxTiles: number; toMaxCanvas: boolean },
): Canvas {
  const scaled = canvases(maxTiles).map(({ rows, cols }) => ({
    ...{ rows, cols },
    // float32, as in the published code: rounding decides which canvases have the same scale
    scale: Math.min(Math.fround((rows * tileSize) / height), Math.fround((cols * tileSize) / width)),
  }));
  const enlarging = scaled.map(({ scale }) => scale).filter((scale) => scale >= 1);
  const chosen =
    enlarging.length === 0
      ? Math.max(...scaled.map(({ scale }) => scale))
      : toMaxCanvas
        ? Math.max(...enlarging)
        : Math.min(...enlarging);
  return scaled.filter(({ scale }) => scale === chosen).reduce((a, b) => (b.rows * b.cols < a.rows * a.cols ? b : a));
}

/** Cuts an image into its tiles. */
export function tileImage(image: Pixels, options: TileOptions): TiledImage {
  const layout = layoutOf(image, options);
  const { rows, cols, nTiles } = layout;
  const { tileSize: S } = options;
  const tiles = new Uint8Array(nTiles * 3 * S * S); // what nothing is written to is black
  const resized = resize(image, layout.width, layout.height);
  for (let row = 0; row < rows; row++)
    for (let col = 0; col < cols; col++) cut(resized, col * S, row * S, S, tileOf(tiles, row * cols + col, S));
  if (rows * cols > 1) cut(resize(image, S, S), 0, 0, S, tileOf(tiles, nTiles - 1, S));
  return { ...layout, tiles };
}

const tileOf = (tiles: Uint8Array, n: number, S: number) => tiles.subarray(n * 3 * S * S, (n + 1) * 3 * S * S);

/** Copies the square of side S at (left, top), as far as the image reaches, into planes `[3, S, S]`. */
function cut({ data, width, height }: Pixels, left: number, top: number, S: number, tile: Uint8Array): void {
  const across = Math.min(S, width - left);
  const down = Math.min(S, height - top);
  const plane = S * S;
  for (let y = 0; y < down; y++) {
    let i = ((top + y) * width + left) * 3;
    let o = y * S;
    for (let x = 0; x < across; x++, i += 3, o++) {
      tile[o] = data[i]!;
      tile[o + plane] = data[i + 1]!;
      tile[o + 2 * plane] = data[i + 2]!;
    }
  }
}

/** Tiles `[N, 3, S, S]` as the encoder reads them: v / 255, then each channel's mean and deviation. */
export function normalise(tiles: Uint8Array, tileSize: number, { mean, std }: Moments): Float32Array {
  const levels = mean.map((m, c) => Float32Array.from({ length: 256 }, (_, v) => (v / 255 - m) / std[c]!));
  const out = new Float32Array(tiles.length);
  for (let i = 0, plane = 0; i < tiles.length; plane++) {
    const level = levels[plane % levels.length]!;
    for (const end = i + tileSize ** 2; i < end; i++) out[i] = level[tiles[i]!]!;
  }
  return out;
}

/** Of each channel. */
export interface Moments {
  readonly mean: readonly number[];
  readonly std: readonly number[];
}

/** The names of the special tokens that stand for an image; `<|patch|>` counts for all of a tile. */
export type ImageToken =
  | "<|image_start|>"
  | "<|image_end|>"
  | "<|image|>"
  | "<|patch|>"
  | "<|tile_x_separator|>"
  | "<|tile_y_separator|>";

/** The tokens of an image, in order, with how often each stands. */
export function imageTokens({ rows, cols }: Canvas, tokensPerTile: number): [token: ImageToken, count: number][] {
  const tokens: [ImageToken, number][] = [["<|image_start|>", 1]];
  for (let row = 0; row < rows && rows * cols > 1; row++) {
    for (let col = 0; col < cols; col++) {
      if (col > 0) tokens.push(["<|tile_x_separator|>", 1]);
      tokens.push(["<|patch|>", tokensPerTile]);
    }
    tokens.push(["<|tile_y_separator|>", 1]);
  }
  tokens.push(["<|image|>", 1], ["<|patch|>", tokensPerTile], ["<|image_end|>", 1]);
  return tokens;
}

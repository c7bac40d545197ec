// Sizes, tokens and bytes as Pillow and Hugging Face's processor give them: scripts/golden/preprocess.py.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { canvases, imageTokens, layoutOf, normalise, tileImage } from "../../src/prompt/image.ts";
import { type Pixels, resize } from "../../src/prompt/resize.ts";
import { LLAMA4_SPECIAL_TOKENS } from "../../src/prompt/special-tokens.ts";

const golden = (name: string) => JSON.parse(readFileSync(join(import.meta.dirname, "../golden/llama4", name), "utf8"));

interface Sampled {
  readonly width: number;
  readonly height: number;
  readonly rows: number;
  readonly cols: number;
  readonly resized_w: number;
  readonly resized_h: number;
  readonly num_tiles: number;
  readonly byte_sums: readonly number[];
  readonly samples: readonly [tile: number, channel: number, y: number, x: number, value: number][];
}

interface Hashed {
  readonly width: number;
  readonly height: number;
  readonly toMaxCanvas: boolean;
  readonly rows: number;
  readonly cols: number;
  readonly resized: readonly [width: number, height: number];
  readonly ids: readonly [id: number, count: number][];
  readonly sha256: readonly string[];
  readonly torchvisionDiffersBy: number;
}

const tileSize = 336;
const tileBytes = 3 * tileSize ** 2;

function drawn(width: number, height: number, pixel: (x: number, y: number, c: number) => number): Pixels {
  const data = new Uint8Array(width * height * 3);
  for (let y = 0, i = 0; y < height; y++)
    for (let x = 0; x < width; x++) for (let c = 0; c < 3; c++) data[i++] = pixel(x, y, c);
  return { data, width, height };
}

/** The image of scripts/golden/preprocess.py: half noise, half slopes. */
function noisy(x: number, y: number, c: number): number {
  if (((x >> 5) + (y >> 5)) % 2 === 1) return 3 * x + y * (c + 1);
  const h = (Math.imul(x, 374761393) + Math.imul(y, 668265263) + Math.imul(c, 2246822519)) >>> 0;
  const mixed = Math.imul(h ^ (h >>> 13), 1274126177) >>> 0;
  return mixed ^ (mixed >>> 16);
}

const smooth = (x: number, y: number, c: number) => [7 * x + 3 * y, x * x + y, Math.floor(x / 3) + 5 * y][c]!;

describe("an image's tiles", () => {
  it.each((golden("preprocess_golden.json") as { cases: Sampled[] }).cases)(
    "are those of Meta's pipeline: $width × $height",
    ({ width, height, rows, cols, resized_w, resized_h, num_tiles, byte_sums, samples }) => {
      const image = tileImage(drawn(width, height, smooth), { tileSize });
      const { tiles, ...layout } = image;
      expect(layout).toEqual({ rows, cols, nTiles: num_tiles, width: resized_w, height: resized_h });
      const sums = byte_sums.map((_, n) =>
        tiles.subarray(n * tileBytes, (n + 1) * tileBytes).reduce((sum, v) => sum + v, 0),
      );
      expect(sums).toEqual(byte_sums);
      const at = (n: number, c: number, y: number, x: number) => tiles[((n * 3 + c) * tileSize + y) * tileSize + x];
      expect(samples.map(([n, c, y, x]) => at(n, c, y, x))).toEqual(samples.map(([, , , , value]) => value));
    },
  );

  const sizes = golden("preprocess_sizes.json") as Hashed[];
  it.each(sizes)(
    "are Pillow's to the byte, the tokens Hugging Face's: $width × $height, toMaxCanvas $toMaxCanvas",
    ({ width, height, toMaxCanvas, rows, cols, resized, ids, sha256 }) => {
      const image = tileImage(drawn(width, height, noisy), { tileSize, toMaxCanvas });
      expect(image).toMatchObject({ rows, cols, nTiles: sha256.length, width: resized[0], height: resized[1] });
      const digests = sha256.map((_, n) =>
        createHash("sha256")
          .update(image.tiles.subarray(n * tileBytes, (n + 1) * tileBytes))
          .digest("hex")
          .slice(0, 16),
      );
      expect(digests).toEqual(sha256);
      const named = imageTokens(image, 144).map(([name, count]) => [
        200000 + LLAMA4_SPECIAL_TOKENS.indexOf(name),
        count,
      ]);
      expect(named).toEqual(ids);
    },
  );

  // torchvision rounds its weights to 16 bits (Pillow: 22): enlarged noise shows it most.
  it("are within one level of torchvision's, which Hugging Face uses; two where toMaxCanvas enlarges noise", () => {
    const most = (kept: readonly Hashed[]) => Math.max(...kept.map((size) => size.torchvisionDiffersBy));
    expect(sizes.length).toBeGreaterThanOrEqual(40);
    expect(most(sizes.filter(({ toMaxCanvas }) => !toMaxCanvas))).toBeLessThanOrEqual(1);
    expect(most(sizes)).toBeLessThanOrEqual(2);
  });
});

describe("the layout of an image", () => {
  it("has 50 canvases to choose from, in the published order", () => {
    const all = canvases(16);
    expect(all).toHaveLength(50);
    expect(new Set(all.map(({ rows, cols }) => `${rows}x${cols}`)).size).toBe(50);
    expect(Math.max(...all.map(({ rows, cols }) => rows * cols))).toBe(16);
  });

  it("keeps to fewer tiles where it is told to", () => {
    const layout = layoutOf({ width: 1920, height: 1080 }, { tileSize, maxTiles: 1 });
    expect(layout).toEqual({ rows: 1, cols: 1, nTiles: 1, width: 336, height: 189 });
    expect(layoutOf({ width: 1920, height: 1080 }, { tileSize, maxTiles: 4 }).nTiles).toBeLessThanOrEqual(5);
  });

  it("refuses what has no pixels, and more tiles than the model knows", () => {
    expect(() => layoutOf({ width: 0, height: 5 }, { tileSize })).toThrow("0 × 5 pixels; expected some");
    expect(() => layoutOf({ width: 9, height: 5 }, { tileSize, maxTiles: 65 })).toThrow("from 1 to 64");
  });
});

describe("resize", () => {
  it("of one colour is that colour", () => {
    const { data } = resize(
      drawn(97, 31, (_x, _y, c) => 80 * c + 7),
      13,
      200,
    );
    expect([...new Set(data)]).toEqual([7, 87, 167]);
  });

  it("to the same size is the same image", () => {
    const image = drawn(5, 4, noisy);
    expect(resize(image, 5, 4)).toBe(image);
  });
});

it("normalise takes each channel's mean and deviation from its values in [0, 1]", () => {
  const halves = { mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5] };
  expect([...normalise(Uint8Array.of(0, 51, 255), 1, halves)]).toEqual([-1, Math.fround(-0.6), 1]);
  const tile = Uint8Array.of(255, 255, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0); // 2 × 2, three planes of it
  const others = { mean: [0, 0.25, 1], std: [1, 0.25, 0.5] };
  expect([...normalise(tile, 2, others)]).toEqual([1, 1, 1, 1, 3, 3, -1, -1, -2, -2, -2, -2]);
});

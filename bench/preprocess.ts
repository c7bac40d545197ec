// How long does a photograph of 12 megapixels take from its JPEG to tiles, and a new process for its first one?
//
//   node --import ./scripts/ts.mjs bench/preprocess.ts [--out FILE]

import sharp from "sharp";
import { publishedPreprocessing } from "../src/model/config.ts";
import { decodeImage } from "../src/prompt/decode-image.ts";
import { normalise, tileImage } from "../src/prompt/image.ts";
import { median, spread, writeRecord } from "./samples.ts";

const RUNS = 9;
const [width, height] = [4000, 3000];

/** Waves and a little noise, which compress as a photograph does. */
async function photograph(): Promise<Uint8Array> {
  const data = new Uint8Array(width * height * 3);
  let noise = 1;
  for (let y = 0, i = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      for (let c = 0; c < 3; c++) {
        noise = (Math.imul(noise, 1664525) + 1013904223) | 0;
        data[i++] = 128 + 60 * Math.sin(x / (90 + 40 * c)) + 50 * Math.cos(y / (70 + 30 * c)) + (noise >>> 28);
      }
  return sharp(data, { raw: { width, height, channels: 3 } })
    .jpeg({ quality: 90 })
    .toBuffer();
}

const file = await photograph();
const parts: Record<string, number[]> = { decode: [], tile: [], normalise: [] };
for (let run = 0; run <= RUNS; run++) {
  const start = performance.now();
  const image = await decodeImage(file);
  const decoded = performance.now();
  const { tiles } = tileImage(image, { tileSize: 336 });
  const tiled = performance.now();
  normalise(tiles, 336, publishedPreprocessing);
  const end = performance.now();
  for (const [part, ms] of Object.entries({ decode: decoded - start, tile: tiled - decoded, normalise: end - tiled }))
    parts[part]!.push(ms);
}
console.log(`${width} × ${height} JPEG of ${(file.length / 1e6).toFixed(1)} MB, 13 tiles; median of ${RUNS}, ms`);
for (const [part, [first, ...samples]] of Object.entries(parts))
  console.log(`${part}: ${median(samples).toFixed(0)} (${spread(samples, 0)}), in a new process ${first!.toFixed(0)}`);

const out = process.argv.indexOf("--out");
if (out > 0) writeRecord(process.argv[out + 1]!, { bench: "preprocess", width, height, bytes: file.length, parts });

// How long does a photograph of 12 megapixels take from its JPEG to tiles, and a new process for its first one? And, with a
// model, beside the encoding of one tile?
//
//   llama4 init scout ./vision --layers 1 --dim 64 --experts 1 --vocab 512 --vision on
//   node --import ./scripts/ts.mjs bench/preprocess.ts [--model ./vision] [--threads 2] [--out FILE]

import { parseArgs } from "node:util";
import sharp from "sharp";
import { publishedPreprocessing } from "../src/model/config.ts";
import { encodeImage } from "../src/model/vision.ts";
import { openModel } from "../src/open.ts";
import { decodeImage } from "../src/prompt/decode-image.ts";
import { normalise, tileImage } from "../src/prompt/image.ts";
import { median, spread, writeRecord } from "./samples.ts";

const { values: options } = parseArgs({
  options: { model: { type: "string" }, threads: { type: "string", default: "2" }, out: { type: "string" } },
});

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

/** One tile through the encoder, ms. */
async function encoding(path: string): Promise<number[]> {
  const model = await openModel(path, { threads: Number(options.threads), context: 64 });
  const { backend, config, vision } = model;
  const { imageSize: S, preprocessing } = config.vision!;
  const tile = normalise(new Uint8Array(3 * S ** 2).fill(77), S, preprocessing);
  const samples: number[] = [];
  for (let run = 0; run <= RUNS; run++) {
    const start = performance.now();
    await backend.scope(async () => {
      await backend.read(await encodeImage(vision!, config, backend.from(tile, [1, 3, S, S])));
    });
    samples.push(performance.now() - start);
  }
  model.close();
  return samples.slice(1);
}

if (options.model) {
  const tile = await encoding(options.model);
  parts["encode one tile"] = tile;
  const preprocessing = parts["decode"]!.slice(1).map((ms, i) => ms + parts["tile"]![i + 1]!);
  console.log(
    `encoding one tile, ${options.threads} threads: ${median(tile).toFixed(0)} (${spread(tile, 0)}); ` +
      `preprocessing all takes ${(median(preprocessing) / median(tile)).toFixed(2)} of it`,
  );
}
if (options.out) writeRecord(options.out, { bench: "preprocess", width, height, bytes: file.length, parts });

// How fast is the vision encoder: beside this machine's bf16 multiply-adds, and, with a Python that has torch and
// transformers, beside Hugging Face's model in bf16 and f32, run by turns in the same minutes?
//
//   llama4 init scout ./vision --layers 1 --dim 64 --vision on --experts 1 --vocab 512
//   node --import ./scripts/ts.mjs bench/vision.ts --model ./vision [--tiles 17] [--at-once 17] [--layers 34] [--threads 2]
//     [--runs 3] [--python PATH] [--dtypes bf16,f32] [--out record.json]

import { spawn } from "node:child_process";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { parseArgs } from "node:util";
import { openNative } from "../src/backends/native/backend.ts";
import { openCheckpoint } from "../src/checkpoint/open.ts";
import type { VisionConfig } from "../src/model/config.ts";
import { mapVision } from "../src/model/parameters.ts";
import { encodeImage } from "../src/model/vision.ts";
import type { TensorView } from "../src/tensor/tensor.ts";
import { median, spread, writeRecord } from "./samples.ts";

const { values: options } = parseArgs({
  options: {
    model: { type: "string" },
    tiles: { type: "string", default: "17" },
    "at-once": { type: "string" },
    layers: { type: "string" },
    threads: { type: "string", default: "2" },
    runs: { type: "string", default: "3" },
    python: { type: "string" },
    dtypes: { type: "string", default: "bf16,f32" },
    out: { type: "string" },
  },
});
if (!options.model) throw new Error("--model: a checkpoint with a vision encoder, as the command above makes it");
const N = Number(options.tiles);
const atOnce = Number(options["at-once"] ?? N);
const runs = Number(options.runs);
const threads = Number(options.threads);

const backend = openNative({ threads });
const checkpoint = await openCheckpoint(options.model);
if (!checkpoint.vision) throw new Error(`${options.model} has no vision encoder`);
const nLayers = Number(options.layers ?? checkpoint.vision.layers.length);
const tree = { ...checkpoint.vision, layers: checkpoint.vision.layers.slice(0, nLayers) };
const views: TensorView[] = [];
mapVision(tree, (view) => views.push(view));
const tensors = await backend.load(views);
let next = 0;
const vision = mapVision(tree, () => tensors[next++]!);
const { config } = checkpoint;
const v = config.vision!; // where there is `vision`

/** Multiplications and additions of a tile. */
function operations({ dim, ffnDim, imageSize, patchSize, nChannels, shuffle, adapterDim, outputDim }: VisionConfig) {
  const patches = (imageSize / patchSize) ** 2;
  const T = patches + 1;
  const block = T * (4 * dim ** 2 + 2 * dim * ffnDim) + 2 * T ** 2 * dim;
  const rows = patches / shuffle ** 2;
  const adapter = rows * (dim * shuffle ** 2 * adapterDim + adapterDim * outputDim + outputDim * config.dim);
  return 2 * (patches * nChannels * patchSize ** 2 * dim + nLayers * block + adapter);
}

const pixels = v.nChannels * v.imageSize ** 2;
const tiles = Float32Array.from({ length: atOnce * pixels }, (_, i) => Math.sin(i * 1.7));

async function ours(): Promise<number> {
  const start = performance.now();
  for (let done = 0; done < N; done += atOnce) {
    const n = Math.min(atOnce, N - done);
    await backend.scope(async () => {
      const input = backend.from(tiles.subarray(0, n * pixels), [n, v.nChannels, v.imageSize, v.imageSize]);
      await encodeImage(vision, config, input);
    });
  }
  return (performance.now() - start) / 1000;
}

/** Hugging Face's encoder in another process: seconds for a dtype. */
function torch(python: string) {
  const script = join(import.meta.dirname, "vision.py");
  const child = spawn(python, [script, String(N), String(nLayers), String(threads)], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  return {
    async run(dtype: string): Promise<number> {
      child.stdin.write(`${dtype}\n`);
      return Number((await lines.next()).value);
    },
    close: () => child.stdin.end(),
  };
}

const tera = (N * operations(v)) / 1e12;
console.log(
  `${backend.isa}, ${threads} threads, ${N} tiles, ${atOnce} at once, ${nLayers} layers: ${tera.toFixed(2)} T operations`,
);
await ours(); // warms up
const samples: { ours: number; bf16Gflops: number; torch?: number }[] = [];
const record: object[] = [];
for (const dtype of options.python ? options.dtypes.split(",") : [""]) {
  const other = options.python ? torch(options.python) : undefined;
  await other?.run(dtype); // warms up
  samples.length = 0;
  for (let i = 0; i < runs; i++) {
    const before = backend.ceilings().bf16Gflops;
    const seconds = await ours();
    const bf16Gflops = (before + backend.ceilings().bf16Gflops) / 2;
    samples.push({ ours: seconds, bf16Gflops, ...(other && { torch: await other.run(dtype) }) });
  }
  other?.close();
  const shares = samples.map((s) => (tera * 1000) / s.ours / s.bf16Gflops);
  const seconds = samples.map((s) => s.ours);
  console.log(
    `ours ${median(seconds).toFixed(2)} s (${spread(seconds)}), ${((tera * 1000) / median(seconds)).toFixed(0)} GFLOP/s, ` +
      `${(100 * median(shares)).toFixed(0)} % of the bf16 peak (${spread(
        shares.map((s) => 100 * s),
        0,
      )})`,
  );
  if (other) {
    const theirs = samples.map((s) => s.torch!);
    const ratios = samples.map((s) => s.ours / s.torch!);
    console.log(
      `torch ${dtype} ${median(theirs).toFixed(2)} s (${spread(theirs)}); ours takes ${median(ratios).toFixed(2)} of it (${spread(ratios)})`,
    );
  }
  record.push({ dtype, samples: [...samples] });
}
await checkpoint.close();
backend.close();
if (options.out) writeRecord(options.out, { N, atOnce, nLayers, threads, tera, record });

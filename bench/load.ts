// How fast are weights loaded, beside a plain read of the same files in the same run, and how much memory do they take?
//
//   node --import ./scripts/ts.mjs bench/load.ts MODEL [runs=5]
//
// The page cache is dropped before every sample where that is allowed (Linux, root); the record says whether it was.

import { execFileSync } from "node:child_process";
import { statSync, writeFileSync } from "node:fs";
import { open } from "node:fs/promises";
import { cpus } from "node:os";
import { openNative } from "../src/backends/native/backend.ts";
import { openCheckpoint } from "../src/checkpoint/open.ts";
import { mapParameters } from "../src/model/parameters.ts";
import type { TensorView } from "../src/tensor/tensor.ts";
import { median, spread } from "./samples.ts";

const [model, runs = "5"] = process.argv.slice(2);
if (!model) throw new Error("usage: bench/load.ts MODEL [runs]");

function dropPageCache(): boolean {
  try {
    execFileSync("sync");
    writeFileSync("/proc/sys/vm/drop_caches", "3");
    return true;
  } catch {
    return false;
  }
}

/** Seconds of reading the files from end to end in blocks of 16 MiB, one after the other. */
async function plainRead(paths: readonly string[]): Promise<{ seconds: number; bytes: number }> {
  const block = Buffer.alloc(16 << 20);
  const start = performance.now();
  let bytes = 0;
  for (const path of paths) {
    const file = await open(path);
    for (;;) {
      const { bytesRead } = await file.read(block, 0, block.length);
      if (!bytesRead) break;
      bytes += bytesRead;
    }
    await file.close();
  }
  return { seconds: (performance.now() - start) / 1000, bytes };
}

async function load(path: string): Promise<{ seconds: number; residentBytes: number }> {
  const before = process.memoryUsage.rss();
  const start = performance.now();
  const checkpoint = await openCheckpoint(path);
  const backend = openNative();
  const views: TensorView[] = [];
  mapParameters(checkpoint.parameters, (view) => views.push(view));
  await backend.load(views);
  const seconds = (performance.now() - start) / 1000;
  const residentBytes = process.memoryUsage.rss() - before;
  backend.close();
  await checkpoint.close();
  return { seconds, residentBytes };
}

const checkpoint = await openCheckpoint(model);
const paths = [...new Set(checkpoint.tensors.flatMap(({ source }) => source.path ?? []))];
await checkpoint.close();
const fileBytes = paths.reduce((bytes, path) => bytes + statSync(path).size, 0);

const plain: number[] = [];
const ours: number[] = [];
let resident = 0;
let cold = true;
for (let run = 0; run < Number(runs); run++) {
  const samples = [
    async () => {
      const { seconds, bytes } = await plainRead(paths);
      plain.push(bytes / seconds / 1e9);
    },
    async () => {
      const { seconds, residentBytes } = await load(model);
      ours.push(fileBytes / seconds / 1e9);
      resident = Math.max(resident, residentBytes);
    },
  ];
  // Each goes first in turn: whoever follows finds memory that the host has just given (docs/performance.md).
  for (const sample of run % 2 ? samples.reverse() : samples) {
    cold = dropPageCache() && cold;
    await sample();
  }
}
const ratios = ours.map((speed, run) => speed / plain[run]!);
console.log(
  `${cpus()[0]?.model}, ${runs} runs, page cache ${cold ? "dropped" : "warm"}, ${(fileBytes / 1e9).toFixed(2)} GB`,
);
console.log(`plain read  ${median(plain).toFixed(2)} GB/s (${spread(plain)})`);
console.log(
  `load        ${median(ours).toFixed(2)} GB/s (${spread(ours)}), ${(median(ratios) * 100).toFixed(0)} % of the plain read beside it`,
);
console.log(`resident    ${(resident / 1e9).toFixed(2)} GB, ${(resident / fileBytes).toFixed(3)} of the file`);

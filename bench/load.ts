// How fast are weights loaded, beside a plain read of the same files in the same run, and how much memory do they take?
//
//   node --import ./scripts/ts.mjs bench/load.ts MODEL [runs=5]
//
// The page cache is dropped before every sample where that is allowed (Linux, root); the record says whether it was.
// Both fill as much fresh memory as the files are long: the one with weights, the other with the page cache. A virtual
// machine may have given its free memory back to its host, and gets it again at less than a gigabyte a second. So each is
// measured twice: with memory that was in use a moment ago, and with memory that has lain free for some seconds.

import { execFileSync } from "node:child_process";
import { statSync, writeFileSync } from "node:fs";
import { open } from "node:fs/promises";
import { cpus } from "node:os";
import { openNative } from "../src/backends/native/backend.ts";
import { openCheckpoint } from "../src/checkpoint/open.ts";
import { mapParameters } from "../src/model/parameters.ts";
import type { TensorView } from "../src/tensor/tensor.ts";
import { median, spread } from "./samples.ts";

const [model = usage(), runs = "5"] = process.argv.slice(2);

function usage(): never {
  throw new Error("usage: bench/load.ts MODEL [runs]");
}

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

/** Uses as much memory as the files take, and frees it. */
async function warmMemory(): Promise<void> {
  const script = `Array.from({ length: ${Math.ceil(fileBytes / 2 ** 30)} }, () => new Uint8Array(2 ** 30).fill(1))`;
  execFileSync(process.execPath, ["-e", script]);
}

const settle = () => new Promise((resolve) => setTimeout(resolve, 6000)); // Linux reports free pages within some 2 s

let cold = true;
let resident = 0;
async function compare(prepare: () => Promise<unknown>): Promise<{ plain: number[]; ours: number[] }> {
  const plain: number[] = [];
  const ours: number[] = [];
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
    for (const sample of run % 2 ? samples.reverse() : samples) {
      cold = dropPageCache() && cold;
      await prepare();
      await sample();
    }
  }
  return { plain, ours };
}

console.log(`${cpus()[0]?.model}, ${runs} runs, ${(fileBytes / 1e9).toFixed(2)} GB`);
for (const [memory, prepare] of [
  ["in use a moment ago", warmMemory],
  ["free for 6 s", settle],
] as const) {
  const { plain, ours } = await compare(prepare);
  const ratios = ours.map((speed, run) => (speed / plain[run]!) * 100);
  console.log(
    `memory ${memory}, page cache ${cold ? "dropped" : "warm"}\n` +
      `  plain read  ${median(plain).toFixed(2)} GB/s (${spread(plain)})\n` +
      `  load        ${median(ours).toFixed(2)} GB/s (${spread(ours)}), ${median(ratios).toFixed(0)} % of the plain read beside it (${spread(ratios)})`,
  );
}
console.log(`resident    ${(resident / 1e9).toFixed(2)} GB, ${(resident / fileBytes).toFixed(3)} of the file`);

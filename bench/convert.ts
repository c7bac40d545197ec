// How fast does `convert` go, in MB of input a second, how busy are the cores, and how much memory does it take?
//
//   node --import ./scripts/ts.mjs bench/convert.ts MODEL [types=q8_0,q4_0,q4_k,q6_k,q4_k_m] [runs=3]
//
// A type called "folder" writes the model as a bf16 folder. What is written goes beside MODEL and is removed again; the
// page cache holds the input after the first run. `write` is the ceiling of the disk: a plain write of the same bytes.

import { existsSync, rmSync } from "node:fs";
import { open } from "node:fs/promises";
import { cpus } from "node:os";
import { openNative } from "../src/backends/native/backend.ts";
import { convert } from "../src/checkpoint/convert.ts";
import type { Mix } from "../src/checkpoint/mix.ts";
import { openCheckpoint } from "../src/checkpoint/open.ts";
import { median, spread } from "./samples.ts";

const [model, types = "q8_0,q4_0,q4_k,q6_k,q4_k_m", runs = "3"] = process.argv.slice(2);
if (!model) throw new Error("usage: bench/convert.ts MODEL [types] [runs]");

interface Run {
  readonly inputBytes: number;
  readonly bytes: number;
  readonly seconds: number;
  /** Cores in use, on average. */
  readonly cores: number;
}

async function converted(type: string, out: string): Promise<Run> {
  const quantizer = openNative();
  const checkpoint = await openCheckpoint(model!);
  const start = performance.now();
  const before = process.cpuUsage();
  const mix = (type === "folder" ? "bf16" : type) as Mix; // convert refuses others
  const { bytes } = await convert(checkpoint, out, { type: mix, quantizer, allowLossy: true });
  const { user, system } = process.cpuUsage(before);
  const seconds = (performance.now() - start) / 1000;
  const inputBytes = checkpoint.totalBytes;
  await checkpoint.close();
  quantizer.close();
  return { inputBytes, bytes, seconds, cores: (user + system) / 1e6 / seconds };
}

/** Seconds of writing `bytes` bytes in blocks of 8 MiB to a new file, onto the disk. */
async function plainWrite(path: string, bytes: number): Promise<number> {
  const block = Buffer.alloc(8 << 20, 1);
  const start = performance.now();
  const file = await open(path, "w");
  for (let at = 0; at < bytes; at += block.length) await file.write(block, 0, Math.min(block.length, bytes - at));
  await file.sync();
  await file.close();
  const seconds = (performance.now() - start) / 1000;
  rmSync(path);
  return seconds;
}

console.log(`${cpus()[0]?.model}, ${cpus().length} cores, ${runs} runs`);
for (const type of types.split(",")) {
  const out = type === "folder" ? `${model}.converted` : `${model}.converted.gguf`;
  if (existsSync(out)) throw new Error(`${out} exists; move it away, the benchmark would replace it`);
  const speeds: number[] = [];
  const writes: number[] = [];
  const cores: number[] = [];
  for (let i = 0; i < Number(runs); i++) {
    const run = await converted(type, out);
    rmSync(out, { recursive: true });
    speeds.push(run.inputBytes / run.seconds / 1e6);
    cores.push(run.cores);
    writes.push(run.bytes / (await plainWrite(`${out}.plain`, run.bytes)) / 1e6);
  }
  console.log(
    `${type.padEnd(7)} ${median(speeds).toFixed(0)} MB/s of input (${spread(speeds, 0)}), ` +
      `${median(cores).toFixed(2)} cores, plain write ${median(writes).toFixed(0)} MB/s of output`,
  );
}
const peak = process.resourceUsage().maxRSS / 1e6; // kilobytes
console.log(`at most ${peak.toFixed(2)} GB of memory over all runs`);

// How close do the products come to what this machine can do: bytes a second at decode (one row) beside a plain read of
// memory, operations a second at prefill beside multiply-adds in registers, measured in the same run?
//
//   node --import ./scripts/ts.mjs bench/kernels.ts [--threads N] [--runs 5] [--rows 512]
//     [--types q4_0,bf16] [--activations int8] [--out record.json]

import { parseArgs } from "node:util";
import { openNative } from "../src/backends/native/backend.ts";
import type { DType } from "../src/tensor/dtype.ts";
import { linear } from "../src/tensor/ops.ts";
import { storedBytes, type Tensor, type TensorView } from "../src/tensor/tensor.ts";
import { writeRecord } from "./samples.ts";

const { values: options } = parseArgs({
  options: {
    threads: { type: "string" },
    runs: { type: "string", default: "5" },
    rows: { type: "string", default: "512" },
    types: { type: "string", default: "q8_0,q4_0,q4_k,q5_k,q6_k,f16,bf16,f32" },
    activations: { type: "string", default: "int8,f32" },
    out: { type: "string" },
  },
});
const runs = Number(options.runs);
const T = Number(options.rows);
const [I, O] = [5120, 24576]; // Scout's width; even in Q4_0 larger than every cache

// Words of 0x2000 to 0x2fff are small, finite and normal as float16, bfloat16 and as halves of float32: any block format is
// valid, and none is a subnormal number, on which some processors take a hundred times as long.
const words = new Uint16Array(1 << 20);
let state = 88172645;
for (let i = 0; i < words.length; i++) {
  state ^= state << 13;
  state ^= state >>> 17;
  state ^= state << 5;
  words[i] = 0x2000 | (state & 0xfff);
}
const pattern = new Uint8Array(words.buffer);

function viewOf(dtype: DType): TensorView {
  const bytes = storedBytes({ dtype, shape: [O, I] });
  const read = async (_: number, length: number) => {
    const out = new Uint8Array(length);
    for (let at = 0; at < length; at += pattern.length)
      out.set(pattern.subarray(0, Math.min(pattern.length, length - at)), at);
    return out;
  };
  return { name: dtype, dtype, shape: [O, I], source: { name: dtype, byteLength: bytes, read }, offset: 0 };
}

interface Spread {
  readonly median: number;
  readonly least: number;
  readonly most: number;
}

/** Units a second over several runs. */
function speed(units: number, body: () => void): Spread {
  body(); // warm-up
  const all = Array.from({ length: runs }, () => {
    const start = performance.now();
    body();
    return units / ((performance.now() - start) / 1000);
  }).sort((a, b) => a - b);
  return { median: all[runs >> 1]!, least: all[0]!, most: all[runs - 1]! };
}

const line = (s: Spread, ceiling: number) =>
  `${(s.median / 1e9).toFixed(1)} (${(s.least / 1e9).toFixed(1)}-${(s.most / 1e9).toFixed(1)}), ${((s.median / ceiling) * 100).toFixed(0)} %`;

const dtypes = options.types.split(",") as DType[];
const threads = options.threads ? { threads: Number(options.threads) } : {};
const record = [];
for (const activations of options.activations.split(",") as ("int8" | "f32")[]) {
  const backend = openNative({ ...threads, activations });
  const row = backend.from(
    new Float32Array(I).map((_, i) => Math.sin(i)),
    [1, I],
  );
  const many = backend.from(
    new Float32Array(T * I).map((_, i) => Math.sin(i)),
    [T, I],
  );
  console.log(`${backend.isa}, ${backend.threads} threads, ${activations} activations, weights [${O}, ${I}]`);
  for (const dtype of dtypes) {
    if (activations === "f32" && dtype.endsWith("_k")) continue; // all blocks go the same way
    const [w] = (await backend.load([viewOf(dtype)])) as [Tensor];
    const ceilings = backend.ceilings();
    const once = (x: Tensor) => () => void backend.scope(async () => void linear(x, w));
    const decode = speed(storedBytes({ dtype, shape: [O, I] }), once(row));
    const prefill = speed(2 * T * I * O, once(many));
    const peak = activations === "int8" && dtype.startsWith("q") ? ceilings.int8Gops : ceilings.f32Gflops;
    console.log(
      `${dtype.padEnd(5)} decode ${line(decode, ceilings.dramReadGBps * 1e9)} of ${ceilings.dramReadGBps.toFixed(1)} GB/s; ` +
        `prefill of ${T} ${line(prefill, peak * 1e9)} of ${peak.toFixed(0)} GOP/s`,
    );
    record.push({ activations, dtype, decode, prefill, ceilings });
  }
  backend.close();
}

if (options.out) writeRecord(options.out, { sizes: { I, O, T }, runs, warmUp: 1, record });

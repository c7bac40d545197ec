// How close does attention come to what this machine can do: operations a second of prefill beside multiply-adds in
// registers, bytes of keys and values a second of decode beside a plain read of memory, measured in the same run?
// Scout's heads: 40 queries' on 8 keys', 128 wide.
//
//   node --import ./scripts/ts.mjs bench/attention.ts [--threads N] [--runs 5] [--prefill 8192,32768]
//     [--decode 131072] [--kv-dtype f16,q8_0] [--out record.json]

import { parseArgs } from "node:util";
import { openNative } from "../src/backends/native/backend.ts";
import { type KVDType, slotBytes } from "../src/tensor/backend.ts";
import { attend } from "../src/tensor/ops.ts";
import { median, writeRecord } from "./samples.ts";

const { values: options } = parseArgs({
  options: {
    threads: { type: "string" },
    runs: { type: "string", default: "5" },
    prefill: { type: "string", default: "8192,32768" },
    decode: { type: "string", default: "131072" },
    "kv-dtype": { type: "string", default: "f16,q8_0" },
    out: { type: "string" },
  },
});
const runs = Number(options.runs);
const numbers = (list: string) => list.split(",").filter(Boolean).map(Number);
const dtypes = options["kv-dtype"].split(",") as KVDType[]; // an unknown one is refused by the pool
const [H, K, d, blockSize, slice] = [40, 8, 128, 64, 512];

const backend = openNative(options.threads ? { threads: Number(options.threads) } : {});
console.log(`${backend.isa}, ${backend.threads} threads, ${H} heads on ${K}, ${d} wide`);
const tensor = (T: number, heads: number, seed: number) =>
  backend.from(
    new Float32Array(T * heads * d).map((_, i) => Math.sin(seed + i * (1 + seed))),
    [T, heads, d],
  );
const record: object[] = [];

/** Runs `body` several times between probes of the ceiling; prints units a second and the share of the mean ceiling. */
async function measure(name: string, unit: string, giga: number, ceiling: () => number, body: () => void) {
  const samples: { speed: number; share: number }[] = [];
  const leastMs = 200;
  for (let i = 0; i < runs; i++) {
    const before = ceiling();
    await backend.scope(async () => body()); // warms up: the probe has put the caches and the other threads to other use
    let times = 0;
    const start = performance.now();
    for (; performance.now() - start < leastMs; times++) await backend.scope(async () => body());
    const speed = (giga * times) / ((performance.now() - start) / 1000);
    samples.push({ speed, share: speed / ((before + ceiling()) / 2) });
  }
  const [speed, share] = [median(samples.map((s) => s.speed)), median(samples.map((s) => s.share))];
  const shares = samples.map((s) => `${(100 * s.share).toFixed(0)}`).join(" ");
  console.log(
    `${name.padEnd(28)} ${speed.toFixed(1)} ${unit}, ${(100 * share).toFixed(0)} % of the ceiling (${shares})`,
  );
  record.push({ name, unit, speed, share, samples });
}

for (const dtype of dtypes) {
  for (const T of numbers(options.prefill)) {
    const pool = backend.kvPool({
      layers: 1,
      blocks: Math.ceil(T / blockSize),
      blockSize,
      heads: K,
      headDim: d,
      dtype,
    });
    const table = Int32Array.from({ length: pool.spec.blocks }, (_, i) => i);
    const cache = { pool, layer: 0, table: () => table };
    const [q, k, v] = [tensor(slice, H, 1), tensor(slice, K, 2), tensor(slice, K, 3)];
    // Both products of every query with the keys up to its own: a multiplication and an addition each.
    const operations = 4 * H * d * ((T * (T + 1)) / 2);
    await measure(
      `prefill of ${T}, ${dtype}`,
      "Gop/s",
      operations / 1e9,
      () => backend.ceilings().f32Gflops,
      () => {
        for (let position = 0; position < T; position += slice)
          attend(q, k, v, { segments: [{ row: 0, length: slice, position, sequence: 0 }], cache });
      },
    );
    pool.close();
  }
  for (const T of numbers(options.decode)) {
    const pool = backend.kvPool({ layers: 1, blocks: T / blockSize, blockSize, heads: K, headDim: d, dtype });
    const table = Int32Array.from({ length: pool.spec.blocks }, (_, i) => i);
    const cache = { pool, layer: 0, table: () => table };
    const [none, k, v] = [
      backend.from(new Float32Array(slice * K * d), [slice, K, d]),
      tensor(slice, K, 2),
      tensor(slice, K, 3),
    ];
    // Fills the cache: few queries, one head of each.
    for (let position = 0; position < T; position += slice)
      for (let row = 0; row < slice; row += blockSize)
        attend(none, k, v, {
          segments: [{ row, length: blockSize, position: 0, sequence: 0 }],
          cache: { ...cache, table: () => table.subarray((position + row) / blockSize) },
        });
    const [q, key, value] = [tensor(1, H, 4), tensor(1, K, 5), tensor(1, K, 6)];
    const bytes = 2 * T * slotBytes(pool.spec);
    await measure(
      `decode at ${T}, ${dtype}`,
      "GB/s",
      bytes / 1e9,
      () => backend.ceilings().dramReadGBps,
      () => {
        attend(q, key, value, { segments: [{ row: 0, length: 1, position: T - 1, sequence: 0 }], cache });
      },
    );
    pool.close();
  }
}
backend.close();

if (options.out) writeRecord(options.out, { sizes: { H, K, d, slice }, runs, record });

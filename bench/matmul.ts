// How close does the matrix product of float weights, y[T, O] = x[T, I] · w[O, I]ᵀ, come to what this machine can do:
// N × N × N beside multiply-adds in registers, a few rows beside a plain read of memory, all in the same run? And beside
// PyTorch, if a Python that has it is named: samples of both alternate.
//
//   node --import ./scripts/ts.mjs bench/matmul.ts [--sizes 1024,4096] [--rows 1,2,4,6,16,64] [--threads N] [--runs 7]
//     [--pytorch PYTHON] [--out record.json]

import { spawn } from "node:child_process";
import { availableParallelism } from "node:os";
import { createInterface } from "node:readline";
import { parseArgs } from "node:util";
import { type NativeBackend, openNative } from "../src/backends/native/backend.ts";
import type { DType } from "../src/tensor/dtype.ts";
import { linear } from "../src/tensor/ops.ts";
import { storedBytes, type Tensor, type TensorView } from "../src/tensor/tensor.ts";
import { median, spread, writeRecord } from "./samples.ts";

const { values: options } = parseArgs({
  options: {
    sizes: { type: "string", default: "1024,4096" },
    rows: { type: "string", default: "1,2,4,6,16,64" },
    threads: { type: "string" },
    runs: { type: "string", default: "7" },
    pytorch: { type: "string" },
    out: { type: "string" },
  },
});
const numbers = (list: string) => list.split(",").filter(Boolean).map(Number);
const threads = Number(options.threads ?? availableParallelism());
const runs = Number(options.runs);

/** Weights of small numbers: words of 0x2000 to 0x2fff are finite and normal in f32, bf16, f16 and as scales of q4_k. */
function viewOf(dtype: DType, O: number, I: number): TensorView {
  const bytes = storedBytes({ dtype, shape: [O, I] });
  const read = async (_: number, length: number) => {
    const words = new Uint16Array(length / 2);
    for (let i = 0; i < words.length; i++) words[i] = 0x2000 | (Math.imul(i, 40503) & 0xfff);
    return new Uint8Array(words.buffer);
  };
  return { name: dtype, dtype, shape: [O, I], source: { name: dtype, byteLength: bytes, read }, offset: 0 };
}

function rowsOf(backend: NativeBackend, T: number, I: number): Tensor {
  return backend.from(
    new Float32Array(T * I).map((_, i) => Math.sin(i)),
    [T, I],
  );
}

/** Seconds of a call, over `repeat` of them. Awaited, so that each gives its memory back before the next asks. */
async function time(repeat: number, body: () => Promise<void>): Promise<number> {
  const start = performance.now();
  for (let i = 0; i < repeat; i++) await body();
  return (performance.now() - start) / 1000 / repeat;
}

// Reads lines "type size repeat", answers with the seconds of one product. Threads that wait leave the cores to others.
const script = `
import sys, time, torch
torch.set_num_threads(${threads})
made = {}
for line in sys.stdin:
    name, n, repeat = line.split()
    n, repeat = int(n), int(repeat)
    if (name, n) not in made:
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[name]
        made.clear()
        made[name, n] = [torch.rand(n, n).to(dtype) for _ in range(2)]
        torch.nn.functional.linear(*made[name, n])
    x, w = made[name, n]
    with torch.inference_mode():
        start = time.perf_counter()
        for _ in range(repeat):
            torch.nn.functional.linear(x, w)
        print((time.perf_counter() - start) / repeat, flush=True)
`;

function openPeer(python: string) {
  const child = spawn(python, ["-c", script], {
    env: { ...process.env, OMP_WAIT_POLICY: "passive", OMP_NUM_THREADS: String(threads) },
    stdio: ["pipe", "pipe", "inherit"],
  });
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]();
  return {
    async time(dtype: DType, size: number, repeat: number): Promise<number> {
      child.stdin.write(`${dtype} ${size} ${repeat}\n`);
      const { value, done } = await lines.next();
      if (done) throw new Error(`${python} ended; does it have torch?`);
      return Number(value);
    },
    close: () => child.stdin.end(),
  };
}

const shown = (all: readonly number[], digits = 0) => `${median(all).toFixed(digits)} (${spread(all, digits)})`;
const percent = (x: number) => `${(100 * x).toFixed(0)} %`;

// Fast mode: bf16 products round x to bf16, as PyTorch's do; "exact" is bf16 weights widened to float32.
const backends = {
  fast: openNative({ threads, activations: "int8" }),
  exact: openNative({ threads, activations: "f32" }),
};
const peer = options.pytorch ? openPeer(options.pytorch) : undefined;
const record: object[] = [];
console.log(`${backends.fast.isa}, ${threads} threads, ${runs} runs, median (least-most)`);

const cases = [
  ["f32", "exact"],
  ["bf16", "fast"],
  ["bf16", "exact"],
  ["q4_k", "exact"],
] as const;
for (const size of numbers(options.sizes))
  for (const [dtype, mode] of cases) {
    const backend = backends[mode];
    const [w] = (await backend.load([viewOf(dtype, size, size)])) as [Tensor];
    const x = rowsOf(backend, size, size);
    const once = () => backend.scope(async () => void linear(x, w));
    await once();
    const repeat = Math.max(1, Math.round(2e10 / (2 * size ** 3)));
    const work = (2 * size ** 3) / 1e9;
    const samples: { gflops: number; share: number; peer?: number }[] = [];
    for (let run = 0; run < runs; run++) {
      const before = backend.ceilings();
      const gflops = work / (await time(repeat, once));
      const theirs = mode === "exact" && dtype !== "f32" ? undefined : await peer?.time(dtype, size, repeat);
      const after = backend.ceilings();
      const name = dtype === "bf16" && mode === "fast" ? "bf16Gflops" : "f32Gflops";
      const share = gflops / Math.max(before[name], after[name]);
      samples.push({ gflops, share, ...(theirs && { peer: work / theirs }) });
    }
    const ours = samples.map((s) => s.gflops);
    let line = `${size}³ ${dtype} ${mode}: ${shown(ours)} GFLOP/s, ${percent(median(samples.map((s) => s.share)))} of the peak`;
    const theirs = samples.flatMap((s) => s.peer ?? []);
    if (theirs.length)
      line += `; PyTorch ${shown(theirs)}, ratio ${shown(
        samples.map((s) => s.gflops / s.peer!),
        2,
      )}`;
    console.log(line);
    record.push({ size, dtype, mode, samples });
  }
peer?.close();

const [I, O] = [5120, 8192];
for (const dtype of ["f32", "bf16", "f16"] as const) {
  const backend = backends.fast;
  const [w] = (await backend.load([viewOf(dtype, O, I)])) as [Tensor];
  for (const T of numbers(options.rows)) {
    const x = rowsOf(backend, T, I);
    const once = () => backend.scope(async () => void linear(x, w));
    await once();
    const samples: { gbps: number; share: number }[] = [];
    for (let run = 0; run < runs; run++) {
      const before = backend.ceilings().dramReadGBps;
      const gbps = storedBytes({ dtype, shape: [O, I] }) / (await time(4, once)) / 1e9;
      samples.push({ gbps, share: gbps / Math.max(before, backend.ceilings().dramReadGBps) });
    }
    const gbps = samples.map((s) => s.gbps);
    console.log(
      `${T} rows of ${I} by ${O}, ${dtype}: ${shown(gbps, 1)} GB/s, ${percent(median(samples.map((s) => s.share)))} of the read; ` +
        `${((2 * T * I * O * median(gbps)) / storedBytes({ dtype, shape: [O, I] })).toFixed(0)} GFLOP/s`,
    );
    record.push({ rows: T, I, O, dtype, samples });
  }
}
for (const backend of Object.values(backends)) backend.close();

if (options.out) writeRecord(options.out, { threads, runs, record });

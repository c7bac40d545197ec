// How many tokens a second does a training step take in (forward, backward, clipping, AdamW), what share of the machine's
// peak is that, and how much memory? Beside Hugging Face's model in PyTorch, if a Python that has both is named: as it is,
// and with each token sent to its expert alone; samples of all alternate, with the peak probed around ours.
//
//   node --import ./scripts/ts.mjs bench/train-step.ts [--sizes 14M,127M] [--threads 2] [--runs 5] [--warm 2] [--recompute]
//     [--python PYTHON] [--peers sparse:f32,sparse:bf16,hf:f32] [--out record.json]

import { spawn } from "node:child_process";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { parseArgs } from "node:util";
import { openNative } from "../src/backends/native/backend.ts";
import { type Llama4Config, layerKinds } from "../src/model/config.ts";
import type { Parameters } from "../src/model/parameters.ts";
import { forward } from "../src/model/transformer.ts";
import { crossEntropy } from "../src/tensor/ops.ts";
import type { Tensor } from "../src/tensor/tensor.ts";
import { inOrderOf, leavesOf } from "../src/train/leaves.ts";
import { Optimizer } from "../src/train/optimizer.ts";
import { Tape } from "../src/train/tape.ts";
import { median, spread, writeRecord } from "./samples.ts";

const { values: options } = parseArgs({
  options: {
    sizes: { type: "string", default: "14M,127M" },
    threads: { type: "string", default: "2" },
    runs: { type: "string", default: "5" },
    warm: { type: "string", default: "2" },
    recompute: { type: "boolean", default: false },
    python: { type: "string" },
    peers: { type: "string", default: "sparse:f32,sparse:bf16,hf:f32" },
    out: { type: "string" },
  },
});
const threads = Number(options.threads);
const runs = Number(options.runs);

const shapes = {
  "14M": { dim: 192, layers: 6, experts: 8, expert: 384, vocab: 4096, heads: 6, kvHeads: 2, headDim: 32, batch: 8 },
  "127M": { dim: 512, layers: 8, experts: 8, expert: 1024, vocab: 8192, heads: 8, kvHeads: 2, headDim: 64, batch: 4 },
} as const;
type Shape = (typeof shapes)[keyof typeof shapes] & { length: number; chunk: number };

function configOf(s: Shape): Llama4Config {
  return {
    ...{ vocabSize: s.vocab, dim: s.dim, nHeads: s.heads, nKvHeads: s.kvHeads, headDim: s.headDim, topK: 1 },
    ...{ ffnDim: 2 * s.expert, expertDim: s.expert, nExperts: s.experts, layers: layerKinds(s.layers, 4, 1) },
    ...{ attentionChunk: s.chunk, normEps: 1e-5, qkNorm: true, ropeTheta: 10000, tied: false, contextLength: 4096 },
    ...{ temperature: { floor: 8192, scale: 0.1 }, tokens: { eos: [] } },
  };
}

/** Normal numbers of deviation 0.02, ones for norms. */
function randomWeights(c: Llama4Config, from: (data: Float32Array, shape: number[]) => Tensor): Parameters {
  const make = (...shape: number[]) => {
    const data = new Float32Array(shape.reduce((a, b) => a * b, 1));
    const gauss = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
    return from(
      data.map(() => (shape.length > 1 ? 0.02 * gauss() : 1)),
      shape,
    );
  };
  const { dim, expertDim: F, nExperts: E } = c;
  return {
    tokEmbeddings: make(c.vocabSize, dim),
    layers: c.layers.map(() => ({
      attentionNorm: make(dim),
      wq: make(c.nHeads * c.headDim, dim),
      wk: make(c.nKvHeads * c.headDim, dim),
      wv: make(c.nKvHeads * c.headDim, dim),
      wo: make(dim, c.nHeads * c.headDim),
      ffnNorm: make(dim),
      ffn: {
        router: make(E, dim),
        experts: { gate: make(E, F, dim), up: make(E, F, dim), down: make(E, dim, F) },
        shared: { w1: make(F, dim), w2: make(dim, F), w3: make(F, dim) },
      },
    })),
    norm: make(dim),
    output: make(c.vocabSize, dim),
  };
}

/** Multiplications and additions of a token's forward and backward pass, attention left out: 6 for each active weight. */
function operations(c: Llama4Config): number {
  const layer = 2 * c.dim * (c.nHeads + c.nKvHeads) * c.headDim + c.dim * c.nExperts + 6 * c.dim * c.expertDim;
  return 6 * (c.layers.length * layer + c.dim * c.vocabSize);
}

interface Sample {
  readonly seconds: number;
  readonly loss: number;
  readonly megabytes: number;
}

function ours(s: Shape) {
  const c = configOf(s);
  const backend = openNative({ threads, activations: "f32" });
  const text = randomWeights(c, (data, shape) => backend.from(data, shape));
  const leaves = leavesOf({ text });
  const optimizer = new Optimizer(backend, leaves, {
    ...{ kind: "adamw", beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0.01, clip: 1, visionRate: 1, average: 0 },
  });
  const tape = new Tape(backend, { recompute: options.recompute });
  const watched = tape.watch({ text });
  const T = s.batch * s.length;
  const tokens = Int32Array.from({ length: T }, () => Math.floor(Math.random() * s.vocab));
  const segments = Array.from({ length: s.batch }, (_, i) => ({
    ...{ row: i * s.length, length: s.length, position: 0, sequence: i },
  }));
  const targets = tokens.map((_, t) => (t % s.length === s.length - 1 ? -1 : tokens[t + 1]!));
  const wanted = tokens.map((_, t) => t);
  const step = () =>
    backend.scope(async () => {
      const logits = await forward(watched.text, c, { tokens, segments, wanted });
      const loss = crossEntropy(logits, targets);
      const gradients = tape.gradients(loss, watched);
      const value = (await tape.read(loss))[0]!;
      await optimizer.step(inOrderOf({ text }, gradients), 1e-3);
      return value;
    });
  return {
    name: "ours",
    backend,
    tera: (T * operations(c)) / 1e12,
    async run(): Promise<Sample> {
      const start = performance.now();
      const loss = await step();
      const seconds = (performance.now() - start) / 1000;
      return { seconds, loss, megabytes: process.resourceUsage().maxRSS / 1024 };
    },
  };
}

/** Hugging Face's model in another process. */
function theirs(python: string, s: Shape, mode: string, dtype: string) {
  const script = join(import.meta.dirname, "train-step.py");
  const child = spawn(python, [script, JSON.stringify(s), mode, dtype, String(threads)], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  return {
    name: `${mode} ${dtype}`,
    async run(): Promise<Sample> {
      child.stdin.write("\n");
      const { value, done } = await lines.next();
      if (done) throw new Error(`${python} bench/train-step.py ended; its own message is above`);
      const [seconds, loss, megabytes] = value.split(" ").map(Number) as [number, number, number];
      return { seconds, loss, megabytes };
    },
    close: () => child.stdin.end(),
  };
}

const record: object[] = [];
for (const size of options.sizes.split(",") as (keyof typeof shapes)[]) {
  const s: Shape = { ...shapes[size], length: 512, chunk: 256 };
  const T = s.batch * s.length;
  const us = ours(s);
  const peers = (options.python ? options.peers.split(",") : []).map((peer) => {
    const [mode, dtype] = peer.split(":") as [string, string];
    return theirs(options.python!, s, mode, dtype);
  });
  const samples: Record<string, Sample[]> = { ours: [] };
  const shares: number[] = [];
  // Memory is read before the first probe, which takes 256 MB for itself.
  const megabytes: Record<string, number> = {};
  for (const { name, run } of [us, ...peers])
    for (let warm = 0; warm < Number(options.warm); warm++) megabytes[name] = (await run()).megabytes;
  for (let i = 0; i < runs; i++) {
    const before = us.backend.ceilings().f32Gflops;
    const sample = await us.run();
    samples["ours"]!.push(sample);
    const peak = (before + us.backend.ceilings().f32Gflops) / 2;
    shares.push((us.tera * 1000) / sample.seconds / peak);
    for (const peer of peers) {
      samples[peer.name] ??= [];
      samples[peer.name]!.push(await peer.run());
    }
  }
  console.log(`${size}, ${us.backend.isa}, ${threads} threads, ${T} tokens, ${us.tera.toFixed(3)} T operations a step`);
  for (const [name, all] of Object.entries(samples)) {
    const speeds = all.map(({ seconds }) => T / seconds);
    const ratios = all.map(({ seconds }, i) => seconds / samples["ours"]![i]!.seconds);
    console.log(
      `  ${name.padEnd(12)} ${median(speeds).toFixed(0).padStart(6)} tokens/s (${spread(speeds, 0)}), ` +
        `${megabytes[name]!.toFixed(0)} MB${
          name === "ours"
            ? `, ${(100 * median(shares)).toFixed(0)} % of the f32 peak (${spread(
                shares.map((x) => 100 * x),
                0,
              )})`
            : `; ours is ${median(ratios).toFixed(2)} times as fast (${spread(ratios)})`
        }`,
    );
  }
  record.push({ size, tera: us.tera, megabytes, samples, shares });
  for (const peer of peers) peer.close();
  us.backend.close();
}
if (options.out) writeRecord(options.out, { threads, recompute: options.recompute, record });

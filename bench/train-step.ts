// How many tokens a second does a training step take in (forward, backward, clipping, AdamW), what share of the machine's
// peak is that, and how much memory? Ours with products of float32 and of bf16, and beside it, if a Python that has both is
// named, Hugging Face's model in PyTorch: as it is, and with each token sent to its expert alone. Each in a process of its
// own, from the same weights and over the same tokens; samples of all alternate, with the peak probed around each of ours.
//
//   node --import ./scripts/ts.mjs bench/train-step.ts [--sizes 14M,127M] [--threads 2] [--runs 5] [--warm 2] [--recompute]
//     [--python PYTHON] [--sides ours:f32,ours:bf16,hf:f32,sparse:f32,sparse:bf16] [--curve STEPS] [--rows N] [--out record.json]
//
// `--curve 200` takes so many steps on each side instead, one side after the other, and compares the losses. A step has
// 4,096 tokens at 14M and 2,048 at 127M, or `--rows` sequences of 512.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout } from "node:timers/promises";
import { parseArgs } from "node:util";
import { openNative } from "../src/backends/native/backend.ts";
import { toHuggingFace } from "../src/checkpoint/config-hugging-face.ts";
import { randomTensors } from "../src/checkpoint/init.ts";
import { huggingFaceTensors } from "../src/checkpoint/names-hugging-face.ts";
import { writeHuggingFace } from "../src/checkpoint/writers.ts";
import { type Llama4Config, layerKinds } from "../src/model/config.ts";
import { median, spread, writeRecord } from "./samples.ts";

const { values: options } = parseArgs({
  options: {
    sizes: { type: "string", default: "14M,127M" },
    threads: { type: "string", default: "2" },
    runs: { type: "string", default: "5" },
    warm: { type: "string", default: "2" },
    recompute: { type: "boolean", default: false },
    python: { type: "string" },
    sides: { type: "string", default: "ours:f32,ours:bf16,hf:f32,sparse:f32,sparse:bf16" },
    curve: { type: "string" },
    rows: { type: "string" },
    out: { type: "string" },
  },
});
const threads = Number(options.threads);
const sides = options.sides.split(",").filter((side) => side.startsWith("ours:") || options.python);

const shapes = {
  "14M": { dim: 192, layers: 6, experts: 8, expert: 384, vocab: 4096, heads: 6, kvHeads: 2, headDim: 32, batch: 8 },
  "127M": { dim: 512, layers: 8, experts: 8, expert: 1024, vocab: 8192, heads: 8, kvHeads: 2, headDim: 64, batch: 4 },
} as const;
type Shape = (typeof shapes)[keyof typeof shapes];
const length = 512;
const chunk = 256;

function configOf(s: Shape): Llama4Config {
  return {
    ...{ vocabSize: s.vocab, dim: s.dim, nHeads: s.heads, nKvHeads: s.kvHeads, headDim: s.headDim, topK: 1 },
    ...{ ffnDim: 2 * s.expert, expertDim: s.expert, nExperts: s.experts, layers: layerKinds(s.layers, 4, 1) },
    ...{ attentionChunk: chunk, normEps: 1e-5, qkNorm: true, ropeTheta: 10000, tied: false, contextLength: 4096 },
    ...{ temperature: { floor: 8192, scale: 0.1 }, tokens: { eos: [2] } },
  };
}

/**
 * A Markov chain: after each token one of eight, the first of them half of the time. There is something to learn, so the
 * loss falls, and after few steps two sides that compute alike are still alike.
 */
function chain(vocab: number, n: number): Int32Array {
  let state = 1;
  const random = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0; // Knuth's generator modulo 2³²
    return state / 2 ** 32;
  };
  const successors = Int32Array.from({ length: 8 * vocab }, () => Math.floor(random() * vocab));
  let token = 0;
  return Int32Array.from({ length: n }, () => {
    token = successors[8 * token + Math.floor(8 * random() ** 2)]!;
    return token;
  });
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

/** A process that takes a step for each line it is given. */
function open(side: string, folder: string, tokens: string, batch: number) {
  const [mode, dtype] = side.split(":") as [string, string];
  const sizes = [batch, length].map(String);
  const ours = [...process.execArgv, join(import.meta.dirname, "train-step-ours.ts"), folder, tokens, ...sizes, dtype];
  const theirs = [join(import.meta.dirname, "train-step.py"), folder, tokens, ...sizes, mode, dtype];
  const isOurs = mode === "ours";
  const command = isOurs ? process.execPath : options.python!;
  const last = [String(threads), ...(isOurs && options.recompute ? ["recompute"] : [])];
  const child = spawn(command, [...(isOurs ? ours : theirs), ...last], { stdio: ["pipe", "pipe", "inherit"] });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  return {
    side,
    async run(): Promise<Sample> {
      child.stdin.write("\n");
      const { value, done } = await lines.next();
      if (done) throw new Error(`${side}: its process ended; its own message is above`);
      const [seconds, loss, megabytes] = value.split(" ").map(Number) as [number, number, number];
      return { seconds, loss, megabytes };
    },
    close: () => child.stdin.end(),
  };
}

/** Samples of all sides in turn. */
async function alternated(size: string, folder: string, tokensFile: string, c: Llama4Config, batch: number) {
  const prober = openNative({ threads });
  const running = sides.map((side) => open(side, folder, tokensFile, batch));
  const samples = Object.fromEntries(sides.map((side) => [side, [] as Sample[]]));
  const shares: Record<string, number[]> = {};
  const [T, tera] = [batch * length, (batch * length * operations(c)) / 1e12];
  for (const { run } of running) for (let warm = 0; warm < Number(options.warm); warm++) await run();
  for (let i = 0; i < Number(options.runs); i++)
    for (const { side, run } of running) {
      await setTimeout(300); // until the threads of the one before have stopped to look for work
      const before = side.startsWith("ours:") && prober.ceilings();
      const sample = await run();
      samples[side]!.push(sample);
      if (!before) continue;
      const kind = side === "ours:bf16" ? "bf16Gflops" : "f32Gflops";
      shares[side] ??= [];
      shares[side].push((2000 * tera) / sample.seconds / (before[kind] + prober.ceilings()[kind]));
    }
  console.log(`${size}, ${prober.isa}, ${threads} threads, ${T} tokens, ${tera.toFixed(3)} T operations a step`);
  for (const [side, all] of Object.entries(samples)) {
    const speeds = all.map(({ seconds }) => T / seconds);
    const share = shares[side]?.map((x) => 100 * x);
    const kind = side === "ours:bf16" ? "bf16" : "f32";
    const against = (ours: string) => {
      const ratios = all.map(({ seconds }, n) => seconds / samples[ours]![n]!.seconds);
      return `${ours} is ${median(ratios).toFixed(2)} times as fast (${spread(ratios)})`;
    };
    const ours = sides.filter((other) => other.startsWith("ours:"));
    console.log(
      `  ${side.padEnd(12)} ${median(speeds).toFixed(0).padStart(6)} tokens/s (${spread(speeds, 0)}), ` +
        `${all.at(-1)!.megabytes.toFixed(0)} MB; ` +
        (share
          ? `${median(share).toFixed(0)} % of the ${kind} peak (${spread(share, 0)})`
          : ours.map(against).join(", ")),
    );
  }
  for (const { close } of running) close();
  prober.close();
  return { size, tera, samples, shares };
}

/** The losses of many steps, side by side. */
async function curves(size: string, folder: string, tokensFile: string, batch: number, steps: number) {
  const losses: Record<string, number[]> = {};
  for (const side of sides) {
    const running = open(side, folder, tokensFile, batch);
    losses[side] = [];
    for (let i = 0; i < steps; i++) losses[side].push((await running.run()).loss);
    running.close();
  }
  const mean = (x: readonly number[]) => x.reduce((sum, one) => sum + one, 0) / x.length;
  const end = (side: string) => losses[side]!.slice(-50);
  console.log(`${size}, ${steps} steps of ${batch * length} tokens; the last ${end(sides[0]!).length}:`);
  for (const side of sides) {
    const others = sides.slice(0, sides.indexOf(side)).map((other) => {
      const apart = end(side).map((loss, i) => loss - end(other)[i]!);
      const most = Math.max(...apart.map(Math.abs));
      return `from ${other} ${mean(apart).toFixed(4)} in the mean, ${most.toFixed(4)} at most`;
    });
    const first = losses[side]![0]!.toFixed(4);
    console.log(`  ${side.padEnd(12)} ${first} -> ${mean(end(side)).toFixed(4)}; ${others.join("; ")}`);
  }
  return { size, losses };
}

const record: object[] = [];
for (const size of options.sizes.split(",") as (keyof typeof shapes)[]) {
  const c = configOf(shapes[size]);
  const batch = Number(options.rows ?? shapes[size].batch);
  const folder = mkdtempSync(join(tmpdir(), "llama4-train-step-"));
  try {
    const [model, tokensFile] = [join(folder, "model"), join(folder, "tokens")];
    const files = { "config.json": JSON.stringify(toHuggingFace(c, "float32")) };
    await writeHuggingFace(model, files, randomTensors(huggingFaceTensors(c), c.layers.length, "f32", 1));
    const steps = Number(options.curve ?? 16);
    writeFileSync(tokensFile, chain(c.vocabSize, steps * batch * length));
    record.push(
      options.curve
        ? await curves(size, model, tokensFile, batch, steps)
        : await alternated(size, model, tokensFile, c, batch),
    );
  } finally {
    rmSync(folder, { recursive: true });
  }
}
if (options.out) writeRecord(options.out, { threads, recompute: options.recompute, record });

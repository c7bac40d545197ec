// What does rounding activations to 8 bits cost? The logits of `llama4 logits --fast`, and llama.cpp's (node-llama-cpp, from
// tests/peers), against exact ones: float32 activations on the exactly dequantized weights of the same file.
//
//   npm run build && node --import ./scripts/ts.mjs bench/quality.ts [--sequences 32] [--length 32] [--kv-dtype f32] [--out record.json] MODEL.gguf…
//
// llama.cpp keeps keys and values in float32 here, so that its products alone make the difference; we do as `--kv-dtype` says.
// Where an error changes the expert that a token takes, its logits and all that attend to it move by far more than the rounding;
// that is rare and rules the maximum and the means, hence many short sequences, and the median beside the mean.
// T positions, of all sequences · V vocabulary

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { parseArgs } from "node:util";
import { type LoadOptions, load } from "llama4";
import { openCheckpoint } from "../src/checkpoint/open.ts";
import { uniform } from "../src/engine/random.ts";
import type { KVDType } from "../src/tensor/backend.ts";
import { median, writeRecord } from "./samples.ts";

const { values: options, positionals: models } = parseArgs({
  allowPositionals: true,
  options: {
    sequences: { type: "string", default: "32" },
    length: { type: "string", default: "32" },
    "kv-dtype": { type: "string", default: "f32" },
    out: { type: "string" },
  },
});
if (models.length === 0)
  throw new Error("usage: bench/quality.ts [--sequences 32] [--length 32] [--out F.json] MODEL.gguf…");
const length = Number(options.length);
const positions = Number(options.sequences) * length;
const kvDtype = options["kv-dtype"] as KVDType; // an unknown one is refused by the pool

/** Logits [T, V]. */
interface Logits {
  readonly vocabSize: number;
  readonly values: Float32Array;
}

async function ours(model: string, tokens: Int32Array, how: LoadOptions): Promise<Logits> {
  await using loaded = await load(model, { context: 2 * length, ...how });
  const { vocabSize } = loaded.info;
  const values = new Float32Array(tokens.length * vocabSize);
  for (let at = 0; at < tokens.length; at += length)
    for await (const { position, logits } of loaded.logits(tokens.subarray(at, at + length)))
      values.set(logits, (at + position) * vocabSize);
  return { vocabSize, values };
}

function llamaCpp(model: string, tokens: Int32Array, vocabSize: number): Logits {
  const folder = mkdtempSync(join(tmpdir(), "quality-"));
  try {
    const [ids, out] = [join(folder, "tokens.json"), join(folder, "logits.f32")];
    writeFileSync(ids, JSON.stringify([...tokens]));
    const script = join(import.meta.dirname, "../tests/peers/llama-cpp.mjs");
    execFileSync("node", [script, model, ids, "--generate", "0", "--all", out, "--length", options.length], {
      stdio: ["ignore", "ignore", "inherit"],
    });
    const { buffer, byteOffset, byteLength } = readFileSync(out);
    return { vocabSize, values: new Float32Array(buffer, byteOffset, byteLength / 4) };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

interface Distance {
  /** Of the difference of two logits. */
  readonly maxAbs: number;
  readonly rms: number;
  /** Kullback-Leibler divergence of the exact distribution from this one, in nats: mean and median over positions. */
  readonly kl: number;
  readonly medianKl: number;
  /** Share of positions where both have the same greatest logit. */
  readonly top1: number;
}

function distance(exact: Logits, other: Logits): Distance {
  const V = exact.vocabSize;
  if (other.values.length !== exact.values.length)
    throw new Error(`${other.values.length} logits; expected ${exact.values.length}`);
  const T = exact.values.length / V;
  let [maxAbs, squares, same] = [0, 0, 0];
  const divergences = new Float64Array(T);
  for (let t = 0; t < T; t++) {
    const [p, q] = [exact, other].map(({ values }) => values.subarray(t * V, (t + 1) * V)) as [
      Float32Array,
      Float32Array,
    ];
    const [logP, logQ] = [logSumExp(p), logSumExp(q)];
    for (let i = 0; i < V; i++) {
      const difference = Math.abs(p[i]! - q[i]!);
      maxAbs = Math.max(maxAbs, difference);
      squares += difference ** 2;
      divergences[t]! += Math.exp(p[i]! - logP) * (p[i]! - logP - (q[i]! - logQ));
    }
    if (argMax(p) === argMax(q)) same++;
  }
  const kl = divergences.reduce((sum, x) => sum + x) / T;
  return {
    maxAbs,
    rms: Math.sqrt(squares / exact.values.length),
    kl,
    medianKl: median([...divergences]),
    top1: same / T,
  };
}

function logSumExp(logits: Float32Array): number {
  const most = logits.reduce((a, b) => Math.max(a, b));
  return most + Math.log(logits.reduce((sum, x) => sum + Math.exp(x - most), 0));
}

const argMax = (logits: Float32Array) => logits.indexOf(logits.reduce((a, b) => Math.max(a, b)));

const rows = [];
console.log(
  "| model | logits of | max abs | RMS | KL, nats | median KL | top-1 agrees |\n| --- | --- | --- | --- | --- | --- | --- |",
);
for (const model of models) {
  const checkpoint = await openCheckpoint(model);
  const { vocabSize } = checkpoint.config;
  await checkpoint.close();
  const tokens = new Int32Array(positions).map((_, i) => Math.floor(uniform(0, i) * vocabSize));
  const exact = await ours(model, tokens, { activations: "f32", kvDtype: "f32" });
  const fast = await ours(model, tokens, { kvDtype });
  const peer = llamaCpp(model, tokens, vocabSize);
  for (const [engine, logits] of [
    ["llama4 --fast", fast],
    ["llama.cpp", peer],
  ] as const) {
    const d = distance(exact, logits);
    rows.push({ model: basename(model), engine, ...d });
    console.log(
      `| ${basename(model)} | ${engine} | ${d.maxAbs.toPrecision(3)} | ${d.rms.toPrecision(3)} | ${d.kl.toExponential(2)} | ${d.medianKl.toExponential(2)} | ${(100 * d.top1).toFixed(1)} % |`,
    );
  }
}
if (options.out) writeRecord(options.out, { length, positions, kvDtype, rows });

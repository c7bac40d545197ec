// How long does a token take to choose from 202,048 logits, by the kernel and by the loops that stand in for it elsewhere?
//
//   npm run build && node --import ./scripts/ts.mjs bench/sampler.ts [--runs 9] [--out record.json]

import { parseArgs } from "node:util";
import { openNative } from "../src/backends/native/backend.ts";
import { uniform } from "../src/engine/random.ts";
import { Sampler, type Sampling } from "../src/engine/sampler.ts";
import type { Backend } from "../src/tensor/backend.ts";
import { median, spread, writeRecord } from "./samples.ts";

const { values: options } = parseArgs({ options: { runs: { type: "string", default: "9" }, out: { type: "string" } } });
const runs = Number(options.runs);
const V = 202_048;
const TOKENS = 20;

/** Normally distributed numbers (Box and Muller 1958). */
const normal = (seed: number) =>
  Float32Array.from(
    { length: V },
    (_, i) => Math.sqrt(-2 * Math.log(1 - uniform(seed, 2 * i))) * Math.cos(2 * Math.PI * uniform(seed, 2 * i + 1)),
  );

/** A trained model's: most tokens far behind a few. */
const peaked = normal(1).map((x) => 2.5 * x);
for (let i = 0; i < 200; i++) peaked[Math.floor(uniform(2, i) * V)] = 22 - 5 * Math.log(1 + i);
const logits = { "a few likely": peaked, "an untrained model's": normal(3), "all equal": new Float32Array(V) };

const samplings: Record<string, Sampling> = {
  greedy: { temperature: 0 },
  "temperature 0.6, top-p 0.9": { temperature: 0.6, topP: 0.9 },
  "temperature 1": { temperature: 1, topP: 1 },
  "temperature 1, top-k 40, top-p 0.95": { temperature: 1, topK: 40, topP: 0.95 },
  "temperature 1, min-p 0.05": { temperature: 1, topP: 1, minP: 0.05 },
  "greedy, 5 logprobs": { temperature: 0, logprobs: 5 },
};

const native = openNative({ threads: 1 });
const record = [];
for (const [kind, values] of Object.entries(logits))
  for (const [name, sampling] of Object.entries(samplings)) {
    const by = { native: timed(values, sampling, native), loops: timed(values, sampling) };
    const shown = Object.entries(by).map(([way, ms]) => `${way} ${median(ms).toFixed(2)} (${spread(ms)})`);
    console.log(`${kind.padEnd(22)} ${name.padEnd(38)} ms a token: ${shown.join(", ")}`);
    record.push({ kind, name, ...by });
  }
native.close();
if (options.out) writeRecord(options.out, { V, tokens: TOKENS, runs, warmUp: 2, record });

/** Milliseconds a token, run by run. */
function timed(values: Float32Array, sampling: Sampling, backend?: Pick<Backend, "draw">): number[] {
  const samples: number[] = [];
  const scratch = new Float32Array(V);
  for (let run = -2; run < runs; run++) {
    const sampler = new Sampler({ ...sampling, seed: run + 2 }, [], V, undefined, backend);
    let ms = 0;
    for (let t = 0; t < TOKENS; t++) {
      scratch.set(values);
      const start = performance.now();
      sampler.sample(scratch);
      ms += performance.now() - start;
    }
    if (run >= 0) samples.push(ms / TOKENS);
  }
  return samples;
}

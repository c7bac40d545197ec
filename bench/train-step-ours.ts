// Our side of bench/train-step.ts, which starts it: a training step of the model in a folder. For each line of stdin one
// step over the next tokens of the file; prints seconds, loss and the process's largest resident memory in MB so far.
//
//   node --import ./scripts/ts.mjs bench/train-step-ours.ts FOLDER TOKENS ROWS LENGTH f32|bf16 THREADS [recompute]

import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { openNative } from "../src/backends/native/backend.ts";
import { readModel } from "../src/cli/run-folder.ts";
import { forward } from "../src/model/transformer.ts";
import { crossEntropy } from "../src/tensor/ops.ts";
import { inOrderOf, leavesOf } from "../src/train/leaves.ts";
import { Optimizer } from "../src/train/optimizer.ts";
import { Tape } from "../src/train/tape.ts";

const [folder, tokensFile, rows, length, activations, threads, recompute] = process.argv.slice(2) as string[];
const [B, L] = [Number(rows), Number(length)];
if (activations !== "f32" && activations !== "bf16") throw new RangeError(`${activations}; expected f32 or bf16`);

const backend = openNative({ threads: Number(threads), activations });
const { weights, model } = await readModel(folder!, backend);
const optimizer = new Optimizer(backend, leavesOf(weights), {
  ...{ kind: "adamw", beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0.01, clip: 1, visionRate: 1, average: 0 },
});
const tape = new Tape(backend, { recompute: recompute === "recompute" });
const watched = tape.watch(weights);
const all = new Int32Array(readFileSync(tokensFile!).buffer);
const segments = Array.from({ length: B }, (_, i) => ({ row: i * L, length: L, position: 0, sequence: i }));
const wanted = Int32Array.from({ length: B * L }, (_, t) => t);

async function step(n: number): Promise<number> {
  const from = (n * B * L) % all.length;
  const tokens = all.slice(from, from + B * L);
  const targets = tokens.map((_, t) => (t % L === L - 1 ? -1 : tokens[t + 1]!));
  return backend.scope(async () => {
    const loss = crossEntropy(await forward(watched.text, model, { tokens, segments, wanted }), targets);
    const gradients = tape.gradients(loss, watched);
    const value = (await tape.read(loss))[0]!;
    await optimizer.step(inOrderOf(weights, gradients), 1e-3);
    return value;
  });
}

let steps = 0;
for await (const _ of createInterface({ input: process.stdin })) {
  const start = performance.now();
  const loss = await step(steps++);
  const seconds = (performance.now() - start) / 1000;
  console.log(`${seconds} ${loss} ${process.resourceUsage().maxRSS / 1024}`);
}
backend.close();

// Where does each millisecond of a step go: every operation of one prefill and of decode steps, with the bytes of weights
// or the multiply-adds that it stands for, beside what the machine can do, probed in the same run.
//
//   node --import ./scripts/ts.mjs bench/profile.ts MODEL [--threads N] [--prompt 512] [--steps 32] [--batch 1] [--out record.json]

import { parseArgs } from "node:util";
import type { NativeBackend } from "../src/backends/native/backend.ts";
import { Engine } from "../src/engine/engine.ts";
import { uniform } from "../src/engine/random.ts";
import { forward as modelForward } from "../src/model/transformer.ts";
import { openModel } from "../src/open.ts";
import type { Routes } from "../src/tensor/backend.ts";
import { elementCount, storedBytes, type Tensor } from "../src/tensor/tensor.ts";
import { median, spread, writeRecord } from "./samples.ts";

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    threads: { type: "string" },
    prompt: { type: "string", default: "512" },
    steps: { type: "string", default: "32" },
    batch: { type: "string", default: "1" },
    out: { type: "string" },
  },
});
const [prompt, steps, batch] = [Number(options.prompt), Number(options.steps), Number(options.batch)];
if (positionals.length !== 1) throw new Error(`${positionals.length} models named; expected one`);
const model = await openModel(positionals[0]!, {
  ...(options.threads && { threads: Number(options.threads) }),
  context: batch * (prompt + steps) + (batch - 1) * 128,
});
const backend = model.backend as NativeBackend;
if (backend.name !== "native") throw new Error(`the backend is ${backend.name}; expected native`);

interface Part {
  calls: number;
  ms: number;
  bytes: number; // of weights
  macs: number; // of products
}
let parts = new Map<string, Part>();
let inside = false;

const isTensor = (x: unknown): x is Tensor => typeof x === "object" && x !== null && "dtype" in x && "shape" in x;
const matrix = ({ shape, dtype }: Tensor) => `[${shape.join(", ")}] ${dtype}`;

/** Rows of each product of a call, and its matrices: what it reads and multiplies. */
function work(name: string, args: readonly unknown[]): { label: string; bytes: number; macs: number } {
  const [x, ...rest] = args as [Tensor, ...unknown[]];
  if (name === "experts") {
    const [{ gate, up, down }, { experts }, shared] = rest as [Record<string, Tensor>, Routes, Record<string, Tensor>?];
    const bank = [gate!, up!, down!];
    const used = new Set(experts).size / gate!.shape[0]!;
    const beside = shared ? [shared.gate!, shared.up!, shared.down!] : [];
    const bytes = (all: readonly Tensor[]) => all.reduce((sum, w) => sum + storedBytes(w), 0);
    const macs = bank.reduce((sum, w) => sum + (experts.length * elementCount(w.shape)) / gate!.shape[0]!, 0);
    return {
      label: `experts ${matrix(gate!)}${shared ? " and the shared one" : ""}`,
      bytes: used * bytes(bank) + bytes(beside),
      macs: macs + beside.reduce((sum, w) => sum + x.shape[0]! * elementCount(w.shape), 0),
    };
  }
  const weights = ["linear", "qkv", "feedForward"].includes(name) ? rest.filter(isTensor) : [];
  const label = [name, ...weights.map(matrix)].join(" ");
  return {
    label,
    bytes: weights.reduce((sum, w) => sum + storedBytes(w), 0),
    macs: weights.reduce((sum, w) => sum + x.shape[0]! * elementCount(w.shape), 0),
  };
}

const names = (
  "embed linear qkv add mul rmsNorm layerNorm swiglu gelu feedForward rope attend route experts " +
  "reshape permute rows splice from read"
).split(" ");
for (const name of names) {
  const target = backend as unknown as Record<string, (...args: unknown[]) => unknown>;
  const plain = target[name]!.bind(backend);
  target[name] = (...args) => {
    if (inside) return plain(...args); // part of another operation
    inside = true;
    const start = performance.now();
    const done = (result: unknown) => {
      inside = false;
      const { label, bytes, macs } = work(name, args);
      const part = parts.get(label) ?? { calls: 0, ms: 0, bytes: 0, macs: 0 };
      parts.set(label, part);
      part.calls++;
      part.ms += performance.now() - start;
      part.bytes += bytes;
      part.macs += macs;
      return result;
    };
    const result = plain(...args);
    return result instanceof Promise ? result.then(done) : done(result);
  };
}

const taken: { rows: number; ms: number; parts: typeof parts }[] = [];
const { parameters, config, context, kvDtype } = model;
let drawn = 0;
const engine = new Engine({
  ...{ backend, parameters, config, context, kvDtype, localTokens: context, sharePrefixes: false },
  forward: async (p, c, step) => {
    parts = new Map();
    const start = performance.now();
    const tokens = step.tokens.map(() => Math.floor(uniform(0, drawn++) * config.vocabSize));
    const logits = await modelForward(p, c, { ...step, tokens });
    taken.push({ rows: tokens.length, ms: performance.now() - start, parts });
    return logits;
  },
});

let ended = 0;
let began = 0;
for (let run = 0; run < 2; run++) {
  taken.length = 0; // the first run warms up
  await Promise.all(
    Array.from({ length: batch }, async () => {
      const request = { tokens: new Int32Array(prompt), maxTokens: steps, sampling: { temperature: 0 } };
      let tokens = 0;
      for await (const _ of engine.generate(request)) if (++tokens === 1) began = performance.now();
      ended = performance.now();
    }),
  );
}

const ceilings = backend.ceilings();
console.log(
  `${positionals[0]}: ${backend.isa}, ${backend.threads} threads; a plain read ${ceilings.dramReadGBps.toFixed(1)} GB/s, ` +
    `int8 ${ceilings.int8Gops.toFixed(0)} GOP/s`,
);

const record: object[] = [];
function show(title: string, chosen: typeof taken): void {
  if (chosen.length === 0) throw new Error(`${title}: no such step; expected more --steps`);
  const all = chosen.map((s) => s.ms);
  const ms = median(all);
  console.log(`\n${title}: ${ms.toFixed(2)} ms (median of ${all.length}, ${spread(all)})`);
  console.log("     ms      %  calls   GB/s  GOP/s");
  const lines = [...new Set(chosen.flatMap((s) => [...s.parts.keys()]))].map((label) => {
    const parts = chosen.map((s) => s.parts.get(label) ?? { calls: 0, ms: 0, bytes: 0, macs: 0 });
    const mean = (of: (part: Part) => number) => parts.reduce((sum, part) => sum + of(part), 0) / parts.length;
    const ms = median(parts.map((p) => p.ms));
    return { label, ms, calls: parts[0]!.calls, bytes: mean((p) => p.bytes), macs: mean((p) => p.macs) };
  });
  const rest = ms - lines.reduce((sum, line) => sum + line.ms, 0);
  lines.push({ label: "JavaScript, and what lies between operations", ms: rest, calls: 0, bytes: 0, macs: 0 });
  for (const line of lines.sort((a, b) => b.ms - a.ms)) {
    const rate = (count: number) => (count > 0 ? (count / line.ms / 1e6).toFixed(1) : "").padStart(6);
    console.log(
      `${line.ms.toFixed(3).padStart(7)} ${((100 * line.ms) / ms).toFixed(1).padStart(6)} ${String(line.calls || "").padStart(6)} ` +
        `${rate(line.bytes)} ${rate(2 * line.macs)}  ${line.label}`,
    );
  }
  record.push({ title, ms, samples: all, lines });
}

const decodes = taken.filter(({ rows }) => rows === batch);
show(`Prefill, ${batch} × ${prompt} tokens, the longest step`, [taken.reduce((a, b) => (b.rows > a.rows ? b : a))]);
show(`Decode, ${batch} sequence${batch === 1 ? "" : "s"}`, decodes);
const inSteps = decodes.reduce((sum, { ms }) => sum + ms, 0);
const between = (ended - began - inSteps) / Math.max(1, decodes.length);
console.log(`\nBetween two decode steps, choosing tokens and handing them on: ${between.toFixed(2)} ms (mean)`);
if (options.out)
  writeRecord(options.out, {
    model: positionals[0],
    isa: backend.isa,
    threads: backend.threads,
    ceilings,
    prompt,
    steps,
    batch,
    record,
    between,
  });
await engine.close();
model.close();

// How fast are we beside llama.cpp, its forks and node-llama-cpp: on the same files, threads and minutes?
//
//   node --import ./scripts/ts.mjs bench/against-peers/run.ts --record samples.jsonl \
//     --peer "llama=PATH/llama-bench" --batched "llama=PATH/llama-batched-bench" \
//     --peer "ik/rtr=PATH/llama-bench -rtr 1" --batched "ik/rtr=PATH/llama-batched-bench -rtr" MODEL.gguf…
//
// A sample is one process. The machine's ceilings are probed right before and after it, and in a round every engine is
// sampled once, one after the other: rented cores change speed by 2x within seconds. Each sample is appended to the record at
// once and never taken again, so an interrupted run goes on where it stood; `--samples N` stops after N new ones, 0 only reports.

import { execFileSync } from "node:child_process";
import { appendFileSync, existsSync, readFileSync, writeFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { resolve } from "node:path";
import { parseArgs } from "node:util";
import { type Ceilings, openNative } from "../../src/backends/native/backend.ts";
import { writeRecord } from "../samples.ts";
import { chartOf } from "./chart.ts";
import { type Case, caseName, type Engine, llamaCpp, nodeLlamaCpp, ours, run, type Settings } from "./engines.ts";
import { reportOf, type Sample, textOf } from "./report.ts";

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    record: { type: "string" },
    peer: { type: "string", multiple: true, default: [] },
    batched: { type: "string", multiple: true, default: [] },
    threads: { type: "string", default: `${availableParallelism()}` },
    rounds: { type: "string", default: "5" },
    repeat: { type: "string", default: "1" },
    prompts: { type: "string", default: "512,2048" },
    decode: { type: "string", default: "64" },
    batches: { type: "string", default: "4,16" },
    "batch-prompt": { type: "string", default: "32" },
    samples: { type: "string", default: "Infinity" },
    without: { type: "string", multiple: true, default: [] },
    json: { type: "string" },
    svg: { type: "string" },
  },
});
if (options.record === undefined || positionals.length === 0)
  throw new Error("usage: bench/against-peers/run.ts --record F.jsonl [--peer NAME=LLAMA_BENCH]… MODEL.gguf…");
const { record } = options;

const list = (text: string) => text.split(",").filter(Boolean).map(Number);
const cases: Case[] = [
  ...list(options.prompts).map((size) => ({ kind: "prefill", size }) as const),
  ...list(options.decode).map((size) => ({ kind: "decode", size }) as const),
  ...list(options.batches).map((size) => ({ kind: "batch", size }) as const),
];
const settings: Settings = {
  threads: Number(options.threads),
  repeat: Number(options.repeat),
  decodeTokens: list(options.decode)[0] ?? 64,
  batchPrompt: Number(options["batch-prompt"]),
};
const commit = execFileSync("git", ["rev-parse", "--short", "HEAD"], { encoding: "utf8" }).trim();
const known = [ours(settings, commit), ...peers(), nodeLlamaCpp(settings)];
for (const name of options.without)
  if (!known.some((engine) => engine.name === name))
    throw new Error(`--without ${name}: expected one of ${known.map((engine) => engine.name).join(", ")}`);
const engines = known.filter(({ name }) => !options.without.includes(name));
const models = positionals.map((path) => resolve(path));
const samples: Sample[] = existsSync(record)
  ? readFileSync(record, "utf8")
      .trim()
      .split("\n")
      .filter(Boolean)
      .map((line) => JSON.parse(line))
  : [];

const backend = openNative({ threads: settings.threads });
let probe: Ceilings | undefined;
let left = Number(options.samples);
for (const { model, round, c, engine, command } of plan()) {
  if (left-- <= 0) break;
  probe ??= backend.ceilings();
  const before = probe;
  const reading = engine.read(await run(command), c);
  probe = backend.ceilings();
  const head = { at: new Date().toISOString(), model, case: c, engine: engine.name, threads: settings.threads, round };
  const sample: Sample = { ...head, ...reading, before, after: probe };
  samples.push(sample);
  appendFileSync(record, `${JSON.stringify(sample)}\n`);
  console.error(`${model}, ${caseName(c)}, round ${round + 1}, ${engine.name}: ${reading.samples.join(", ")} tokens/s`);
}
backend.close();

const isWanted = ({ model, threads, engine }: Sample) =>
  models.includes(model) && threads === settings.threads && !options.without.includes(engine);
const wanted = samples.filter(isWanted).sort(inOrder);
if (wanted.length > 0) {
  const report = reportOf(wanted);
  console.log(textOf(report));
  if (options.json) writeRecord(options.json, { settings, ...report });
  if (options.svg) writeFileSync(options.svg, chartOf(report.rows));
}
console.error(`${[...plan()].length} samples are left`);

/** What is not in the record yet. */
function* plan(): Generator<{ model: string; round: number; c: Case; engine: Engine; command: readonly string[] }> {
  const key = (...parts: readonly (string | number)[]) => parts.join("\n");
  const done = new Set(samples.map((s) => key(s.model, caseName(s.case), s.engine, s.threads, s.round)));
  for (const model of models)
    for (let round = 0; round < Number(options.rounds); round++)
      for (const c of cases)
        for (const engine of engines) {
          const command = engine.command(model, c);
          if (command && !done.has(key(model, caseName(c), engine.name, settings.threads, round)))
            yield { model, round, c, engine, command };
        }
}

/** Those named by `--peer` and `--batched`, in the order in which they first appear. */
function peers(): Engine[] {
  const named = (texts: readonly string[]) =>
    new Map(
      texts.map((text) => {
        const [name, line] = [text.slice(0, text.indexOf("=")), text.slice(text.indexOf("=") + 1)];
        if (!name || !line) throw new Error(`"${text}": expected NAME=PROGRAM [FLAGS]`);
        return [name, line] as const;
      }),
    );
  const [bench, batched] = [named(options.peer), named(options.batched)];
  return [...new Set([...bench.keys(), ...batched.keys()])].map((name) =>
    llamaCpp(name, settings, bench.get(name), batched.get(name)),
  );
}

function inOrder(a: Sample, b: Sample): number {
  const place = (s: Sample) => [
    models.indexOf(s.model),
    cases.findIndex((c) => caseName(c) === caseName(s.case)),
    engines.findIndex((e) => e.name === s.engine),
    s.round,
  ];
  const [x, y] = [place(a), place(b)];
  const differs = x.findIndex((value, i) => value !== y[i]);
  return differs < 0 ? 0 : x[differs]! - y[differs]!;
}

// AdamW or Muon: the same model over the same tokens in the same order, each at its best rate, for three seeds; and AdamW
// for as long as Muon's steps take, since those cost more.
//
//     node --import ./scripts/ts.mjs bench/muon.ts [--data FOLDER] [--work FOLDER] [--steps N] [--minutes N] [--threads N]
//
// FOLDER holds the texts that examples/train-tiny/build.ts --texts makes. What is done is kept in the work folder; after N
// minutes the run that goes on is stopped with a checkpoint, and the next call goes on from there. Prints tables at the end.

import { spawn } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { spread } from "./samples.ts";

const root = resolve(import.meta.dirname, "..");
const { values } = parseArgs({
  options: {
    data: { type: "string", default: join(root, "examples", "train-tiny", "work", "data") },
    work: { type: "string", default: join(root, "tmp/muon") },
    steps: { type: "string", default: "100" },
    minutes: { type: "string", default: "600" },
    threads: { type: "string", default: "1" },
  },
});
const work = resolve(values.work);
mkdirSync(work, { recursive: true });

const sources = { stories: "stories", dictionary: "common", prose: "prose" };
const names = Object.keys(sources);
const files = (end: string) =>
  Object.fromEntries(
    Object.entries(sources).map(([name, file]) => [name, join(resolve(values.data), `${file}${end}.jsonl`)]),
  );
const kinds = ["adamw", "muon"] as const;
const label = { adamw: "AdamW", muon: "Muon" };
const seeds = [1, 2, 3];
const firstRates = [0.004, 0.008];

interface Run {
  readonly kind: (typeof kinds)[number];
  readonly rate: number;
  readonly seed: number;
  readonly steps: number;
}

interface Answer {
  readonly heldOut: Readonly<Record<string, { loss: number }>>;
  readonly tokens: number;
  readonly parameters: { readonly total: number; readonly active: number };
}

const nameOf = ({ kind, rate, seed, steps }: Run) => `${kind}-${rate}-seed-${seed}-steps-${steps}`;

// The first run learns the vocabulary, which depends on the texts alone.
const [steps, firstRun] = [Number(values.steps), { kind: kinds[0], rate: firstRates[0]!, seed: seeds[0]! }];
const vocabulary = join(nameOf({ ...firstRun, steps }), "tokenizer.json");

const configOf = ({ kind, rate, seed, steps: n }: Run) => ({
  data: files(""),
  heldOut: files(".val"),
  model: { depth: 4, headDim: 32, chunk: 128, dim: 96, heads: 3, kvHeads: 1, experts: 4, expertFfn: 192 },
  tokenizer: existsSync(join(work, vocabulary)) ? vocabulary : 2048,
  ...{ context: 256, batchTokens: 2048 },
  phases: [{ steps: n, mix: Object.fromEntries(names.map((name) => [name, 1])) }],
  optimizer: { kind, rate },
  balance: { by: "bias" }, // as when it was measured
  evaluate: { every: n, tokens: 8192 },
  checkpoint: { minutes: 1, keep: 1 },
  ...{ seed, out: nameOf({ kind, rate, seed, steps: n }) },
});

const until = performance.now() + Number(values.minutes) * 60_000;
const answers = new Map<string, Answer>();

/** What a run came to, from its file or from now; ends this call where time is up. */
async function done(run: Run): Promise<Answer> {
  const name = nameOf(run);
  const before = answers.get(name);
  if (before) return before;
  const kept = join(work, `${name}.answer.json`);
  if (!existsSync(kept)) writeFileSync(kept, await said(run));
  const answer: Answer = JSON.parse(readFileSync(kept, "utf8"));
  answers.set(name, answer);
  return answer;
}

async function said(run: Run): Promise<string> {
  const name = nameOf(run);
  const left = until - performance.now();
  const isResumed = existsSync(join(work, name));
  const file = join(work, `${name}.json`);
  if (!isResumed) writeFileSync(file, `${JSON.stringify(configOf(run), null, 2)}\n`);
  const args = [join(root, "dist/cli/main.js"), "train", "--config", file, "--threads", values.threads, "--json"];
  const child = spawn(process.execPath, isResumed ? [...args, "--resume"] : args, {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const timer = setTimeout(() => child.kill("SIGINT"), Math.max(1, left));
  let text = "";
  for await (const chunk of child.stdout) text += chunk;
  clearTimeout(timer);
  const { error } = JSON.parse(text);
  if (error?.name === "Interrupted") {
    console.log(`time is up at ${name}; call again to go on`);
    process.exit();
  }
  if (error) throw new Error(error.message);
  return text;
}

const mean = (xs: readonly number[]) => xs.reduce((a, b) => a + b, 0) / xs.length;
const lossOf = ({ heldOut }: Answer) => mean(names.map((name) => heldOut[name]!.loss));
const tried = { adamw: new Map<number, number>(), muon: new Map<number, number>() };
const ratesOf = (kind: Run["kind"]) => [...tried[kind].keys()].sort((a, b) => a - b);
const better = (kind: Run["kind"], rates: readonly number[]) =>
  rates.reduce((best, rate) => (tried[kind].get(rate)! < tried[kind].get(best)! ? rate : best));

/** With the first seed, doubles or halves the rate until both neighbours of the best are worse. */
async function search(): Promise<void> {
  for (let open: Run[] = kinds.flatMap((kind) => firstRates.map((rate) => ({ ...firstRun, kind, rate, steps }))); ; ) {
    open.sort((a, b) => a.rate - b.rate); // the kinds take turns, so that what else the machine does meets both
    for (const run of open) tried[run.kind].set(run.rate, lossOf(await done(run)));
    open = kinds.flatMap((kind) => {
      const rates = ratesOf(kind);
      const best = better(kind, rates);
      const wanted = best === rates[0] ? [best / 2] : best === rates.at(-1) ? [best * 2] : [];
      return wanted.map((rate) => ({ ...firstRun, kind, rate, steps }));
    });
    if (open.length === 0) return;
  }
}

await search();

/** The best rate and the better of its neighbours, by the first seed. */
const chosen = Object.fromEntries(
  kinds.map((kind) => {
    const rates = ratesOf(kind);
    const best = better(kind, rates);
    const at = rates.indexOf(best);
    return [kind, [best, better(kind, [rates[at - 1]!, rates[at + 1]!])]];
  }),
) as Record<Run["kind"], [number, number]>;

for (const seed of seeds)
  for (const i of [0, 1] as const) for (const kind of kinds) await done({ kind, rate: chosen[kind][i], seed, steps });

/** Seconds of the fastest step of a kind: what else the machine does can only add to it. */
const fastest = (kind: Run["kind"]) => {
  const names = [...answers.keys()].filter((name) => name.startsWith(kind));
  const lines = names.flatMap((name) =>
    readFileSync(join(work, name, "log.jsonl"), "utf8")
      .trim()
      .split("\n"),
  );
  return Math.min(
    ...lines.map((line) => JSON.parse(line)).flatMap(({ type, seconds }) => (type === "step" ? seconds : [])),
  );
};

// What a step of Muon's costs is settled once, so that a later call goes on with the same runs.
const costFile = join(work, "cost.json");
if (!existsSync(costFile)) writeFileSync(costFile, JSON.stringify({ cost: fastest("muon") / fastest("adamw") }));
const { cost }: { cost: number } = JSON.parse(readFileSync(costFile, "utf8"));
const longer = Math.round(steps * cost);
/** AdamW at the rate that was better with a seed, for as long as Muon took. */
async function longRun(seed: number): Promise<Run> {
  const runs = chosen.adamw.map((rate): Run => ({ kind: "adamw", rate, seed, steps }));
  const [best, other] = [lossOf(await done(runs[0]!)), lossOf(await done(runs[1]!))];
  return { ...runs[best <= other ? 0 : 1]!, steps: longer };
}
for (const seed of seeds) await done(await longRun(seed));

const { parameters, tokens } = await done({ ...firstRun, steps });
console.log(
  `${parameters.total.toLocaleString("en")} weights, ${parameters.active.toLocaleString("en")} active; ${steps} steps, ${tokens.toLocaleString("en")} tokens`,
);
console.log("\nheld out after the first seed, nats a token, mean of the sources");
for (const kind of kinds)
  console.log(
    `${label[kind]}: ${ratesOf(kind)
      .map((rate) => `${rate} ${tried[kind].get(rate)!.toFixed(3)}`)
      .join(", ")}`,
  );
for (const kind of kinds) {
  const perSecond = Math.round(tokens / steps / fastest(kind)).toLocaleString("en");
  console.log(`the fastest step of ${label[kind]}: ${fastest(kind).toFixed(3)} s, ${perSecond} tokens/s`);
}
console.log(`\n| seed | | ${names.join(" | ")} | mean |\n| --- | --- | ${names.map(() => "---").join(" | ")} | --- |`);
const row = async (run: Run) => {
  const answer = await done(run);
  const cells = names.map((name) => answer.heldOut[name]!.loss.toFixed(3));
  const what = `${label[run.kind]}, ${run.rate}${run.steps === steps ? "" : `, ${run.steps} steps`}`;
  console.log(`| ${run.seed} | ${what} | ${cells.join(" | ")} | ${lossOf(answer).toFixed(3)} |`);
  return lossOf(answer);
};
const gains: { readonly steps: number; readonly time: number }[] = [];
for (const seed of seeds) {
  const best = { adamw: Number.POSITIVE_INFINITY, muon: Number.POSITIVE_INFINITY };
  for (const kind of kinds)
    for (const rate of chosen[kind]) best[kind] = Math.min(best[kind], await row({ kind, rate, seed, steps }));
  const long = await row(await longRun(seed));
  gains.push({ steps: best.adamw - best.muon, time: long - best.muon });
}
console.log("");
for (const [key, than] of [
  ["steps", "AdamW at the better of its rates"],
  ["time", `AdamW in as much time, ${longer} steps`],
] as const) {
  const each = gains.map((gain) => gain[key]);
  console.log(`Muon is ${mean(each).toFixed(3)} nats below ${than}, ${spread(each, 3)} over the seeds`);
}

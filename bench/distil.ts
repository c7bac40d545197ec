// What a teacher is worth: the same student, the same tokens in the same order, from the tokens that came alone and with a
// larger model's soft targets beside them, for three seeds.
//
//     node --import ./scripts/ts.mjs bench/distil.ts [--data FOLDER] [--work FOLDER] [--minutes N] [--threads N]
//
// FOLDER holds the texts that examples/train-tiny/build.ts makes. What is done is kept in the work folder; after N minutes
// the run that goes on is stopped with a checkpoint, and the next call goes on from there. Prints a table at the end.

import { spawn } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";

const root = resolve(import.meta.dirname, "..");
const { values } = parseArgs({
  options: {
    data: { type: "string", default: join(root, "examples", "train-tiny", "work", "data") },
    work: { type: "string", default: join(root, "tmp/distil") },
    minutes: { type: "string", default: "600" },
    threads: { type: "string", default: "2" },
  },
});
const work = resolve(values.work);
mkdirSync(work, { recursive: true });

const names = ["stories", "common", "prose"];
const files = (end: string) =>
  Object.fromEntries(names.map((name) => [name, join(resolve(values.data), `${name}${end}.jsonl`)]));
const mix = { stories: 2, common: 1, prose: 1 };
const steps = { teacher: 1000, student: 250 };
const common = {
  data: files(""),
  heldOut: files(".val"),
  ...{ context: 256, batchTokens: 2048 },
  balance: { by: "bias" }, // as when it was measured
  checkpoint: { minutes: 1, keep: 1 },
};
const sizes = { depth: 4, headDim: 32, chunk: 128 };
const teacher = {
  ...common,
  model: { ...sizes, dim: 128, heads: 4, kvHeads: 2, experts: 8, expertFfn: 256 },
  tokenizer: 2048,
  phases: [{ steps: steps.teacher, mix }],
  evaluate: { every: steps.teacher, tokens: 16384 },
  ...{ seed: 100, out: "teacher" },
};
const student = (seed: number) => ({
  ...common,
  model: { ...sizes, dim: 64, heads: 2, kvHeads: 1, experts: 4, expertFfn: 128 },
  tokenizer: "teacher/tokenizer.json",
  phases: [{ steps: steps.student, mix }],
  evaluate: { every: steps.student, tokens: 16384 },
  seed,
});
const shares = {
  "linear 0.9 to 0.1": { kind: "linear", first: 0.9, last: 0.1 },
  "linear 0.9 to 0.5": { kind: "linear", first: 0.9, last: 0.5 },
  "constant 0.5": { kind: "constant", first: 0.5 },
};
const seeds = [1, 2, 3];

interface Piece {
  readonly name: string;
  readonly command: "train" | "distil";
  readonly config: object;
}

const hard = (seed: number) => `hard-${seed}`;
const soft = (share: string, seed: number) => `${share.replaceAll(/[ .]/g, "-")}-${seed}`;
const pieces: Piece[] = [
  { name: "teacher", command: "train", config: teacher },
  ...seeds.map(
    (seed): Piece => ({ name: hard(seed), command: "train", config: { ...student(seed), out: hard(seed) } }),
  ),
  ...Object.entries(shares).flatMap(([share, schedule]) =>
    seeds.map((seed): Piece => {
      // The store is the seed's: the second schedule reuses what the teacher said for the first.
      const taught = { model: "teacher/model", store: `targets-${seed}.soft`, share: schedule };
      const name = soft(share, seed);
      return { name, command: "distil", config: { ...student(seed), teacher: taught, out: name } };
    }),
  ),
];

const until = performance.now() + Number(values.minutes) * 60_000;
const main = join(root, "dist/cli/main.js");

/** The answer of a piece, from its file or from now; undefined where time is up. */
async function done({ name, command, config }: Piece): Promise<Answer | undefined> {
  const kept = join(work, `${name}.answer.json`);
  if (existsSync(kept)) return JSON.parse(readFileSync(kept, "utf8"));
  const left = until - performance.now();
  if (left <= 0) return undefined;
  const file = join(work, `${name}.json`);
  writeFileSync(file, `${JSON.stringify(config, null, 2)}\n`);
  const resume = existsSync(join(work, name)) ? ["--resume"] : [];
  const args = [main, command, "--config", file, "--threads", values.threads, "--json", ...resume];
  const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] });
  const timer = setTimeout(() => child.kill("SIGINT"), left);
  let said = "";
  for await (const chunk of child.stdout) said += chunk;
  clearTimeout(timer);
  const answer = JSON.parse(said);
  if (answer.error?.name === "Interrupted") return undefined;
  if (answer.error) throw new Error(answer.error.message);
  writeFileSync(kept, said);
  return answer;
}

interface Answer {
  readonly heldOut: Readonly<Record<string, { loss: number }>>;
  readonly tokens: number;
  readonly seconds: number;
  readonly parameters: { readonly total: number; readonly active: number };
}

const answers = new Map<string, Answer>();
for (const piece of pieces) {
  const answer = await done(piece);
  if (!answer) {
    console.log(`time is up at ${piece.name}; call again to go on`);
    process.exit(0);
  }
  answers.set(piece.name, answer);
}

const mean = (xs: readonly number[]) => xs.reduce((a, b) => a + b, 0) / xs.length;
const loss = (name: string) => mean(names.map((source) => answers.get(name)!.heldOut[source]!.loss));
const each = (name: string) => names.map((source) => answers.get(name)!.heldOut[source]!.loss.toFixed(3)).join(" / ");
const size = (name: string) => {
  const { parameters, tokens } = answers.get(name)!;
  return `${parameters.total.toLocaleString("en")} weights, ${tokens.toLocaleString("en")} tokens`;
};
console.log(`held out, nats a token (${names.join(" / ")}), and their mean`);
console.log(`teacher, ${size("teacher")}: ${each("teacher")}  ${loss("teacher").toFixed(4)}`);
console.log(`student, ${size(hard(1))}`);
for (const seed of seeds) {
  console.log(`  seed ${seed}, hard targets: ${each(hard(seed))}  ${loss(hard(seed)).toFixed(4)}`);
  for (const share of Object.keys(shares)) {
    const name = soft(share, seed);
    const gain = loss(hard(seed)) - loss(name);
    console.log(`  seed ${seed}, ${share}: ${each(name)}  ${loss(name).toFixed(4)} (${gain.toFixed(4)} less)`);
  }
}
for (const share of Object.keys(shares)) {
  const gains = seeds.map((seed) => loss(hard(seed)) - loss(soft(share, seed)));
  console.log(
    `${share}: ${mean(gains).toFixed(4)} nats less, ${Math.min(...gains).toFixed(4)} to ${Math.max(...gains).toFixed(4)}`,
  );
}

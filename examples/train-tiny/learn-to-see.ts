// Teaches the vision encoder alone, before the rest learns to read it: what is in a picture, how many, in which colours,
// whose flag, each by a plain classifier on the rows that the text model would get. Cheaper by an order of magnitude for a
// picture than through the text model, which learns little from rows that all look alike.
//
//   node --import ../../scripts/ts.mjs learn-to-see.ts [--steps 4500] [--threads N] [--text MODEL] [WORK]
//
// Writes WORK/eyes: a model of the sizes in text.json whose vision encoder has learnt, and whose text model is random, or
// that of MODEL, which then learns to read it. MODEL may still be in training: this waits for it at the end. Products take
// their factors in bf16, whatever the processor. It cannot be resumed.
//
// N pictures of a step · C classes

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { setTimeout } from "node:timers/promises";
import { parseArgs } from "node:util";
import { openNative } from "../../src/backends/native/backend.ts";
import { type FileSource, openFile } from "../../src/checkpoint/source.ts";
import { tokenIds } from "../../src/cli/init.ts";
import { readModel, writeModel } from "../../src/cli/run-folder.ts";
import { randomWeights } from "../../src/cli/train-start.ts";
import { tokensPerTile } from "../../src/model/config.ts";
import { encodeImage } from "../../src/model/vision.ts";
import { normalise } from "../../src/prompt/image.ts";
import { fromHuggingFace } from "../../src/prompt/tokenizer-json.ts";
import { add, crossEntropy, linear, mul, reshape, rmsNorm } from "../../src/tensor/ops.ts";
import type { Tensor } from "../../src/tensor/tensor.ts";
import { shuffled } from "../../src/train/batches.ts";
import { modelConfig, readConfig } from "../../src/train/config.ts";
import { Documents } from "../../src/train/documents.ts";
import { leavesOf, type Weights } from "../../src/train/leaves.ts";
import { Optimizer } from "../../src/train/optimizer.ts";
import { rateAt } from "../../src/train/schedule.ts";
import { Tape } from "../../src/train/tape.ts";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    steps: { type: "string", default: "4500" },
    threads: { type: "string" },
    text: { type: "string" },
  },
});
const work = resolve(positionals[0] ?? join(import.meta.dirname, "work"));
const eyes = join(work, "eyes");
if (existsSync(eyes)) throw new Error(`${eyes} is there already; move it away to learn anew`);
const text = values.text === undefined ? undefined : resolve(values.text);
if (text && !existsSync(text) && !existsSync(dirname(text)))
  throw new Error(
    `${text} is not there, and no run that would make it; train text.json first, or begin it before this`,
  );
const N = 128;
const seed = 4;
const peak = 1e-3;

// ---- the pictures, and what is to be said of each ----

interface Picture {
  readonly documents: Documents;
  readonly tile: number;
  /** Which classifier, and the class. */
  readonly task: string;
  readonly answer: string;
}

const tasks: readonly (readonly [task: string, question: RegExp])[] = [
  ["name", /^(What is this\?|What is in the picture|Can you tell me what|Name it|What does the picture show)/],
  ["group", /^(What kind of thing|What sort of thing|Is it an animal)/],
  ["ground", /^What colour is (the background|behind it)/],
  ["count", /^(How many|Count them)/],
  ["shape", /^(What|Which) shape/],
  ["colour", /^(What colour is the|Which colour has the)/],
  ["flag", /^(Whose flag|Which country's flag)/],
];

const files: FileSource[] = [];

async function open(name: string): Promise<Documents> {
  const path = join(work, "data", name);
  const [lines, tiles] = [await openFile(`${path}.jsonl`), await openFile(`${path}.tiles`)];
  files.push(lines, tiles);
  return Documents.open(lines, tiles);
}

const bare = (answer: string) =>
  answer
    .replace(/^(This is )?(an? )?/i, "")
    .replace(/\.$/, "")
    .toLowerCase();

async function read(): Promise<Picture[]> {
  const found: Picture[] = [];
  const labels = await open("labels");
  for (let i = 0; i < labels.length; i++) {
    const { parts } = (await labels.record(i)) as { parts: [{ image: number }, string] };
    const answer = parts[1].replace(/ \(.*/, "");
    found.push({ documents: labels, tile: parts[0].image, task: "name", answer });
  }
  for (const name of ["pictures", "small"]) {
    const documents = await open(name);
    for (let i = 0; i < documents.length; i++) {
      const { messages } = (await documents.record(i)) as {
        messages: [{ content: ({ image?: number } | string)[] }, { content: string }];
      };
      const [first, question, ...more] = messages[0].content;
      if (more.length > 0 || typeof first !== "object" || first.image === undefined || typeof question !== "string")
        continue;
      const task = tasks.find(([, pattern]) => pattern.test(question))?.[0];
      if (task) found.push({ documents, tile: first.image, task, answer: bare(messages[1].content) });
    }
  }
  return found;
}

const all = await read();
const classes = new Map<string, string[]>();
for (const { task, answer } of all) {
  const known = classes.get(task) ?? classes.set(task, []).get(task)!;
  if (!known.includes(answer)) known.push(answer);
}
for (const [task, answers] of classes)
  console.error(
    `${task}: ${answers.length} classes, ${all.filter((picture) => picture.task === task).length} pictures`,
  );

// ---- the encoder and its classifiers ----

const threads = values.threads === undefined ? undefined : Number(values.threads);
const backend = openNative({ activations: "bf16", ...(threads && { threads }) });
const config = readConfig(JSON.parse(readFileSync(join(import.meta.dirname, "text.json"), "utf8")), "text.json");
const tokenizer = fromHuggingFace(JSON.parse(readFileSync(join(work, "data/tokenizer.json"), "utf8")));
const model = modelConfig(
  config.model!,
  { vocabSize: tokenizer.vocabSize, context: config.context, tileSize: all[0]!.documents.tileSize },
  tokenIds(tokenizer),
);
const weights = await randomWeights(model, seed, backend);
const width = tokensPerTile(model.vision!) * model.dim; // the rows of a picture, side by side
const heads = Object.fromEntries(
  [...classes].map(([task, answers]) => [
    task,
    backend.from(new Float32Array(answers.length * width), [answers.length, width]),
  ]),
);
const leaves = [
  ...leavesOf(weights).filter(({ name }) => name.startsWith("vision.")),
  ...Object.entries(heads).map(([task, weight]) => ({ name: `head.${task}`, weight })),
];
const optimizer = new Optimizer(backend, leaves, {
  ...{ kind: "adamw", beta1: 0.9, beta2: 0.95, eps: 1e-8, decay: 0.05, clip: 1, visionRate: 1, average: 0 },
});
const tape = new Tape(backend, {});
const watched = tape.watch({ vision: weights.vision!, heads });
const learnt = tape.watch(leaves.map(({ weight }) => weight)); // the same, in the optimizer's order

/** The sum of the tasks' losses, each by its share of the pictures; and how many of each were right before. */
async function step(pictures: readonly Picture[], rate: number) {
  const side = model.vision!.imageSize;
  const bytes = new Uint8Array(pictures.length * 3 * side ** 2);
  const reads = pictures.map(({ documents, tile }) => documents.pixels([tile]));
  for (const [i, pixels] of (await Promise.all(reads)).entries()) bytes.set(pixels, i * 3 * side ** 2);
  const pixels = backend.from(normalise(bytes, side, model.vision!.preprocessing), [pictures.length, 3, side, side]);
  return backend.scope(async () => {
    const seen = await encodeImage(watched.vision, model, tape.constant(pixels));
    const x = reshape(rmsNorm(seen, null, model.normEps), [pictures.length, width]);
    let total: Tensor | undefined;
    const asked: { task: string; logits: Tensor; targets: Int32Array }[] = [];
    for (const [task, answers] of classes) {
      const targets = Int32Array.from(pictures, (p) => (p.task === task ? answers.indexOf(p.answer) : -1));
      const n = targets.filter((target) => target >= 0).length;
      if (n === 0) continue;
      const logits = linear(x, watched.heads[task]!); // [N, C]
      const loss = crossEntropy(logits, targets);
      const share = tape.constant(backend.from(Float32Array.of(n / pictures.length), loss.shape));
      const part = mul(loss, share);
      total = total ? add(total, part) : part;
      asked.push({ task, logits, targets });
    }
    const right = new Map<string, [right: number, of: number]>();
    for (const { task, logits, targets } of asked) {
      const values = await tape.read(logits);
      const C = classes.get(task)!.length;
      let [hits, of] = [0, 0];
      for (const [i, target] of targets.entries()) {
        if (target < 0) continue;
        of++;
        const row = values.subarray(i * C, (i + 1) * C);
        if (row.every((value, c) => c === target || value < row[target]!)) hits++;
      }
      right.set(task, [hits, of]);
    }
    const [nats] = await tape.read(total!);
    await optimizer.step(tape.gradients(total!, learnt), rate);
    return { nats: nats!, right };
  });
}

// ---- learning ----

const steps = Number(values.steps);
const start = performance.now();
const rates = { kind: "wsd", steps, warmup: 50, decay: Math.round(steps / 3), final: 0.02 } as const;
let epoch = 0;
let order = shuffled(all.length, `see ${epoch}`);
let at = 0;
const sums = new Map<string, [number, number]>();
let nats = 0;
for (let i = 0; i < steps; i++) {
  const pictures: Picture[] = [];
  while (pictures.length < N) {
    if (at === order.length) {
      order = shuffled(all.length, `see ${++epoch}`);
      at = 0;
    }
    pictures.push(all[order[at++]!]!);
  }
  const found = await step(pictures, peak * rateAt(rates, i));
  nats += found.nats;
  for (const [task, [hits, of]] of found.right) {
    const sum = sums.get(task) ?? [0, 0];
    sums.set(task, [sum[0] + hits, sum[1] + of]);
  }
  if ((i + 1) % 50 === 0) {
    const shares = [...sums].map(([task, [hits, of]]) => `${task} ${((100 * hits) / of).toFixed(0)} %`);
    const seconds = (performance.now() - start) / 1000;
    console.error(`${i + 1} steps, ${seconds.toFixed(0)} s, loss ${(nats / 50).toFixed(3)}, ${shares.join(", ")}`);
    sums.clear();
    nats = 0;
  }
}
const seconds = (performance.now() - start) / 1000;
const withText = text === undefined ? weights : { ...weights, text: await textOf(text) };
await writeModel(eyes, { backend, weights: withText, model, tokenizer }, "f32");
writeFileSync(join(eyes, "seen.json"), `${JSON.stringify({ steps, pictures: steps * N, seconds })}\n`); // for card.ts
for (const file of files) await file.close();
backend.close();

/** Waits for a model that is still being trained beside this, or will be gone on with. */
async function textOf(folder: string): Promise<Weights["text"]> {
  if (!existsSync(folder)) console.error(`waiting for ${folder}: this goes on when text.json has been trained`);
  while (!existsSync(folder)) await setTimeout(5000);
  return (await readModel(folder, backend)).weights.text;
}

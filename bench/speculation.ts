// What does prompt lookup bring on text that repeats itself, and what does it cost on text that does not?
//
//   node --import ./scripts/ts.mjs bench/speculation.ts MODEL [--runs 5] [--tokens 256] [--prompt TOKENS] [--only TEXT]
//     [--out record.json]
//
// A random model says nothing worth copying, so replies are forced: every step is computed by the model and costs what it
// costs, then its logits are changed to say a given text. Speeds are therefore those of this machine with a model
// that would say that text; steps per token depend on text and measured costs only.

import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { Engine } from "../src/engine/engine.ts";
import { uniform } from "../src/engine/random.ts";
import type { Finish } from "../src/engine/requests.ts";
import { forward, type Step } from "../src/model/transformer.ts";
import { openModel } from "../src/open.ts";
import type { Tensor } from "../src/tensor/tensor.ts";
import { median, spread, writeRecord } from "./samples.ts";

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    runs: { type: "string", default: "5" },
    tokens: { type: "string", default: "256" },
    prompt: { type: "string", default: "all" },
    only: { type: "string", default: "" },
    activations: { type: "string", default: "int8" },
    out: { type: "string" },
  },
});
const runs = Number(options.runs);
const length = Number(options.tokens);
const path = positionals[0];
if (!path) throw new Error("usage: bench/speculation.ts MODEL [--runs 5] [--tokens 256]");

/** Words, spaces and signs as ids: about the pieces of a tokenizer. */
const ids = new Map<string, number>();
const encode = (text: string) =>
  (text.match(/ ?\w+|\s+|[^\w\s]/g) ?? []).map((piece) => {
    if (!ids.has(piece)) ids.set(piece, ids.size);
    return ids.get(piece)!;
  });
const source = readFileSync(new URL("../src/engine/scheduler.ts", import.meta.url), "utf8");
const file = encode(source).slice(0, options.prompt === "all" ? undefined : Number(options.prompt));
const random = (seed: number, i: number, below: number) => Math.floor(uniform(seed, i) * below);

interface Text {
  readonly prompt: readonly number[];
  readonly reply: readonly number[];
}

/** What the reply adds, then twice as much of the prompt. */
function quoting(): number[] {
  const reply: number[] = [];
  for (let i = 0; reply.length < length; i++) {
    for (let j = 0; j < 12; j++) reply.push(ids.size + random(1, 12 * i + j, 4000));
    const from = random(2, i, file.length - 24);
    reply.push(...file.slice(from, from + 24));
  }
  return reply;
}

const texts: Record<string, Text> = {
  "code edit (a name is changed)": { prompt: file, reply: encode(source.replaceAll("segments", "parts")) },
  "quotes (2 of 3 tokens)": { prompt: file, reply: quoting() },
  "nothing repeats": { prompt: file, reply: Array.from({ length }, (_, i) => ids.size + i) },
  "pairs repeat, and mislead": { prompt: file, reply: Array.from({ length }, (_, i) => random(3, i, 12)) },
};

const { activations } = options;
if (activations !== "int8" && activations !== "f32") throw new Error("--activations is int8 or f32");
const model = await openModel(path, { context: file.length + length + 64, activations });
const { backend, parameters, config, context, kvDtype } = model;

/** Replies one text, again and again. The engine stays open, as a server's: the prompt is computed once. */
function speaker(text: Text, speculation: "off" | "lookup") {
  const said = [...text.prompt, ...text.reply];
  let steps = 0;
  let step: Step;
  const read = async (x: Tensor, into?: Float32Array) => {
    const logits = await backend.read(x, into);
    const positions = step.segments.flatMap((s) => Array.from({ length: s.length }, (_, i) => s.position + i));
    for (const [i, row] of step.wanted.entries()) logits[i * config.vocabSize + said[positions[row]! + 1]!] = 1e4;
    return logits;
  };
  const forcing = new Proxy(backend, {
    get: (b, name) => (name === "read" ? read : Reflect.get(b, name).bind(b)),
  });
  const engine = new Engine({
    ...{ backend: forcing, parameters, config, context, kvDtype, speculation },
    forward: (p, c, s) => {
      steps++;
      step = s;
      return forward(p, c, s);
    },
  });
  return {
    /** One reply; also the number of its steps after the first token. */
    async reply(): Promise<Finish & { readonly steps: number }> {
      let before = 0;
      const onToken = () => {
        before ||= steps;
        return false;
      };
      const request = { tokens: text.prompt, maxTokens: length, sampling: { temperature: 0 }, onToken };
      for await (const { finish } of engine.generate(request)) if (finish) return { ...finish, steps: steps - before };
      throw new Error("the reply has no end");
    },
    close: () => engine.close(),
  };
}

const record = [];
console.log(
  `${path}, ${activations} activations, prompt of ${file.length} tokens, replies of ${length}, ${runs} runs each`,
);
for (const [name, text] of Object.entries(texts)) {
  if (!name.includes(options.only)) continue;
  const [off, on] = [speaker(text, "off"), speaker(text, "lookup")];
  await off.reply(); // warm-up
  await on.reply();
  const plain: Finish[] = [];
  const lookup: (Finish & { steps: number })[] = [];
  for (let i = 0; i < runs; i++) {
    plain.push(await off.reply());
    lookup.push(await on.reply());
  }
  await off.close();
  await on.close();
  const speed = (f: Finish) => (1000 * (length - 1)) / f.decodeMs;
  const ratios = lookup.map((f, i) => speed(f) / speed(plain[i]!));
  const guessed = lookup.reduce((sum, f) => sum + f.guessedTokens, 0);
  const accepted = lookup.reduce((sum, f) => sum + f.acceptedTokens, 0);
  const stepsPerToken = median(lookup.map((f) => f.steps / (length - 1)));
  console.log(
    `${name.padEnd(30)} ${median(plain.map(speed)).toFixed(1)} -> ${median(lookup.map(speed)).toFixed(1)} tokens/s, ` +
      `${median(ratios).toFixed(2)} x (${spread(ratios)}); ` +
      `${stepsPerToken.toFixed(2)} steps a token, ${accepted} of ${guessed} guesses right`,
  );
  record.push({ name, ratios, plain: plain.map(speed), lookup: lookup.map(speed), stepsPerToken, guessed, accepted });
}
model.close();

if (options.out) writeRecord(options.out, { model: path, activations, length, runs, warmUp: 1, record });

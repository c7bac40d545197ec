// What does it cost to hold a reply to a form, on Llama 4's vocabulary and beside decoding a small model?
//
//   LLAMA4_TOKENIZER=tokenizer.model node --import ./scripts/ts.mjs bench/grammar.ts [--model M] [--out record.json]
//
// A reply's tokens are those of a text that fits its form. The first visit is that of a process that has seen no form yet;
// with `cached` all of the text's states have been seen; mean and 99th percentile are of the tokens of as many replies as
// `--replies` says, the first included. With a model, it decodes with the form and without.

import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { load } from "llama4";
import { type Constraint, Grammars } from "../src/engine/constraint.ts";

import { TokenTrie } from "../src/engine/grammar/vocabulary.ts";
import { uniform } from "../src/engine/random.ts";
import { Sampler } from "../src/engine/sampler.ts";
import { fromTiktoken } from "../src/prompt/tiktoken.ts";
import { median, spread, writeRecord } from "./samples.ts";
import { percentile } from "./served.ts";

const { values: options } = parseArgs({
  options: {
    runs: { type: "string", default: "9" },
    replies: { type: "string", default: "20" },
    model: { type: "string" },
    out: { type: "string" },
  },
});
const runs = Number(options.runs);
const replies = Number(options.replies);

const person = {
  type: "object",
  properties: {
    name: { type: "string" },
    born: { type: "string", format: "date" },
    mail: { type: "string", pattern: "^[a-z.]+@[a-z.]+$" },
    height: { type: "number", minimum: 0.3, maximum: 2.8 },
    tags: { type: "array", items: { type: "string", maxLength: 40 }, maxItems: 8 },
    friends: { type: "array", items: { $ref: "#/$defs/friend" } },
    role: { enum: ["author", "editor", "reader"] },
  },
  required: ["name", "born", "mail", "height", "tags", "friends", "role"],
  $defs: {
    friend: {
      type: "object",
      properties: { name: { type: "string" }, since: { type: ["integer", "null"] } },
      required: ["name", "since"],
    },
  },
};
const somebody = {
  name: "Ada Lovelace, née Byron",
  born: "1815-12-10",
  mail: "ada@analytical.engine",
  height: 1.68,
  tags: ["mathematics", "poetical science", "Notes by the translator"],
  friends: [
    { name: "Mary Somerville", since: 1834 },
    { name: "Charles Babbage", since: 1833 },
    { name: "Женя 日本語", since: null },
  ],
  role: "author",
};
const weather = {
  name: "get_weather",
  parameters: {
    type: "object",
    properties: { city: { type: "string" }, days: { type: "integer", minimum: 1, maximum: 14 } },
    required: ["city"],
  },
};
const calls: Constraint = { type: "tool_calls", tools: [weather], parallel: true };
const forms: Record<string, { readonly constraint: Constraint; readonly text: string }> = {
  "a JSON schema": { constraint: { type: "json_schema", schema: person }, text: JSON.stringify(somebody) },
  "the same, indented": {
    constraint: { type: "json_schema", schema: person },
    text: JSON.stringify(somebody, null, 2),
  },
  "any JSON object": { constraint: { type: "json" }, text: JSON.stringify(somebody) },
  "a regular expression": {
    constraint: { type: "regex", pattern: "(?:[A-Z][a-z]+ ){2,8}was born on \\d{4}-\\d{2}-\\d{2}\\." },
    text: "Augusta Ada King Countess was born on 1815-12-10.",
  },
  "calls that have to be": {
    constraint: calls,
    text: '[get_weather(city="San Francisco", days=3), get_weather(city="Rome")]',
  },
  "calls or text": {
    constraint: { ...calls, otherwise: { type: "text" } },
    text: 'I will look at both places for you, so that you can compare. [get_weather(city="San Francisco"), get_weather(city="Rome")]',
  },
};

const record: object[] = [];
const path = process.env["LLAMA4_TOKENIZER"];
if (path) vocabulary(path);
else console.log("no LLAMA4_TOKENIZER: the cost on 202,048 tokens is not measured");
if (options.model) await decoding(options.model);
if (options.out) writeRecord(options.out, { runs, record });

function vocabulary(path: string): void {
  const tokenizer = fromTiktoken(readFileSync(path));
  const V = tokenizer.vocabSize;
  const builds = Array.from({ length: 3 }, () => timed(() => new TokenTrie(tokenizer)));
  console.log(`the vocabulary's trie                 ${median(builds).toFixed(0)} ms once (${spread(builds)})`);
  const logits = new Float32Array(V);
  /** As an untrained model's: normally distributed (Box and Muller 1958). */
  const noise = Float32Array.from(
    { length: V },
    (_, i) => Math.sqrt(-2 * Math.log(1 - uniform(1, 2 * i))) * Math.cos(2 * Math.PI * uniform(1, 2 * i + 1)),
  );
  for (const [name, { constraint, text }] of Object.entries(forms)) {
    const tokens = [...tokenizer.encode(text), tokenizer.specialId("<|eot|>")];
    const compile: number[] = [];
    const first: number[] = [];
    const worst: number[] = [];
    const cached: number[] = [];
    const extra: number[] = [];
    const mean: number[] = [];
    const p99: number[] = [];
    for (let run = 0; run < runs; run++) {
      const grammars = new Grammars(tokenizer, tokenizer.stop);
      grammars.begin({ type: "regex", pattern: "" }); // the trie
      compile.push(timed(() => grammars.begin(constraint)));
      const walk = () => {
        const matcher = grammars.begin(constraint);
        return tokens.map((token) => {
          logits.set(noise);
          return timed(() => {
            matcher.mask()!.choices(logits);
            matcher.advance(token);
          });
        });
      };
      const visit = walk();
      first.push((1000 * sum(visit)) / tokens.length);
      worst.push(Math.max(...visit));
      const all = [...visit, ...Array.from({ length: replies - 1 }, walk).flat()];
      mean.push((1000 * sum(all)) / all.length);
      p99.push(1000 * percentile(all, 99));
      cached.push((1000 * sum(walk())) / tokens.length);
      extra.push((1000 * (sampling(walkers(true)) - sampling(walkers(false)))) / tokens.length);
      function walkers(held: boolean) {
        return new Sampler({ seed: 1 }, [], V, held ? grammars.begin(constraint) : undefined);
      }
    }
    const us = (list: readonly number[]) => `${median(list).toFixed(1)} us (${spread(list)})`;
    console.log(
      `${name.padEnd(22)} ${String(tokens.length).padStart(3)} tokens: compiled ${median(compile).toFixed(1)} ms, first visit ${us(first)} a token, ` +
        `at worst ${median(worst).toFixed(1)} ms; of ${replies} replies mean ${us(mean)}, p99 ${us(p99)}; cached ${us(cached)} a token; choosing takes ${us(extra)} longer`,
    );
    record.push({
      form: name,
      V,
      tokens: tokens.length,
      compileMs: compile,
      firstUs: first,
      worstMs: worst,
      meanUs: mean,
      p99Us: p99,
      cachedUs: cached,
      extraUs: extra,
    });

    /** How long it takes to choose as many tokens of logits that prefer the text. */
    function sampling(sampler: Sampler): number {
      let ms = 0;
      for (const token of tokens) {
        logits.set(noise);
        logits[token] = 24;
        ms += timed(() => sampler.sample(logits));
      }
      return ms;
    }
  }
}

async function decoding(path: string): Promise<void> {
  await using model = await load(path);
  for (const [name, { constraint }] of Object.entries(forms).slice(0, 5)) {
    const speeds: Record<"free" | "held", number[]> = { free: [], held: [] };
    for (let run = -1; run < runs; run++)
      for (const kind of ["free", "held"] as const) {
        const more = kind === "held" && { constraint };
        const messages = [{ role: "user", content: "Describe a person, in JSON." }] as const;
        let ms = 0;
        let tokens = 0;
        // replies end when they like; as many as make 200 tokens
        for (let seed = 0; tokens < 200; seed++) {
          for await (const { timings, usage } of model.chat(messages, {
            maxTokens: 200,
            seed: 100 * run + seed + 100,
            temperature: 1,
            ...more,
          })) {
            if (!timings) continue;
            ms += timings.decodeMs;
            tokens += usage!.completionTokens - 1;
          }
        }
        if (run >= 0) speeds[kind].push(ms / tokens);
      }
    const [free, held] = [median(speeds.free), median(speeds.held)];
    console.log(
      `${name.padEnd(22)} ${free.toFixed(3)} ms a token free (${spread(speeds.free)}), ${held.toFixed(3)} held (${spread(speeds.held)}): ${((held / free - 1) * 100).toFixed(1)} %`,
    );
    record.push({ form: name, model: path, msPerToken: speeds });
  }
}

function timed(work: () => unknown): number {
  const start = performance.now();
  work();
  return performance.now() - start;
}

function sum(list: readonly number[]): number {
  return list.reduce((a, b) => a + b, 0);
}

// How fast does the tokenizer open, encode and decode, and how long does a megabyte of one letter take?
//
//   node --import ./scripts/ts.mjs bench/tokenizer.ts TOKENIZER_MODEL [TEXT_FILE]
//
// Without a text file the text is generated from common English words.
import { readFileSync } from "node:fs";
import { cpus } from "node:os";
import { fromTiktoken } from "../src/prompt/tiktoken.ts";
import { median } from "./samples.ts";

const [modelPath, textPath] = process.argv.slice(2);
if (modelPath === undefined) throw new Error("usage: tokenizer.ts TOKENIZER_MODEL [TEXT_FILE]");

const RUNS = 9;

/** Milliseconds of each run after one for warming up. */
function timed(body: () => unknown): number[] {
  body();
  return Array.from({ length: RUNS }, () => {
    const start = performance.now();
    body();
    return performance.now() - start;
  });
}

function prose(): string {
  const words = `the of and to in that is was he for it with as his on be at by had not are but from or have an they
    which one you were her all she there would their we him been has when who will more no if out so said what up its
    about into than them can only other new some could time these two may then do first any my now such like our over
    man me even most made after also did many before must through years where much your way well down should because
    each just those people how too little state good very make world still own see men work long get here between both
    life being under never day same another know while last might us great old year off come since against go came right
    used take three ourselves characteristically notwithstanding government tokenizer`.split(/\s+/);
  let seed = 1;
  const parts: string[] = [];
  for (let i = 0; i < 400_000; i++) {
    seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff;
    parts.push(words[(seed >> 8) % words.length]!, i % 13 === 12 ? ". " : i % 97 === 96 ? ".\n\n" : " ");
  }
  return parts.join("");
}

const file = readFileSync(modelPath);
const before = process.memoryUsage().rss;
const openStart = performance.now();
const tokenizer = fromTiktoken(file);
const openMs = performance.now() - openStart;
const openMB = (process.memoryUsage().rss - before) / 1e6;

const text = textPath === undefined ? prose() : readFileSync(textPath, "utf8");
const bytes = Buffer.byteLength(text);
const ids = tokenizer.encode(text);
const encode = timed(() => tokenizer.encode(text));
const decode = timed(() => tokenizer.decode(ids));
const letters = timed(() => tokenizer.encode("a".repeat(1_000_000)));

const mbPerSecond = (ms: number): number => bytes / 1e3 / ms;
const record = {
  bench: "tokenizer",
  cpu: cpus()[0]?.model,
  node: process.version,
  bytes,
  ids: ids.length,
  openMs,
  openMB,
  encodeMBps: mbPerSecond(median(encode)),
  encodeMBpsRange: [mbPerSecond(Math.max(...encode)), mbPerSecond(Math.min(...encode))],
  decodeMBps: mbPerSecond(median(decode)),
  oneLetterMs: median(letters),
};
console.log(
  `open ${openMs.toFixed(0)} ms, ${openMB.toFixed(0)} MB · encode ${record.encodeMBps.toFixed(1)} MB/s · ` +
    `decode ${record.decodeMBps.toFixed(1)} MB/s · 1 MB of one letter ${record.oneLetterMs.toFixed(0)} ms`,
);
console.log(JSON.stringify(record));

// How long does `llama4 generate` take from its start to the first text, and how much of that is Node's own start? And
// how long is it from the last byte of the weights to the first token?
//
//   npm run build && node --import ./scripts/ts.mjs bench/first-token.ts MODEL [--runs 20] [--out record.json]
//
// Whole processes, one after the other with an empty Node between them, everything in the page cache.

import { spawn } from "node:child_process";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { load } from "llama4";
import { median, spread, writeRecord } from "./samples.ts";

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: { runs: { type: "string", default: "20" }, out: { type: "string" } },
});
const [model] = positionals;
if (!model) throw new Error("usage: bench/first-token.ts MODEL [--runs 20] [--out F.json]");
const main = join(import.meta.dirname, "../dist/cli/main.js");
const prompt = "Why is the sky blue?";

/** Milliseconds to the first byte on stdout. */
function firstByte(...args: readonly string[]): Promise<number> {
  return new Promise((resolve, reject) => {
    const start = performance.now();
    const child = spawn("node", args, { stdio: ["ignore", "pipe", "inherit"] });
    let first: number | undefined;
    child.stdout.on("data", () => {
      first ??= performance.now() - start;
    });
    child.on("error", reject);
    child.on("close", (code) => {
      if (code === 0 && first !== undefined) resolve(first);
      else reject(new Error(`node ${args.join(" ")}: ended with status ${code}`));
    });
  });
}

/** Milliseconds from the last byte of the weights to the first token. */
async function afterLastByte(): Promise<number> {
  let last = 0;
  const onProgress = () => {
    last = performance.now();
  };
  await using loaded = await load(model, { onProgress });
  for await (const _ of loaded.chat([{ role: "user", content: prompt }], { maxTokens: 1 })) break;
  return performance.now() - last;
}

const samples = { generate: [] as number[], node: [] as number[], afterLastByte: [] as number[] };
for (let i = -1; i < Number(options.runs); i++) {
  const generate = ["generate", "--model", model, "--prompt", prompt, "--max-tokens", "8", "--temperature", "0"];
  const run = {
    generate: await firstByte(main, ...generate),
    node: await firstByte("-e", "console.log()"),
    afterLastByte: await afterLastByte(),
  };
  if (i < 0) continue; // fills the page cache
  for (const name of ["generate", "node", "afterLastByte"] as const) samples[name].push(run[name]);
}
const row = (what: string, times: readonly number[]) =>
  console.log(`${what.padEnd(38)} ${median(times).toFixed(0)} ms (${spread(times, 0)})`);
row("start of `generate` to its first text", samples.generate);
row("start of an empty Node to its first", samples.node);
row("last byte of the weights to first token", samples.afterLastByte);
if (options.out) writeRecord(options.out, samples);

// How long does the caller's event loop stand still while the model loads and answers? The engine has a thread of its own,
// so it should not: the target is 50 ms at most.
//
//   node --import ./scripts/ts.mjs bench/event-loop.ts MODEL

import { monitorEventLoopDelay } from "node:perf_hooks";
import { load } from "llama4";

const [path] = process.argv.slice(2);
const delay = monitorEventLoopDelay({ resolution: 1 });

const phase = (name: string) => {
  const ms = (nanoseconds: number) => (nanoseconds / 1e6).toFixed(1).padStart(7);
  console.log(
    `${name.padEnd(28)} p50 ${ms(delay.percentile(50))}  p99 ${ms(delay.percentile(99))}  max ${ms(delay.max)} ms`,
  );
  delay.reset();
};

delay.enable();
await new Promise((resolve) => setTimeout(resolve, 500));
phase("idle");
const model = await load(path);
phase("loading");
const tokens = await model.encode("The quick brown fox jumps over the lazy dog. ".repeat(40));
await Promise.all(
  Array.from({ length: 4 }, async (_, seed) => {
    for await (const piece of model.complete(tokens, { maxTokens: 64, seed })) void piece;
  }),
);
phase("four replies of 64 tokens");
await model.close();

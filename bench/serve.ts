// How do the server's throughput and waiting times grow with the number of clients?
//
//   npm run build && node --import ./scripts/ts.mjs bench/serve.ts MODEL [--clients 1,2,4,8,16] [--seconds 20]
//     [--prompt-tokens 32] [--gen-tokens 64] [--out record.json]
//
// `llama4 serve` as a process of its own. Each client sends one streamed request after the other, each with a prompt of
// its own, random tokens so that nothing is in the cache. Tokens are counted by the server while all clients are busy.

import { setMaxListeners } from "node:events";
import { parseArgs } from "node:util";
import { median, writeRecord } from "./samples.ts";
import { completion, percentile, startServer } from "./served.ts";

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    clients: { type: "string", default: "1,2,4,8,16" },
    seconds: { type: "string", default: "20" },
    "prompt-tokens": { type: "string", default: "32" },
    "gen-tokens": { type: "string", default: "64" },
    out: { type: "string" },
  },
});
const [model] = positionals;
if (!model) throw new Error("usage: bench/serve.ts MODEL [--clients 1,2,4,8,16] [--seconds 20] [--out F.json]");
const seconds = Number(options.seconds);
const promptTokens = Number(options["prompt-tokens"]);
const genTokens = Number(options["gen-tokens"]);

const server = await startServer(["--model", model]);
interface Row {
  readonly clients: number;
  readonly tokensPerSecond: number;
  readonly stepsPerSecond: number;
  readonly firstTokenMs: { readonly median: number; readonly p99: number };
}

const rows: Row[] = [];
try {
  await completion(server.url, { prompt: [1], max_tokens: 8 }); // memory is touched, code is compiled
  for (const clients of options.clients.split(",").map(Number)) rows.push(await measured(clients));
} finally {
  await server.stop();
}
if (options.out) writeRecord(options.out, { model, seconds, promptTokens, genTokens, rows });

async function measured(clients: number): Promise<Row> {
  const firsts: number[] = [];
  const stop = new AbortController();
  setMaxListeners(0, stop.signal);
  const busy = Array.from({ length: clients }, async () => {
    while (!stop.signal.aborted) {
      const prompt = Array.from({ length: promptTokens }, () => Math.floor(Math.random() * 256));
      const body = { prompt, max_tokens: genTokens, stream: true };
      const { firstMs, status } = await completion(server.url, body, stop.signal);
      if (stop.signal.aborted) return;
      if (status !== 200) throw new Error(`the server answered ${status}`);
      if (firstMs !== undefined) firsts.push(firstMs);
    }
  });
  await new Promise((resolve) => setTimeout(resolve, 2000)); // until all are on their way
  const before = await server.metrics();
  const start = performance.now();
  await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
  const after = await server.metrics();
  const elapsed = (performance.now() - start) / 1000;
  stop.abort();
  await Promise.all(busy);
  const rate = (name: string) => (after(name) - before(name)) / elapsed;
  const row = {
    clients,
    tokensPerSecond: rate("generated_tokens_total"),
    stepsPerSecond: rate("engine_steps_total"),
    firstTokenMs: { median: median(firsts), p99: percentile(firsts, 99) },
  };
  const factor = rows.length > 0 ? row.tokensPerSecond / rows[0]!.tokensPerSecond : 1;
  console.log(
    `${String(clients).padStart(4)} clients ${row.tokensPerSecond.toFixed(1).padStart(8)} tokens/s (× ${factor.toFixed(2)})` +
      ` ${row.stepsPerSecond.toFixed(1).padStart(7)} steps/s, first token ${row.firstTokenMs.median.toFixed(0)} ms` +
      ` (p99 ${row.firstTokenMs.p99.toFixed(0)})`,
  );
  return row;
}

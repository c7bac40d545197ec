// How fast node-llama-cpp computes prompts and replies, for bench/against-peers: one JSON object on stdout.
// usage: node bench.mjs MODEL.gguf PROMPT_TOKENS REPLY_TOKENS SEQUENCES THREADS REPEAT
//
// {release, prefill, decode}: tokens a second of all sequences together, one for each repetition after a warm-up.
import { openModel } from "./model.mjs";

const [modelPath, ...counts] = process.argv.slice(2);
const [prompt, reply, sequences, threads, repeat] = counts.map(Number);

const { llama, model } = await openModel(modelPath, threads);
const context = await model.createContext({
  contextSize: prompt + reply + 1,
  batchSize: Math.max(512, sequences),
  sequences,
  threads: { ideal: threads, min: threads },
  flashAttention: true,
});

const all = Array.from({ length: sequences }, () => context.getSequence());
const prefill = [];
const decode = [];
for (let run = 0; run <= repeat; run++) {
  const ids = (i) => Array.from({ length: prompt }, (_, t) => 300 + ((t * 7919 + run * 104729 + i * 911) % 3000));
  const start = performance.now();
  await Promise.all(all.map((sequence, i) => sequence.evaluateWithoutGeneratingNewTokens(ids(i))));
  const middle = performance.now();
  const replies = all.map(async (sequence, i) => {
    let left = reply;
    for await (const _ of sequence.evaluate([301 + i], { temperature: 0, yieldEogToken: true })) if (--left <= 0) break;
  });
  await Promise.all(replies);
  const end = performance.now();
  prefill.push((1000 * sequences * prompt) / (middle - start));
  decode.push((1000 * sequences * reply) / (end - middle));
  for (const sequence of all) await sequence.clearHistory();
}
const { release } = llama.llamaCppRelease;
const answer = { release, prefill: prefill.slice(1), decode: decode.slice(1) };
process.stdout.write(`${JSON.stringify(answer)}\n`, () => process.exit(0));

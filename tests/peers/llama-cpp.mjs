// What llama.cpp computes, through node-llama-cpp, from raw token ids: greedy tokens and logits as one JSON object on stdout.
// usage: node llama-cpp.mjs MODEL.gguf TOKENS.json [--generate 64] [--logits] [--all FILE [--length 32]] [--threads 2]
//
// TOKENS.json is an array of ids. The answer: {release, systemInfo, tokens, margins, logits?}, where margins[i] says by how much
// tokens[i] beat the second best, and `logits` [V] are those after the last id of the prompt. FILE gets those of every position, [T, V]
// f32, of the ids cut into sequences of `length`, each computed at once.
// Nothing is rounded that need not be: KV cache in F32, no flash attention (it accumulates values in F16).
import { appendFileSync, readFileSync, writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { openModel } from "./model.mjs";

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: {
    generate: { type: "string", default: "64" },
    logits: { type: "boolean", default: false },
    all: { type: "string" },
    length: { type: "string", default: "32" },
    threads: { type: "string", default: "2" },
  },
});
const [modelPath, tokensPath] = positionals;
const prompt = JSON.parse(readFileSync(tokensPath, "utf8"));
const [generate, threads] = [Number(values.generate), Number(values.threads)];

const { llama, model } = await openModel(modelPath, threads);
const context = await model.createContext({
  contextSize: prompt.length + generate + 1, // llama.cpp rounds up; nothing is ever shifted out
  batchSize: 512,
  threads: { ideal: threads, min: threads },
  flashAttention: false,
  experimentalKvCacheKeyType: "F32",
  experimentalKvCacheValueType: "F32",
});
const sequence = context.getSequence();

// Evaluates `ids` after what the sequence holds; the logits of the last one: all of them, or of the two best. Best first.
async function evaluate(ids, all) {
  const logits = all || { filter: { tokens: [], includeTop: 2 } };
  const last = [ids.at(-1), { generateNext: { token: true, logits, options: { temperature: 0 } } }];
  const { next } = (await sequence.controlledEvaluate([...ids.slice(0, -1), last])).at(-1);
  return { token: next.token, logits: next.logits };
}

const floats = ({ logits }) => Float32Array.from({ length: logits.size }, (_, id) => logits.get(id));

if (values.all) {
  writeFileSync(values.all, "");
  const length = Number(values.length);
  for (let at = 0; at < prompt.length; at += length) {
    const asked = prompt.slice(at, at + length).map((id) => [id, { generateNext: { logits: true } }]);
    for (const { next } of await sequence.controlledEvaluate(asked)) appendFileSync(values.all, floats(next));
    await sequence.clearHistory();
  }
}
let step = await evaluate(prompt, values.logits);
const answer = { release: llama.llamaCppRelease, systemInfo: llama.systemInfo, tokens: [], margins: [] };
if (values.logits) answer.logits = [...floats(step)];
while (answer.tokens.length < generate) {
  const [best, second] = [...step.logits.values()].sort((a, b) => b - a);
  answer.tokens.push(step.token);
  answer.margins.push(best - second);
  step = await evaluate([step.token], false);
}
process.stdout.write(`${JSON.stringify(answer)}\n`, () => process.exit(0));

// llama.cpp as the judge: the same random F32 model, written by us as GGUF, gives the same greedy tokens there and here,
// past two of the chunks of 8,192 positions that llama.cpp fixes. On F32 weights llama.cpp equals Hugging Face to 4e-5.

import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { load } from "llama4";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openCheckpoint } from "../src/checkpoint/open.ts";

const run = promisify(execFile);
const root = join(import.meta.dirname, "..");
const llama4 = (...args: string[]) => run("node", [join(root, "dist/cli/main.js"), ...args], { maxBuffer: 1 << 28 });

const peer = join(root, "tests/peers");
const cpuBuilds = ["linux-x64", "linux-arm64"].map((name) => join(peer, "node_modules/@node-llama-cpp", name));
const missing = !cpuBuilds.some(existsSync) && "tests/peers is not installed (npm ci --prefix tests/peers; Linux only)";

describe.skipIf(missing)(`llama.cpp${missing ? `: skipped, ${missing}` : ""}`, () => {
  let folder: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "llama4-peers-"));
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));

  // Ids of a fixed linear congruential sequence: nothing in them repeats with the chunk.
  const ids = (n: number, vocab: number) => {
    let state = 12345;
    return Array.from({ length: n }, () => {
      state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
      return (state >>> 8) % vocab;
    });
  };

  it("gives the same 64 greedy tokens after a prompt of 16,500", async () => {
    const vocab = 512;
    const shape = ["--layers", "4", "--dim", "128", "--heads", "2", "--kv-heads", "1", "--head-dim", "64"];
    const widths = ["--ffn", "256", "--expert-ffn", "128", "--experts", "4", "--vocab", String(vocab)];
    await llama4(
      "init",
      "scout",
      join(folder, "hf"),
      ...shape,
      ...widths,
      "--vision",
      "off",
      "--dtype",
      "f32",
      "--seed",
      "3",
    );
    const gguf = join(folder, "model.gguf");
    await llama4("convert", join(folder, "hf"), gguf, "--type", "f32");
    const prompt = ids(16_500, vocab);
    const tokens = join(folder, "tokens.json");
    await writeFile(tokens, JSON.stringify(prompt));
    const judged = await run("node", [join(peer, "llama-cpp.mjs"), gguf, tokens, "--generate", "64"], {
      maxBuffer: 1 << 28,
    });
    const theirs: { tokens: number[]; margins: number[] } = JSON.parse(judged.stdout);
    const model = await load(gguf, {
      activations: "f32",
      kvDtype: "f32",
      context: prompt.length + 64,
      threads: 2,
    });
    const ours: number[] = [];
    try {
      for await (const piece of model.complete(prompt, { temperature: 0, maxTokens: 64 })) ours.push(...piece.tokens);
    } finally {
      await model.close();
    }
    expect(ours).toEqual(theirs.tokens);
    console.log(`llama.cpp: 64 of 64 tokens equal, smallest margin ${Math.min(...theirs.margins).toExponential(2)}`);
  }, 600_000);

  it("gives the logits of a model that was trained here, on a prompt within its own chunk and floor", async () => {
    const trained = join(root, "tests/golden/llama4/trained");
    const gguf = join(folder, "trained.gguf");
    const { stderr } = await llama4("convert", trained, gguf, "--type", "f32", "--allow-lossy");
    expect(stderr).toMatch(/llama.cpp will misread trained.gguf: an attention chunk of 16; it always takes 8192/);
    expect(stderr).toMatch(/temperature floor 64 and scale 0.1; it always takes 8192 and 0.1/);
    const [before, after] = await Promise.all([trained, gguf].map((path) => openCheckpoint(path)));
    for (const checkpoint of [before!, after!]) await checkpoint.close();
    expect(after!.config.attentionChunk).toBe(16); // the hints that only this program obeys
    expect(after!.config.temperature).toEqual(before!.config.temperature);
    expect(after!.config.layers).toEqual(before!.config.layers);
    // Hugging Face's, of the same weights: the first rows see nothing of what comes later.
    const expected = JSON.parse(await readFile(join(trained, "expected.json"), "utf8"));
    const tokens = join(folder, "tokens.json");
    for (const n of [1, 7, 16]) {
      await writeFile(tokens, JSON.stringify(expected.input_ids.slice(0, n)));
      const judged = await run("node", [join(peer, "llama-cpp.mjs"), gguf, tokens, "--generate", "0", "--logits"]);
      const { logits }: { logits: number[] } = JSON.parse(judged.stdout);
      const worst = logits.reduce((most, x, id) => Math.max(most, Math.abs(x - expected.logits[n - 1][id])), 0);
      expect(worst).toBeLessThan(2e-4); // as Hugging Face's and ours
    }
  }, 600_000);
});

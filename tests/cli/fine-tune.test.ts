// Fine-tuning on the command line: adapters and whole models that begin with a checkpoint.

import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { readSafetensors } from "../../src/checkpoint/safetensors.ts";
import { openFile } from "../../src/checkpoint/source.ts";
import { llama4, objectOf } from "./llama4.ts";

const place = mkdtempSync(join(tmpdir(), "llama4-fine-tune-"));
const at = (name: string) => join(place, name);
const steps = 8;
const config = {
  from: "base",
  data: { docs: "docs.jsonl" },
  heldOut: { docs: "docs.jsonl" },
  samples: "docs.jsonl",
  phases: [{ steps, mix: { docs: 1 }, loss: "answers" }],
  ...{ context: 64, batchTokens: 96 },
  optimizer: { rate: 0.02, average: 0.5 },
  schedule: { warmup: 1, decay: 2 },
  lora: { rank: 2, targets: ["attention", "shared", "experts"] },
  evaluate: { every: steps, tokens: 64 },
  checkpoint: { minutes: 0, keep: steps },
};

const write = (name: string, value: object) => {
  writeFileSync(at(name), JSON.stringify(value));
  return at(name);
};
const train = (...args: string[]) => llama4(["train", "--backend", "reference", "--json", ...args]);
const logOf = (out: string) => readFileSync(join(out, "log.jsonl"), "utf8").trim().split("\n");
const losses = (out: string): number[] =>
  logOf(out)
    .map((line) => JSON.parse(line))
    .flatMap(({ type, loss }) => (type === "step" ? [loss] : []));

async function logits(...model: string[]): Promise<Float32Array> {
  const out = at("logits.safetensors");
  const args = ["--backend", "reference", "--tokens", "5,70,33,101,12,90", "--out", out, "--json"];
  objectOf(await llama4(["logits", ...model, ...args]));
  const file = await openFile(out);
  const view = (await readSafetensors(file)).find(({ name }) => name === "logits")!;
  const bytes = await file.read(view.offset, file.byteLength - view.offset);
  await file.close();
  return new Float32Array(bytes.buffer, bytes.byteOffset, view.shape[0]! * view.shape[1]!);
}

const furthest = (x: Float32Array, y: Float32Array) => x.reduce((most, v, i) => Math.max(most, Math.abs(v - y[i]!)), 0);

beforeAll(async () => {
  const sizes =
    "--layers 4 --dim 16 --heads 2 --kv-heads 1 --head-dim 8 --ffn 24 --expert-ffn 12 --experts 3 --moe-step 2";
  const rest = "--chunk 16 --vocab 512 --vision off --dtype f32 --seed 5 --json";
  objectOf(await llama4(["init", "scout", at("base"), ...sizes.split(" "), ...rest.split(" ")]));
  const chats = ["a cat", "a dog", "an ant"].map((answer, i) => ({
    messages: [
      { role: "user", content: `What ${i}?` },
      { role: "assistant", content: answer },
    ],
  }));
  writeFileSync(at("docs.jsonl"), chats.map((chat) => `${JSON.stringify(chat)}\n`).join(""));
  write("lora.json", config);
}, 600_000);

afterAll(() => rmSync(place, { recursive: true }));

describe("llama4 train with lora", () => {
  const out = at("run");

  it("says what learns, learns, and writes an adapter that goes on top of the base", async () => {
    const ended = await train("--config", at("lora.json"), "--out", out);
    const answer = objectOf(ended);
    expect(answer).toMatchObject({ out: join(out, "adapter"), steps });
    const learnt = answer["learnt"] as string[];
    expect(learnt.every((name) => /^text\.layers\.\d\.\w+\.lora[AB](\.gate|\.up)?$/.test(name))).toBe(true);
    expect(learnt.length).toBe(4 * 2 * 7 + 2 * 5);
    expect(ended.stderr).toMatch(/numbers learn \(.* %\), in 66 tensors:\n/);
    expect(ended.stderr).toMatch(/text\.layers\.\*\.gateUp\.loraA \[3, 2, 16\], layers 1, 3\n/);
    const [first, last] = [losses(out)[0]!, losses(out).at(-1)!];
    expect(last).toBeLessThan(first - 0.3);
    expect(readdirSync(join(out, "adapter")).sort()).toEqual(["adapter_config.json", "adapter_model.safetensors"]);
    expect(existsSync(join(out, "checkpoints", "step-00000008", "model.safetensors"))).toBe(false); // the base is not copied
    const base = await logits("--model", at("base"));
    const tuned = await logits("--model", at("base"), "--adapter", join(out, "adapter"));
    expect(furthest(base, tuned)).toBeGreaterThan(0.1);
  });

  it("merges: convert's folder and GGUF have the logits of base and adapter", async () => {
    const adapter = ["--adapter", join(out, "adapter")];
    const tuned = await logits("--model", at("base"), ...adapter);
    objectOf(await llama4(["convert", at("base"), at("merged"), ...adapter, "--json"]));
    expect(await logits("--model", at("merged"))).toEqual(tuned);
    objectOf(await llama4(["convert", at("base"), at("merged.gguf"), ...adapter, "--allow-lossy", "--json"]));
    expect(furthest(await logits("--model", at("merged.gguf")), tuned)).toBeLessThan(1e-5);
    const refused = await llama4([
      "logits",
      "--model",
      at("merged.gguf"),
      ...adapter,
      "--tokens",
      "1",
      "--out",
      at("x"),
    ]);
    expect(refused.stderr).toMatch(/goes with a folder in Hugging Face's layout/);
  });

  it("resumed ends with the same losses and the same adapter, to the bit", async () => {
    const resumed = at("resumed");
    cpSync(out, resumed, { recursive: true });
    for (const name of readdirSync(join(resumed, "checkpoints")).sort().slice(3))
      rmSync(join(resumed, "checkpoints", name), { recursive: true });
    rmSync(join(resumed, "adapter"), { recursive: true });
    objectOf(await train("--config", at("lora.json"), "--out", resumed, "--resume"));
    expect(losses(resumed)).toEqual(losses(out));
    const bytes = (run: string) => readFileSync(join(run, "adapter", "adapter_model.safetensors"));
    expect(bytes(resumed).equals(bytes(out))).toBe(true);
  });

  it("refuses what it does not know, and what does not fit", async () => {
    const failing = async (change: object) => {
      const ended = await train("--config", write("bad.json", { ...config, ...change }), "--out", at("bad"));
      expect(ended.status).toBe(2);
      return (objectOf(ended)["error"] as { message: string }).message;
    };
    expect(await failing({ lora: { targets: ["embeddings"] } })).toMatch(
      /targets is \["embeddings"\]; expected a list of attention, shared, experts/,
    );
    expect(await failing({ lora: { dropout: 0.1 } })).toMatch(/lora: "dropout" is not known here/);
    expect(await failing({ from: undefined })).toMatch(/lora without from/);
    expect(await failing({ model: { depth: 4 } })).toMatch(/from and model; expected one of them/);
    const { lora: _, ...whole } = config;
    const other = await train("--config", write("other.json", whole), "--out", out, "--resume");
    expect((objectOf(other)["error"] as { message: string }).message).toMatch(/lora was {.*} when the run began/);
  });
});

it("llama4 train from a checkpoint tunes all of its weights, and resumes to the bit", async () => {
  const { lora: _, ...whole } = config;
  const file = write("whole.json", { ...whole, optimizer: { rate: 0.003 } });
  const out = at("tuned");
  const ended = await train("--config", file, "--out", out);
  expect(objectOf(ended)).toMatchObject({ out: join(out, "model") });
  expect(ended.stderr).toMatch(/numbers learn \(100 %\)/);
  expect(losses(out).at(-1)).toBeLessThan(losses(out)[0]! - 0.3);
  const resumed = at("tuned-again");
  cpSync(out, resumed, { recursive: true });
  for (const name of readdirSync(join(resumed, "checkpoints")).sort().slice(5))
    rmSync(join(resumed, "checkpoints", name), { recursive: true });
  objectOf(await train("--config", file, "--out", resumed, "--resume"));
  expect(losses(resumed)).toEqual(losses(out));
});

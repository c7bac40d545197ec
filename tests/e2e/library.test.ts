// The built package, imported by its name as a user does, with the engine in its thread.

import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Llama4, Piece } from "../../src/index.ts";

const dist = join(import.meta.dirname, "../../dist");
const isBuilt = existsSync(join(dist, "index.js"));

async function all(pieces: AsyncIterable<Piece>): Promise<{ text: string; tokens: number[]; end: Piece }> {
  const list: Piece[] = [];
  for await (const piece of pieces) list.push(piece);
  return { text: list.map((p) => p.text).join(""), tokens: list.flatMap((p) => p.tokens), end: list.at(-1)! };
}

describe.skipIf(!isBuilt)("the library (skipped before `npm run build`)", () => {
  const folder = join(mkdtempSync(join(tmpdir(), "llama4-")), "model");
  let library: typeof import("../../src/index.ts");
  let model: Llama4;

  beforeAll(async () => {
    const sizes =
      "--layers 4 --dim 32 --heads 4 --kv-heads 2 --head-dim 8 --ffn 32 --expert-ffn 16 --experts 2 --chunk 32";
    const init = ["init", "scout", folder, ...sizes.split(" "), "--vocab", "320", "--vision", "off", "--dtype", "f32"];
    execFileSync("node", [join(dist, "cli/main.js"), ...init]);
    library = await import("llama4" as string);
    model = await library.load(folder, { backend: "reference", context: 256 });
  });
  afterAll(async () => {
    await model?.close();
    rmSync(join(folder, ".."), { recursive: true, force: true });
  });

  it("says what it has loaded", () => {
    expect(model.info).toMatchObject({ backend: "reference", vocabSize: 320, context: 256, hasTokenizer: true });
    expect(model.info.loadMs).toBeGreaterThan(0);
  });

  it("loads into a thread that was begun earlier, which ends with the model", async () => {
    const thread = library.startThread();
    const inThread = await library.load(folder, { backend: "reference", context: 64, thread });
    await inThread.close();
    await thread.ended;
  });

  it("is imported by a program that comes from the command line", () => {
    const program = `const { load } = await import(${JSON.stringify(pathToFileURL(join(dist, "index.js")).href)});
      const model = await load(${JSON.stringify(folder)}, { backend: "reference", context: 64 });
      console.log(model.info.vocabSize);
      await model.close();`;
    expect(execFileSync("node", ["--input-type=module", "--eval", program]).toString()).toBe("320\n");
  });

  it("says so when the thread that it is given has ended before", async () => {
    const thread = library.startThread();
    await thread.worker.terminate();
    await expect(library.load(folder, { thread })).rejects.toMatchObject({ name: "EngineError" });
  });

  it("chats: text, tokens, usage and timings", async () => {
    const messages = [{ role: "user", content: "Who are you?" }] as const;
    const { text, tokens, end } = await all(model.chat(messages, { maxTokens: 8, seed: 1 }));
    expect(end.finishReason).toMatch(/stop|length/);
    expect(end.usage!.completionTokens).toBe(tokens.length);
    expect(end.usage!.promptTokens).toBe((await model.encodeChat(messages)).length);
    expect(end.timings!.prefillMs).toBeGreaterThan(0);
    expect(typeof text).toBe("string");
  });

  it("refuses images for a model without a vision encoder", async () => {
    const content = [
      { type: "image", data: new Uint8Array(9) } as const,
      { type: "text", text: "What is this?" } as const,
    ];
    await expect(all(model.chat([{ role: "user", content }]))).rejects.toThrow(/for a model that reads text only/);
  });

  it("gives the same tokens for the same seed, alone and among others", async () => {
    const one = (seed: number) => all(model.complete("Once upon a time", { maxTokens: 12, seed, temperature: 1 }));
    const [a, , b] = await Promise.all([one(1), one(2), one(1), one(3)]);
    expect(a!.tokens).toEqual(b!.tokens);
    expect((await one(1)).tokens).toEqual(a!.tokens);
  });

  it("computes with the native backend what it computes with the reference", async () => {
    const native = await library.load(folder, { backend: "native", context: 256, activations: "f32" });
    const rows = async (m: Llama4) => {
      const list: number[] = [];
      for await (const { logits } of m.logits(
        "Past three chunks of thirty-two tokens each, one letter a token. ".repeat(2),
      ))
        list.push(...logits);
      return list;
    };
    const [ours, theirs] = [await rows(model), await rows(native)];
    await native.close();
    expect(theirs).toHaveLength(ours.length);
    const worst = ours.reduce((most, x, i) => Math.max(most, Math.abs(x - theirs[i]!)), 0);
    expect(worst).toBeLessThan(2e-4); // sums in another order, f32 against f64
  });

  it("stops when asked to, and goes on with the others", async () => {
    const cancel = new AbortController();
    const other = all(model.complete("b", { maxTokens: 20, temperature: 0 }));
    let pieces = 0;
    const cancelled = (async () => {
      for await (const _ of model.complete("a", { signal: cancel.signal })) if (++pieces === 3) cancel.abort();
    })();
    await expect(cancelled).rejects.toMatchObject({ name: "AbortError" });
    expect(pieces).toBe(3);
    expect((await other).tokens.length).toBeGreaterThan(0);
  });

  it("lets the caller's timers fire while it computes", async () => {
    let fired = 0;
    const timer = setInterval(() => fired++, 1);
    let rows = 0;
    for await (const _ of model.logits("x".repeat(250))) rows++; // a step for each chunk of 32
    clearInterval(timer);
    expect(rows).toBe(8);
    expect(fired).toBeGreaterThan(rows);
  });

  it("refuses with the engine's own errors", async () => {
    await expect(all(model.complete("a", { temperature: -1 }))).rejects.toThrow(
      new library.RequestError("temperature is -1; expected a number from 0 to 2"),
    );
    const long = all(model.complete("a".repeat(257)));
    await expect(long).rejects.toBeInstanceOf(library.CapacityError);
    await expect(long).rejects.toThrow(
      "the prompt has 257 tokens and the cache holds 256; open the model with a larger `context`",
    );
    await expect(library.load(join(folder, "nowhere"))).rejects.toBeInstanceOf(library.CheckpointError);
  });

  it("loads at most until it is told to stop", async () => {
    const loading = library.load(folder, { backend: "reference", signal: AbortSignal.timeout(1) });
    await expect(loading).rejects.toMatchObject({ name: "TimeoutError" });
  });

  it("refuses options that it does not know, and signals that are none", async () => {
    await expect(library.load(folder, { nope: 1 } as object)).rejects.toMatchObject({
      name: "RequestError",
      message: expect.stringContaining('there is no option "nope"; expected backend, '),
    });
    const signal = 5 as unknown as AbortSignal;
    await expect(library.load(folder, { signal })).rejects.toThrow("signal is 5; expected an AbortSignal");
    expect(() => model.complete("a", { signal })).toThrow("signal is 5; expected an AbortSignal");
  });

  it("ends what runs when it is closed, and refuses what comes after", async () => {
    const other = await library.load(folder, { backend: "reference", context: 64 });
    const reply = all(other.complete("a"));
    const ended = expect(reply).rejects.toThrow("the model was closed");
    await Promise.all([other.close(), other.close()]);
    await ended;
    expect(() => other.complete("a")).toThrow("the model was closed");
  });

  it("tells every caller when its thread dies, and those who come after", async () => {
    const thread = library.startThread();
    const other = await library.load(folder, { backend: "reference", context: 256, thread });
    const running = expect(all(other.complete("a", { temperature: 0 }))).rejects.toMatchObject({
      name: "EngineError",
      message: expect.stringMatching(/the engine's thread has stopped: .*; load the model again/),
    });
    thread.worker.postMessage(undefined); // no message that the thread knows: it throws where nobody catches
    await running;
    expect(() => other.complete("a")).toThrow(library.EngineError);
    await expect(other.encode("a")).rejects.toThrow(library.EngineError);
    await other.close();
  });

  it("computes nothing for a reply that nobody reads", async () => {
    const cancel = new AbortController();
    const unread = model.complete("a", { signal: cancel.signal });
    const uncloneable = model.complete("a", { stop: [(() => "") as unknown as string] });
    await expect(all(uncloneable)).rejects.toThrow(/could not be cloned/); // at the first piece, when it is sent
    cancel.abort();
    await expect(all(unread)).rejects.toMatchObject({ name: "AbortError" });
  });
});

// Over HTTP the model says what it says to its library's caller.

import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import sharp from "sharp";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Llama4, Piece } from "../../src/index.ts";
import { createHandler, type Handler } from "../../src/server/handler.ts";
import { eventsOf, json, post, user } from "../server/scripted.ts";
import { writeVisionModel } from "../vision-model.ts";

const isBuilt = existsSync(join(import.meta.dirname, "../../dist/index.js"));

describe.skipIf(!isBuilt)("the server (skipped before `npm run build`)", () => {
  const folder = mkdtempSync(join(tmpdir(), "llama4-serve-"));
  let model: Llama4;
  let handler: Handler;
  let picture: Uint8Array;

  beforeAll(async () => {
    await writeVisionModel(folder);
    const library: typeof import("../../src/index.ts") = await import("llama4" as string);
    model = await library.load(folder, { backend: "reference", context: 512 });
    // errors of the built package are not instances of the classes that the sources compare with
    handler = createHandler(model, { name: "seeing", onError: () => {} });
    picture = await sharp({ create: { width: 60, height: 40, channels: 3, background: "#4080c0" } })
      .png()
      .toBuffer();
  });
  afterAll(async () => {
    await model?.close();
    rmSync(folder, { recursive: true, force: true });
  });

  async function said(pieces: AsyncIterable<Piece>) {
    const list: Piece[] = [];
    for await (const piece of pieces) list.push(piece);
    return { text: list.map(({ text }) => text).join(""), end: list.at(-1)! };
  }

  it("gives the same text, ending and counts, whole and streamed", async () => {
    for (const seed of [1, 2, 3]) {
      const options = { maxTokens: 20, seed, temperature: 1 };
      const { text, end } = await said(model.chat([{ role: "user", content: "Hello" }], options));
      const body = { messages: [user("Hello")], max_tokens: 20, seed, temperature: 1 };
      const whole = await json(await handler(post("/v1/chat/completions", body)));
      expect(whole.choices[0]).toMatchObject({ message: { content: text }, finish_reason: end.finishReason });
      const { promptTokens, completionTokens } = end.usage!;
      expect(whole.usage).toMatchObject({ prompt_tokens: promptTokens, completion_tokens: completionTokens });
      const events = await eventsOf(await handler(post("/v1/chat/completions", { ...body, stream: true })));
      expect(events.map(({ data }) => data.choices?.[0].delta.content ?? "").join("")).toBe(text);
    }
  });

  it("sees a picture as the library does", async () => {
    const content = [
      { type: "image", data: picture },
      { type: "text", text: "What is it?" },
    ] as const;
    const { text, end } = await said(model.chat([{ role: "user", content }], { maxTokens: 12, temperature: 0 }));
    const url = `data:image/png;base64,${Buffer.from(picture).toString("base64")}`;
    const parts = [
      { type: "image_url", image_url: { url } },
      { type: "text", text: "What is it?" },
    ];
    const body = { messages: [user(parts)], max_tokens: 12, temperature: 0 };
    const whole = await json(await handler(post("/v1/chat/completions", body)));
    expect(whole.choices[0].message.content).toBe(text);
    expect(whole.usage.prompt_tokens).toBe(end.usage!.promptTokens);
    const again = await json(await handler(post("/v1/chat/completions", body)));
    expect(again.usage.prompt_tokens_details.cached_tokens).toBeGreaterThan(0);
  });

  it("goes on from a text as the library does, and says which tokens that has", async () => {
    const { text } = await said(model.complete("Once", { bos: true, maxTokens: 8, seed: 3 }));
    const whole = await json(await handler(post("/v1/completions", { prompt: "Once", max_tokens: 8, seed: 3 })));
    expect(whole.choices[0].text).toBe(text);
    const { tokens } = await json(await handler(post("/tokenize", { prompt: "Once" })));
    expect(tokens).toEqual([...(await model.encode("Once", { bos: true }))]);
  });

  it("says at /health that the engine's thread has ended", async () => {
    const library: typeof import("../../src/index.ts") = await import("llama4" as string);
    const thread = library.startThread();
    const mortal = await library.load(folder, { backend: "reference", context: 512, thread });
    const mortals = createHandler(mortal, { name: "mortal", onError: () => {} });
    const health = () => mortals(new Request("http://server/health"));
    expect((await health()).status).toBe(200);
    const running = mortals(post("/v1/completions", { prompt: "x", max_tokens: 400 }));
    await thread.worker.terminate();
    expect((await running).status).toBeGreaterThanOrEqual(500);
    expect((await health()).status).toBe(503);
    expect((await mortals(post("/v1/completions", { prompt: "x" }))).status).toBe(503);
    await mortal.close();
  });

  it("says what an engine does that has work", async () => {
    const running = handler(post("/v1/completions", { prompt: "x", max_tokens: 200, stream: true }));
    const response = await running;
    const reader = response.body!.getReader();
    await reader.read();
    const { running: batch, cache, steps } = await model.stats();
    expect(batch).toBe(1);
    expect(cache.global!.used).toBeGreaterThan(0);
    expect(cache.global!.total).toBeGreaterThanOrEqual(512);
    expect(steps).toBeGreaterThan(0);
    await reader.cancel();
    await expect.poll(async () => (await model.stats()).running).toBe(0);
  });
});

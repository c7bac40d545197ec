// Images and videos through the built command line and library, with a small random model that sees.

import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import sharp from "sharp";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { llama4, main, objectOf } from "../cli/llama4.ts";
import { safetensors } from "../cli/models.ts";
import { writeVisionModel } from "../vision-model.ts";

describe.skipIf(!existsSync(main))("a model that sees (skipped before `npm run build`)", () => {
  const folder = mkdtempSync(join(tmpdir(), "llama4-see-"));
  const at = (name: string) => join(folder, name);
  const model = at("model");
  const use = ["--model", model, "--backend", "reference"];

  beforeAll(async () => {
    await writeVisionModel(model);
    const drawn = (width: number, height: number, background: string) =>
      sharp({ create: { width, height, channels: 3, background } });
    await drawn(56, 56, "#c08040").png().toFile(at("small.png"));
    await drawn(100, 50, "#20a040").jpeg().toFile(at("wide.jpg"));
    const frames = Buffer.concat([10, 200].map((grey) => Buffer.alloc(56 * 56 * 3, grey)));
    await sharp(frames, { raw: { width: 56, height: 112, channels: 3, pageHeight: 56 } })
      .gif({ delay: [500, 500] })
      .toFile(at("moving.gif"));
  });
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  const generate = (...args: string[]) => llama4(["generate", ...use, "--max-tokens", "3", "--json", ...args]);

  it("answers about images and a video, and counts their tokens", async () => {
    const count = async (...args: string[]) =>
      objectOf(await generate("--prompt", "What?", ...args))["promptTokens"] as number;
    const text = await count();
    expect(await count("--image", at("small.png"))).toBe(text + 7); // start, image, four patches, end
    expect(await count("--image", at("small.png"), "--image", at("wide.jpg"))).toBe(text + 7 + 17);
    expect(await count("--video", at("moving.gif"))).toBe(text + 2 * (7 + "[0:00.3]".length));
  });

  it("puts images where --raw has <|image|>, the same as parts do", async () => {
    const raw = ["--raw", "--image", at("small.png"), "--image", at("wide.jpg"), "--prompt"];
    const { promptTokens } = objectOf(await generate(...raw, "a<|image|>b<|image|>"));
    expect(promptTokens).toBe(2 + 7 + 17);
    expect(objectOf(await generate(...raw, "ab"))["promptTokens"]).toBe(2 + 7 + 17);
    const wrong = await generate(...raw, "a<|image|>b");
    expect(wrong.status).toBe(2);
    expect(objectOf(wrong)).toMatchObject({ error: { message: expect.stringContaining("1 <|image|> and 2 --image") } });
  });

  it("gives the logits of exactly the tokens that it would compute", async () => {
    const out = at("logits.safetensors");
    const ended = await llama4(["logits", ...use, "--prompt", "?", "--image", at("wide.jpg"), "--out", out, "--json"]);
    const { tokens, shape } = objectOf(ended) as { tokens: number[]; shape: number[] };
    const { promptTokens } = objectOf(await generate("--prompt", "?", "--image", at("wide.jpg")));
    expect(tokens).toHaveLength(promptTokens as number);
    expect(shape).toEqual([tokens.length, 512]);
    expect([...new Int32Array(safetensors(out).bytes("tokens"))]).toEqual(tokens);
  });

  it("remembers an image through a conversation, and says what it sees", async () => {
    const lines = `What?\n/image ${at("small.png")}\nAnd this?\nWhich?\n`;
    const { stdout, stderr } = await llama4(
      ["chat", ...use, "--image", at("wide.jpg"), "--max-tokens", "2", "--json"],
      lines,
    );
    const turns = stdout
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(turns.map(({ timings }) => timings.encodedTiles)).toEqual([3, 1, 0]);
    expect(turns[2].cachedTokens).toBeGreaterThan(0);
    expect(stderr).toContain("wide.jpg: 100 × 50, 3 tiles, 17 tokens");
    expect(stderr).toContain("small.png: 56 × 56, 1 tile, 7 tokens");
  });

  it("refuses what is no image before it loads a model for it", async () => {
    const wrong = await llama4([
      "generate",
      "--model",
      at("no-model"),
      "--json",
      "--prompt",
      "?",
      "--image",
      import.meta.filename,
    ]);
    expect(wrong.status).toBe(2);
    expect(objectOf(wrong)).toMatchObject({ error: { message: expect.stringContaining("no image that is known") } });
  });

  it("is refused where its config and its tokenizer mean another token by an image", async () => {
    cpSync(model, at("other"), { recursive: true });
    const config = JSON.parse(readFileSync(join(at("other"), "config.json"), "utf8")) as { image_token_index: number };
    const patch = config.image_token_index;
    writeFileSync(join(at("other"), "config.json"), JSON.stringify({ ...config, image_token_index: patch - 1 }));
    const wrong = await llama4(["generate", "--model", at("other"), "--json", "--prompt", "?"]);
    expect(wrong.status).toBe(1);
    const message = `image token is ${patch - 1} and the tokenizer's <|patch|> is ${patch}`;
    expect(objectOf(wrong)).toMatchObject({
      error: { name: "CheckpointError", message: expect.stringContaining(message) },
    });
  });

  it("ends what decodes when it is closed", async () => {
    const { load } = (await import("llama4" as string)) as typeof import("../../src/index.ts");
    const loaded = await load(model, { backend: "reference", context: 512 });
    const copies = () => readdirSync(tmpdir()).filter((name) => name.startsWith("llama4-video-")).length;
    const before = copies();
    const data = new Uint8Array(2e8); // no video: writing it down for ffprobe takes a while
    const reply = loaded.encode([{ type: "video", data }]);
    const ended = expect(reply).rejects.toThrow();
    await new Promise((resolve) => setTimeout(resolve, 150));
    await loaded.close();
    await ended;
    expect(copies()).toBe(before);
  });

  it("takes bytes from TypeScript", async () => {
    const { load } = (await import("llama4" as string)) as typeof import("../../src/index.ts");
    await using loaded = await load(model, { backend: "reference", context: 256 });
    expect(loaded.info.vision).toEqual({ tileSize: 56, tokensPerTile: 4, maxTiles: 16, toMaxCanvas: false });
    const data = await sharp(at("wide.jpg")).png().toBuffer();
    const parts = [{ type: "image", data } as const, { type: "text", text: "?" } as const];
    const message = [{ role: "user", content: parts }] as const;
    const tokens = await loaded.encodeChat(message);
    const fewer = await loaded.encodeChat(message, { media: { maxTiles: 1 } });
    expect(tokens.length - fewer.length).toBe(10);
    let end: unknown;
    for await (const { usage } of loaded.chat(message, { maxTokens: 2 })) end = usage;
    expect(end).toMatchObject({ promptTokens: tokens.length });
    await expect(loaded.encode([{ type: "image", data: data.subarray(0, 200) }])).rejects.toThrow(/cannot be decoded/);
  });
});

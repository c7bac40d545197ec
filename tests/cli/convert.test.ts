import { cpSync, existsSync, readdirSync, readFileSync, truncateSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { mixes } from "../../src/checkpoint/mix.ts";
import { llama4, objectOf } from "./llama4.ts";
import { initTiny, temporaryPlace } from "./models.ts";

const place = temporaryPlace();
let model = "";
let gguf = "";

const convert = (...args: string[]) => llama4(["convert", ...args, "--json"]);

beforeAll(async () => {
  // what llama.cpp can say: four layers, its fixed chunk; rows of 256 so that k-quants have whole blocks
  const sizes = ["--layers", "4", "--chunk", "8192", "--dim", "256", "--expert-ffn", "256", "--dtype", "bf16"];
  model = await initTiny(place.at("model"), ...sizes);
  gguf = place.at("model.gguf");
  expect(objectOf(await convert(model, gguf))).toMatchObject({ type: "bf16", paths: [gguf] });
});
afterAll(() => place.remove());

describe("llama4 convert", () => {
  it("to GGUF and back gives the same bytes, tokenizer and configuration", async () => {
    const back = place.at("back");
    expect((await convert(gguf, back)).status).toBe(0);
    // But for the seed that `init` drew the weights by, for which GGUF has no key.
    const config = readFileSync(`${model}/config.json`, "utf8").replace(/,\s*"llama4_random_seed": \d+/, "");
    for (const name of readdirSync(model)) {
      const expected = name === "config.json" ? Buffer.from(config) : readFileSync(`${model}/${name}`);
      expect(readFileSync(`${back}/${name}`).equals(expected), name).toBe(true);
    }
  });

  it("keeps every token: a folder and its GGUF generate the same text", async () => {
    const generated = async (path: string) => {
      const args = ["--prompt", "Hello", "--temperature", "0", "--max-tokens", "8", "--json"];
      const { text, tokens, promptTokens } = objectOf(await llama4(["generate", "--model", path, ...args]));
      return { text, tokens, promptTokens };
    };
    expect(await generated(gguf)).toEqual(await generated(model));
  });

  it.each(mixes)("to %s takes the bytes that plan predicts, and can be loaded", async (type) => {
    const out = place.at(`${type}.gguf`);
    const { bytes } = objectOf(await convert(model, out, "--type", type)) as { bytes: number };
    const stored = objectOf(await llama4(["plan", out, "--json"]))["weightBytes"] as number;
    expect(bytes - stored).toBe(4 * (16 / 2)); // the divisors of the rotary frequencies, half a head's
    if (!["bf16", "f16", "f32"].includes(type))
      expect(objectOf(await llama4(["plan", model, "--quant", type, "--json"]))["weightBytes"]).toBe(stored);
    const { status } = await llama4(["generate", "--model", out, "--prompt", "x", "--max-tokens", "2"]);
    expect(status).toBe(0);
  });

  it("is refused onto its input, or into it, forced or not", async () => {
    for (const out of [model, `${model}/inside.gguf`]) {
      const refused = await convert(model, out, "--force");
      expect(refused.status).toBe(2);
      expect(objectOf(refused)).toMatchObject({ error: { message: expect.stringContaining("is the input") } });
    }
  });

  it("does not touch what is there, unless forced", async () => {
    const before = readFileSync(gguf);
    const refused = await convert(model, gguf, "--type", "q8_0");
    expect(objectOf(refused)).toMatchObject({ error: { message: expect.stringContaining("--force") } });
    expect(refused.status).toBe(2);
    expect(readFileSync(gguf).equals(before)).toBe(true);
    expect((await convert(gguf, place.at("back"), "--force")).status).toBe(0);
  });

  it.each([
    [["missing", "x.gguf"], "CheckpointError", "missing", 1],
    [["model", "x.gguf", "--type", "q9"], "RequestError", 'type is "q9"', 2],
    [["model", "folder", "--type", "q8_0"], "RequestError", "a folder cannot hold q8_0", 2],
    [["model.gguf"], "RequestError", "missing required argument", 2],
  ])("refuses %j", async (args, name, message, status) => {
    const paths = args.map((arg, i) => (i < 2 ? place.at(arg) : arg));
    const ended = await convert(...paths);
    expect(objectOf(ended)).toEqual({ error: { name, message: expect.stringContaining(message) } });
    expect(ended.status).toBe(status);
    if (paths[1]) expect(existsSync(paths[1])).toBe(false);
  });

  it("names a truncated file and leaves nothing behind", async () => {
    const cut = place.at("cut.gguf");
    cpSync(gguf, cut);
    truncateSync(cut, readFileSync(gguf).length - 100);
    const ended = await convert(cut, place.at("from-cut"));
    expect(objectOf(ended)).toMatchObject({
      error: { name: "CheckpointError", message: expect.stringContaining("cut") },
    });
    expect(ended.status).toBe(1);
    expect(readdirSync(place.folder).filter((name) => name.startsWith("from-cut"))).toEqual([]);
  });
});

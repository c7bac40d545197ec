// What every command promises: one JSON object, clear errors, exit statuses.

import { spawn } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { text } from "node:stream/consumers";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { llama4, main, objectOf } from "./llama4.ts";
import { initTiny, safetensors, temporaryPlace, tinySizes } from "./models.ts";

const place = temporaryPlace();
let model = "";

beforeAll(async () => {
  model = await initTiny(place.at("tiny"));
});
afterAll(() => place.remove());

describe("llama4 init", () => {
  it("writes the same bytes for the same seed, and others for another", async () => {
    const [same, other] = await Promise.all([initTiny(place.at("same")), initTiny(place.at("other"), "--seed", "1")]);
    const weights = (folder: string) => readFileSync(`${folder}/model.safetensors`);
    expect(weights(same).equals(weights(model))).toBe(true);
    expect(weights(other).equals(weights(model))).toBe(false);
  });

  it("writes a whole Hugging Face folder and nothing else", () => {
    expect(readdirSync(model).sort()).toEqual([
      "config.json",
      "generation_config.json",
      "model.safetensors",
      "tokenizer.json",
      "tokenizer_config.json",
    ]);
  });

  it("does not touch what is there, unless forced", async () => {
    const taken = place.at("taken");
    mkdirSync(taken);
    const refused = await llama4(["init", "scout", taken, ...tinySizes, "--json"]);
    expect(objectOf(refused)).toEqual({ error: { name: "RequestError", message: expect.stringContaining("--force") } });
    expect(refused.status).toBe(2);
    expect(readdirSync(taken)).toEqual([]);
    const forced = await llama4(["init", "scout", taken, ...tinySizes, "--force", "--json"]);
    expect(objectOf(forced)).toMatchObject({ out: taken, layers: 2 });
    expect(existsSync(`${taken}/model.safetensors`)).toBe(true);
  });

  it("replaces by force a checkpoint, and leaves nothing beside it", async () => {
    const out = await initTiny(place.at("replaced"));
    await initTiny(`${out}/`, "--force", "--seed", "1");
    const weights = (folder: string) => readFileSync(`${folder}/model.safetensors`);
    expect(weights(out).equals(weights(model))).toBe(false);
    expect(readdirSync(place.folder).filter((name) => name.startsWith("replaced"))).toEqual(["replaced"]);
  });

  it("does not replace by force what is no checkpoint", async () => {
    const work = place.at("work");
    mkdirSync(work);
    for (const name of ["thesis.txt", "config.json"]) writeFileSync(`${work}/${name}`, "mine");
    for (const out of [work, `${work}/thesis.txt`]) {
      const refused = await llama4(["init", "scout", out, ...tinySizes, "--force", "--json"]);
      expect(objectOf(refused)).toMatchObject({
        error: { name: "RequestError", message: expect.stringContaining("not what this command writes") },
      });
      expect(refused.status).toBe(2);
    }
    expect(readFileSync(`${work}/thesis.txt`, "utf8")).toBe("mine");
  });

  it("refuses a place without a name, and leaves nothing beside the working folder", async () => {
    const ended = await llama4(["init", "scout", "", ...tinySizes, "--json"]);
    expect(objectOf(ended)).toEqual({
      error: { name: "RequestError", message: "the name of the output is empty; expected a path" },
    });
    expect(ended.status).toBe(2);
  });

  it.each([
    [["scot", "x"], 'the preset is "scot"'],
    [["scout", "x", ...tinySizes, "--kv-heads", "3"], "3 key/value heads"],
    [["scout", "x", ...tinySizes, "--dtype", "q8"], "Allowed choices"],
    [["scout", "x", ...tinySizes, "--tokenizer", "missing.model"], "--tokenizer: there is no file missing.model"],
    [["scout", "x", ...tinySizes, "--tokenizer", "src"], "--tokenizer: src is no file"],
    [["scout", "x", ...tinySizes, "--layers", "99999999"], "layers is 99999999"],
  ])("refuses %j", async (args, message) => {
    const [preset, name, ...rest] = args as [string, string, ...string[]];
    const ended = await llama4(["init", preset, place.at(name), ...rest, "--json"]);
    expect(objectOf(ended)).toEqual({ error: { name: expect.any(String), message: expect.stringContaining(message) } });
    expect(ended.status).toBeGreaterThan(0);
    expect(existsSync(place.at(name))).toBe(false);
  });
});

describe("llama4 generate", () => {
  const generate = (...args: string[]) => llama4(["generate", "--model", model, ...args]);

  it("prints one object with text, ids, counts and timings", async () => {
    const ended = await generate("--prompt", "Hello", "--max-tokens", "5", "--temperature", "0", "--json");
    const timing = expect.any(Number);
    expect(objectOf(ended)).toMatchObject({
      text: expect.any(String),
      tokens: expect.any(Array),
      promptTokens: expect.any(Number),
      finishReason: expect.stringMatching(/^(stop|length)$/),
      timings: {
        loadMs: timing,
        prefillMs: timing,
        decodeMs: timing,
        prefillTokensPerSecond: timing,
        decodeTokensPerSecond: timing,
      },
    });
    expect(ended.status).toBe(0);
  });

  it("says the same with tokens guessed ahead, and counts them", async () => {
    const reply = async (...more: string[]) => {
      const args = ["--prompt", "ab ab ab", "--max-tokens", "20", "--temperature", "0", "--backend", "reference"];
      return objectOf(await generate(...args, "--json", ...more));
    };
    const { tokens } = await reply();
    for (const how of [
      ["--speculate", "lookup"],
      ["--draft", model],
    ]) {
      const guessed = await reply(...how);
      expect(guessed["tokens"]).toEqual(tokens);
      expect(guessed["timings"]).toMatchObject({
        guessedTokens: expect.any(Number),
        acceptedTokens: expect.any(Number),
      });
    }
    expect(await reply("--speculate", "off", "--draft", model)).toMatchObject({
      error: { message: "--draft with --speculate off; expected one of them" },
    });
    const other = await initTiny(place.at("other-vocabulary"), "--vocab", "480");
    expect(await reply("--draft", other)).toMatchObject({
      error: { message: expect.stringContaining("expected a draft model with the same vocabulary") },
    });
  });

  it("counts a raw prompt as it stands, and begin-of-text where asked for", async () => {
    const count = async (...more: string[]) =>
      objectOf(await generate("--raw", "--prompt", "abc", "--max-tokens", "1", "--json", ...more))["promptTokens"];
    expect(await count()).toBe(3); // a byte a token
    expect(await count("--bos")).toBe(4);
  });

  it("gives the same tokens for the same seed", async () => {
    const tokens = async (seed: string) =>
      objectOf(await generate("--prompt", "x", "--max-tokens", "6", "--temperature", "1", "--seed", seed, "--json"))[
        "tokens"
      ];
    expect(await tokens("7")).toEqual(await tokens("7"));
  });

  it("holds the reply to a schema, given in a file or as it stands, or to a regular expression", async () => {
    const schema = { type: "object", properties: { n: { type: "integer", minimum: 1, maximum: 9 } }, required: ["n"] };
    writeFileSync(place.at("schema.json"), JSON.stringify(schema));
    for (const given of [place.at("schema.json"), JSON.stringify(schema)]) {
      const ended = await generate("--prompt", "A number?", "--temperature", "1", "--json-schema", given, "--json");
      expect(JSON.parse(String(objectOf(ended)["text"])).n).toBeGreaterThan(0);
    }
    const ended = await generate("--raw", "--prompt", "x", "--temperature", "1", "--regex", "(?:ab){2,4}", "--json");
    expect(objectOf(ended)).toMatchObject({ text: expect.stringMatching(/^(?:ab){2,4}$/), finishReason: "stop" });
  });

  it("shows people the text alone", async () => {
    const args = ["--raw", "--prompt", "x", "--max-tokens", "4", "--temperature", "0"];
    const { text } = objectOf(await generate(...args, "--json"));
    expect((await generate(...args)).stdout).toBe(`${text}\n`);
  });

  it.each([
    [["--prompt", "x", "--temperature", "-1"], "RequestError", "temperature is -1", 2],
    [["--prompt", "x", "--top-p", "2"], "RequestError", "topP is 2", 2],
    [["--prompt", "x", "--max-tokens", "0"], "RequestError", "whole number", 2],
    [["--prompt", "x", "--backend", "cuda"], "RequestError", "Allowed choices", 2],
    [["--prompt", "x", "--image", "cat.jpg"], "RequestError", "--image: there is no file cat.jpg", 2],
    [["--prompt", "x", "--video", "cat.mp4"], "RequestError", "--video: there is no file cat.mp4", 2],
    [["--raw", "--prompt", "<|image|>"], "RequestError", "1 <|image|> and 0 --image are given", 2],
    [["--prompt", "x", "--image", "package.json"], "RequestError", "package.json: image: the file is no image", 2],
    [["--prompt", "x", "--video", "package.json"], "RequestError", "for a model that reads text only", 2],
    [["--prompt", "x", "--max-tiles", "65"], "RequestError", "Expected a whole number from 1 to 64", 2],
    [["--prompt", "x", "--bos"], "RequestError", "--raw", 2],
    [["--prompt", "x", "--colour"], "RequestError", "unknown option", 2],
    [["--prompt", "x", "--regex", "(?<=a)b"], "RequestError", "(?<=…) in the pattern", 2],
    [["--prompt", "x", "--regex", "a", "--json-schema", "{}"], "RequestError", "expected one of them", 2],
    [["--prompt", "x", "--json-schema", "{type}"], "RequestError", "is no JSON", 2],
    [
      ["--prompt", "x", "--json-schema", '{"not": {"minLength": 3}}'],
      "RequestError",
      '"not" is supported of anything',
      2,
    ],
    [["--prompt", "x", "--json-schema", "none.json"], "Error", "none.json: there is no such file", 1],
    [[], "RequestError", "no prompt", 2],
    [
      ["--raw", "--prompt", "x".repeat(40), "--context", "32"],
      "CapacityError",
      "40 tokens and the cache holds 32; open the model with a larger --context",
      1,
    ],
  ])("refuses %j", async (args, name, message, status) => {
    const ended = await generate(...args, "--json");
    expect(objectOf(ended)).toEqual({ error: { name, message: expect.stringContaining(message) } });
    expect(ended.status).toBe(status);
  });
});

describe("llama4 logits", () => {
  const logits = (...args: string[]) => llama4(["logits", "--model", model, ...args]);

  it("writes logits [T, V] and the tokens beside them", async () => {
    const out = place.at("all.safetensors");
    expect((await logits("--tokens", "1,2,3,4", "--out", out)).status).toBe(0);
    const { header, bytes } = safetensors(out);
    expect(header).toMatchObject({ logits: { dtype: "F32", shape: [4, 512] }, tokens: { dtype: "I32", shape: [4] } });
    expect([...new Int32Array(bytes("tokens"))]).toEqual([1, 2, 3, 4]);
  });

  it("says whether they are exact: not by rounded activations, nor by rounded keys and values", async () => {
    const exact = async (...args: string[]) =>
      objectOf(await logits("--tokens", "1,2", "--out", place.at("exact.safetensors"), "--json", ...args))["exact"];
    expect(await exact()).toBe(true);
    expect(await exact("--force", "--fast")).toBe(false);
    expect(await exact("--force", "--kv-dtype", "f16")).toBe(false);
  });

  it("gives with --last the last row of all", async () => {
    const [all, last] = [place.at("rows.safetensors"), place.at("last.safetensors")];
    await logits("--tokens", "5,6,7", "--out", all);
    await logits("--tokens", "5,6,7", "--out", last, "--last");
    const { header, bytes } = safetensors(last);
    expect(header).toMatchObject({ logits: { shape: [1, 512] }, tokens: { shape: [3] } });
    expect(new Float32Array(bytes("logits"))).toEqual(new Float32Array(safetensors(all).bytes("logits")).slice(-512));
  });

  it("crosses chunks and slices as generate does: the likeliest token of the last row is generate's first", async () => {
    const prompt = "a text of more than one chunk of 32 positions, and of more than two";
    const out = place.at("prompt.safetensors");
    await logits("--prompt", prompt, "--out", out, "--last");
    const { header, bytes } = safetensors(out);
    const row = new Float32Array(bytes("logits"));
    const { tokens, promptTokens } = objectOf(
      await llama4([
        "generate",
        "--model",
        model,
        "--prompt",
        prompt,
        "--temperature",
        "0",
        "--max-tokens",
        "1",
        "--json",
      ]),
    );
    expect(header.tokens.shape).toEqual([promptTokens]);
    expect(row.indexOf(Math.max(...row))).toBe((tokens as number[])[0]);
  });

  it.each([
    [["--tokens", "1,x"], "token ids", 2],
    [["--tokens", "1,512"], "512", 2],
    [["--tokens", "1", "--prompt", "x"], "not both", 2],
    [["--tokens", "1", "--raw", "--bos"], "--bos is of a prompt", 2],
    [[], "--tokens", 2],
  ])("refuses %j and leaves no file", async (args, message, status) => {
    const out = place.at("refused.safetensors");
    const ended = await logits(...args, "--out", out, "--json");
    expect(objectOf(ended)).toEqual({ error: { name: "RequestError", message: expect.stringContaining(message) } });
    expect(ended.status).toBe(status);
    expect(readdirSync(place.folder).filter((name) => name.includes("refused"))).toEqual([]);
  });

  it("replaces its own earlier file, and another only by force", async () => {
    const earlier = place.at("earlier.safetensors");
    for (const _ of [1, 2]) expect((await logits("--tokens", "1", "--out", earlier)).status).toBe(0);
    const out = place.at("mine.txt");
    writeFileSync(out, "mine");
    const refused = await logits("--tokens", "1", "--out", out, "--json");
    expect(objectOf(refused)).toMatchObject({
      error: { name: "RequestError", message: expect.stringContaining("--force") },
    });
    expect(refused.status).toBe(2);
    expect(readFileSync(out, "utf8")).toBe("mine");
    expect((await logits("--tokens", "1", "--out", out, "--force")).status).toBe(0);
    expect(safetensors(out).header.tokens.shape).toEqual([1]);
  });

  it.each(["file/logits.safetensors", "missing/logits.safetensors"])("makes no folder for %s", async (name) => {
    writeFileSync(place.at("file"), "");
    const ended = await logits("--tokens", "1", "--out", place.at(name), "--json");
    expect(objectOf(ended)).toMatchObject({
      error: { name: "RequestError", message: expect.stringContaining("is no folder") },
    });
    expect(ended.status).toBe(2);
    expect(existsSync(place.at("missing"))).toBe(false);
  });
});

describe("llama4 chat", () => {
  it("answers each line of its input with one object a turn", async () => {
    const { status, stdout } = await llama4(
      ["chat", "--model", model, "--json", "--max-tokens", "3"],
      "Hello\nAgain\n",
    );
    const turns = stdout
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(turns).toHaveLength(2);
    for (const turn of turns) expect(turn).toMatchObject({ role: "assistant", tokens: expect.any(Array) });
    expect(turns[1].promptTokens).toBeGreaterThan(turns[0].promptTokens);
    expect(status).toBe(0);
  });

  it("answers a greeting once where the input ends without a line", async () => {
    const { status, stdout } = await llama4(["chat", "--model", model, "--max-tokens", "3"]);
    expect(stdout).not.toBe("");
    expect(status).toBe(0);
  });

  const certain = ["chat", "--max-tokens", "8", "--temperature", "0"];
  const started = (...args: string[]) => {
    const child = spawn(process.execPath, [main, ...certain, "--model", model, ...args]);
    const stdout = text(child.stdout);
    return { child, ended: new Promise<number>((resolve) => child.on("exit", resolve)), stdout };
  };

  it("waits for a line that comes late", async () => {
    const { child, ended, stdout } = started();
    await new Promise((resolve) => setTimeout(resolve, 4000));
    child.stdin.end("Why is the sky blue?\n");
    expect(await ended).toBe(0);
    const atOnce = await llama4([...certain, "--model", model], "Why is the sky blue?\n");
    expect(await stdout).toBe(atOnce.stdout);
  });

  it("answers with --greet a greeting and ends, though its input does not", async () => {
    const { ended, stdout } = started("--greet");
    expect(await ended).toBe(0);
    expect(await stdout).toBe((await llama4([...certain, "--model", model])).stdout);
  });

  it("says how to go on where the conversation is longer than the cache", async () => {
    const ended = await llama4(["chat", "--model", model, "--context", "32", "--json"], `${"x".repeat(40)}\n`);
    const message = expect.stringMatching(/larger --context, or forget the conversation with \/reset$/);
    expect(objectOf(ended)).toEqual({ error: { name: "CapacityError", message } });
    expect(ended.status).toBe(1);
  });

  it("has nothing to say to /exit", async () => {
    expect(await llama4(["chat", "--model", model], "/exit\n")).toMatchObject({ status: 0, stdout: "" });
  });
});

describe("llama4 inspect", () => {
  it("lists every tensor with dtype, shape and bytes", async () => {
    const json = objectOf(await llama4(["inspect", model, "--json"]));
    expect(json).toMatchObject({
      format: "huggingface",
      config: { dim: 64, nExperts: 4 },
      tokenizer: { vocabSize: 512 },
    });
    const tensors = json["tensors"] as { bytes: number }[];
    expect(tensors.reduce((sum, tensor) => sum + tensor.bytes, 0)).toBe(json["tensorBytes"]);
  });

  it("refuses two models", async () => {
    const ended = await llama4(["inspect", model, "--model", place.at("other"), "--json"]);
    expect(objectOf(ended)).toMatchObject({
      error: { name: "RequestError", message: expect.stringContaining("two models") },
    });
    expect(ended.status).toBe(2);
  });

  it.each(["/dev/null", "/proc/self/mem"])("refuses %s, which is no checkpoint", async (path) => {
    const ended = await llama4(["inspect", path, "--json"]);
    expect(objectOf(ended)).toMatchObject({
      error: { name: "CheckpointError", message: expect.stringContaining(path) },
    });
    expect(ended.status).toBe(1);
  });

  it("shows people one row for all layers", async () => {
    const { stdout } = await llama4(["inspect", "--model", model]);
    expect(stdout).toContain("model.layers.*.self_attn.q_proj.weight");
  });
});

describe("llama4 plan of a checkpoint", () => {
  it("counts its bytes as stored, and by another mix", async () => {
    const plan = async (...more: string[]) => objectOf(await llama4(["plan", model, "--json", ...more]));
    const { weightBytes, parameters, fits } = await plan();
    expect(weightBytes).toBe(4 * (parameters as { total: number }).total);
    expect(fits).toBe(true);
    expect((await plan("--quant", "q8_0"))["weightBytes"]).toBeLessThan(weightBytes as number);
  });
});

describe("llama4 bench", () => {
  it("prints samples, medians and the machine's ceilings", async () => {
    const args = ["--prompt-tokens", "40", "--gen-tokens", "8", "--runs", "2", "--json"];
    const json = objectOf(await llama4(["bench", "--model", model, ...args]));
    const speed = (tokens: number) => ({
      tokens,
      tokensPerSecond: expect.any(Number),
      samples: [expect.any(Number), expect.any(Number)],
    });
    expect(json).toMatchObject({
      threads: expect.any(Number),
      prefill: speed(40),
      decode: { ...speed(8), bytesPerToken: expect.any(Number) },
    });
    expect(json).toHaveProperty("ceilings");
  });

  it("runs several sequences at once, which read more weights in a step than one", async () => {
    const args = ["--prompt-tokens", "20", "--gen-tokens", "8", "--batch", "4", "--runs", "1", "--json"];
    const json = objectOf(await llama4(["bench", "--model", model, ...args]));
    expect(json).toMatchObject({ batch: 4, decode: { samples: [expect.any(Number)] } });
    const { bytesPerToken, bytesPerStep } = json["decode"] as { bytesPerToken: number; bytesPerStep: number };
    expect(bytesPerStep).toBeGreaterThan(bytesPerToken);
    expect(bytesPerStep).toBeLessThan(4 * bytesPerToken);
  });
});

describe("a bad checkpoint", () => {
  const commands = [["inspect"], ["plan", "--model"], ["generate", "--prompt", "x", "--model"], ["bench", "--model"]];
  const refusedBy = async (path: string, message: RegExp) => {
    for (const command of commands) {
      const ended = await llama4([...command, path, "--json"]);
      expect(objectOf(ended)).toEqual({ error: { name: "CheckpointError", message: expect.stringMatching(message) } });
      expect(ended.status).toBe(1);
    }
  };

  it("that is missing is named by every command", () => refusedBy(place.at("nothing"), /nothing/));

  it("that is truncated is named by every command", async () => {
    const cut = place.at("cut");
    cpSync(model, cut, { recursive: true });
    truncateSync(`${cut}/model.safetensors`, statSync(`${cut}/model.safetensors`).size - 100);
    await refusedBy(cut, /model\.safetensors/);
  });

  it("whose config is no JSON is named by every command", async () => {
    const broken = place.at("broken");
    cpSync(model, broken, { recursive: true });
    writeFileSync(`${broken}/config.json`, "{");
    await refusedBy(broken, /config\.json/);
  });
});

describe("without the native addon", () => {
  const nowhere = { LLAMA4_ADDON: "/nowhere/llama4.node" };
  const named = /\/nowhere\/llama4\.node: no such file.*install a C\+\+17 compiler/;
  const generate = (...more: string[]) =>
    llama4(["generate", "--model", model, "--prompt", "a", "--max-tokens", "3", "--json", ...more], "", nowhere);

  it("generates with the reference in plain sight, naming what was tried and what to install", async () => {
    const ended = await generate("--temperature", "0");
    expect(ended.stderr).toMatch(named);
    expect(ended.stderr).toMatch(/going on with the slow reference backend/);
    expect(objectOf(ended)["tokens"]).toHaveLength(3);
    expect(ended.status).toBe(0);
  });

  it("refuses where native was asked for by name", async () => {
    const ended = await generate("--backend", "native");
    expect(objectOf(ended)).toEqual({ error: { name: "EngineError", message: expect.stringMatching(named) } });
    expect(ended.status).toBe(1);
  });

  it("converts in plain TypeScript to the same bytes, and says so", async () => {
    const [slow, fast] = ["slow", "fast"].map((folder) => place.at(join(folder, "tiny.gguf"))) as [string, string];
    for (const file of [slow, fast]) mkdirSync(dirname(file));
    const convert = (out: string) => ["convert", model, out, "--type", "q8_0", "--allow-lossy"]; // chunks of 32
    const ended = await llama4(convert(slow), "", nowhere);
    expect(ended.stderr).toMatch(named);
    expect(ended.stderr).toMatch(/going on in plain TypeScript, slowly/);
    await llama4(convert(fast));
    expect(readFileSync(slow).equals(readFileSync(fast))).toBe(true);
  });
});

describe("a signal", () => {
  it.each([
    ["SIGINT", 130],
    ["SIGTERM", 143],
    ["SIGHUP", 129],
  ] as const)("%s ends init with status %d and leaves nothing behind", async (signal, status) => {
    const out = place.at("interrupted");
    const child = spawn(process.execPath, [
      main,
      "init",
      "scout",
      out,
      "--layers",
      "8",
      "--dim",
      "2048",
      "--vocab",
      "4096",
    ]);
    const isWriting = () => readdirSync(place.folder).some((name) => name.startsWith("interrupted"));
    while (!isWriting()) await new Promise((resolve) => setTimeout(resolve, 20));
    child.kill(signal);
    expect(await new Promise((resolve) => child.on("exit", resolve))).toBe(status);
    expect(isWriting()).toBe(false);
  });

  it.each(["stopped.gguf", "stopped"])("ends convert to %s with 130 and leaves no half file", async (name) => {
    const wide = place.at(`wide-${name}`);
    const sizes = ["--dim", "256", "--ffn", "512", "--expert-ffn", "512", "--vocab", "2048", "--dtype", "bf16"];
    await initTiny(wide, ...sizes, "--layers", "4");
    // Plain TypeScript needs long enough for a signal on its way.
    const env = { ...process.env, LLAMA4_ADDON: "/nowhere/llama4.node" };
    const type = name.endsWith(".gguf") ? "q4_k" : "f16";
    const args = ["convert", wide, place.at(name), "--type", type, "--allow-lossy", "--json"];
    const child = spawn(process.execPath, [main, ...args], { env });
    const [stdout, ended] = [text(child.stdout), new Promise((resolve) => child.on("exit", resolve))];
    const written = () =>
      readdirSync(place.folder).filter((entry) => entry.includes("stopped") && !entry.startsWith("wide"));
    while (written().length === 0 && child.exitCode === null) await new Promise((resolve) => setTimeout(resolve, 5));
    child.kill("SIGINT");
    expect(await ended).toBe(130);
    expect(JSON.parse(await stdout)).toEqual({ error: { name: "Interrupted", message: "stopped by Ctrl-C" } });
    expect(written()).toEqual([]);
  });
});

// The same weights, whatever file they come from.

import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { open } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gguf as parseGguf } from "@huggingface/gguf";
import { afterAll, describe, expect, it } from "vitest";
import { openReference } from "../../src/backends/reference/reference.ts";
import { toGguf } from "../../src/checkpoint/config-gguf.ts";
import { fromHuggingFace, toHuggingFace } from "../../src/checkpoint/config-hugging-face.ts";
import { randomTensors } from "../../src/checkpoint/init.ts";
import { ggufNames } from "../../src/checkpoint/names-gguf.ts";
import { bindHuggingFace, huggingFaceTensors } from "../../src/checkpoint/names-hugging-face.ts";
import { type Checkpoint, openCheckpoint } from "../../src/checkpoint/open.ts";
import { ropeFreqs } from "../../src/checkpoint/rope-divisors.ts";
import { memorySource, openFile, sideBySide } from "../../src/checkpoint/source.ts";
import { type GgufValue, type OutTensor, writeGguf, writeHuggingFace } from "../../src/checkpoint/writers.ts";
import { type Llama4Config, presets } from "../../src/model/config.ts";
import { mapParameters, type Parameters } from "../../src/model/parameters.ts";
import { CheckpointError, RequestError } from "../../src/tensor/errors.ts";
import { elementCount, type TensorView } from "../../src/tensor/tensor.ts";

const golden = (name: string) => join(import.meta.dirname, "../golden/llama4", name);
const scratch = mkdtempSync(join(tmpdir(), "llama4-open-"));
afterAll(() => rmSync(scratch, { recursive: true }));

type Weights = Map<string, { shape: readonly number[]; values: Float32Array }>;

/** Every weight by its name in GGUF, which also tells where it stands in the tree. */
async function weights(c: Llama4Config, parameters: Parameters<TensorView>): Promise<Weights> {
  const names: string[] = [];
  mapParameters(ggufNames(c).parameters, (name) => names.push(name));
  const views: TensorView[] = [];
  mapParameters(parameters, (view) => views.push(view));
  const backend = openReference();
  const tensors = await backend.load(views);
  const all: Weights = new Map();
  for (const [i, tensor] of tensors.entries())
    all.set(names[i]!, { shape: tensor.shape, values: (await backend.read(tensor)) as Float32Array }); // f32 is its default
  return all;
}

async function opened<T>(path: string, use: (checkpoint: Checkpoint) => Promise<T>): Promise<T> {
  const checkpoint = await openCheckpoint(path);
  try {
    return await use(checkpoint);
  } finally {
    await checkpoint.close();
  }
}

const f32 = (name: string, shape: readonly number[], values: Float32Array): OutTensor => ({
  name,
  dtype: "f32",
  shape,
  async *chunks() {
    yield new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  },
});

/** The golden of that name as GGUF, all f32. */
async function asGguf(name: string, extra: [string, GgufValue][] = []): Promise<string> {
  const path = join(scratch, `${name}.gguf`);
  await opened(golden(name), async ({ config, parameters }) => {
    const tensors = [...(await weights(config, parameters))].map(([key, t]) => f32(key, t.shape, t.values));
    const freqs = ropeFreqs(config);
    if (freqs) tensors.push(f32(ggufNames(config).ropeFreqs, [freqs.length], freqs));
    await writeGguf(path, new Map([...toGguf(config), ...extra]), tensors);
  });
  return path;
}

describe("a GGUF file", () => {
  it.each(["scout", "maverick", "dense", "tied", "top-2", "irregular", "no-temperature", "no-qk-norm", "chunk-16"])(
    "of %s holds the same weights and the same model as the Hugging Face folder",
    async (name) => {
      const path = await asGguf(name);
      const expected = await opened(golden(name), ({ config, parameters }) => weights(config, parameters));
      const config = await opened(golden(name), async (checkpoint) => checkpoint.config);
      await opened(path, async (checkpoint) => {
        expect(await weights(checkpoint.config, checkpoint.parameters)).toEqual(expected);
        const { ropeDivisors: _, tokens: __, ...rest } = checkpoint.config;
        const { ropeScaling: ___, tokens: ____, ...wanted } = config;
        expect(rest).toEqual(wanted);
      });
    },
  );

  it("is parsed by Hugging Face's library to the same metadata and tensors", async () => {
    const path = await asGguf("maverick", [
      ["tokenizer.ggml.tokens", { type: "array", of: "string", values: ["a", "Ġthe", "…"] }],
      ["tokenizer.ggml.token_type", { type: "array", of: "i32", values: [1, 1, 3] }],
      ["tokenizer.chat_template", { type: "string", value: "{{ messages }}" }],
      ["test.wide", { type: "u64", value: 2n ** 40n }],
      ["test.flag", { type: "bool", value: true }],
    ]);
    const oracle = await parseGguf(path, { allowLocalFile: true });
    await opened(path, async ({ metadata, tensors, tokenizer, chatTemplate }) => {
      for (const [key, entry] of metadata!) {
        const value = entry.type === "array" ? Array.from(entry.values) : entry.value;
        expect([key, value]).toEqual([key, (oracle.metadata as Record<string, unknown>)[key]]);
      }
      expect(oracle.tensorInfos).toHaveLength(tensors.length);
      for (const info of oracle.tensorInfos) {
        const view = tensors.find(({ name }) => name === info.name)!;
        expect(info.shape.map(Number).reverse()).toEqual(view.shape);
        expect(Number(info.offset) + Number(oracle.tensorDataOffset)).toBe(view.offset);
      }
      expect(tokenizer).toMatchObject({ kind: "gguf", tokens: ["a", "Ġthe", "…"], pre: "llama4" });
      expect(chatTemplate).toBe("{{ messages }}");
    });
  });

  it("in parts is opened by the name of any of them", async () => {
    const whole = await asGguf("scout");
    const split = (no: number, count: number, total: number): [string, GgufValue][] => [
      ["split.no", { type: "u16", value: no }],
      ["split.count", { type: "u16", value: count }],
      ["split.tensors.count", { type: "i32", value: total }],
    ];
    const part = (no: number) => join(scratch, `split-0000${no}-of-00002.gguf`);
    const expected = await opened(whole, async ({ config, parameters, metadata, tensors }) => {
      const out = tensors.map(
        (view): OutTensor => ({
          ...view,
          async *chunks() {
            yield await view.source.read(view.offset, 4 * elementCount(view.shape));
          },
        }),
      );
      const of = (tensors: OutTensor[], no: number) =>
        writeGguf(part(no), new Map([...(no === 1 ? metadata! : []), ...split(no - 1, 2, out.length)]), tensors);
      await of(out.slice(0, 30), 1);
      await of(out.slice(30), 2);
      return weights(config, parameters);
    });
    await opened(part(2), async ({ config, parameters }) => {
      expect(await weights(config, parameters)).toEqual(expected);
    });
    rmSync(part(2));
    await expect(openCheckpoint(part(1))).rejects.toThrow(
      /split-00002-of-00002.gguf: this part of the split is missing/,
    );
  });

  it("with q, k and v rows in one matrix gives them apart", async () => {
    const path = join(scratch, "fused.gguf");
    const expected = await opened(golden("dense"), async ({ config, parameters }) => {
      const all = await weights(config, parameters);
      const tensors: OutTensor[] = [f32("rope_freqs.weight", [config.headDim / 2], ropeFreqs(config)!)];
      for (const [name, { shape, values }] of all) {
        if (/attn_[kv]\./.test(name)) continue;
        if (!/attn_q\./.test(name)) {
          tensors.push(f32(name, shape, values));
          continue;
        }
        const parts = ["q", "k", "v"].map((letter) => all.get(name.replace("attn_q", `attn_${letter}`))!);
        const rows = parts.reduce((sum, part) => sum + part.shape[0]!, 0);
        const fused = Float32Array.from(parts.flatMap((part) => [...part.values]));
        tensors.push(f32(name.replace("attn_q", "attn_qkv"), [rows, config.dim], fused));
      }
      await writeGguf(path, toGguf(config), tensors);
      return all;
    });
    await opened(path, async ({ config, parameters }) => {
      expect(await weights(config, parameters)).toEqual(expected);
    });
  });
});

describe("a Hugging Face folder", () => {
  it("with an expert's matrices apart, [out, in], is the same as with fused ones", async () => {
    await opened(golden("scout"), async ({ config, parameters, tensors }) => {
      const expected = await weights(config, parameters);
      const unfused: TensorView[] = tensors.filter(({ name }) => !name.includes(".experts."));
      for (const [i] of config.layers.entries())
        for (const [ours, theirs] of [
          ["gate", "gate_proj"],
          ["up", "up_proj"],
          ["down", "down_proj"],
        ] as const) {
          const { shape, values } = expected.get(`blk.${i}.ffn_${ours}_exps.weight`)!;
          const [E, rows, columns] = shape as [number, number, number];
          const source = memorySource(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
          for (let e = 0; e < E; e++)
            unfused.push({
              name: `model.layers.${i}.feed_forward.experts.${e}.${theirs}.weight`,
              dtype: "f32",
              shape: [rows, columns],
              source,
              offset: e * rows * columns * 4,
            });
        }
      expect(await weights(config, bindHuggingFace(config, unfused, "unfused").parameters)).toEqual(expected);
    });
  });

  it.each([
    ["language_model.", "model.language_model."],
    ["language_model.model.", "model.language_model."],
    ["language_model.model.", "model."],
  ])("with %s written as %s is the same", async (before, after) => {
    await opened(golden("nested"), async ({ config, parameters, tensors }) => {
      const renamed = tensors.map((view) => ({
        ...view,
        name: view.name.startsWith(before) ? after + view.name.slice(before.length) : view.name,
      }));
      expect(await weights(config, bindHuggingFace(config, renamed, "renamed").parameters)).toEqual(
        await weights(config, parameters),
      );
    });
  });

  it("lists exactly the tensors that transformers stores, the vision encoder's included", async () => {
    await opened(golden("tiny"), async ({ config, tensors }) => {
      const key = ({ name, shape }: { name: string; shape: readonly number[] }) => `${name} [${shape}]`;
      expect(huggingFaceTensors(config).map(key).sort()).toEqual(tensors.map(key).sort());
    });
    expect(huggingFaceTensors(presets.scout)).toHaveLength(1133); // specification §12
    expect(huggingFaceTensors(presets.maverick)).toHaveLength(1061);
  });

  it("whose chat template is no text is refused, and Meta's format not taken for it", async () => {
    const folder = join(scratch, "template");
    cpSync(golden("maverick"), folder, { recursive: true });
    writeFileSync(join(folder, "tokenizer_config.json"), JSON.stringify({ chat_template: 7 }));
    await expect(openCheckpoint(folder)).rejects.toThrow("tokenizer_config.json: chat_template is 7; expected a text");
  });

  it("that we wrote below a file is refused by its name", async () => {
    const file = join(scratch, "a-file");
    writeFileSync(file, "");
    await expect(writeHuggingFace(join(file, "out"), {}, [])).rejects.toThrow(
      new RequestError(`${join(file, "out")}: a part of the path is a file; choose another place`),
    );
  });

  it("that we wrote in several shards opens with the numbers that went in", async () => {
    const config = fromHuggingFace(JSON.parse(readFileSync(join(golden("maverick"), "config.json"), "utf8")));
    const out = randomTensors(huggingFaceTensors(config), config.layers.length, "bf16", 1);
    const folder = join(scratch, "sharded");
    const files = {
      "config.json": JSON.stringify(toHuggingFace(config)),
      "generation_config.json": JSON.stringify({ eos_token_id: [7, 8], temperature: 0.6 }),
      "tokenizer.json": "{}",
      "chat_template.jinja": "hello",
    };
    await writeHuggingFace(folder, files, out, { maxShardBytes: 20000 });
    expect(readdirSync(folder).filter((name) => name.endsWith(".safetensors")).length).toBeGreaterThan(3);
    await opened(folder, async (checkpoint) => {
      expect(checkpoint.config).toEqual({ ...config, tokens: { ...config.tokens, eos: [7, 8] } });
      expect(checkpoint).toMatchObject({
        format: "huggingface",
        tokenizer: { kind: "huggingface", json: "{}" },
        chatTemplate: "hello",
        defaults: { temperature: 0.6 },
      });
      for (const { name, chunks } of out) {
        const view = checkpoint.tensors.find((tensor) => tensor.name === name)!;
        for await (const chunk of chunks())
          expect(Buffer.compare(chunk, await view.source.read(view.offset, chunk.length))).toBe(0);
      }
    });
  });
});

describe("what is not a checkpoint", () => {
  it.each<[string, (folder: string) => void, RegExp]>([
    [
      "a missing path",
      (folder) => rmSync(folder, { recursive: true }),
      /no such file or folder; expected a folder with/,
    ],
    ["an empty folder", (folder) => empty(folder), /neither config.json \(Hugging Face\) nor params.json \(Meta\)/],
    [
      "the folder of a training run",
      (folder) => {
        empty(folder);
        mkdirSync(join(folder, "model"));
        writeFileSync(join(folder, "model", "config.json"), "{}");
      },
      /neither config.json .*model is one: name that/,
    ],
    [
      "a folder without weights",
      (folder) => rmSync(join(folder, "model.safetensors")),
      /neither model.safetensors nor/,
    ],
    [
      "a config that is no JSON",
      (folder) => writeFileSync(join(folder, "config.json"), "{"),
      /config.json is not JSON/,
    ],
    [
      "a config nested a million deep",
      (folder) => writeFileSync(join(folder, "config.json"), "[".repeat(1e6)),
      /nested deeper than 64/,
    ],
    [
      "a config of another model",
      (folder) => changed(folder, { vocab_size: 49 }),
      /embed_tokens.weight" is \[48, 32\]; expected \[49, 32\]/,
    ],
    [
      "more layers than the file has",
      (folder) => changed(folder, { num_hidden_layers: 5, layer_types: null, no_rope_layers: [], moe_layers: [] }),
      /no tensor "model.layers.4.input_layernorm.weight"; nearest is "model\./,
    ],
    [
      "fewer layers than the file has",
      (folder) => changed(folder, { num_hidden_layers: 3, layer_types: null, no_rope_layers: [], moe_layers: [] }),
      /"model.layers.3\.\S+" belongs to no tensor of this config \(9 such\)/,
    ],
  ])("%s is one clear error", async (_, spoil, sentence) => {
    const folder = mkdtempSync(join(scratch, "bad-"));
    cpSync(golden("dense"), folder, { recursive: true });
    spoil(folder);
    const opening = openCheckpoint(folder);
    await expect(opening).rejects.toThrow(CheckpointError);
    await expect(opening).rejects.toThrow(sentence);
  });

  function empty(folder: string): void {
    for (const name of readdirSync(folder)) rmSync(join(folder, name));
  }

  function changed(folder: string, values: object): void {
    const path = join(folder, "config.json");
    writeFileSync(path, JSON.stringify({ ...JSON.parse(readFileSync(path, "utf8")), ...values }));
  }

  it("stops when the signal says so", async () => {
    await expect(openCheckpoint(golden("dense"), { signal: AbortSignal.abort() })).rejects.toThrow(/abort/i);
  });
});

describe("a file of more than 4 GiB", () => {
  it("is read at any offset, and not beyond its end", async () => {
    const path = join(scratch, "large"); // sparse: it takes a block of the disk
    const size = 5 * 2 ** 30;
    const file = await open(path, "w");
    await file.write(Buffer.from("here"), 0, 4, size - 4);
    await file.close();
    const source = await openFile(path);
    expect(Buffer.from(await source.read(size - 6, 6)).toString()).toBe("\0\0here");
    await expect(source.read(size - 3, 4)).rejects.toThrow(/large has 5368709120 bytes; expected 4 more at 5368709117/);
    await source.close();
  });
});

describe("sources put side by side", () => {
  it("give any range as the joined bytes would", async () => {
    const rows = 5;
    const parts = [3, 1, 4].map((run, i) => {
      const bytes = Uint8Array.from({ length: 2 + rows * run }, (_, at) => 50 * i + at);
      return { source: memorySource(bytes), offset: 2, run, bytes };
    });
    const whole: number[] = [];
    for (let row = 0; row < rows; row++)
      for (const { run, bytes } of parts) whole.push(...bytes.subarray(2 + row * run, 2 + (row + 1) * run));
    const joined = sideBySide("joined", rows, parts);
    expect(joined.byteLength).toBe(whole.length);
    for (let from = 0; from <= whole.length; from++)
      for (let to = from; to <= whole.length; to++)
        expect([...(await joined.read(from, to - from))]).toEqual(whole.slice(from, to));
  });
});

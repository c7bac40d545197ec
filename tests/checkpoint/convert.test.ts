import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gguf as readOracle } from "@huggingface/gguf";
import { afterAll, describe, expect, it } from "vitest";
import { openReference } from "../../src/backends/reference/reference.ts";
import { fileTypes, type Mix, mixes, type Place, storedType, usesMoreBits } from "../../src/checkpoint/mix.ts";
import type { Checkpoint } from "../../src/checkpoint/open.ts";
import { recoded, referenceQuantizer } from "../../src/checkpoint/recode.ts";
import { type Llama4Config, presets } from "../../src/model/config.ts";
import { mapParameters, type Parameters } from "../../src/model/parameters.ts";
import { ropeFrequencies } from "../../src/model/rope.ts";
import { forward } from "../../src/model/transformer.ts";
import { dequantize } from "../../src/tensor/block-formats.ts";
import { dtypes } from "../../src/tensor/dtype.ts";
import { isQuantizable, quantize } from "../../src/tensor/quantize.ts";
import { elementCount, storedBytes, type TensorView } from "../../src/tensor/tensor.ts";
import { converted, using } from "./converted.ts";

const golden = join(import.meta.dirname, "../golden/llama4");
const folder = mkdtempSync(join(tmpdir(), "llama4-convert-"));
afterAll(() => rmSync(folder, { recursive: true }));
let next = 0;
const fresh = (end = "") => join(folder, `${next++}${end}`);

function views(parameters: Parameters<TensorView>): TensorView[] {
  const list: TensorView[] = [];
  mapParameters(parameters, (view) => list.push(view));
  return list;
}

async function bytesOf(view: TensorView): Promise<Buffer> {
  const parts: Uint8Array[] = [];
  for await (const part of recoded(view, view.dtype, referenceQuantizer)) parts.push(part);
  return Buffer.concat(parts);
}

/** The logits of a short prompt that crosses chunks, by the reference. */
async function logits({ config, parameters }: Checkpoint): Promise<Float32Array | Float64Array> {
  const backend = openReference();
  const loaded = await backend.load(views(parameters));
  let i = 0;
  const p = mapParameters(parameters, () => loaded[i++]!);
  const tokens = Int32Array.from({ length: 40 }, (_, t) => (t * 7) % config.vocabSize);
  const segments = [{ row: 0, length: tokens.length, position: 0, sequence: 0 }];
  return backend.read(await forward(p, config, { tokens, segments, wanted: Int32Array.of(0, 20, 39) }));
}

describe("a Hugging Face folder as GGUF", () => {
  it.each(readdirSync(golden).filter((name) => !["meta-1", "meta-2"].includes(name) && !name.includes(".")))(
    "%s in f32 is the same model: same sizes, same logits",
    async (name) => {
      const out = await converted(join(golden, name), fresh(".gguf"), { type: "f32" });
      await using(join(golden, name), (before) =>
        using(out, async (after) => {
          const sizes = ({ tokens: _, ropeScaling, ropeDivisors, ...rest }: Llama4Config) => rest;
          expect(sizes(after.config)).toEqual(sizes(before.config));
          const [x, y] = [await logits(before), await logits(after)];
          expect(Math.max(...x.map((value, i) => Math.abs(value - y[i]!)))).toBeLessThan(1e-5); // divisors are float32
        }),
      );
    },
  );

  it("Meta's files convert to the same bytes as Hugging Face's", async () => {
    const files = await Promise.all(
      ["meta-1", "meta-2", "bf16"].map((name) => converted(join(golden, name), fresh(".gguf"), { type: "q8_0" })),
    );
    const [one, two, hf] = await Promise.all(
      files.map((file) => using(file, ({ parameters }) => Promise.all(views(parameters).map(bytesOf)))),
    );
    expect(one).toEqual(hf);
    expect(two).toEqual(hf);
  });

  it("vision goes to mmproj- beside it: 16-bit matrices, 32-bit vectors", async () => {
    const out = await converted(join(golden, "tiny"), fresh(".gguf"), { type: "q8_0" });
    const beside = join(folder, `mmproj-${out.slice(folder.length + 1)}`);
    const { metadata, tensorInfos } = await readOracle(beside, { allowLocalFile: true });
    expect(metadata).toMatchObject({ "general.architecture": "clip", "clip.projector_type": "llama4" });
    const types = new Map(tensorInfos.map(({ name, dtype }) => [name, dtype]));
    expect(types.get("v.patch_embd.weight")).toBe(dtypes.f16.ggmlType); // tiny is stored in f32
    expect(types.get("v.blk.0.ln1.weight")).toBe(dtypes.f32.ggmlType);
    const shape = tensorInfos.find(({ name }) => name === "v.patch_embd.weight")!.shape;
    expect(shape).toHaveLength(2);
  });

  it("an independent reader finds every tensor with its type and reversed shape", async () => {
    const out = await converted(join(golden, "scout"), fresh(".gguf"), { type: "q4_0" });
    const { metadata, tensorInfos } = await readOracle(out, { allowLocalFile: true });
    await using(out, async ({ tensors, config }) => {
      expect(metadata["llama4.block_count" as keyof typeof metadata]).toBe(config.layers.length);
      expect(tensorInfos.map(({ name, shape, dtype }) => [name, shape.map(Number), dtype])).toEqual(
        tensors.map(({ name, shape, dtype }) => [name, [...shape].reverse(), dtypes[dtype].ggmlType]),
      );
    });
  });
});

describe("a GGUF file as a folder", () => {
  it.each(["bf16", "maverick", "f16", "tied", "dense-rope", "sharded"])(
    "%s comes back with the same bytes under the same names",
    async (name) => {
      const out = await converted(await converted(join(golden, name), fresh(".gguf")), fresh());
      await using(join(golden, name), (before) =>
        using(out, async (after) => {
          const [x, y] = [before, after].map(
            ({ tensors }) => new Map(tensors.map((view): [string, TensorView] => [view.name, view])),
          );
          expect([...y!.keys()].sort()).toEqual([...x!.keys()].sort());
          for (const [key, view] of x!) expect(await bytesOf(y!.get(key)!), key).toEqual(await bytesOf(view));
          expect(after.config.layers).toEqual(before.config.layers);
          const off = ropeFrequencies(before.config).map((f, j) => f / ropeFrequencies(after.config)[j]! - 1);
          expect(Math.max(...off.map(Math.abs))).toBeLessThan(1e-7); // another original context may divide alike
        }),
      );
    },
  );

  it("refuses a type that safetensors cannot hold", async () => {
    await expect(converted(join(golden, "scout"), fresh(), { type: "q4_k" })).rejects.toThrow(
      "a folder cannot hold q4_k; take f32, f16 or bf16, or a name that ends in .gguf",
    );
  });
});

describe("quantization", () => {
  it.each(["q8_0", "q4_0"] as const)("%s blocks are the reference quantizer's", async (type) => {
    const out = await converted(join(golden, "scout"), fresh(".gguf"), { type });
    await using(join(golden, "scout"), (before) =>
      using(out, async (after) => {
        const [x, y] = [views(before.parameters), views(after.parameters)];
        for (const [i, view] of x.entries()) {
          const { dtype } = y[i]!;
          const values = new Float32Array(elementCount(view.shape));
          dequantize(view.dtype, await bytesOf(view), values);
          const expected = Buffer.alloc(storedBytes(y[i]!));
          if (!isQuantizable(dtype)) throw new Error(dtype);
          quantize(dtype, values, expected);
          expect(await bytesOf(y[i]!), view.name).toEqual(expected);
        }
      }),
    );
  });
});

describe("mixes", () => {
  it("more bits go to the layers that llama.cpp names for 48", () => {
    const layers = Array.from({ length: 48 }, (_, i) => i).filter((i) => usesMoreBits(i, 48));
    expect(layers).toEqual([0, 1, 2, 3, 4, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35, 38, 41, 42, 43, 44, 45, 46, 47]);
  });

  it.each([
    ["q4_k_m", "output", 0, 5120, "q6_k"],
    ["q4_k_m", "tokEmbeddings", 0, 5120, "q4_k"],
    ["q4_k_m", "wv", 6, 5120, "q4_k"],
    ["q4_k_m", "wv", 8, 5120, "q6_k"],
    ["q4_k_m", "w2", 47, 8192, "q6_k"],
    ["q4_k_m", "w1", 0, 1000, "f16"],
    ["q4_k_m", "w1", 0, 96, "q5_0"],
    ["q4_k_m", "w2", 0, 96, "q8_0"],
    ["q4_k", "w2", 0, 8192, "q4_k"],
    ["q4_k", "w2", 0, 96, "q8_0"],
    ["q4_0", "output", 0, 5120, "q6_k"],
    ["q4_0", "w1", 0, 96, "q4_0"],
    ["q4_0", "w1", 0, 24, "f16"],
    ["q6_k", "wq", 0, 96, "q8_0"],
    ["q8_0", "router", 0, 5120, "f32"],
    ["bf16", "attentionNorm", 0, 5120, "f32"],
    ["bf16", "wq", 0, 5120, "bf16"],
  ] as const)("%s: %s of layer %i with rows of %i is %s", (mix, role, layer, columns, expected) => {
    expect(storedType(mix, { role, layer, columns }, presets.scout)).toBe(expected);
  });

  it("a table that is the output matrix too has the output's type", () => {
    const place = { role: "tokEmbeddings", columns: 5120 } as const;
    const { layers } = presets.scout;
    expect([true, false].map((tied) => storedType("q4_k_m", place, { layers, tied }))).toEqual(["q6_k", "q4_k"]);
  });

  it.each([
    ["scout", "q8_0", 114.5],
    ["scout", "q4_k_m", 65.4],
    ["maverick", "q8_0", 425.8],
    ["maverick", "q4_k_m", 242.8],
  ] as const)("%s in %s takes the %f GB of the specification", (preset, mix, gigabytes) => {
    // 65.35 for the second: the types equal llama-quantize's; the specification prints one digit
    expect(Math.abs(predictedBytes(presets[preset], mix) / 1e9 - gigabytes)).toBeLessThan(0.055);
  });
});

/** Of the text model's tensors. */
function predictedBytes(c: Llama4Config, mix: Mix): number {
  const stored = (role: Place["role"], layer: number, rows: number, columns: number) =>
    storedBytes({ dtype: storedType(mix, { role, layer, columns }, c), shape: [rows, columns] });
  const kv = c.nKvHeads * c.headDim;
  let total =
    stored("w1", 0, c.vocabSize, c.dim) + stored("output", 0, c.vocabSize, c.dim) + stored("norm", 0, 1, c.dim);
  for (const [i, { moe }] of c.layers.entries()) {
    const [experts, width] = moe ? [c.nExperts + 1, c.expertDim] : [1, c.ffnDim];
    total += 2 * stored("w1", i, c.nHeads * c.headDim, c.dim) + stored("w1", i, kv, c.dim) + stored("wv", i, kv, c.dim);
    total += experts * (2 * stored("w1", i, width, c.dim) + stored("w2", i, c.dim, width));
    total += 2 * stored("norm", i, 1, c.dim) + (moe ? stored("norm", i, c.nExperts, c.dim) : 0);
  }
  return total;
}

describe("what GGUF cannot say", () => {
  it("is refused, each thing by name, and nothing is written", async () => {
    const out = fresh(".gguf");
    const refused = converted(join(golden, "irregular"), out, { allowLossy: false });
    await expect(refused).rejects.toThrow(/an attention chunk of 8.*temperature floor 3/s);
    await expect(readFile(out)).rejects.toThrow("ENOENT");
  });

  it("is written when allowed, with a warning each", async () => {
    const warnings: string[] = [];
    await converted(join(golden, "irregular"), fresh(".gguf"), { onWarning: (message) => warnings.push(message) });
    expect(warnings.length).toBeGreaterThanOrEqual(4);
    expect(warnings[0]).toMatch(/^llama\.cpp will misread \d+\.gguf: /);
  });
});

it("a tokenizer shorter than the embedding is filled up, a longer one refused", async () => {
  const vocabulary = {
    model: "gpt2",
    pre: "llama4",
    tokens: ["a", "b", "ab", "<|eot|>"],
    tokenTypes: [1, 1, 1, 3],
    merges: ["a b"],
  };
  const out = await converted(join(golden, "scout"), fresh(".gguf"), { vocabulary });
  await using(out, async ({ tokenizer, config, metadata }) => {
    if (tokenizer?.kind !== "gguf") throw new Error("no vocabulary");
    expect(tokenizer.tokens).toHaveLength(config.vocabSize);
    expect(tokenizer.tokens.slice(2, 5)).toEqual(["ab", "<|eot|>", "[PAD4]"]);
    expect(metadata!.get("tokenizer.ggml.eot_token_id")).toEqual({ type: "u32", value: 3 });
  });
  const long = { ...vocabulary, tokens: Array.from({ length: 60 }, String), tokenTypes: new Int32Array(60).fill(1) };
  await expect(converted(join(golden, "scout"), fresh(".gguf"), { vocabulary: long })).rejects.toThrow(
    "the tokenizer has 60 tokens and the model 48",
  );
});

it.each(mixes)("%s is what an open file of it says", async (type) => {
  const out = await converted(join(golden, "scout"), fresh(".gguf"), { type });
  const { metadata } = await readOracle(out, { allowLocalFile: true });
  expect(metadata).toMatchObject({ "general.file_type": fileTypes[type] });
});

// Adapters in PEFT's layout: those that PEFT wrote (scripts/golden/adapter.py) give its logits, and are written again to
// the same bytes.

import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { openReference } from "../../src/backends/reference/reference.ts";
import { adapterFiles, type LowRank, merged, readAdapter } from "../../src/checkpoint/adapter.ts";
import { huggingFaceTensors } from "../../src/checkpoint/names-hugging-face.ts";
import { openCheckpoint } from "../../src/checkpoint/open.ts";
import { readSafetensors } from "../../src/checkpoint/safetensors.ts";
import { memorySource, openFile } from "../../src/checkpoint/source.ts";
import { writeSafetensorsFile } from "../../src/checkpoint/writers.ts";
import { mapParameters } from "../../src/model/parameters.ts";
import { forward } from "../../src/model/transformer.ts";
import { storedBytes, type TensorView } from "../../src/tensor/tensor.ts";
import { numbers } from "../backends/drawn.ts";

const golden = join(import.meta.dirname, "../golden");
const names = readdirSync(join(golden, "adapter"));
const place = mkdtempSync(join(tmpdir(), "llama4-adapter-"));
afterAll(() => rmSync(place, { recursive: true }));

interface Expected {
  readonly base: string;
  readonly input_ids: number[];
  readonly logits: number[][];
}

const expectedOf = (name: string): Expected =>
  JSON.parse(readFileSync(join(golden, "adapter", name, "expected.json"), "utf8"));

async function shapesOf(base: string) {
  const checkpoint = await openCheckpoint(join(golden, "llama4", base));
  await checkpoint.close();
  return new Map(huggingFaceTensors(checkpoint.config).map(({ name, shape }) => [name, shape]));
}

async function bytesOf(path: string): Promise<Record<string, string>> {
  const file = await openFile(path);
  const found: Record<string, string> = {};
  for (const view of await readSafetensors(file)) {
    const bytes = await file.read(view.offset, storedBytes(view));
    found[`${view.name} ${view.dtype} [${view.shape}]`] = Buffer.from(bytes).toString("base64");
  }
  await file.close();
  return found;
}

describe("an adapter that PEFT wrote", () => {
  it.each(names)("gives PEFT's logits: %s", async (name) => {
    const { base, input_ids, logits } = expectedOf(name);
    const backend = openReference();
    const adapter = join(golden, "adapter", name);
    const checkpoint = await openCheckpoint(join(golden, "llama4", base), { adapter });
    const views: TensorView[] = [];
    mapParameters(checkpoint.parameters, (view) => views.push(view));
    const tensors = await backend.load(views);
    await checkpoint.close();
    let next = 0;
    const parameters = mapParameters(checkpoint.parameters, () => tensors[next++]!);
    const T = input_ids.length;
    const got = await backend.read(
      await forward(parameters, checkpoint.config, {
        tokens: Int32Array.from(input_ids),
        segments: [{ row: 0, length: T, position: 0, sequence: 0 }],
        wanted: Int32Array.from({ length: T }, (_, i) => i),
      }),
    );
    const all = logits.flat();
    const worst = all.reduce((most, x, i) => Math.max(most, Math.abs(x - got[i]!)), 0);
    expect(worst).toBeLessThan(1e-3); // of logits that it moved by 10; PEFT's own merged ones differ by 1.5e-4
  });

  it.each(names)("is written again to the same tensors: %s", async (name) => {
    const folder = join(golden, "adapter", name);
    const { r: rank, lora_alpha: alpha } = JSON.parse(readFileSync(join(folder, "adapter_config.json"), "utf8"));
    const changes = await readAdapter(folder, await shapesOf(expectedOf(name).base));
    const { tensors, weightsName, config } = adapterFiles(changes, { rank, alpha, base: "base" });
    const out = join(place, `${name}.safetensors`);
    await writeSafetensorsFile(out, tensors);
    expect(await bytesOf(out)).toEqual(await bytesOf(join(folder, weightsName)));
    expect(JSON.parse(Object.values(config)[0]!)).toMatchObject({ peft_type: "LORA", r: rank, lora_alpha: alpha });
  });
});

describe("an adapter", () => {
  const [name] = names as [string];
  const changedCopy = (change: (config: Record<string, unknown>) => void) => {
    const folder = join(place, "copy");
    rmSync(folder, { recursive: true, force: true });
    cpSync(join(golden, "adapter", name), folder, { recursive: true });
    const config = JSON.parse(readFileSync(join(folder, "adapter_config.json"), "utf8"));
    change(config);
    writeFileSync(join(folder, "adapter_config.json"), JSON.stringify(config));
    return folder;
  };

  it.each([
    [{ peft_type: "IA3" }, /peft_type is "IA3"; expected "LORA"/],
    [{ use_dora: true }, /use_dora is true; expected it to be off/],
    [{ alpha_pattern: { q_proj: 3 } }, /alpha_pattern is .*expected it to be off/],
    [{ modules_to_save: ["lm_head"] }, /modules_to_save is \["lm_head"\]; expected it to be off/],
    [{ bias: "all" }, /bias is "all"; expected "none"/],
    [{ init_lora_weights: "pissa" }, /init_lora_weights is "pissa"; expected a beginning that leaves/],
    [{ lora_alpha: null }, /lora_alpha is null; expected a number/],
    [{ from_the_future: { on: 1 } }, /from_the_future is .*expected it to be off/],
    [{ target_parameters: null }, /changes .*\(no target_parameters\)", which the model has not/],
  ])("with %j is refused", async (more, message) => {
    const folder = changedCopy((config) => Object.assign(config, more));
    await expect(readAdapter(folder, await shapesOf(expectedOf(name).base))).rejects.toThrow(message as RegExp);
  });

  it("of another model, or with keys of another kind, is refused", async () => {
    const folder = changedCopy(() => {});
    const other = await shapesOf("dense");
    await expect(readAdapter(folder, other)).rejects.toThrow(/which the model has not|expected \[/);
    const values = memorySource(new Uint8Array(4 * 6));
    await writeSafetensorsFile(join(folder, "adapter_model.safetensors"), [
      {
        ...{ name: "base_model.model.model.embed_tokens.lora_embedding_A", dtype: "f32", shape: [2, 3] },
        async *chunks() {
          yield await values.read(0, 24);
        },
      },
    ]);
    await expect(readAdapter(folder, other)).rejects.toThrow(
      /lora_embedding_A" is \[2, 3\]; expected only matrices named …lora_A.weight/,
    );
    await expect(readAdapter(place, other)).rejects.toThrow(/no adapter_config.json is there/);
    const gguf = openCheckpoint(join(golden, "llama4/meta-1"), { adapter: folder });
    await expect(gguf).rejects.toThrow(/goes with a folder in Hugging Face's layout/);
  });

  it("scaled by √r, or with experts the other way round as older releases hold them, is read", async () => {
    const shapes = await shapesOf(expectedOf(name).base);
    const folder = changedCopy((config) => Object.assign(config, { use_rslora: true }));
    const plain = await readAdapter(join(golden, "adapter", name), shapes);
    const rooted = await readAdapter(folder, shapes);
    for (const [tensor, { scale, rank }] of plain)
      expect(rooted.get(tensor)!.scale).toBeCloseTo(scale * Math.sqrt(rank));
    // [E, R, C] = [2, 3, 5], rank 1: A meets the input [R], B gives the output [C]
    const [A, B] = [numbers(2 * 3, 1), numbers(5 * 2, 2)];
    const of = (key: string, shape: number[], x: Float32Array) => ({
      ...{ name: `base_model.model.model.layers.0.feed_forward.experts.${key}.weight`, dtype: "f32" as const, shape },
      async *chunks() {
        yield new Uint8Array(x.buffer);
      },
    });
    await writeSafetensorsFile(join(folder, "adapter_model.safetensors"), [
      of("lora_A", [2, 3], A),
      of("lora_B", [5, 2], B),
    ]);
    const tensor = "model.layers.0.feed_forward.experts.down_proj";
    const { left, right } = (await readAdapter(folder, new Map([[tensor, [2, 3, 5]]]))).get(tensor)!;
    for (let e = 0; e < 2; e++)
      for (let row = 0; row < 3; row++)
        for (let column = 0; column < 5; column++)
          expect(left[e * 3 + row]! * right[e * 5 + column]!).toBe(A[e * 3 + row]! * B[column * 2 + e]!);
  });

  it("goes into any range of a tensor as it is read, rounded once", async () => {
    const [E, R, C, rank] = [2, 3, 4, 2];
    const base = numbers(E * R * C, 1);
    const source = memorySource(new Uint8Array(base.buffer), "base");
    const view: TensorView = { name: "model.x", dtype: "f32", shape: [E, R, C], source, offset: 0 };
    const [left, right] = [numbers(E * R * rank, 2), numbers(E * rank * C, 3)];
    const change: LowRank = { experts: E, rank, scale: 0.5, left, right };
    const [out] = merged([view], new Map([["model.x", change]]));
    const expected = base.map((x, i) => {
      const [e, row, column] = [Math.floor(i / (R * C)), Math.floor(i / C), i % C];
      let sum = x;
      for (let k = 0; k < rank; k++) sum += 0.5 * left[row * rank + k]! * right[(e * rank + k) * C + column]!;
      return sum;
    });
    const floats = async (first: number, n: number) =>
      new Float32Array((await out!.source.read(4 * first, 4 * n)).slice().buffer);
    for (const [first, n] of [
      [0, E * R * C],
      [5, 1],
      [3, 9],
      [E * R * C - 1, 1],
    ] as const) {
      const got = await floats(first, n);
      for (const [i, x] of got.entries()) expect(x).toBeCloseTo(expected[first + i]!, 6);
    }
  });
});

// The vision encoder's tensors: the same tree from every format, and a plain word where there is none.

import { copyFileSync, cpSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { bindMmproj } from "../../src/checkpoint/names-gguf.ts";
import { bindHuggingFace } from "../../src/checkpoint/names-hugging-face.ts";
import { bindMeta } from "../../src/checkpoint/names-meta.ts";
import { ggufVision, huggingFaceVision, legacyPositions, listVision } from "../../src/checkpoint/names-vision.ts";
import { type Checkpoint, openCheckpoint } from "../../src/checkpoint/open.ts";
import { recoded, referenceQuantizer } from "../../src/checkpoint/recode.ts";
import { publishedPreprocessing } from "../../src/model/config.ts";
import type { TensorView } from "../../src/tensor/tensor.ts";
import { converted, using } from "./converted.ts";

const golden = join(import.meta.dirname, "../golden");
const hugging = join(golden, "vision/maverick");
const folder = mkdtempSync(join(tmpdir(), "llama4-vision-"));
afterAll(() => rmSync(folder, { recursive: true }));
let next = 0;
const fresh = (end = "") => join(folder, `${next++}${end}`);

const mmprojOf = (path: string) => join(dirname(path), `mmproj-${basename(path)}`);

/** Every weight of the vision encoder as f32, in the order of the tree. */
async function weights({ vision }: Checkpoint): Promise<Buffer[]> {
  const bytesOf = async (view: TensorView) => {
    const parts: Uint8Array[] = [];
    for await (const part of recoded(view, "f32", referenceQuantizer)) parts.push(part);
    return Buffer.concat(parts);
  };
  return Promise.all(listVision(vision!).map(bytesOf));
}

describe("the vision encoder", () => {
  it.each([
    ["Meta's shards", () => join(golden, "vision/meta-2")],
    ["a GGUF file and its mmproj", () => converted(hugging, fresh(".gguf"))],
    ["a GGUF file made of Meta's shards", () => converted(join(golden, "vision/meta-2"), fresh(".gguf"))],
    ["a folder made of a GGUF file", async () => converted(await converted(hugging, fresh(".gguf")), fresh())],
  ])("of %s is the one in Hugging Face's folder, and so is its config", async (_, make) => {
    const path = await make();
    await using(hugging, (expected) =>
      using(path, async (found) => {
        expect(found.config.vision).toEqual(expected.config.vision);
        expect(await weights(found)).toEqual(await weights(expected));
      }),
    );
  });

  it("stands where --mmproj says, in a file of any name", async () => {
    const out = await converted(hugging, fresh(".gguf"));
    const [alone, vision] = [fresh(".gguf"), fresh(".gguf")];
    copyFileSync(out, alone);
    copyFileSync(mmprojOf(out), vision);
    await using(alone, async (checkpoint) => expect(checkpoint.config.vision ?? checkpoint.vision).toBeUndefined());
    await using(alone, async ({ vision }) => expect(listVision(vision!)).toHaveLength(2 * 16 + 10), { mmproj: vision });
  });

  it("of a split model stands under the name without the part's number", async () => {
    const out = await converted(hugging, fresh(".gguf"));
    const place = fresh();
    mkdirSync(place);
    copyFileSync(out, join(place, "scout-00001-of-00001.gguf"));
    copyFileSync(mmprojOf(out), join(place, "mmproj-scout.gguf"));
    await using(join(place, "scout-00001-of-00001.gguf"), async ({ vision }) => expect(vision).toBeDefined());
  });

  it("and the text model are in their places both, or neither", async () => {
    const out = fresh(".gguf");
    const cancel = new AbortController();
    await expect(
      converted(hugging, out, {
        signal: cancel.signal,
        onProgress: (done, total) => done < 0.8 * total || cancel.abort(new Error("stopped late")),
      }),
    ).rejects.toThrow("stopped late");
    expect(readdirSync(folder).filter((name) => name.includes(basename(out)))).toEqual([]);
  });

  it("of another model is not left beside a text model that is written now", async () => {
    const out = await converted(hugging, fresh(".gguf"));
    const text = join(golden, "llama4/dense");
    await expect(converted(text, out)).rejects.toThrow(`${mmprojOf(out)} would be taken for the vision part`);
    rmSync(mmprojOf(out));
    await converted(text, out);
  });

  it("has the other names that writers of mmproj files use", async () => {
    const out = await converted(hugging, fresh(".gguf"));
    await using(out, async ({ config, vision }) => {
      const names = listVision(ggufVision(2)).map((name) =>
        name.replace(".ln2.", ".attn_post_norm.").replace(/class_embd$/, "class_embd.weight"),
      );
      const renamed = listVision(vision!).map((view, i) => ({ ...view, name: names[i]! }));
      expect(listVision(bindMmproj(config, renamed, "file")).map(({ offset }) => offset)).toEqual(
        listVision(vision!).map(({ offset }) => offset),
      );
    });
  });

  it("comes with the preprocessing that the folder says, and keeps it through conversions", async () => {
    const other = { max_patches: 4, resize_to_max_canvas: true, image_mean: [0.4, 0.5, 0.6], image_std: 0.25 };
    const moments = { mean: [0.4, 0.5, 0.6], std: [0.25, 0.25, 0.25] };
    const says = (path: string, preprocessing: object) =>
      using(path, async ({ config }) => expect(config.vision!.preprocessing).toEqual(preprocessing));
    const first = fresh();
    cpSync(hugging, first, { recursive: true });
    rmSync(join(first, "preprocessor_config.json"), { force: true });
    await says(first, publishedPreprocessing);
    writeFileSync(join(first, "processor_config.json"), JSON.stringify({ image_processor: other })); // transformers 5
    await says(first, { maxTiles: 4, toMaxCanvas: true, ...moments });
    await says(await converted(first, fresh()), { maxTiles: 4, toMaxCanvas: true, ...moments });
    await expect(converted(first, fresh(".gguf"), { allowLossy: false })).rejects.toThrow(
      "images of 4 tiles, enlarged to the largest canvas; it always takes 16",
    );
    writeFileSync(
      join(first, "preprocessor_config.json"),
      JSON.stringify({ ...other, max_patches: 16, resize_to_max_canvas: false }),
    );
    await says(await converted(first, fresh(".gguf")), { ...publishedPreprocessing, ...moments });
  });

  it("may be left out by an exporter: then the model reads text alone", async () => {
    await using(hugging, async ({ config, tensors }) => {
      const text = tensors.filter(({ name }) => name.startsWith("language_model."));
      expect(bindHuggingFace(config, text, "text").vision).toBeUndefined();
      const half = tensors.filter(({ name }) => name !== huggingFaceVision(2).projector);
      expect(() => bindHuggingFace(config, half, "half")).toThrow(/half: no tensor "multi_modal_projector.linear_1/);
    });
  });
});

describe("a vision part that does not fit", () => {
  it("is of another model", async () => {
    const out = await converted(hugging, fresh(".gguf"));
    const other = await converted(join(golden, "llama4/tiny"), fresh(".gguf"));
    await expect(openCheckpoint(out, { mmproj: mmprojOf(other) })).rejects.toThrow(
      "clip.vision.projection_dim is 64; expected the text model's width, 32; take the vision part of the same model",
    );
  });

  it("is a text model, or missing, or beside a folder, or opened as the model", async () => {
    const out = await converted(hugging, fresh(".gguf"));
    await expect(openCheckpoint(out, { mmproj: out })).rejects.toThrow(
      /general.architecture is "llama4"; expected "clip"/,
    );
    await expect(openCheckpoint(out, { mmproj: "none" })).rejects.toThrow(
      /^none: no such file; expected the vision part/,
    );
    await expect(openCheckpoint(hugging, { mmproj: mmprojOf(out) })).rejects.toThrow(
      /is a folder, where a vision part has its place among the weights/,
    );
    const moved = join(folder, "moved");
    mkdirSync(moved);
    copyFileSync(mmprojOf(out), join(moved, "vision.gguf"));
    await expect(openCheckpoint(join(moved, "vision.gguf"))).rejects.toThrow(
      /expected "llama4": a vision part goes with/,
    );
  });

  it("has the table of positions from before tiles", async () => {
    await using(join(golden, "vision/meta-2"), async ({ config, tensors }) => {
      const half = tensors.length / 2;
      const old = tensors.map((view) => ({
        ...view,
        name: view.name.replace(/positional_embedding_vlm$/, "positional_embedding"),
      }));
      expect(old.some(({ name }) => name === legacyPositions)).toBe(true);
      expect(() => bindMeta(config, [old.slice(0, half), old.slice(half)], "folder")).toThrow(
        /^folder: "vision_embeddings.vision_encoder.positional_embedding" is the table from before the encoder was fitted/,
      );
    });
  });
});

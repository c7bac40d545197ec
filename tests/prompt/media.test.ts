import { describe, expect, it } from "vitest";
import type { ContentPart } from "../../src/prompt/chat-format.ts";
import { metaFormat } from "../../src/prompt/chat-format.ts";
import {
  type Decoders,
  encodeParts,
  expandImages,
  ImageProcessor,
  imageTokenCount,
  type ProcessedImage,
} from "../../src/prompt/media.ts";
import { byteLevel } from "../../src/prompt/small-vocabularies.ts";

const config = { tileSize: 4, tokensPerTile: 2 };
const tokenizer = byteLevel({ vocabSize: 512 });

/** Images whose path says their size and colour: "8x4:7". */
const decoders: Decoders = {
  image: async ({ path = "" }) => {
    const [width = 0, height = 0, colour = 0] = path.split(/[x:]/).map(Number);
    return { data: new Uint8Array(width * height * 3).fill(colour), width, height };
  },
  video: async () => ({
    length: { width: 4, height: 4, duration: 1, rate: 2 },
    async *frames({ times }) {
      for (const seconds of times)
        yield { seconds, pixels: { data: new Uint8Array(48).fill(seconds * 4), width: 4, height: 4 } };
    },
    close: async () => {},
  }),
};
const processor = new ImageProcessor(config, decoders);

const image = (path: string): ContentPart => ({ type: "image", path });
const text = (text: string): ContentPart => ({ type: "text", text });

async function tokensOf(parts: ContentPart[]): Promise<string> {
  const { messages, images } = await processor.messages([{ role: "user", content: parts }], {});
  return tokenizer.decode(expandImages(metaFormat(tokenizer).encode(messages), images, tokenizer, config).ids);
}

const P = "<|patch|><|patch|>";
const one = `<|image_start|><|image|>${P}<|image_end|>`;
const two = `<|image_start|>${P}<|tile_x_separator|>${P}<|tile_y_separator|><|image|>${P}<|image_end|>`;

describe("a prompt with images", () => {
  it("has all tokens of each image where the image stands, and nothing around them", async () => {
    expect(await tokensOf([image("4x4:1"), text("and"), image("8x4:2"), text("?")])).toContain(
      `<|header_end|>\n\n${one}and${two}?<|eot|>`,
    );
  });

  it("shows a video as frames, each behind its time", async () => {
    expect(await tokensOf([{ type: "video", path: "clip" }, text("?")])).toContain(
      `\n\n[0:00.3]${one}[0:00.8]${one}?<|eot|>`,
    );
  });

  it("stands without chat format as it is, strings of special tokens in it included", async () => {
    const images: ProcessedImage[] = [];
    const parts = await processor.parts([text("a<|image|>"), image("4x4:1"), text("b")], images, {});
    const plain = encodeParts(parts, tokenizer, { bos: true });
    expect(plain.images).toEqual([1 + "a<|image|>".length]);
    expect(tokenizer.decode(expandImages(plain, images, tokenizer, config).ids)).toBe(
      `<|begin_of_text|>a<|image|>${one}b`,
    );
  });

  it("knows the same image again, and another from it", async () => {
    const images: ProcessedImage[] = [];
    await processor.parts([image("4x4:1"), image("4x4:1"), image("4x4:2")], images, {});
    expect(images[0]!.key).toMatch(/^[0-9a-f]{64}$/);
    expect(images[1]!.key).toBe(images[0]!.key);
    expect(images[2]!.key).not.toBe(images[0]!.key);
  });

  it("counts tokens without looking", () => {
    const full = { tileSize: 336, tokensPerTile: 144 };
    expect(imageTokenCount({ width: 4000, height: 3000 }, full)).toBe(1887);
    expect(imageTokenCount({ width: 4000, height: 3000 }, full, { maxTiles: 1 })).toBe(147);
  });

  it("refuses what is no part", async () => {
    for (const part of [null, "text", 3])
      await expect(processor.parts([part as unknown as ContentPart], [], {})).rejects.toThrow(
        "a part of the content is",
      );
  });

  it("ends when it is cancelled", async () => {
    const signal = AbortSignal.abort(new Error("enough"));
    await expect(processor.parts([image("4x4:1")], [], {}, signal)).rejects.toThrow("enough");
  });
});

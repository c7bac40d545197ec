import { describe, expect, it } from "vitest";
import type { ContentPart } from "../../src/prompt/chat-format.ts";
import { metaFormat } from "../../src/prompt/chat-format.ts";
import {
  type Decoders,
  digest,
  encodeParts,
  expandImages,
  ImageProcessor,
  imageTokenCount,
} from "../../src/prompt/media.ts";
import { byteLevel } from "../../src/prompt/small-vocabularies.ts";
import { CapacityError, RequestError } from "../../src/tensor/errors.ts";

const config = { tileSize: 4, tokensPerTile: 2, maxTiles: 16, toMaxCanvas: false };
const tokenizer = byteLevel({ vocabSize: 512 });

/** Images whose path says their size and colour: "8x4:7". */
let decoded = 0;
const decoders: Decoders = {
  image: async ({ path = "" }) => {
    const [width = 0, height = 0, colour = 0] = path.split(/[x:]/).map(Number);
    const pixels = async () => {
      decoded++;
      return { data: new Uint8Array(width * height * 3).fill(colour), width, height };
    };
    return { bytes: new TextEncoder().encode(path), width, height, pixels };
  },
  video: async ({ path = "" }) => ({
    key: path,
    length: { width: 4, height: 4, duration: 1, rate: 2 },
    async *frames({ times }) {
      decoded++;
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

// Else nobody could tell which of a message's pictures to send again.
it("an error about one of several images or videos says which it is", async () => {
  const strict = new ImageProcessor(config, {
    ...decoders,
    image: (media, options) => {
      if (media.data && media.data[0] !== 1) throw new RequestError("image: the file is empty; expected PNG");
      return decoders.image({ path: media.path ?? "4x4:1" }, options);
    },
    video: () => {
      throw new RequestError("video: the file has no video stream; expected one");
    },
  });
  const bytes = (byte: number, type: "image" | "video" = "image"): ContentPart => ({ type, data: Uint8Array.of(byte) });
  const whyNot = (...contents: ContentPart[][]) =>
    strict.contents(contents, {}).catch((error: unknown) => (error instanceof RequestError ? error.message : error));
  expect(await whyNot([bytes(1), text("?")], [bytes(2)])).toBe("image 2: the file is empty; expected PNG");
  expect(await whyNot([bytes(2)])).toBe("image: the file is empty; expected PNG");
  expect(await whyNot([bytes(1), bytes(1, "video"), bytes(1)])).toMatch(/^video: the file/);
  expect(await whyNot([bytes(1, "video"), bytes(1, "video")])).toMatch(/^video 1: the file/);
});

describe("a prompt with images", () => {
  it("has all tokens of each image where the image stands, and nothing around them", async () => {
    expect(await tokensOf([image("4x4:1"), text("and"), image("8x4:2"), text("?")])).toContain(
      `<|header_end|>\n\n${one}and${two}?<|eot|>`,
    );
  });

  it.each(["hi", null])("is refused where %j stands for its messages", async (messages) => {
    await expect(processor.messages(messages as never, {})).rejects.toThrow("expected a list of messages");
  });

  it("shows a video as frames, each behind its time", async () => {
    expect(await tokensOf([{ type: "video", path: "clip" }, text("?")])).toContain(
      `\n\n[0:00.3]${one}[0:00.8]${one}?<|eot|>`,
    );
  });

  it("stands without chat format as it is, strings of special tokens in it included", async () => {
    const { contents, images } = await processor.contents([[text("a<|image|>"), image("4x4:1"), text("b")]], {});
    const plain = encodeParts(contents[0]!, tokenizer, { bos: true });
    expect(plain.images).toEqual([1 + "a<|image|>".length]);
    expect(tokenizer.decode(expandImages(plain, images, tokenizer, config).ids)).toBe(
      `<|begin_of_text|>a<|image|>${one}b`,
    );
  });

  it("knows the same image again, and another from it", async () => {
    const { images } = await processor.contents([[image("4x4:1"), image("4x4:1"), image("4x4:2")]], {});
    expect(images[0]!.key).toMatch(/^[0-9a-f]{64}$/);
    expect(images[1]!.key).toBe(images[0]!.key);
    expect(images[2]!.key).not.toBe(images[0]!.key);
  });

  it("counts tokens without looking", () => {
    const full = { ...config, tileSize: 336, tokensPerTile: 144 };
    expect(imageTokenCount({ width: 4000, height: 3000 }, full)).toBe(1887);
    expect(imageTokenCount({ width: 4000, height: 3000 }, full, { maxTiles: 1 })).toBe(147);
    expect(imageTokenCount({ width: 4000, height: 3000 }, { ...full, maxTiles: 1 })).toBe(147);
    expect(imageTokenCount({ width: 4000, height: 3000 }, { ...full, maxTiles: 1 }, { maxTiles: 16 })).toBe(1887);
  });

  it("decodes a file once, however often it comes, and again for other tiles", async () => {
    const fresh = new ImageProcessor(config, decoders);
    decoded = 0;
    const turns = [image("8x4:7"), { type: "video", path: "clip" } as const];
    const first = await fresh.contents([turns, [image("8x4:7")]], {});
    const second = await fresh.contents([turns], {});
    expect(decoded).toBe(2);
    expect(second.images).toEqual(first.images.slice(0, 3));
    await fresh.contents([turns], { maxTiles: 1 });
    expect(decoded).toBe(4);
  });

  it("opens a video's bytes once, however often they come", async () => {
    let opened = 0;
    const video: Decoders["video"] = async ({ data = new Uint8Array() }, options) => {
      opened++;
      return { ...(await decoders.video({ path: "clip" }, options)), key: await digest(data) };
    };
    const fresh = new ImageProcessor(config, { ...decoders, video });
    const ask = (byte: number, options = {}) =>
      fresh.contents([[{ type: "video", data: Uint8Array.of(byte) }]], options);
    expect((await ask(1)).images).toEqual((await ask(1)).images);
    expect(opened).toBe(1);
    await ask(2);
    await ask(1, { maxTiles: 1 });
    expect(opened).toBe(3);
  });

  it("refuses what takes more tokens than there is room for, before anything is decoded", async () => {
    decoded = 0;
    const photos = Array.from({ length: 3 }, (_, i) => image(`8x4:${i}`)); // 11 tokens each
    await expect(processor.contents([photos], { mostTokens: 32 })).rejects.toThrow(
      "the prompt's images take 33 tokens or more, and there is room for 32; give fewer",
    );
    const video = { type: "video", path: "long" } as const; // two frames of 5
    await expect(processor.contents([[video]], { mostTokens: 9 })).rejects.toThrow(
      "frames of its video take 10 tokens or more, and there is room for 9",
    );
    await expect(processor.contents([[video], photos], { mostTokens: 42 })).rejects.toThrow(CapacityError);
    expect(decoded).toBe(0);
    expect((await processor.contents([[video], photos], { mostTokens: 43 })).images).toHaveLength(5);
  });

  it("refuses what is no part, and says what it is", async () => {
    for (const [part, message] of [
      [null, "a part of the content is null"],
      ["text", 'a part of the content is "text"'],
      [3, "a part of the content is 3"],
      [{ type: "image_url" }, 'the type of a part of the content is "image_url"'],
      [{ text: "hi" }, "the type of a part of the content is absent"],
      [{ type: "text" }, "the text of a part of the content is absent"],
      [{ type: "text", text: 5 }, "the text of a part of the content is 5"],
    ] as const) {
      const refused = expect(processor.contents([[part as unknown as ContentPart]], {})).rejects;
      await refused.toThrow(
        `${message}; expected { type: "text", text }, or { type: "image" or "video", path or data }`,
      );
    }
    await expect(processor.contents([{} as never], {})).rejects.toThrow(RequestError);
  });

  it("ends when it is cancelled", async () => {
    const signal = AbortSignal.abort(new Error("enough"));
    await expect(processor.contents([[image("4x4:1")]], {}, signal)).rejects.toThrow("enough");
  });
});

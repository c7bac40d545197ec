// Prompts with images through the engine, on the reference backend: equalities hold to the bit.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { Engine, type EngineOptions } from "../../src/engine/engine.ts";
import type { PromptImage } from "../../src/engine/images.ts";
import type { Finish } from "../../src/engine/requests.ts";
import { publishedPreprocessing } from "../../src/model/config.ts";
import { forward } from "../../src/model/transformer.ts";
import { encodeImage } from "../../src/model/vision.ts";
import { type OpenModel, openModel } from "../../src/open.ts";
import { imageTokens, normalise } from "../../src/prompt/image.ts";
import { RequestError } from "../../src/tensor/errors.ts";
import { visionModel, writeVisionModel } from "../vision-model.ts";

const folder = mkdtempSync(join(tmpdir(), "llama4-images-"));
let model: OpenModel;
const engines: Engine[] = [];

beforeAll(async () => {
  await writeVisionModel(join(folder, "model"));
  model = await openModel(join(folder, "model"), { backend: "reference", context: 512 });
});
afterAll(async () => {
  await Promise.all(engines.map((engine) => engine.close()));
  model?.close();
  rmSync(folder, { recursive: true, force: true });
});

function open(options: Partial<EngineOptions> = {}): Engine {
  const { backend, parameters, vision, config } = model;
  const engine = new Engine({ backend, parameters, vision, config, context: 512, ...options });
  engines.push(engine);
  return engine;
}

const { tileSize, tokensPerTile } = visionModel;

/** An image of 2 × 1 tiles and its global one. */
function image(seed: number): PromptImage & { rows: number; cols: number } {
  const tiles = Uint8Array.from(
    { length: 3 * 3 * tileSize ** 2 },
    (_, i) => Math.imul(i + 1, 2654435761 + 77 * seed) >>> 24,
  );
  return { tiles, nTiles: 3, rows: 2, cols: 1, key: `image ${seed}` };
}

/** Text, an image, text, an image, …: ids and the images. */
function prompt(...parts: (string | ReturnType<typeof image>)[]) {
  const tokenizer = model.tokenizer!;
  const tokens = parts.flatMap((part) =>
    typeof part === "string"
      ? [...tokenizer.encode(part)]
      : imageTokens(part, tokensPerTile).flatMap(([name, count]) =>
          Array<number>(count).fill(tokenizer.specialId(name)),
        ),
  );
  return { tokens, images: parts.filter((part) => typeof part !== "string") };
}

/** The model without engine and cache: encoder, then one pass. */
async function onePass(
  { tokens, images }: ReturnType<typeof prompt>,
  moments = publishedPreprocessing,
): Promise<number[]> {
  const { backend, parameters, vision, config } = model;
  const pixels = Float32Array.from(images.flatMap(({ tiles }) => [...normalise(tiles, tileSize, moments)]));
  const shape = [pixels.length / (3 * tileSize ** 2), 3, tileSize, tileSize];
  const rows = await encodeImage(vision!, config, backend.from(pixels, shape));
  const at = Int32Array.from([...tokens.keys()].filter((p) => tokens[p] === config.tokens.patch));
  const logits = await forward(parameters, config, {
    tokens: Int32Array.from(tokens),
    segments: [{ row: 0, length: tokens.length, position: 0, sequence: 0 }],
    wanted: Int32Array.from(tokens.keys()),
    images: { rows, at },
  });
  return [...(await backend.read(logits))];
}

async function logits(engine: Engine, { tokens, images }: ReturnType<typeof prompt>): Promise<number[]> {
  const rows: number[] = [];
  for await (const { logits } of engine.logits(tokens, { images })) rows.push(...logits);
  return rows;
}

async function reply(engine: Engine, request: ReturnType<typeof prompt>): Promise<{ tokens: number[]; end: Finish }> {
  const tokens: number[] = [];
  let end: Finish | undefined;
  for await (const { token, finish } of engine.generate({ ...request, maxTokens: 6, sampling: { temperature: 0 } })) {
    tokens.push(token);
    end = finish;
  }
  return { tokens, end: end! };
}

describe("an engine with a vision encoder", () => {
  it.each([1, 7, 512])("in slices of %i computes what encoder and model compute in one pass", async (stepTokens) => {
    const request = prompt("Look: ", image(1), " and ", image(2), image(1), " What is it?");
    expect(await logits(open({ stepTokens }), request)).toEqual(await onePass(request));
  });

  it("reads pixels with the mean and deviation of the checkpoint", async () => {
    const { config } = model;
    const preprocessing = { ...publishedPreprocessing, mean: [0.4, 0.5, 0.6], std: [0.2, 0.3, 0.4] };
    const request = prompt("Look: ", image(1));
    const found = await logits(open({ config: { ...config, vision: { ...config.vision!, preprocessing } } }), request);
    expect(found).toEqual(await onePass(request, preprocessing));
    expect(found).not.toEqual(await onePass(request));
  });

  it("gives two requests with different images in one batch what each gets alone", async () => {
    const requests = [1, 2, 3].map((n) => prompt("Look: ", image(n), " What is it?"));
    const engine = open();
    const together = await Promise.all(requests.map((request) => logits(engine, request)));
    for (const [i, request] of requests.entries()) expect(together[i]).toEqual(await onePass(request));
    expect(together[0]).not.toEqual(together[1]);
  });

  it("takes the same tokens with another image for another text", async () => {
    const engine = open();
    const ask = (n: number) => prompt("Look: ", image(n), ` ${"What is it? ".repeat(8)}`);
    const first = await reply(engine, ask(1));
    expect(first.end).toMatchObject({ encodedTiles: 3, cachedTokens: 0 });
    expect(first.end.encodeMs).toBeGreaterThan(0);
    const other = await reply(engine, ask(2));
    expect(other.end).toMatchObject({ encodedTiles: 3, cachedTokens: 0 });
    expect(other.tokens).toEqual((await reply(open(), ask(2))).tokens);
    const again = await reply(engine, ask(1));
    expect(again.end.encodedTiles).toBe(0);
    expect(again.end.cachedTokens).toBeGreaterThan(30);
    expect(again.tokens).toEqual(first.tokens);
  });

  it("encodes an image once for several questions, also in one prompt", async () => {
    const engine = open({ sharePrefixes: false });
    expect((await reply(engine, prompt(image(1), "Why?", image(1)))).end.encodedTiles).toBe(3);
    expect((await reply(engine, prompt("Who is this? ", image(1)))).end.encodedTiles).toBe(0);
    const bytes = 3 * tokensPerTile * model.config.dim * 4;
    expect(engine.stats().images).toEqual({ tilesEncoded: 3, found: 1, kept: 1, bytes, mostBytes: 256e6 });
  });

  it("keeps features only as long as there is room for them", async () => {
    const engine = open({ sharePrefixes: false, imageCacheBytes: 3 * tokensPerTile * model.config.dim * 4 });
    const tiles = async (n: number) => (await reply(engine, prompt(image(n), "Why?"))).end.encodedTiles;
    expect([await tiles(1), await tiles(1), await tiles(2), await tiles(2), await tiles(1)]).toEqual([3, 0, 3, 0, 3]);
  });

  it("does not push out what it keeps for an image that has no room", async () => {
    const engine = open({ sharePrefixes: false, imageCacheBytes: 4 * tokensPerTile * model.config.dim * 4 });
    const large = { ...image(9), tiles: new Uint8Array(5 * 3 * tileSize ** 2), nTiles: 5, rows: 4 };
    const tiles = async (of: ReturnType<typeof image>) => (await reply(engine, prompt(of, "Why?"))).end.encodedTiles;
    expect([await tiles(image(1)), await tiles(large), await tiles(image(1))]).toEqual([3, 5, 0]);
  });

  it("has nothing guessed by a draft model, which sees no images", async () => {
    const { backend, parameters, config } = model;
    const speculation = { backend, parameters, config, context: 512, kvDtype: "f32" } as const;
    const seen = await reply(open({ speculation }), prompt("Look: ", image(1)));
    expect(seen.end.guessedTokens).toBe(0);
    expect(seen.tokens).toEqual((await reply(open(), prompt("Look: ", image(1)))).tokens);
    expect((await reply(open({ speculation }), prompt("Hello"))).end.guessedTokens).toBeGreaterThan(0);
  });

  it("lets a request without images go first while others' are encoded", async () => {
    const engine = open();
    const order: string[] = [];
    const many = prompt("Look: ", ...[1, 2, 3, 4].map(image));
    await Promise.all([
      reply(engine, many).then(() => order.push("images")),
      reply(engine, prompt("Hello")).then(() => order.push("text")),
    ]);
    expect(order).toEqual(["text", "images"]);
  });

  it("encodes an image only when the next step could reach it", async () => {
    const order: string[] = [];
    const original = model.backend.from.bind(model.backend);
    const from = vi.spyOn(model.backend, "from").mockImplementation((data, shape) => {
      if (shape.length === 4) order.push("encode");
      return original(data, shape);
    });
    const step: EngineOptions["forward"] = (p, c, step) => {
      order.push(`to ${step.segments[0]!.position + step.segments[0]!.length}`);
      return forward(p, c, step);
    };
    const text = "x".repeat(40);
    try {
      await reply(open({ stepTokens: 32, forward: step }), prompt(text, image(1), text, image(2)));
    } finally {
      from.mockRestore();
    }
    const [first, second] = [order.indexOf("encode"), order.lastIndexOf("encode")];
    expect(order.filter((what) => what === "encode")).toHaveLength(2);
    expect(order.slice(0, first)).toEqual(["to 32"]); // the first image begins at 41
    expect(order[second - 1]).toBe("to 96"); // and the second at 98
  });

  it.each([0, 1e6])("replies the same while features are few, %i bytes, and starts again", async (imageCacheBytes) => {
    const requests = [1, 2, 3, 4].map((n) => prompt(image(n), "abc".repeat(9 * n), image(n + 1), "?"));
    const engine = open({ imageCacheBytes, context: 192, stepTokens: 24, sharePrefixes: false });
    const together = await Promise.all(requests.map((request) => reply(engine, request)));
    for (const [i, request] of requests.entries())
      expect(together[i]!.tokens).toEqual((await reply(open(), request)).tokens);
  });

  it("guesses ahead behind images, and replies the same", async () => {
    const request = prompt("abcabcabc ", image(1), " abcabcabc");
    const { tokens } = await reply(open({ speculation: "lookup" }), request);
    expect(tokens).toEqual((await reply(open(), request)).tokens);
  });

  it("stops encoding when the request is cancelled", async () => {
    const engine = open();
    const cancel = new AbortController();
    const { tokens, images } = prompt(...[1, 2, 3, 4, 5].map(image));
    const running = engine.generate({ tokens, images, signal: cancel.signal }).next();
    setTimeout(() => cancel.abort(new Error("enough")));
    await expect(running).rejects.toThrow("enough");
    expect((await reply(engine, prompt("Hello"))).tokens).toHaveLength(6);
  });

  it("refuses images that do not fit their patches, and all where there is no encoder", () => {
    const { tokens, images } = prompt("Look: ", image(1));
    const generate =
      (images: readonly PromptImage[], engine = open()) =>
      () =>
        engine.generate({ tokens, images });
    expect(generate([...images, image(2)])).toThrow("has 12 patches and its 2 images have 24; expected as many");
    expect(generate([{ ...image(1), nTiles: 2 }])).toThrow(RequestError);
    expect(generate([])).toThrow("has 12 patches and its 0 images have 0; expected as many");
    expect(generate(images, open({ vision: undefined }))).toThrow("reads text only");
    expect(() => open({ imageCacheBytes: Number.NaN })).toThrow("imageCacheBytes is NaN");
  });
});

import { describe, expect, it } from "vitest";
import { memorySource } from "../../src/checkpoint/source.ts";
import { metaFormat } from "../../src/prompt/chat-format.ts";
import { byteLevel } from "../../src/prompt/small-vocabularies.ts";
import { type Batch, Batches, type BatchOptions, inOrder, shuffled } from "../../src/train/batches.ts";
import { Documents, tilesHeader } from "../../src/train/documents.ts";

const tokenizer = byteLevel({ vocabSize: 320 });
const side = 2;

function file(records: readonly unknown[], name = "data.jsonl") {
  const text = records.map((record) => (typeof record === "string" ? record : JSON.stringify(record))).join("\n");
  return memorySource(new TextEncoder().encode(`${text}\n`), name);
}

/** Tiles of which every byte is the tile's number. */
function tilesFile(count: number, cut = 0) {
  const bytes = new Uint8Array(16 + count * 3 * side ** 2 - cut);
  bytes.set(tilesHeader(side));
  for (let i = 16; i < bytes.length; i++) bytes[i] = Math.floor((i - 16) / (3 * side ** 2));
  return memorySource(bytes, "data.tiles");
}

const answers = { loss: "answers", tokensPerTile: 4 } as const;
const decoded = (ids: Iterable<number>) => tokenizer.decode(ids);
const options: BatchOptions = { rows: 64, context: 40, tokensPerTile: 4, seed: 1 };

describe("documents", () => {
  const chat = {
    messages: [
      { role: "user", content: ["What? ", { image: 3 }] },
      { role: "assistant", content: "A cat." },
      { role: "user", content: [{ video: [0, 1], times: [0, 0.5] }, "And?"] },
      { role: "assistant", content: "It ran." },
    ],
  };

  it("of a chat are the tokens of the chat format with images in their places, and answers count", async () => {
    const documents = await Documents.open(file([chat]), tilesFile(5));
    const { tokens, counts, tiles } = await documents.example(0, tokenizer, answers);
    const block = "<|image_start|><|image|><|patch|><|patch|><|patch|><|patch|><|image_end|>";
    expect(decoded(tokens)).toBe(
      `<|begin_of_text|><|header_start|>user<|header_end|>\n\nWhat? ${block}<|eot|>` +
        `<|header_start|>assistant<|header_end|>\n\nA cat.<|eot|>` +
        `<|header_start|>user<|header_end|>\n\n[0:00.0]${block}[0:00.5]${block}And?<|eot|>` +
        `<|header_start|>assistant<|header_end|>\n\nIt ran.<|eot|>`,
    );
    expect(decoded(tokens.filter((_, i) => counts[i]))).toBe("A cat.<|eot|>It ran.<|eot|>");
    expect(tiles).toEqual([3, 0, 1]);
    const plain = chat.messages.slice(0, 1).map(({ role }) => ({ role: role as "user", content: "What? " }));
    const prompt = metaFormat(tokenizer).encode(plain, { addGenerationPrompt: false }).ids;
    expect([...tokens.subarray(0, prompt.length - 1)]).toEqual([...prompt.subarray(0, -1)]); // as a prompt begins
  });

  it("of several tiles have their separators and the global tile, and no image token counts", async () => {
    const documents = await Documents.open(
      file([{ parts: ["ab", { image: 0, rows: 1, cols: 2 }, "c"] }]),
      tilesFile(3),
    );
    const { tokens, counts, tiles } = await documents.example(0, tokenizer, { loss: "text", tokensPerTile: 1 });
    expect(decoded(tokens)).toBe(
      "<|begin_of_text|>ab<|image_start|><|patch|><|tile_x_separator|><|patch|><|tile_y_separator|><|image|><|patch|><|image_end|>c<|end_of_text|>",
    );
    expect(decoded(tokens.filter((_, i) => counts[i]))).toBe("abc<|end_of_text|>");
    expect(tiles).toEqual([0, 1, 2]);
  });

  it.each([
    ['{"text": "cut', /data.jsonl: line 2, at byte 16: no JSON/],
    [{ words: 1 }, /line 2, at byte 16: an object of words; expected/],
    ["7", /7 is no object/],
    [{ parts: [{ image: 5 }] }, /an image at tile 5 of 1 × 1 among 5/],
    [{ parts: [{ image: 3, rows: 2, cols: 1 }] }, /an image at tile 3 of 2 × 1 among 5/],
    [{ parts: [{ video: [0], times: [] }] }, /a video with a time for each frame/],
    [{ messages: [{ role: "robot", content: "x" }] }, /role is "robot"/],
    [{ messages: [{ role: "user", content: "x" }] }, /nothing to learn/],
  ])("that are none are refused with their place: %j", async (record, message) => {
    const documents = await Documents.open(file([{ text: "good" }, record]), tilesFile(5));
    expect(documents.length).toBe(2);
    await documents.example(0, tokenizer, answers);
    await expect(documents.example(1, tokenizer, answers)).rejects.toThrow(message as RegExp);
    await expect(documents.example(1, tokenizer, answers)).rejects.toMatchObject({ name: "TrainingError" });
  });

  it("refuse an empty file, bytes that are no text, and a tiles file that was cut off", async () => {
    await expect(Documents.open(memorySource(new Uint8Array(), "e.jsonl"))).rejects.toThrow(/e.jsonl: it is empty/);
    const bad = await Documents.open(memorySource(Uint8Array.of(0x22, 0xff, 0x22), "bad.jsonl"));
    await expect(bad.example(0, tokenizer, answers)).rejects.toThrow(/bad.jsonl: line 1, at byte 0: no UTF-8/);
    await expect(bad.text(0)).rejects.toThrow(/bad.jsonl: line 1, at byte 0: no UTF-8/); // where a vocabulary is learnt
    const cut = await Documents.open(file([{ text: "good" }, '{"text": "cut']));
    await expect(cut.text(1)).rejects.toThrow(/data.jsonl: line 2, at byte 16: no JSON/);
    await expect(Documents.open(file([chat]), tilesFile(5, 1))).rejects.toThrow(/data.tiles: .* cut off/);
  });
});

it("every n-th document can be held out, and is known by its line", async () => {
  const texts = Array.from({ length: 7 }, (_, i) => (i === 5 ? "no JSON" : { text: `${i}` }));
  const { learnt, heldOut } = (await Documents.open(file(texts))).split(3);
  expect([learnt.length, heldOut.length]).toEqual([5, 2]);
  expect(await heldOut.text(0)).toBe("2");
  expect(await Promise.all([0, 1, 2, 3, 4].map((i) => learnt.text(i)))).toEqual(["0", "1", "3", "4", "6"]);
  await expect(heldOut.record(1)).rejects.toThrow(/data.jsonl: line 6, at byte \d+: no JSON/);
});

describe("batches", () => {
  const words = (n: number, letter: string) => letter.repeat(n);
  const open = async () =>
    new Map([
      [
        "a",
        await Documents.open(
          file(
            [10, 90, 3, 25].map((n) => ({ text: words(n, "a") })),
            "a.jsonl",
          ),
        ),
      ],
      [
        "b",
        await Documents.open(
          file(
            [0, 1, 2].map((i) => ({
              messages: [
                { role: "user", content: [{ image: i }] },
                { role: "assistant", content: "b" },
              ],
            })),
            "b.jsonl",
          ),
          tilesFile(3),
        ),
      ],
    ]);
  const mix = { shares: { a: 3, b: 1 }, loss: "answers" } as const;
  const take = async (batches: Batches, n: number) => {
    const got: Batch[] = [];
    for (let i = 0; i < n; i++) got.push(await batches.next(mix));
    return got;
  };

  it("hold documents side by side, each row predicts the next token of its own, and patches have their pixels", async () => {
    for (const batch of await take(new Batches(await open(), tokenizer, options), 12)) {
      let row = 0;
      for (const segment of batch.segments) {
        expect(segment).toMatchObject({ row, position: 0 });
        expect(segment.length).toBeLessThanOrEqual(options.context);
        row += segment.length;
      }
      expect(row).toBe(batch.tokens.length);
      expect(row).toBeLessThanOrEqual(options.rows);
      const ends = new Set(batch.segments.map(({ row, length }) => row + length - 1));
      for (const [i, at] of batch.wanted.entries()) {
        expect(ends.has(at)).toBe(false);
        expect(batch.tokens[at + 1]).toBe(batch.targets[i]);
      }
      const patches = [...batch.tokens.keys()].filter((i) => batch.tokens[i] === tokenizer.specialId("<|patch|>"));
      expect([...(batch.images?.at ?? [])]).toEqual(patches);
      expect(batch.images?.pixels.length ?? 0).toBe((patches.length / 4) * 3 * side ** 2);
    }
  });

  it("give every token that counts once an epoch, and sources by their shares", async () => {
    const batches = new Batches(await open(), tokenizer, options);
    let learnt = 0;
    while (batches.cursor["a"]!.epoch === 0)
      learnt += (await batches.next(mix)).targets.filter((id) => id === "a".charCodeAt(0)).length;
    expect(learnt).toBeGreaterThanOrEqual(10 + 90 + 3 + 25);
    expect(learnt).toBeLessThan(10 + 90 + 3 + 25 + 64);
    await take(batches, 60);
    const { a, b } = batches.cursor;
    expect(a!.taken / b!.taken).toBeGreaterThan(2.7);
    expect(a!.taken / b!.taken).toBeLessThan(3.3);
  });

  it("go on from a cursor as if nothing had been, and differ with the seed", async () => {
    const whole = await take(new Batches(await open(), tokenizer, options), 14);
    for (const at of [1, 5, 9]) {
      const first = new Batches(await open(), tokenizer, options);
      await take(first, at);
      const cursor = JSON.parse(JSON.stringify(first.cursor));
      expect(await take(new Batches(await open(), tokenizer, options, cursor), 14 - at)).toEqual(whole.slice(at));
    }
    expect(await take(new Batches(await open(), tokenizer, { ...options, seed: 2 }), 14)).not.toEqual(whole);
  });

  it("of a source that is new to a run that goes on begin with all of it", async () => {
    const only = { shares: { b: 1 }, loss: "answers" } as const;
    const before = new Batches(new Map([["a", (await open()).get("a")!]]), tokenizer, options);
    await before.next({ shares: { a: 1 }, loss: "answers" });
    const after = new Batches(await open(), tokenizer, options, before.cursor);
    expect(await after.next(only)).toEqual(await new Batches(await open(), tokenizer, options).next(only));
    expect(after.cursor["a"]).toEqual(before.cursor["a"]);
  });

  it("refuse a chat longer than the context, and a mix that names no data", async () => {
    const long = {
      messages: [
        { role: "user", content: words(60, "x") },
        { role: "assistant", content: "y" },
      ],
    };
    const batches = new Batches(new Map([["c", await Documents.open(file([long], "c.jsonl"))]]), tokenizer, options);
    await expect(batches.next({ shares: { c: 1 }, loss: "answers" })).rejects.toThrow(
      /c.jsonl: .* has 85 tokens; expected at most 40/,
    );
    await expect(batches.next({ shares: { d: 1 }, loss: "answers" })).rejects.toThrow(/names "d"; expected one of c/);
  });

  it("in order cover the first documents of a file", async () => {
    const { a } = Object.fromEntries(await open());
    const got: Batch[] = [];
    for await (const batch of inOrder(a!, tokenizer, options, { loss: "text", most: Infinity })) got.push(batch);
    const text = got.flatMap((batch) => [...batch.targets]);
    expect(decoded(text)).toBe([10, 90, 3, 25].map((n) => `${words(n, "a")}<|end_of_text|>`).join(""));
  });
});

it("an order holds every number once and depends on its key", () => {
  const order = shuffled(1000, "1 a 0");
  expect([...order].sort((x, y) => x - y)).toEqual(Array.from({ length: 1000 }, (_, i) => i));
  expect(shuffled(1000, "1 a 0")).toEqual(order);
  expect(shuffled(1000, "1 a 1")).not.toEqual(order);
  const still = order.filter((x, i) => x === i).length;
  expect(still).toBeLessThan(10); // about one is expected
});

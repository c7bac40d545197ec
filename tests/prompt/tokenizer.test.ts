import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { fromGguf, toGguf } from "../../src/prompt/gguf-vocabulary.ts";
import { byteLevel, cut } from "../../src/prompt/small-vocabularies.ts";
import { LLAMA4_SPECIAL_TOKENS } from "../../src/prompt/special-tokens.ts";
import { continuationTemplate } from "../../src/prompt/template.ts";
import { fromTiktoken } from "../../src/prompt/tiktoken.ts";
import type { Tokenizer } from "../../src/prompt/tokenizer.ts";
import { fromHuggingFace, toHuggingFace, toHuggingFaceConfig } from "../../src/prompt/tokenizer-json.ts";
import { CheckpointError, RequestError } from "../../src/tensor/errors.ts";
import { corpus } from "./corpus.ts";
import { metaTokenizer, unlessMissing } from "./meta-tokenizer.ts";
import { smallRanks, smallTokenizer } from "./vocabularies.ts";

const small = smallTokenizer();
const anyText = fc.oneof(fc.string({ unit: "binary", maxLength: 200 }), fc.string({ maxLength: 200 }));

/** How many ids differ; toEqual takes seconds for a million. */
const differing = (a: Int32Array, b: Int32Array): number =>
  Math.abs(a.length - b.length) + a.reduce((sum, id, i) => sum + (i < b.length && id !== b[i] ? 1 : 0), 0);

const throughJson = (tokenizer: Tokenizer): unknown => JSON.parse(JSON.stringify(toHuggingFace(tokenizer)));

describe.skipIf(!metaTokenizer)(`the official vocabulary${unlessMissing}`, () => {
  const official = metaTokenizer ? fromTiktoken(metaTokenizer, { vocabSize: 202_048 }) : small;
  const golden: { text: string; ids: number[] }[] = JSON.parse(
    readFileSync(new URL("../golden/llama4/tokenizer_golden.json", import.meta.url), "utf8"),
  );

  test("gives tiktoken's ids for every golden text, and the text back", () => {
    for (const { text, ids } of golden) {
      expect([...official.encode(text)], text).toEqual(ids);
      expect(official.decode(ids)).toBe(text);
    }
  });

  test("gives the same ids from tokenizer.model, tokenizer.json and GGUF", () => {
    const text = corpus(1_000_000, 1);
    const ids = official.encode(text);
    expect(differing(fromHuggingFace(throughJson(official)).encode(text), ids)).toBe(0);
    expect(differing(fromGguf(toGguf(official)).encode(text), ids)).toBe(0);
    expect(official.decode(ids)).toBe(text);
  });

  test("has its special tokens where Meta put them", () => {
    expect(official.bos).toBe(200_000);
    expect([...official.stop]).toEqual([200_001, 200_007, 200_008]);
    expect(official.special.get("<|patch|>")).toBe(200_092);
    expect(official.special.get("<|reasoning_thinking_start|>")).toBe(201_142);
    expect(official.special.get("<|reserved_special_token_903|>")).toBe(202_047);
  });

  test("writes as many merges as Hugging Face's conversion has", () => {
    expect(toGguf(official).merges).toHaveLength(439_802);
  });
});

describe("a small vocabulary", () => {
  test("gives the same ids from tokenizer.model, tokenizer.json and GGUF", () => {
    const text = corpus(300_000, 2);
    const ids = small.encode(text);
    expect(differing(fromHuggingFace(throughJson(small)).encode(text), ids)).toBe(0);
    expect(differing(fromGguf(toGguf(small)).encode(text), ids)).toBe(0);
    expect(differing(fromGguf({ ...toGguf(small), merges: undefined }).encode(text), ids)).toBe(0);
    expect(ids.length).toBeLessThan(Buffer.byteLength(text) / 1.5);
  });

  test("decodes what it encoded, for any text", () => {
    fc.assert(
      fc.property(anyText, (text) => {
        expect(small.decode(small.encode(text))).toBe(text);
      }),
    );
  });

  test("short and long pieces get the ids of the rule as tiktoken states it", () => {
    // Merge the pair of lowest rank, leftmost first, until none is left: 96 bytes and fewer are scanned, more heaped.
    const ranks = new Map(
      Array.from({ length: small.vocabSize - small.special.size }, (_, id) => [
        Buffer.from(small.tokenBytes(id)).toString("latin1"),
        id,
      ]),
    );
    const plain = (text: string): number[] => {
      const parts = [...Buffer.from(text).toString("latin1")];
      if (ranks.has(parts.join(""))) return [ranks.get(parts.join(""))!];
      for (;;) {
        const rank = parts.slice(1).map((right, i) => ranks.get(parts[i]! + right) ?? Infinity);
        const lowest = Math.min(...rank);
        if (lowest === Infinity) return parts.map((part) => ranks.get(part)!);
        const at = rank.indexOf(lowest);
        parts.splice(at, 2, parts[at]! + parts[at + 1]!);
      }
    };
    const syllable = fc.constantFrom("a", "aa", "th", "he", "quick", "over", "e", "ку", "быстр", "日本", "ท");
    fc.assert(
      fc.property(fc.array(syllable, { minLength: 1, maxLength: 120 }), (syllables) => {
        const text = syllables.join("");
        expect([...small.encode(text)]).toEqual(plain(text));
      }),
    );
  });

  test("an ordinary token may look like a special one", () => {
    const twin = fromTiktoken(
      `${smallRanks()}${Buffer.from("<|eot|>").toString("base64")} ${smallRanks().split("\n").length - 1}`,
    );
    const ids = twin.encode("<|eot|>");
    expect(fromHuggingFace(throughJson(twin)).encode("<|eot|>")).toEqual(ids);
    expect(fromGguf(toGguf(twin)).encode("<|eot|>")).toEqual(ids);
    for (const id of ids) expect(twin.isSpecial(id)).toBe(false);
  });

  test("encodes a megabyte of one letter in under five seconds", () => {
    const start = performance.now();
    expect(small.encode("a".repeat(1_000_000)).length).toBeLessThan(200_000);
    expect(performance.now() - start).toBeLessThan(5_000);
  });

  test("text beyond 400,000 characters is encoded slice by slice", () => {
    const text = "the ".repeat(100_001);
    expect(small.encode(text)).toEqual(
      Int32Array.from([...small.encode(text.slice(0, 400_000)), ...small.encode(text.slice(400_000))]),
    );
  });
});

describe("special tokens", () => {
  const eot = small.special.get("<|eot|>")!;

  test("in text they are ordinary text unless allowed", () => {
    expect([...small.encode("a<|eot|>")]).not.toContain(eot);
    expect([...small.encode("<|eot|>b<|eom|>", { allowSpecial: true })]).toEqual([
      eot,
      ...small.encode("b"),
      small.special.get("<|eom|>")!,
    ]);
    expect([...small.encode("<|eot|><|eom|>", { allowSpecial: new Set(["<|eot|>"]) })]).toEqual([
      eot,
      ...small.encode("<|eom|>"),
    ]);
  });

  test("no text yields one", () => {
    const piece = fc.constantFrom("<", "|", ">", "eot", "<|", "|>", "<|eot|>", "header_start", " ");
    fc.assert(
      fc.property(fc.array(piece), (pieces) => {
        for (const id of small.encode(pieces.join(""))) expect(small.isSpecial(id)).toBe(false);
      }),
    );
  });

  test("the begin-of-text token stands in front on request", () => {
    expect([...small.encode("a", { bos: true })]).toEqual([small.bos, ...small.encode("a")]);
  });

  test("there are 2,048, each once", () => {
    expect(LLAMA4_SPECIAL_TOKENS).toHaveLength(2048);
    expect(new Set(LLAMA4_SPECIAL_TOKENS).size).toBe(2048);
  });

  test("decoding leaves them out on request", () => {
    const ids = [small.bos!, ...small.encode("hi"), eot];
    expect(small.decode(ids)).toBe("<|begin_of_text|>hi<|eot|>");
    expect(small.decode(ids, { skipSpecial: true })).toBe("hi");
  });
});

describe("streaming", () => {
  test("the pieces joined are the whole, and no piece holds half a character", () => {
    fc.assert(
      fc.property(anyText, (text) => {
        const decoder = byteLevel({ vocabSize: 256 }).streamDecoder();
        const pieces = [...new TextEncoder().encode(text)].map((byte) => decoder.push(byte));
        expect(pieces.join("") + decoder.end()).toBe(text);
        for (const piece of pieces) expect(piece.includes("\ufffd") && !text.includes("\ufffd")).toBe(false);
      }),
    );
  });

  test("for any ids it gives what decode gives", () => {
    const ids = fc.array(fc.integer({ min: 0, max: small.vocabSize - 1 }));
    fc.assert(
      fc.property(ids, fc.boolean(), (list, skipSpecial) => {
        const decoder = small.streamDecoder({ skipSpecial });
        expect(list.map((id) => decoder.push(id)).join("") + decoder.end()).toBe(small.decode(list, { skipSpecial }));
      }),
    );
  });

  test("an id beyond the vocabulary is a mistake of the request", () => {
    expect(() => small.decode([small.vocabSize])).toThrow(RequestError);
    expect(() => small.tokenBytes(-1)).toThrow(RequestError);
  });
});

describe("vocabularies cut to size", () => {
  test("bytes alone encode any text, with the special tokens that fit", () => {
    const tokenizer = byteLevel({ vocabSize: 512 });
    expect(tokenizer.vocabSize).toBe(512);
    expect([...tokenizer.encode("é<|eot|>")]).toEqual([...new TextEncoder().encode("é<|eot|>")]);
    expect(tokenizer.special.get("<|begin_of_text|>")).toBe(256);
    expect(tokenizer.special.has("<|patch|>")).toBe(true);
  });

  test("where few fit, the ones that chat and images need come first", () => {
    const names = [...byteLevel({ vocabSize: 271 }).special.keys()];
    expect(names).toHaveLength(15);
    for (const text of [
      "<|begin_of_text|>",
      "<|header_start|>",
      "<|eot|>",
      "<|python_start|>",
      "<|image|>",
      "<|patch|>",
    ])
      expect(names).toContain(text);
  });

  test("a larger byte-level vocabulary has a token in every row, also once written and read", () => {
    const tokenizer = byteLevel({ vocabSize: 5000 });
    expect(fromHuggingFace(throughJson(tokenizer), { vocabSize: 5000 }).special).toEqual(tokenizer.special);
    expect(fromGguf(toGguf(tokenizer), { vocabSize: 5000 }).special).toEqual(tokenizer.special);
  });

  test("a cut keeps the first ranks and puts the special tokens behind them", () => {
    const tokenizer = cut(small, 600);
    expect(tokenizer.vocabSize).toBe(600);
    expect(tokenizer.special.get("<|begin_of_text|>")).toBe(600 - 128);
    for (const id of [0, 255, 300, 471]) expect(tokenizer.tokenBytes(id)).toEqual(small.tokenBytes(id));
    const text = corpus(20_000, 3);
    expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
    expect(fromHuggingFace(throughJson(tokenizer)).encode(text)).toEqual(tokenizer.encode(text));
  });

  test("a cut to the full size changes nothing", () => {
    const whole = cut(small, small.vocabSize);
    expect(whole.special).toEqual(small.special);
    expect(whole.encode("the quick Brown FOX")).toEqual(small.encode("the quick Brown FOX"));
  });

  test("sizes that cannot be are refused", () => {
    expect(() => byteLevel({ vocabSize: 255 })).toThrow(RequestError);
    expect(() => cut(small, 200)).toThrow(RequestError);
    expect(() => cut(small, small.vocabSize + 1)).toThrow(RequestError);
    expect(() => cut(small, 300.5)).toThrow(RequestError);
  });
});

describe("the end token that other programs are told", () => {
  const bytes = byteLevel({ vocabSize: 512 });
  const told = (chatTemplate?: string) => [
    toHuggingFaceConfig(bytes, { ...(chatTemplate && { chatTemplate }) }).eos_token,
    bytes.decode([toGguf(bytes, { chatTemplate }).eos!]),
  ];

  test("is that of a turn where the model knows turns", () => {
    expect(told()).toEqual(["<|eot|>", "<|eot|>"]);
    expect(told("{{ messages[0].content }}<|eot|>")).toEqual(["<|eot|>", "<|eot|>"]);
  });

  // Texts end in it in training; `<|eot|>`, which was told, such a model has never seen.
  test("is that of a text where the model has seen texts alone", () => {
    expect(told(continuationTemplate)).toEqual(["<|end_of_text|>", "<|end_of_text|>"]);
  });
});

describe("files that are wrong", () => {
  const lines = smallRanks().split("\n");
  const withLine = (at: number, line: string) => [...lines.slice(0, at), line, ...lines.slice(at + 1)].join("\n");

  test.each([
    ["is not base64", withLine(3, "**** 3")],
    ["is cut short", withLine(3, "QQ 3")],
    ["has no rank", withLine(3, "QUJD")],
    ["has a rank twice", withLine(3, "QUJD 2")],
    ["has a rank that is no number", withLine(3, "QUJD 3x")],
    ["has a token twice", withLine(300, `${lines[3]!.split(" ")[0]} 300`)],
    ["lacks a single byte", withLine(3, "QUJDREVG 3")],
    ["is empty", ""],
    ["is something else", "\u0000PNG\n\u0001"],
  ])("a tokenizer.model that %s", (_, file) => {
    expect(() => fromTiktoken(file)).toThrow(CheckpointError);
  });

  test("a vocabulary of another size than the model's", () => {
    expect(() => fromTiktoken(smallRanks(), { vocabSize: 202_048 })).toThrow(
      /tokens and the model has 202048; expected as many/,
    );
    expect(() => fromHuggingFace(throughJson(small), { vocabSize: 5 })).toThrow(CheckpointError);
    expect(() => fromGguf(toGguf(small), { vocabSize: small.vocabSize + 1 })).toThrow(CheckpointError);
  });

  const json = throughJson(small) as { model: Record<string, unknown>; added_tokens: Record<string, unknown>[] };
  test.each<[string, unknown]>([
    ["is null", null],
    ["is a list", []],
    ["has another model", { ...json, model: { ...json.model, type: "Unigram" } }],
    ["has no vocabulary", { ...json, model: { ...json.model, vocab: undefined } }],
    ["has an id that is none", { ...json, model: { ...json.model, vocab: { a: -1 } } }],
    ["has a huge id", { ...json, model: { ...json.model, vocab: { a: 2 ** 40 } } }],
    ["has an id twice", { ...json, model: { ...json.model, vocab: { a: 1, b: 1 } } }],
    ["has tokens outside the alphabet", { ...json, model: { ...json.model, vocab: { "a b": 1 } } }],
    ["merges what is not there", { ...json, model: { ...json.model, merges: [["zz", "zz"]] } }],
    ["merges three", { ...json, model: { ...json.model, merges: ["a b c"] } }],
    ["merges a pair twice", { ...json, model: { ...json.model, merges: ["a a", "a a"] } }],
    ["normalises", { ...json, normalizer: { type: "NFC" } }],
    ["cuts by an unknown step", { ...json, pre_tokenizer: { type: "Metaspace" } }],
    ["has a special token without an id", { ...json, added_tokens: [{ content: "<x>" }] }],
    ["has a special token that strips", { ...json, added_tokens: [{ content: "<x>", id: 9000, lstrip: true }] }],
    ["has a special token twice", { ...json, added_tokens: [json.added_tokens[0], json.added_tokens[0]] }],
  ])("a tokenizer.json that %s", (_, file) => {
    expect(() => fromHuggingFace(file)).toThrow(CheckpointError);
  });

  const gguf = toGguf(small);
  test.each<[string, Partial<typeof gguf>]>([
    ["is of another model", { model: "llama" }],
    ["has an unknown pre-tokeniser", { pre: "tekken" }],
    ["has too few types", { tokenTypes: gguf.tokenTypes.slice(1) }],
    ["has unknown types", { tokenTypes: gguf.tokenTypes.map(() => 9) }],
    ["merges nothing", { merges: [" "] }],
    ["merges what is not there", { merges: ["zz zz"] }],
  ])("a GGUF vocabulary that %s", (_, change) => {
    expect(() => fromGguf({ ...gguf, ...change })).toThrow(CheckpointError);
  });

  test("begin and end tokens beyond the vocabulary", () => {
    expect(() => fromGguf(gguf, { bos: small.vocabSize })).toThrow(CheckpointError);
    expect(() => fromGguf(gguf, { eos: [-1] })).toThrow(CheckpointError);
  });

  const opens = (open: () => Tokenizer) => {
    try {
      const tokenizer = open();
      expect(tokenizer.decode(tokenizer.encode("the quick Brown FOX 日本"))).toBe("the quick Brown FOX 日本");
    } catch (error) {
      expect(error).toBeInstanceOf(CheckpointError);
    }
  };

  test("2,000 tokenizer.model files with changed bytes open or are refused", () => {
    const file = new TextEncoder().encode(smallRanks());
    const changes = fc.array(fc.tuple(fc.nat(file.length - 1), fc.nat(255)), { minLength: 1, maxLength: 5 });
    fc.assert(
      fc.property(changes, fc.boolean(), (edits, truncates) => {
        const bytes = file.slice(0, truncates ? edits[0]![0] : file.length);
        for (const [at, value] of edits) bytes[at] = value;
        opens(() => fromTiktoken(bytes));
      }),
      { numRuns: 2000 },
    );
  });

  test("2,000 tokenizer.json and GGUF vocabularies with changed values open or are refused", () => {
    const deep = JSON.parse(`${"[".repeat(100_000)}${"]".repeat(100_000)}`);
    const value = fc.oneof(
      fc.jsonValue(),
      fc.constantFrom(-1, 0.5, 2 ** 31, 1e300, "", "a", "a b", [], {}, deep, undefined),
    );
    const numbers = fc.array(fc.nat(), { minLength: 1, maxLength: 4 });
    fc.assert(
      fc.property(value, numbers, (changed, path) => {
        opens(() => fromHuggingFace(changedAt(json, path, changed)));
        const { tokens, tokenTypes, merges, pre, model } = gguf;
        const parts = { tokens, tokenTypes: [...tokenTypes], merges, pre, model };
        const strings = typeof changed === "string" ? changed : "\u0000";
        opens(() => fromGguf(changedAt(parts, [path[0]!, path[1] ?? 0], strings) as typeof parts));
      }),
      { numRuns: 2000 },
    );
  });
});

/** A copy with the value at a path changed; each number picks a key, and the path ends where there are none. */
function changedAt(value: unknown, [pick, ...rest]: number[], changed: unknown): unknown {
  if (pick === undefined || typeof value !== "object" || value === null) return changed;
  const keys = Object.keys(value);
  if (keys.length === 0) return changed;
  const key = keys[pick % keys.length]!;
  const inner = changedAt(value[key as keyof typeof value], rest, changed);
  return Array.isArray(value) ? value.with(Number(key), inner) : { ...value, [key]: inner };
}

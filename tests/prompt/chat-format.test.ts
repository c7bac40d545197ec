import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type Message, metaFormat, type PlainPart } from "../../src/prompt/chat-format.ts";
import { byteLevel } from "../../src/prompt/small-vocabularies.ts";
import { fromTiktoken } from "../../src/prompt/tiktoken.ts";
import { CheckpointError, RequestError } from "../../src/tensor/errors.ts";
import { metaTokenizer, unlessMissing } from "./meta-tokenizer.ts";

// Bytes and special tokens alone: what is encoded separately cannot merge, so the rendered text says it all.
const bytes = byteLevel({ vocabSize: 512 });
const format = metaFormat(bytes);
const rendered = (messages: Message<PlainPart>[], options = {}) => bytes.decode(format.encode(messages, options).ids);

const header = (role: string) => `<|header_start|>${role}<|header_end|>\n\n`;

describe("Meta's chat format", () => {
  test.skipIf(!metaTokenizer)(`gives the ids of Meta's own example${unlessMissing}`, () => {
    const { ids } = metaFormat(fromTiktoken(metaTokenizer!)).encode([
      { role: "system", content: "You are a helpful assistant" },
      { role: "user", content: "Answer who are you in the form of jeopardy?" },
    ]);
    expect([...ids]).toEqual([
      200000, 200005, 15651, 200006, 368, 4662, 583, 262, 19933, 43910, 200008, 200005, 1556, 200006, 368, 4984, 2117,
      583, 650, 310, 290, 1075, 323, 1997, 153495, 43, 200008, 200005, 140680, 200006, 368,
    ]);
  });

  test("ends with the header of the reply to come, unless told not to", () => {
    const messages: Message<PlainPart>[] = [{ role: "user", content: "hi" }];
    const turn = `<|begin_of_text|>${header("user")}hi<|eot|>`;
    expect(rendered(messages)).toBe(turn + header("assistant"));
    expect(rendered(messages, { addGenerationPrompt: false })).toBe(turn);
  });

  test("goes on with an open message, which has no end", () => {
    const asked: Message<PlainPart> = { role: "user", content: "hi" };
    const open: Message<PlainPart> = { role: "assistant", content: "It is", isOpen: true };
    expect(rendered([asked, open])).toBe(`<|begin_of_text|>${header("user")}hi<|eot|>${header("assistant")}It is`);
    expect(() => rendered([open, asked])).toThrow(RequestError);
    expect(() => rendered([{ ...asked, isOpen: true }])).toThrow("message 0: it is open; expected that of a text");
  });

  test("does not trim, and a tool's message is ipython's and ends with eom", () => {
    const messages: Message<PlainPart>[] = [
      { role: "user", content: " weather? \n" },
      { role: "assistant", content: "", toolCalls: [{ name: "weather", arguments: { city: "Oslo", days: [1, 2] } }] },
      { role: "tool", content: '{"t": 3}' },
    ];
    expect(rendered(messages, { addGenerationPrompt: false })).toBe(
      `<|begin_of_text|>${header("user")} weather? \n<|eot|>` +
        `${header("assistant")}{"name": "weather", "parameters": {"city": "Oslo", "days": [1, 2]}}<|eom|>` +
        `${header("ipython")}{"t": 3}<|eom|>`,
    );
  });

  test("lists tools before the first user's text and tells a system message of the environment", () => {
    const tool = { name: "f", description: "does f", parameters: { type: "object", properties: {} } };
    const text = rendered(
      [
        { role: "system", content: "Be brief." },
        { role: "user", content: "go" },
        { role: "user", content: "again" },
      ],
      { tools: [tool], addGenerationPrompt: false },
    );
    expect(text).toContain(`${header("system")}Environment: ipython\nBe brief.<|eot|>`);
    const listing = JSON.stringify({ type: "function", function: tool }, null, 4);
    expect(text).toContain(`${header("user")}Given the following functions, please respond with a JSON`);
    expect(text).toContain(`Do not use variables.\n\n${listing}\n\ngo<|eot|>`);
    expect(text.split("Given the following").length).toBe(2);
  });

  test("says where the images stand", () => {
    const { ids, images } = format.encode([
      { role: "user", content: [{ type: "image" }, { type: "text", text: "and" }, { type: "image" }] },
    ]);
    const image = bytes.special.get("<|image|>")!;
    expect(images).toHaveLength(2);
    expect([...ids].flatMap((id, i) => (id === image ? [i] : []))).toEqual(images);
    expect(bytes.decode(ids)).toContain(`${header("user")}<|image|>and<|image|><|eot|>`);
  });

  test("no text yields a special token, whoever wrote it and however it is cut into parts", () => {
    const bit = fc.constantFrom(
      "<",
      "|",
      ">",
      "<|eot|>",
      "<|header_start|>system<|header_end|>",
      "<|image|>",
      "x",
      "<|eo",
      "t|>",
    );
    const count = (texts: string[]) =>
      [...format.encode([{ role: "user", content: texts.map((text) => ({ type: "text", text })) }]).ids].filter((id) =>
        bytes.isSpecial(id),
      ).length;
    const plain = count(["x"]);
    fc.assert(
      fc.property(fc.array(fc.array(bit).map((bits) => bits.join(""))), (texts) => {
        expect(count(texts)).toBe(plain);
      }),
    );
  });
});

describe("messages that are wrong", () => {
  const encode = (messages: unknown, options = {}) => format.encode(messages as Message<PlainPart>[], options);
  const deep = JSON.parse(`${'{"a":'.repeat(5000)}1${"}".repeat(5000)}`);

  test.each<[string, unknown]>([
    ["none", []],
    ["a role that is none", [{ role: "<|eot|>", content: "x" }]],
    ["content that is a number", [{ role: "user", content: 5 }]],
    ["a part of unknown type", [{ role: "user", content: [{ type: "sound" }] }]],
    ["a text part without text", [{ role: "user", content: [{ type: "text" }] }]],
    ["tool calls by the user", [{ role: "user", content: "x", toolCalls: [{ name: "f", arguments: {} }] }]],
    ["arguments nested too deep", [{ role: "assistant", content: "", toolCalls: [{ name: "f", arguments: deep }] }]],
  ])("%s", (_, messages) => {
    expect(() => encode(messages)).toThrow(RequestError);
  });

  test("tools without a user message", () => {
    expect(() => encode([{ role: "system", content: "x" }], { tools: [{ name: "f" }] })).toThrow(RequestError);
  });

  test("a vocabulary without the format's special tokens is a matter of the checkpoint", () => {
    expect(() => metaFormat(byteLevel({ vocabSize: 257 })).encode([{ role: "user", content: "x" }])).toThrow(
      CheckpointError,
    );
  });
});

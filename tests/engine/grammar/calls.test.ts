// A call under a mask is read as a call, whole, and its arguments satisfy the tool's schema.

import { Ajv2020 } from "ajv/dist/2020.js";
import { describe, expect, it } from "vitest";
import type { CallConstraint } from "../../../src/engine/constraint.ts";
import type { Tool, ToolCall } from "../../../src/prompt/chat-format.ts";
import { type ReplyEvent, ToolCallParser } from "../../../src/prompt/tool-calls.ts";
import { grammarsOf, tokenizers, walk } from "./walk.ts";

const ajv = new Ajv2020({ strict: false });

const tools: readonly Tool[] = [
  {
    name: "weather",
    parameters: {
      type: "object",
      properties: {
        city: { type: "string", maxLength: 12 },
        days: { type: "integer", minimum: 1, maximum: 14 },
        units: { enum: ["C", "F", null, true] },
        places: {
          type: "array",
          items: { type: "object", properties: { x: { type: "number" }, "a-b": { type: "boolean" } }, required: ["x"] },
          maxItems: 2,
        },
      },
      required: ["city"],
    },
  },
  {
    name: "ns.tool/v2:x-y",
    parameters: { type: "object", properties: { note: { type: "string" } }, additionalProperties: false },
  },
  {
    name: "no_python",
    parameters: { type: "object", properties: { "not-a-name": { type: "null" } }, required: ["not-a-name"] },
  },
  {
    name: "tree",
    parameters: {
      $defs: { t: { type: "array", items: { $ref: "#/$defs/t" } } },
      type: "object",
      properties: { t: { $ref: "#/$defs/t" } },
      required: ["t"],
    },
  },
  { name: "plain" },
];

function read(text: string, names: readonly string[]): ReplyEvent[] {
  const parser = new ToolCallParser({ tools: names, areSure: true });
  return [...parser.push(text), ...parser.end()];
}

function invalid({ name, arguments: given }: ToolCall): string[] {
  const validate = ajv.compile(tools.find((tool) => tool.name === name)!.parameters ?? {});
  return validate(given) ? [] : [`${name}(${JSON.stringify(given)}): ${ajv.errorsText(validate.errors)}`];
}

const names = tools.map(({ name }) => name);
const forced = (more: Partial<CallConstraint> = {}): CallConstraint => ({
  type: "tool_calls",
  tools,
  parallel: true,
  ...more,
});

describe("a reply that has to be calls", () => {
  it("is nothing but calls that their schemas allow, in both forms", () => {
    const forms = new Set<string>();
    for (const tokenizer of Object.values(tokenizers))
      for (let seed = 0; seed < 120; seed++) {
        const text = walk(tokenizer, forced(), seed);
        const events = read(text, names);
        expect(
          events.filter(({ type }) => type === "text"),
          text,
        ).toEqual([]);
        expect(events.length).toBeGreaterThan(0);
        expect(events.flatMap((event) => (event.type === "call" ? invalid(event.call) : []))).toEqual([]);
        forms.add(text.slice(0, 2) === "[{" ? "list" : text[0] === "{" ? "json" : "python");
      }
    expect(forms).toEqual(new Set(["list", "json", "python"]));
  });

  it("is one call where they may not be parallel", () => {
    for (const tokenizer of Object.values(tokenizers))
      for (let seed = 0; seed < 40; seed++)
        expect(read(walk(tokenizer, forced({ parallel: false }), seed), names)).toMatchObject([{ type: "call" }]);
  });

  it("calls the tool that is named", () => {
    for (const tool of tools)
      for (let seed = 0; seed < 10; seed++) {
        const text = walk(tokenizers["words"]!, forced({ tools: [tool], parallel: false }), seed);
        expect(read(text, [tool.name])).toMatchObject([{ type: "call", call: { name: tool.name } }]);
      }
  });
});

// The parser took names apart in UTF-16 units, and wanted a letter at first: it found no call.
describe("a forced call", () => {
  it.each<[string, Tool]>([
    [
      "of an argument in letters beyond U+FFFF",
      { name: "f", parameters: { properties: { 𝒙: { const: 1 } }, required: ["𝒙"] } },
    ],
    ["of a tool in letters beyond U+FFFF", { name: "𝒇𝒈" }],
    ["of a tool that begins with a digit", { name: "2fa" }],
  ])("%s is found", (_, tool) => {
    for (const tokenizer of Object.values(tokenizers))
      for (let seed = 0; seed < 20; seed++) {
        const text = walk(tokenizer, forced({ tools: [tool], parallel: false }), seed);
        expect(read(text, [tool.name]), text).toMatchObject([{ type: "call", call: { name: tool.name } }]);
      }
  });
});

describe("a reply that may be text or calls", () => {
  /** How much of a text may be written, and whether it may end there. */
  const accepted = (text: string, more: Partial<CallConstraint> = {}) => {
    const m = grammarsOf(tokenizers["a byte a token"]!).begin(forced({ otherwise: { type: "text" }, ...more }));
    const bytes = new TextEncoder().encode(text);
    for (const [i, byte] of bytes.entries()) {
      if (!m.mask()!.has(byte)) return `${text.slice(0, i)}✗`;
      m.advance(byte);
    }
    return m.mayEnd ? `${text}✓` : `${text}…`;
  };

  it.each([
    "Hello, 🦙!",
    'JSON is {"name": "Alice", "parameters": [1]}, a list is [1, 2], code is f(x) and [we] [weather] <function',
    'I look. [weather(city="Rome")]',
    'I look. {"name": "weather", "parameters": {"city": "Rome", "days": 3}}',
    "",
  ])("is %j", (text) => expect(accepted(text)).toBe(`${text}✓`));

  it.each([
    ["[weather(", "[weather(…"],
    ["[weather(town=1)]", "[weather(✗"],
    ["[ weather(city=1)]", "[ weather✗"],
    ['[weather(city="Rome")] is what I did', '[weather(city="Rome")]✗'],
    ['{"name": "weather", "parameters": {"days": 3}}', '{"name": "weather", "parameters": {"✗'],
    ['{"parameters": {}, "name": "weather"}', '{"parameters": {}, "name": "weather✗'],
    ["<function=weather>{}", "<function=weather✗"],
  ])("%j ends as %j", (text, end) => expect(accepted(text)).toBe(end));

  it("calls none of the others, in text neither", () => {
    const some = { tools: tools.slice(0, 1), others: ["tree"] };
    const call = 'I look. [weather(city="Rome")]';
    expect(accepted(call, some)).toBe(`${call}✓`);
    expect(accepted("[plain()]", some)).toBe("[plain()]✓"); // it knows of none of that name
    expect(accepted("[tree(t=[])]", some)).toBe("[tree✗");
    expect(accepted('{"name": "tree", "parameters": {}}', some)).toBe('{"name": "tree✗');
    expect(accepted('[weather(city="Rome"), tree(t=[])]', some)).toBe('[weather(city="Rome"), ✗');
  });

  it("is calls that their schemas allow, or none, whatever is written", () => {
    for (const tokenizer of Object.values(tokenizers))
      for (let seed = 0; seed < 60; seed++)
        for (const event of read(walk(tokenizer, forced({ otherwise: { type: "text" } }), seed), names))
          if (event.type === "call") expect(invalid(event.call)).toEqual([]);
  });

  it("is calls or what a schema allows", () => {
    const schema = { type: "object", properties: { answer: { type: "boolean" } }, required: ["answer"] };
    let calls = 0;
    for (let seed = 0; seed < 60; seed++) {
      const text = walk(tokenizers["words"]!, forced({ otherwise: { type: "json_schema", schema } }), seed);
      const [event] = read(text, names);
      if (event!.type === "call") calls++;
      else expect(typeof JSON.parse(text).answer).toBe("boolean");
    }
    expect(calls).toBeGreaterThan(5);
    expect(calls).toBeLessThan(60);
  });
});

// It was taken for text, and read as a call with any arguments.
describe("a call whose name is written in another way", () => {
  it.each([
    String.raw`{"name": "\u0077eather", "parameters": {"city": 1}}`,
    String.raw`{"n\u0061me": "weather", "parameters": {"city": 1}}`,
    String.raw`[{"function": "weathe\x72", "parameters": {"city": 1}}]`,
    `{'name': '''weather''', "parameters": {"city": 1}}`,
    `{"""name""": "weather", "parameters": {"city": 1}}`,
  ])("is text: %s", (text) => {
    expect(new ToolCallParser({ tools: names }).push(text)).toMatchObject([{ type: "call" }]);
    expect(read(text, names)).toEqual([{ type: "text", text }]);
  });

  it("is one in single quotes, too", () => {
    expect(read("{'name': 'weather', 'parameters': {}}", names)).toMatchObject([{ type: "call" }]);
  });
});

describe("tools", () => {
  const begin = (tools: readonly Tool[]) => () => grammarsOf(tokenizers["words"]!).begin(forced({ tools }));
  it("that cannot be called are refused by name", () => {
    expect(begin([])).toThrow("no tools");
    expect(begin([{ name: "f", parameters: { type: "string" } }])).toThrow('tool "f": its parameters are no object');
    expect(
      begin([{ name: "f", parameters: { type: "object", properties: { a: { not: { minLength: 3 } } } } }]),
    ).toThrow('tool "f": at #/properties/a/not, it is');
    expect(begin([{ name: "f", parameters: { type: "object", properties: { a: false }, required: ["a"] } }])).toThrow(
      'tool "f"',
    );
  });
});

// Those that values of an enum are tried on were not counted: 20,480 of them were compiled.
describe("tools with very many patterns", () => {
  const forms: Record<string, (i: number) => object> = {
    "of strings": (i) => ({ type: "string", pattern: `^x?${i}$` }),
    "of listed values": (i) => ({ enum: [`x${i}`], pattern: `^x?${i}$` }),
  };
  const begin = (form: (i: number) => object, n: number) => {
    const tools = Array.from({ length: Math.ceil(n / 40) }, (_, t) => {
      const properties = Array.from({ length: Math.min(40, n - 40 * t) }, (_, i) => [`p${i}`, form(40 * t + i)]);
      return { name: `f${t}`, parameters: { type: "object", properties: Object.fromEntries(properties) } };
    });
    return grammarsOf(tokenizers["a byte a token"]!).begin({ type: "tool_calls", tools, parallel: false });
  };

  it.each(Object.entries(forms))("%s are refused once 2,000 have been read", (_, form) => {
    expect(() => begin(form, 2001)).toThrow(
      'tool "f50": at #/properties/p0/pattern, this is pattern 2,001; expected at most 2,000 different ones: use the same for several properties, or leave some out and check those values yourself',
    );
  });
});

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type ReplyEvent, ToolCallParser } from "../../src/prompt/tool-calls.ts";

const TOOLS = ["f", "get_weather", "search"];

function joined(events: readonly ReplyEvent[]): ReplyEvent[] {
  const all: ReplyEvent[] = [];
  for (const event of events) {
    const last = all.at(-1);
    if (event.type === "text" && last?.type === "text")
      all[all.length - 1] = { type: "text", text: last.text + event.text };
    else all.push(event);
  }
  return all;
}

function parse(text: string, tools: string[] | null = TOOLS, pieceLength = text.length || 1): ReplyEvent[] {
  const parser = new ToolCallParser({ tools: tools ?? undefined });
  const events: ReplyEvent[] = [];
  for (let at = 0; at < text.length; at += pieceLength) events.push(...parser.push(text.slice(at, at + pieceLength)));
  return joined([...events, ...parser.end()]);
}

const call = (name: string, args: Record<string, unknown> = {}): ReplyEvent => ({
  type: "call",
  call: { name, arguments: args },
});
const text = (t: string): ReplyEvent => ({ type: "text", text: t });

const CASES: [string, string, ReplyEvent[]][] = [
  ["a list of one", '[get_weather(city="San Francisco")]', [call("get_weather", { city: "San Francisco" })]],
  [
    "a list of two with text around",
    "Sure: [f(a=\"x\", b=2), search(q='it\\'s', deep=True,)] done",
    [text("Sure: "), call("f", { a: "x", b: 2 }), call("search", { q: "it's", deep: true }), text(" done")],
  ],
  ["no arguments and blanks", "[ f( ) ,\n f() ]", [call("f"), call("f")]],
  [
    "values of every kind",
    `[f(a=-1.5e3, b=None, c=[1, "two", (3,)], d={"k": {'n': false}}, e="""tri"ple""", g='')]`,
    [call("f", { a: -1500, b: null, c: [1, "two", [3]], d: { k: { n: false } }, e: 'tri"ple', g: "" })],
  ],
  ["escapes", String.raw`[f(a="\u00e9\n\x41\ud83d\ude42\\\d")]`, [call("f", { a: "é\nA🙂\\\\d" })]],
  ["JSON", '{"name": "f", "parameters": {"a": [1, {"b": null}]}}', [call("f", { a: [1, { b: null }] })]],
  ["JSON with a type", '{"type":"function","name":"f","parameters":{}}', [call("f")]],
  [
    "JSON as OpenAI has it",
    '{"type": "function", "function": {"name": "f", "arguments": "{\\"a\\": 1}"}}',
    [call("f", { a: 1 })],
  ],
  [
    "two JSON objects",
    '{"name":"f","parameters":{}}; {"name":"search","parameters":{}}',
    [call("f"), text("; "), call("search")],
  ],
  [
    "a list of JSON objects",
    '[{"name":"f","parameters":{}}, {"name":"search","arguments":{}}]',
    [call("f"), call("search")],
  ],
  ["a function tag", 'a <function=f>{"x": 1}</function> b', [text("a "), call("f", { x: 1 }), text(" b")]],
  ["a function tag that stays open", '<function=f>{"x": 1} b', [call("f", { x: 1 }), text(" b")]],
  ["a call within brackets that are none", "see [[f(a=1)]]", [text("see ["), call("f", { a: 1 }), text("]")]],
  ["a call after a broken one", "[f(a=, [f(a=1)]", [text("[f(a=, "), call("f", { a: 1 })]],
  ["__proto__ as a key", '{"name":"f","parameters":{"__proto__":1}}', [call("f", JSON.parse('{"__proto__":1}'))]],
];

describe("calls are found", () => {
  test.each(CASES)("%s", (_, source, expected) => {
    expect(parse(source)).toEqual(expected);
  });

  test.each(CASES)("%s, one character at a time", (_, source, expected) => {
    expect(parse(source, TOOLS, 1)).toEqual(expected);
  });

  test("by any name where no tools are given", () => {
    expect(parse("[anything(a=1)]", null)).toEqual([call("anything", { a: 1 })]);
  });
});

describe("calls that are sure", () => {
  const sure = () => new ToolCallParser({ tools: TOOLS, areSure: true });

  test("are told one by one, when each has ended", () => {
    const parser = sure();
    expect(parser.push("[f(a=1")).toEqual([]);
    expect(parser.push("), f(")).toEqual([call("f", { a: 1 })]);
    expect(parser.push("a=2)]")).toEqual([call("f", { a: 2 })]);
    expect(parser.end()).toEqual([]);
  });

  test("of a list that is cut off those that had ended are told, and nothing of the rest", () => {
    for (const [cut, calls] of [
      ["[f(a=1), f(a=2), f(a", 2],
      ["[f(a=1),", 1],
      ["[f(a=1)", 1],
      ['[{"name": "f", "parameters": {}}, {"name', 1],
    ] as const) {
      const events = [...sure().push(cut)];
      const parser = sure();
      const apart = [...cut].flatMap((c) => parser.push(c)).concat(parser.end());
      expect(events).toHaveLength(calls);
      expect(apart).toEqual(events);
    }
  });

  test.each(CASES.filter(([, source]) => !source.includes("f(a=, ")))(
    "else as if they were not: %s",
    (_, source, expected) => {
      const parser = sure();
      expect(joined([...parser.push(source), ...parser.end()])).toEqual(expected);
    },
  );
});

describe("text that only looks like a call is text", () => {
  const LOOKS = [
    "[1] a footnote, [link](http://x), [f], [f(], [f(1)], [f(a)], [f(a=b)], [f(a=1) and more",
    '{"name": "f"} {"name": "f", "parameters": 3} {"a": 1} {"name": "g", "parameters": {}}',
    "[unknown(a=1)] [f(a=1), unknown(b=2)]",
    "a < b, <function=g>{}</function>, <function=f>[1]</function>, <function f>",
    `{"name": "f", "parameters": {"a": "never ends`,
    "[[[[{{{{<<<<",
    '{"name": "f", "name": "f", "parameters": {}}',
    `[f(a=${"[".repeat(100)}1${"]".repeat(100)})]`,
  ];

  test.each(LOOKS)("%s", (source) => {
    expect(parse(source)).toEqual([text(source)]);
    expect(parse(source, TOOLS, 1)).toEqual([text(source)]);
  });

  test("where there are no tools, everything is", () => {
    const parser = new ToolCallParser({ tools: [] });
    expect(parser.push("[f(")).toEqual([text("[f(")]);
    expect(parser.special("<|python_start|>")).toEqual([]);
    expect(parser.push("a=1)]")).toEqual([text("a=1)]")]);
  });

  test("nothing is lost, whatever comes in whatever pieces", () => {
    const bit = fc.constantFrom(
      "[",
      "]",
      "{",
      "}",
      "(",
      ")",
      '"',
      "'",
      "f",
      "(a=",
      "=",
      ",",
      ":",
      "1",
      '{"name":',
      "<function=f>",
      "\\",
      " ",
    );
    fc.assert(
      fc.property(fc.array(bit, { maxLength: 30 }), fc.integer({ min: 1, max: 9 }), (bits, pieceLength) => {
        const source = bits.join("");
        const events = parse(source, TOOLS, pieceLength);
        expect(events).toEqual(parse(source));
        if (events.every((event) => event.type === "text"))
          expect(events.map((event) => (event.type === "text" ? event.text : "")).join("")).toBe(source);
      }),
      { numRuns: 3000 },
    );
  });

  test("it is given out as soon as it can be no call", () => {
    const parser = new ToolCallParser({ tools: TOOLS });
    expect(parser.push("a [g")).toEqual([text("a ")]);
    expect(parser.push("r")).toEqual([text("[gr")]);
    expect(parser.push("x {")).toEqual([text("x ")]);
    expect(parser.push("1")).toEqual([text("{1")]);
  });

  test("a megabyte of open brackets takes no more than seconds", () => {
    const source = "[".repeat(200_000) + '{"name":"f","parameters":'.repeat(4_000);
    const start = performance.now();
    expect(parse(source)).toEqual([text(source)]);
    expect(performance.now() - start).toBeLessThan(10_000);
  });
});

describe("special tokens", () => {
  const run = (tools: string[] | undefined, ...steps: string[]) => {
    const parser = new ToolCallParser({ tools });
    const events = steps.flatMap((step) => (step.startsWith("<|") ? parser.special(step) : parser.push(step)));
    return joined([...events, ...parser.end()]);
  };

  test("calls between the python tokens are calls", () => {
    expect(run(TOOLS, "<|python_start|>", "[f(a", "=1)]", "<|python_end|>", "<|eom|>")).toEqual([call("f", { a: 1 })]);
  });

  test("anything else between them is code, where there is a tool for it", () => {
    const code = call("code_interpreter", { code: "print([1])\n" });
    expect(run(["code_interpreter"], "a", "<|python_start|>", "print([1])\n", "<|python_end|>")).toEqual([
      text("a"),
      code,
    ]);
    expect(run(undefined, "<|python_start|>", "print([1])\n", "<|eom|>")).toEqual([code]);
    expect(run(TOOLS, "<|python_start|>", "print([1])\n", "<|python_end|>")).toEqual([text("print([1])\n")]);
  });

  test("the end of a message gives out what was held back", () => {
    expect(run(TOOLS, "[f(a=1", "<|eom|>", "[f()]")).toEqual([text("[f(a=1"), call("f")]);
  });
});

// What a body of JSON may hold.

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ValueCount } from "../../src/server/body.ts";
import { json, post, served } from "./scripted.ts";

/** Strings, names among them, lists and objects. */
function valuesIn(value: unknown): number {
  if (typeof value === "string") return 1;
  if (typeof value !== "object" || value === null) return 0;
  const isList = Array.isArray(value);
  return Object.values(value).reduce<number>((sum, inner) => sum + valuesIn(inner) + (isList ? 0 : 1), 1);
}

it("the strings, lists and objects of a body are counted, wherever its bytes are cut", () => {
  const text = fc.string({ unit: fc.constantFrom("\\", '"', "[", "{", "a", "é", "\n") });
  const value = fc.jsonValue().chain((value) => text.map((text) => ({ [text]: [value, text] })));
  fc.assert(
    fc.property(value, fc.array(fc.nat()), (value, cuts) => {
      const bytes = new TextEncoder().encode(JSON.stringify(value));
      const places = [...cuts.map((cut) => cut % bytes.length), bytes.length].sort((a, b) => a - b);
      const read = (most: number) => {
        const count = new ValueCount(most);
        for (const [i, to] of places.entries()) count.read(bytes.subarray(places[i - 1] ?? 0, to));
      };
      read(valuesIn(value));
      expect(() => read(valuesIn(value) - 1)).toThrow("more than");
    }),
  );
});

// Lists took twenty times the bytes that were counted for them while they waited.
it("many values take the room that they have once they are read", async () => {
  const { handler } = served({ lines: ["ok"] }, { limits: { heldBytes: 1e6 } });
  const ask = async (count: number) => {
    const body = `{"messages":[{"role":"user","content":"Hi"}],"x":[${"[],".repeat(count)}0]}`;
    return (await handler(post("/v1/chat/completions", body))).status;
  };
  expect([await ask(20_000), await ask(30_000), await ask(20_000)]).toEqual([200, 429, 200]);
});

// One body of 30 MB took 6 s to parse, in one piece.
it.each([
  ["lists", "[]"],
  ["objects", "{}"],
  ["strings", '""'],
])("a body of more than two million %s is refused", async (_, one) => {
  const { model, handler } = served({ lines: [] });
  const body = `{"messages":[{"role":"user","content":"Hi"}],"x":[${`${one},`.repeat(2_000_000)}0]}`;
  const answer = await handler(post("/v1/chat/completions", body));
  expect(answer.status).toBe(400);
  expect((await json(answer)).error.message).toBe(
    "The body has more than 2,000,000 strings, lists and objects; expected at most that.",
  );
  expect(model.asked).toEqual([]);
});

// JSON.parse rounds what no double is: a reply was held to another number than the schema says.
describe("numbers in a schema that no double is", () => {
  const { handler, model } = served({ lines: ["x"] });
  const chat = (schema: string) =>
    handler(
      post(
        "/v1/chat/completions",
        `{"messages":[{"role":"user","content":"12345678901234567890"}],"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":${schema}}}}`,
      ),
    );
  const at = "response_format.json_schema.schema";

  it.each([
    ['{"const":12345678901234567890}', "const", "12345678901234567890", "12345678901234567168"],
    ['{"enum":["a\\"]",[1],9007199254740993]}', "enum[2]", "9007199254740993", "9007199254740992"],
    ['{"const":1e400}', "const", "1e400", "Infinity"],
    ['{"enum":[true,-1E+309]}', "enum[1]", "-1E+309", "-Infinity"],
    [
      '{"properties":{"a":{"maximum":9223372036854775807}}}',
      "properties.a.maximum",
      "9223372036854775807",
      "9223372036854775808",
    ],
    ['{"minimum" : -9223372036854775807 }', "minimum", "-9223372036854775807", "-9223372036854775808"],
  ])("are refused: %s", async (schema, where, given, nearest) => {
    const response = await chat(schema);
    expect(response.status).toBe(400);
    const { error } = (await response.json()) as { error: { message: string; param: string } };
    expect(error.param).toBe(`${at}.${where}`);
    expect(error.message).toContain(`${given} is no number that is held exactly (the nearest is ${nearest});`);
  });

  it.each([
    '{"const":9007199254740992}',
    '{"minimum":-9223372036854775808}',
    '{"maximum":1e300}',
    '{"const":0.12345678901234567}',
  ])("are no others: %s", async (schema) => {
    expect((await chat(schema)).status).toBe(200);
    expect(model.asked.at(-1)!.constraint).toEqual({ type: "json_schema", schema: JSON.parse(schema) });
  });

  it("are refused at once, however long", async () => {
    const response = await chat(`{"const":${"9".repeat(1_000_000)}}`);
    expect(await response.text()).toContain("999… is no number that is held exactly (the nearest is Infinity)");
  });

  it("are refused of tools of all APIs, and let be elsewhere", async () => {
    const tool = (name: string) =>
      `{"messages":[{"role":"user","content":"?"}],"max_tokens":1,"x":12345678901234567890,"tools":[{"type":"custom","name":"f","${name}":{"const":12345678901234567890}}]}`;
    const response = await handler(post("/v1/messages", tool("input_schema")));
    expect(((await response.json()) as { error: { message: string } }).error.message).toContain(
      "tools[0].input_schema.const",
    );
    expect((await handler(post("/v1/completions", '{"prompt":"x","metadata":12345678901234567890}'))).status).toBe(200);
  });
});

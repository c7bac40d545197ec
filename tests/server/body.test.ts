// What a body of JSON may hold.

import fc from "fast-check";
import { expect, it } from "vitest";
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

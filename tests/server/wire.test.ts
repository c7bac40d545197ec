import { describe, expect, it } from "vitest";
import { z } from "zod";
import { list, parsed, valuesByName } from "../../src/server/wire.ts";
import { json, post, served } from "./scripted.ts";

describe("a list in a body", () => {
  const schema = z.object({ a: list(z.object({ n: z.number() })) });
  const wrong = Array.from({ length: 50_000 }, () => 1);

  it("is looked at no further than its first wrong element", () => {
    const result = schema.safeParse({ a: [{ n: 1 }, ...wrong] });
    expect(result.error!.issues.map(({ path }) => path)).toEqual([["a", 1]]);
    const named = z.object({ a: valuesByName(z.number()) }).safeParse({ a: { x: 1, y: "2", z: "3" } });
    expect(named.error!.issues.map(({ path }) => path)).toEqual([["a", "y"]]);
  });

  it("has at most so many elements, and is what its elements are", () => {
    expect(parsed(schema, { a: [{ n: 1 }, { n: 2 }] })).toEqual({ a: [{ n: 1 }, { n: 2 }] });
    expect(() => parsed(schema, { a: [...wrong, ...wrong, 1] })).toThrow("Invalid value for 'a'");
    expect(z.toJSONSchema(schema, { io: "input" })).toMatchObject({
      properties: { a: { type: "array", maxItems: 100_000, items: { properties: { n: { type: "number" } } } } },
    });
  });

  it("is told what is wrong with it, not that another form was possible", async () => {
    const body = { prompt: "a", stop: Array.from({ length: 17 }, (_, i) => `s${i}`) };
    const answer = await json(await served({ lines: [] }).handler(post("/v1/completions", body)));
    expect(answer).toMatchObject({ error: { param: "stop", message: expect.stringContaining("16") } });
    const other = await json(await served({ lines: [] }).handler(post("/v1/completions", { prompt: "a", stop: 7 })));
    expect(other).toMatchObject({ error: { message: expect.stringContaining("expected string, received number") } });
  });

  it.each([
    ["/v1/chat/completions", { messages: wrong }, "messages[0]"],
    ["/v1/chat/completions", { messages: [{ role: "user", content: wrong }] }, "messages[0].content[0]"],
    ["/v1/completions", { prompt: [1, ...wrong.map(String)] }, "prompt[0]"],
    ["/v1/responses", { input: wrong }, "input[0]"],
  ])("of %s is refused at its first wrong element", async (path, body, param) => {
    const answer = await served({ lines: [] }).handler(post(path, body));
    expect(answer.status).toBe(400);
    expect(await json(answer)).toMatchObject({ error: { param } });
  });
});

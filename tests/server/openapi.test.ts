import { expect, it } from "vitest";
import { json, served } from "./scripted.ts";

it("the OpenAPI document lists every path with what it takes", async () => {
  const { handler } = served({ lines: [] }, { version: "1.2.3" });
  const document = await json(await handler(new Request("http://server/openapi.json")));
  expect(document).toMatchObject({ openapi: "3.1.0", info: { version: "1.2.3" } });
  expect(Object.keys(document.paths).sort()).toEqual([
    "/detokenize",
    "/health",
    "/metrics",
    "/openapi.json",
    "/tokenize",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/models",
    "/v1/responses",
  ]);
  const schema = (path: string) => document.paths[path].post.requestBody.content["application/json"].schema;
  expect(schema("/v1/chat/completions").required).toEqual(["messages"]);
  expect(schema("/v1/chat/completions").properties.temperature).toMatchObject({
    anyOf: [{ type: "number", minimum: 0, maximum: 2 }, { type: "null" }],
  });
  expect(schema("/v1/messages").required).toEqual(["messages", "max_tokens"]);
  for (const { get, post } of Object.values(document.paths) as { get?: object; post?: object }[])
    expect(get ?? post).toMatchObject({ summary: expect.stringMatching(/^.+\.$/), responses: { 200: {} } });
});

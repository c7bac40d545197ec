import { expect, it } from "vitest";
import { createApp } from "../../src/server/handler.ts";
import { prometheus } from "../../src/server/node-metrics.ts";
import { json, Scripted } from "./scripted.ts";

it("the OpenAPI document lists every path with what it takes", async () => {
  const options = { name: "m", version: "1.2.3", observer: prometheus() };
  const app = createApp(new Scripted({ lines: [] }), options);
  const document = await json(await app.request("/openapi.json"));
  expect(document).toMatchObject({ openapi: "3.1.0", info: { version: "1.2.3" } });
  const routes = app.routes.filter(({ method }) => method !== "ALL"); // those of all methods are middleware
  const paths = routes.map(({ path, method }) => `${method} ${path.replace(/:(\w+)(\{.*\})?/, "{$1}")}`);
  const methods = (of: object) => Object.keys(of).filter((key) => key === "get" || key === "post");
  expect(
    Object.entries<object>(document.paths)
      .flatMap(([path, of]) => methods(of).map((method) => `${method.toUpperCase()} ${path}`))
      .sort(),
  ).toEqual(paths.sort());
  expect(paths).toContain("POST /v1/chat/completions");
  expect(document.paths["/v1/models/{id}"].parameters).toMatchObject([{ name: "id", in: "path", required: true }]);
  const schema = (path: string) => document.paths[path].post.requestBody.content["application/json"].schema;
  expect(schema("/v1/chat/completions").required).toEqual(["messages"]);
  expect(schema("/v1/chat/completions").properties.temperature).toMatchObject({
    anyOf: [{ type: "number", minimum: 0, maximum: 2 }, { type: "null" }],
  });
  expect(schema("/v1/messages").required).toEqual(["messages", "max_tokens"]);
  for (const { get, post } of Object.values(document.paths) as { get?: object; post?: object }[])
    expect(get ?? post).toMatchObject({ summary: expect.stringMatching(/^.+\.$/), responses: { 200: {} } });
});

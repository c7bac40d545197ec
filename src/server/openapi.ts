// The OpenAPI document: what each path takes, from the schemas that requests are parsed with.

import { z } from "zod";
import type { Dialect } from "./dialect.ts";

/** OpenAPI 3.1, which takes JSON schemas as they are. */
export function openApi(
  dialects: Readonly<Record<string, Dialect>>,
  others: Readonly<Record<string, { readonly get?: string; readonly post?: string; readonly schema?: z.ZodType }>>,
  version: string,
): object {
  const schemaOf = (schema: z.ZodType) => z.toJSONSchema(schema, { io: "input", unrepresentable: "any" });
  const answers = {
    200: { description: "The answer." },
    "4XX": { description: "What is wrong with the request." },
    "5XX": { description: "The server failed, is stopping or has no room." },
  };
  const operation = (summary: string, schema?: z.ZodType) => ({
    summary,
    ...(schema && { requestBody: { required: true, content: { "application/json": { schema: schemaOf(schema) } } } }),
    responses: answers,
  });
  const paths: Record<string, object> = {};
  for (const [path, { schema, summary }] of Object.entries(dialects))
    paths[path] = { post: operation(summary, schema) };
  for (const [path, { get, post, schema }] of Object.entries(others))
    paths[path] = {
      ...parametersOf(path),
      ...(get && { get: operation(get) }),
      ...(post && { post: operation(post, schema) }),
    };
  return {
    openapi: "3.1.0",
    info: { title: "llama4.ts", version },
    paths,
    components: {
      securitySchemes: {
        bearer: { type: "http", scheme: "bearer" },
        key: { type: "apiKey", in: "header", name: "x-api-key" },
      },
    },
    security: [{}, { bearer: [] }, { key: [] }],
  };
}

/** The names in braces that a path has. */
function parametersOf(path: string): object {
  const parameters = [...path.matchAll(/\{(\w+)\}/g)].map(([, name]) => {
    return { name, in: "path", required: true, schema: { type: "string" } };
  });
  return parameters.length > 0 ? { parameters } : {};
}

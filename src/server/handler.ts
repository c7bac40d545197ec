// Request -> Response: the whole server as a function. Nothing here needs Node; what does is in node*.ts.

import { Hono } from "hono";
import { chatCompletions } from "./chat-completions.ts";
import { completions } from "./completions.ts";
import type { Dialect } from "./dialect.ts";
import { Refusal } from "./errors.ts";
import type { ServedModel } from "./generation.ts";
import { Keys } from "./keys.ts";
import { countedSchema, messages } from "./messages.ts";
import { openApi } from "./openapi.ts";
import { failed, refusalOf } from "./refusals.ts";
import { responses } from "./responses.ts";
import { detokenizeSchema, LIMITS, type Limits, Server, type ServingOptions, tokenizeSchema } from "./serving.ts";
import { newId, seconds } from "./wire.ts";

export { LIMITS, type Limits, type Observer } from "./serving.ts";

export interface HandlerOptions extends ServingOptions {
  /** The name under which the model is listed. */
  readonly name: string;
  /** Says to clients that nobody trained this model. */
  readonly randomWeights?: boolean | undefined;
  /** The program's version, for the OpenAPI document. */
  readonly version?: string | undefined;
  /** Without any, everybody is served. */
  readonly keys?: readonly string[] | undefined;
  /** Origins of web pages elsewhere that may ask. Default: none. */
  readonly origins?: readonly string[] | undefined;
  /** Names that the Host header may have, without port: against pages whose own name is made to mean this machine. Default: any. */
  readonly hosts?: readonly string[] | undefined;
  readonly limits?: Partial<Limits> | undefined;
  /** Whether no new requests are to come: /health then says so, as it does where the model has ended. */
  readonly isDraining?: (() => boolean) | undefined;
}

/** Who asks, where no key says it. */
export interface Client {
  readonly address?: string | undefined;
}

export type Handler = (request: Request, client?: Client) => Promise<Response>;

type Env = { Bindings: Client; Variables: { requestId: string; client: string } };

/** The server. Any number of requests may run at the same time. */
export function createHandler(model: ServedModel, options: HandlerOptions): Handler {
  const app = createApp(model, options);
  return async (request, client = {}) => app.fetch(request, client);
}

/** Its paths. */
export function createApp(model: ServedModel, options: HandlerOptions): Hono<Env> {
  const {
    name,
    version = "0",
    keys = [],
    origins = [],
    hosts,
    randomWeights = false,
    observer,
    onError = console.error,
    isDraining = () => false,
  } = options;
  const server = new Server(model, { ...LIMITS, ...options.limits }, options);
  const known = new Keys(keys);
  const created = seconds();
  const app = new Hono<Env>();

  app.use(async (c, next) => {
    const start = performance.now();
    const requestId = newId("req_");
    c.set("requestId", requestId);
    await next();
    c.header("x-request-id", requestId);
    c.header("request-id", requestId); // Anthropic's name for it
    c.header("x-content-type-options", "nosniff");
    observer?.answered(routeOf(c.req.path), c.res.status, performance.now() - start);
  });
  app.use(async (c, next) => {
    const { host, hostname } = new URL(c.req.url);
    if (hosts && !hosts.includes(hostname))
      throw new Refusal(403, "The Host header names another server; expected this one's address.");
    const origin = c.req.header("origin");
    if (origin !== undefined && origin.replace(/^https?:\/\//, "") !== host) {
      if (!origins.includes(origin) && !origins.includes("*"))
        throw new Refusal(
          403,
          "Web pages of this origin may not ask this server; it has to be started with their origin.",
        );
      const shared = { "access-control-allow-origin": origin, vary: "Origin" };
      if (c.req.method === "OPTIONS")
        return c.body(null, 204, {
          ...shared,
          "access-control-allow-methods": "GET, POST",
          "access-control-allow-headers": c.req.header("access-control-request-headers") ?? "",
          "access-control-max-age": "600",
        });
      await next();
      for (const [name, value] of Object.entries(shared)) c.header(name, value);
      c.header("access-control-expose-headers", "x-request-id, request-id, retry-after");
      return;
    }
    return next();
  });
  app.get("/health", (c) => {
    const status = model.ended ? "failed" : isDraining() ? "draining" : "ok";
    return c.json({ status }, status === "ok" ? 200 : 503);
  });
  app.use(async (c, next) => {
    const key = known.isEmpty ? 0 : await known.find(c.req.raw.headers);
    if (key < 0)
      throw new Refusal(401, "No valid API key; expected one as `Authorization: Bearer KEY` or `x-api-key: KEY`.", {
        code: "invalid_api_key",
      });
    c.set("client", known.isEmpty ? `address ${c.env?.address ?? "unknown"}` : `key ${key}`);
    if (isDraining())
      throw new Refusal(503, "The server is about to stop; ask again later.", { retryAfterSeconds: 10 });
    if (model.ended) throw new Refusal(503, "The model has stopped; the server has to be started again.");
    return next();
  });

  const { shape } = model.info;
  const card = {
    ...{ id: name, object: "model", created, owned_by: "llama4" },
    ...{ type: "model", display_name: name, created_at: new Date(created * 1000).toISOString() }, // Anthropic's fields
    max_model_len: model.info.context,
    parameters: model.info.parameters,
    ...(shape && {
      architecture: {
        ...{ layers: shape.layers, global_layers: shape.globalLayers, attention_chunk: shape.attentionChunk },
        ...{ expert_layers: shape.expertLayers, experts: shape.experts, experts_per_token: shape.expertsPerToken },
      },
    }),
    ...(randomWeights && { random_weights: true }),
    modalities: model.info.vision ? ["text", "image", "video"] : ["text"],
  };
  app.get("/v1/models", (c) =>
    c.json({ object: "list", data: [card], has_more: false, first_id: name, last_id: name }),
  );
  app.get("/v1/models/:id{.+}", (c) => {
    if (c.req.param("id") === name) return c.json(card);
    throw new Refusal(404, `There is no model "${c.req.param("id").slice(0, 100)}"; expected "${name}".`, {
      code: "model_not_found",
      param: "model",
    });
  });
  for (const [path, dialect] of Object.entries(dialects))
    app.post(path, (c) =>
      server.reply(c.req.raw, dialect, { model: name, requestId: c.get("requestId") }, c.get("client")),
    );
  app.post("/v1/messages/count_tokens", (c) =>
    server.countTokens(c.req.raw, c.get("client")).then((count) => c.json(count)),
  );
  app.get("/openapi.json", (c) => c.json(openApi(dialects, plainRoutes, version)));
  app.post("/tokenize", (c) => server.tokenize(c.req.raw, c.get("client")).then((tokens) => c.json(tokens)));
  app.post("/detokenize", (c) => server.detokenize(c.req.raw, c.get("client")).then((text) => c.json(text)));
  if (observer)
    app.get("/metrics", async (c) => {
      const { type, text } = await observer.page({ ...server.load, engine: await model.stats() });
      return c.body(text, 200, { "content-type": type });
    });

  app.notFound((c) => {
    throw new Refusal(404, `There is nothing at ${c.req.method} ${c.req.path.slice(0, 100)}.`);
  });
  app.onError((error, c) => {
    const requestId = c.get("requestId");
    let refusal = refusalOf(error, model.info.context);
    if (!refusal && c.req.raw.signal.aborted) refusal = new Refusal(499, "The client has left.");
    if (!refusal) onError(error, requestId);
    refusal ??= failed();
    const dialect = c.req.path.startsWith("/v1/messages") ? messages : chatCompletions;
    if (refusal.retryAfterSeconds !== undefined) c.header("retry-after", String(refusal.retryAfterSeconds));
    if (refusal.status === 401) c.header("www-authenticate", "Bearer");
    return c.json(dialect.error(refusal, requestId), refusal.status as 400); // hono lists the numbers that it knows
  });
  return app;
}

/** The APIs by their paths. */
export const dialects: Readonly<Record<string, Dialect>> = {
  "/v1/chat/completions": chatCompletions as Dialect, // each gets what its own schema has parsed
  "/v1/completions": completions as Dialect,
  "/v1/responses": responses as Dialect,
  "/v1/messages": messages as Dialect,
};

const plainRoutes = {
  "/v1/models": { get: "The model that is served, as a list." },
  "/v1/models/{id}": { get: "The model that is served, by its name." },
  "/v1/messages/count_tokens": {
    post: "How many tokens a conversation takes, in Anthropic's words.",
    schema: countedSchema,
  },
  "/tokenize": { post: "The tokens of a text or of a conversation.", schema: tokenizeSchema },
  "/detokenize": { post: "The text of tokens.", schema: detokenizeSchema },
  "/health": { get: "Whether the server takes requests." },
  "/metrics": { get: "Measurements for Prometheus." },
  "/openapi.json": { get: "This document." },
};

/** A path as measurements name it: few names, whatever clients ask for. */
const routeOf = (path: string): string => {
  if (path in dialects || path in plainRoutes) return path;
  return path.startsWith("/v1/models/") ? "/v1/models/{id}" : "other";
};

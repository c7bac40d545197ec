// What holds for every path: who may ask, what is refused before anything is computed, and how requests end.

import { describe, expect, it } from "vitest";
import { prometheus } from "../../src/server/node-metrics.ts";
import { CapacityError, CheckpointError, RequestError } from "../../src/tensor/errors.ts";
import { eventsOf, json, post, type Script, served, user } from "./scripted.ts";

const path = "/v1/chat/completions";
const hello = { messages: [user("Hello")] };
const get = (path: string, headers: Record<string, string> = {}) => new Request(`http://server${path}`, { headers });
const slow: Script = { lines: ["a", { wait: new Promise(() => {}) }] };
const soon = (ms = 20) => new Promise((resolve) => setTimeout(resolve, ms));

describe("the server", () => {
  it("lists its one model", async () => {
    const { handler } = served({ lines: [] });
    const list = await json(await handler(get("/v1/models")));
    expect(list).toMatchObject({ object: "list", data: [{ id: "m", object: "model", max_model_len: 1000 }] });
    expect(await json(await handler(get("/v1/models/m")))).toEqual(list.data[0]);
    expect(list.data[0].architecture).toEqual({
      ...{
        layers: 4,
        global_layers: [3],
        attention_chunk: 8,
        expert_layers: [1, 3],
        experts: 16,
        experts_per_token: 1,
      },
    });
    expect(list.data[0].random_weights).toBeUndefined();
    const random = await json(await served({ lines: [] }, { randomWeights: true }).handler(get("/v1/models")));
    expect(random.data[0].random_weights).toBe(true);
    const missing = await handler(get("/v1/models/gpt"));
    expect(missing.status).toBe(404);
    expect((await json(missing)).error.code).toBe("model_not_found");
  });

  it("answers with an id that its log knows", async () => {
    const { handler } = served({ lines: [] });
    const { headers } = await handler(get("/health"));
    expect(headers.get("x-request-id")).toMatch(/^req_/);
    expect(headers.get("request-id")).toBe(headers.get("x-request-id"));
  });

  it("says that a path is not there", async () => {
    const { handler } = served({ lines: [] });
    for (const request of [get("/v1/nothing"), get(path), post("/v1/models", {})]) {
      const response = await handler(request);
      expect(response.status).toBe(404);
      expect((await json(response)).error.message).toContain("There is nothing at");
    }
  });

  it("tokenizes texts and conversations, and back", async () => {
    const { handler } = served({ lines: [] });
    const tokens = async (body: object) => (await json(await handler(post("/tokenize", body)))).tokens;
    expect(await tokens({ prompt: "ab" })).toEqual([256, 97, 98]);
    expect(await tokens({ prompt: "ab", add_special_tokens: false })).toEqual([97, 98]);
    expect(await tokens(hello)).toEqual([0]);
    expect(await json(await handler(post("/detokenize", { tokens: [97, 98] })))).toEqual({ prompt: "ab" });
    for (const [body, param] of [
      [{ text: "ab" }, "prompt"],
      [{ prompt: 5 }, "prompt"],
      [{ messages: 5 }, "messages"],
    ] as const)
      expect((await json(await handler(post("/tokenize", body)))).error.param).toBe(param);
  });

  it("says when its model has ended, and takes nothing new", async () => {
    const { model, handler } = served({ lines: ["x"] });
    expect(await json(await handler(get("/health")))).toEqual({ status: "ok" });
    model.ended = new Error("the engine's thread has ended with status 1");
    const health = await handler(get("/health"));
    expect([health.status, await json(health)]).toEqual([503, { status: "failed" }]);
    const response = await handler(post(path, hello));
    expect(response.status).toBe(503);
    expect((await json(response)).error).toMatchObject({
      ...{ type: "server_error", message: expect.stringContaining("stopped") },
    });
    expect(model.asked).toEqual([]);
  });

  it("says when it is about to stop, and takes nothing new", async () => {
    const { handler } = served({ lines: [] }, { isDraining: () => true });
    expect((await handler(get("/health"))).status).toBe(503);
    const response = await handler(post(path, hello));
    expect(response.status).toBe(503);
    expect(response.headers.get("retry-after")).toBe("10");
  });
});

describe("keys", () => {
  const keys = ["first-key", "second-key"];

  it("are asked for everywhere but at /health", async () => {
    const { model, handler } = served({ lines: [] }, { keys });
    expect((await handler(get("/health"))).status).toBe(200);
    for (const request of [get("/v1/models"), get("/v1/nothing"), post(path, hello), post("/tokenize", {})])
      expect((await handler(request)).status).toBe(401);
    expect(model.asked).toEqual([]);
  });

  it.each([
    [{ authorization: "Bearer first-key" }, 200],
    [{ authorization: "bearer second-key" }, 200],
    [{ "x-api-key": "second-key" }, 200],
    [{ authorization: "Bearer first-ke" }, 401],
    [{ authorization: "Bearer first-key " }, 200], // HTTP ends a header before its spaces
    [{ authorization: "Bearer first-keyx" }, 401],
    [{ authorization: "Basic first-key" }, 401],
    [{ authorization: "Bearer " }, 401],
    [{ "x-api-key": "" }, 401],
  ])("%j gets %i", async (headers, status) => {
    const { handler } = served({ lines: [] }, { keys });
    const response = await handler(get("/v1/models", headers as Record<string, string>));
    expect(response.status).toBe(status);
    if (status === 401) expect((await json(response)).error.code).toBe("invalid_api_key");
  });

  it("each have their own tokens a minute, and are told when there are more", async () => {
    const { handler } = served({ lines: ["a", "b"] }, { keys, limits: { tokensPerMinute: 15 } });
    const as = (key: string) => handler(post(path, hello, { "x-api-key": key }));
    expect((await as("first-key")).status).toBe(200); // 7 of the prompt and 3 of the reply
    expect((await as("first-key")).status).toBe(200); // the last reply may overdraw
    const refused = await as("first-key");
    expect(refused.status).toBe(429);
    expect(Number(refused.headers.get("retry-after"))).toBeGreaterThan(10);
    expect((await json(refused)).error).toMatchObject({ type: "rate_limit_error", code: "rate_limit_exceeded" });
    expect((await as("second-key")).status).toBe(200);
  });

  // what was used was looked at when a request came, and was spent once its first token was there
  it("each have their own tokens a minute, for requests that come at once too", async () => {
    const { handler } = served({ lines: ["a"] }, { keys, limits: { tokensPerMinute: 10 } });
    const ask = async (key: string) =>
      (await handler(post("/v1/completions", { prompt: "x".repeat(6) }, { "x-api-key": key }))).status; // of 7 tokens
    const statuses = await Promise.all(Array.from({ length: 20 }, () => ask("first-key")));
    expect(statuses.filter((status) => status === 200).length).toBe(2);
    expect(statuses.filter((status) => status === 429).length).toBe(18);
    expect(await ask("second-key")).toBe(200);
  });

  it("are charged for a prompt once, whatever its number of replies, and not where it is refused", async () => {
    const { model, handler } = served({ lines: ["a"] }, { keys, limits: { tokensPerMinute: 20 } });
    const ask = async (n: number) => (await handler(post(path, { ...hello, n }, { "x-api-key": keys[0]! }))).status;
    expect(await ask(6)).toBe(200); // 7 of the prompt and 12 of the replies
    expect(await ask(1)).toBe(200);
    expect(await ask(1)).toBe(429);
    model.script = { lines: [new RequestError("no")] };
    const refused = { prompt: "x".repeat(100) };
    for (let i = 0; i < 3; i++)
      expect((await handler(post("/v1/completions", refused, { "x-api-key": keys[1]! }))).status).toBe(400);
  });

  it("each keep their limit of requests where others use theirs up", async () => {
    const limits = { perClient: 2, concurrent: 3, queue: 8 };
    const { handler } = served(slow, { keys, limits });
    const as = (key: string) => handler(post(path, { ...hello, stream: true }, { authorization: `Bearer ${key}` }));
    const open = [await as("first-key"), await as("first-key")];
    for (let i = 0; i < 5; i++) expect((await as("first-key")).status).toBe(429);
    const other = await as("second-key");
    expect(other.status).toBe(200);
    await Promise.all([...open, other].map(({ body }) => body!.cancel()));
  });

  it("each have their own limit of requests", async () => {
    const { handler } = served(slow, { keys, limits: { perClient: 1 } });
    const as = (key: string) => handler(post(path, { ...hello, stream: true }, { authorization: `Bearer ${key}` }));
    const open = [await as("first-key"), await as("second-key")];
    expect(open.map(({ status }) => status)).toEqual([200, 200]);
    expect((await as("first-key")).status).toBe(429);
    await Promise.all(open.map(({ body }) => body!.cancel()));
    const again = await as("first-key");
    expect(again.status).toBe(200);
    await again.body!.cancel();
  });
});

describe("web pages", () => {
  const from = (origin: string, method = "POST") =>
    new Request(`http://server${path}`, {
      method,
      headers: { origin, "content-type": "application/json", "access-control-request-headers": "authorization" },
      ...(method === "POST" && { body: JSON.stringify(hello) }),
    });

  it("of other origins may not ask, nor those without one", async () => {
    const { model, handler } = served({ lines: [] });
    for (const origin of ["https://evil.example", "null", "http://server.evil.example", "http://server:81"])
      for (const method of ["POST", "OPTIONS"]) {
        const response = await handler(from(origin, method));
        expect(response.status).toBe(403);
        expect(response.headers.get("access-control-allow-origin")).toBeNull();
      }
    expect(model.asked).toEqual([]);
  });

  it("of its own origin, and of those that it was started with, may", async () => {
    const { handler } = served({ lines: [] }, { origins: ["https://friend.example"] });
    expect((await handler(from("http://server"))).status).toBe(200);
    const response = await handler(from("https://friend.example"));
    expect(response.headers.get("access-control-allow-origin")).toBe("https://friend.example");
    const preflight = await handler(from("https://friend.example", "OPTIONS"));
    expect(preflight.status).toBe(204);
    expect(preflight.headers.get("access-control-allow-headers")).toBe("authorization");
    expect((await handler(from("https://friend.example.evil.example"))).status).toBe(403);
  });

  it("cannot send what a form can: only JSON is taken", async () => {
    const { model, handler } = served({ lines: [] });
    for (const type of ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]) {
      const response = await handler(post(path, hello, { "content-type": type }));
      expect(response.status).toBe(415);
    }
    expect(model.asked).toEqual([]);
  });

  it("whose name was made to mean this machine are told from its own", async () => {
    const { handler } = served({ lines: [] }, { hosts: ["localhost", "[::1]"] });
    const at = (host: string) => handler(new Request(`http://${host}/health`));
    expect((await at("localhost:8080")).status).toBe(200);
    expect((await at("[::1]:8080")).status).toBe(200);
    expect((await at("evil.example:8080")).status).toBe(403);
  });
});

describe("bodies", () => {
  it.each(["", "{", "[]", "null", '"x"', '{"messages":'])("that are no JSON object are refused: %s", async (body) => {
    const { handler } = served({ lines: [] });
    expect((await handler(post(path, body))).status).toBe(400);
  });

  it("are refused when they are too large, announced or not", async () => {
    const { handler } = served({ lines: [] }, { limits: { bodyBytes: 1000 } });
    const large = { ...hello, x: "x".repeat(1000) };
    expect((await handler(post(path, large, { "content-length": "1024" }))).status).toBe(413);
    let sent = 0;
    const endless = new ReadableStream({
      pull: (controller) => {
        sent++;
        controller.enqueue(new Uint8Array(100));
      },
    });
    const init = { method: "POST", headers: { "content-type": "application/json" }, body: endless, duplex: "half" };
    expect((await handler(new Request(`http://server${path}`, init as RequestInit))).status).toBe(413);
    expect(sent).toBeLessThan(20);
  });

  it("that nest without end are refused", async () => {
    const { handler } = served({ lines: [] });
    const deep = `{"messages":${"[".repeat(100_000)}${"]".repeat(100_000)}}`;
    expect((await handler(post(path, deep))).status).toBe(400);
  });

  it("share a budget, which they give back", async () => {
    const { handler } = served(slow, { limits: { heldBytes: 250 } });
    const ask = () => handler(post(path, { ...hello, stream: true, user: "x".repeat(100) }));
    const open = await ask();
    expect((await ask()).status).toBe(429);
    await open.body!.cancel();
    const again = await ask();
    expect(again.status).toBe(200);
    await again.body!.cancel();
  });

  it("share it with the files that are fetched for them", async () => {
    const fetchMedia = async (url: string) => new Uint8Array(Number(url.split("/").at(-1)));
    const { handler } = served({ lines: ["ok"] }, { limits: { heldBytes: 6e6 + 2000 }, fetchMedia });
    const ask = async (bytes: number) => {
      const image = { type: "image_url", image_url: { url: `https://files.example/${bytes}` } };
      return (await handler(post(path, { messages: [{ role: "user", content: [image] }] }))).status;
    };
    expect([await ask(1000), await ask(5000), await ask(1000)]).toEqual([200, 429, 200]);
  });

  it("count a file's bytes while they come, and once", async () => {
    const fetchMedia = async (_: string, __: AbortSignal, take?: (bytes: number) => void) => {
      for (let i = 0; i < 4; i++) take!(250);
      return new Uint8Array(1000);
    };
    const image = { type: "image_url", image_url: { url: "https://files.example/a" } };
    const ask = async (room: number) => {
      const { handler } = served({ lines: ["ok"] }, { limits: { heldBytes: 6e6 + room }, fetchMedia });
      return (await handler(post(path, { messages: [user([image])] }))).status;
    };
    expect([await ask(1500), await ask(1000)]).toEqual([200, 429]);
  });

  it("give back what a file brings that comes after its request has failed", async () => {
    const fetchMedia = async (url: string) => {
      if (url.endsWith("gone")) throw new RequestError("there is none");
      if (url.endsWith("late")) await soon();
      return new Uint8Array(1000);
    };
    const { handler } = served({ lines: ["ok"] }, { limits: { heldBytes: 12e6 + 2500 }, fetchMedia });
    const ask = async (...names: string[]) => {
      const images = names.map((name) => ({
        type: "image_url",
        image_url: { url: `https://files.example/${name}` },
      }));
      return (await handler(post(path, { messages: [user(images)] }))).status;
    };
    for (let i = 0; i < 3; i++) {
      expect(await ask("gone", "late")).toBe(400);
      await soon(40);
    }
    expect(await ask("a", "b")).toBe(200);
  });

  it("with too long a prompt are refused before it is tokenized, or handed to the engine", async () => {
    const { model, handler } = served({ lines: [] });
    for (const [at, body] of [
      ["/v1/completions", { prompt: Array(1001).fill(5) }],
      ["/v1/completions", { prompt: [[5], Array(1001).fill(5)] }],
      ["/detokenize", { tokens: Array(1001).fill(5) }],
      [path, { messages: [user("x".repeat(128_001))] }],
      ["/v1/completions", { prompt: "x".repeat(128_001) }],
      ["/tokenize", { prompt: "x".repeat(128_001) }],
      [path, { ...hello, tools: [{ type: "function", function: { name: "f", description: "x".repeat(128_001) } }] }],
    ] as const) {
      const response = await handler(post(at, body));
      expect(response.status).toBe(400);
      expect((await json(response)).error.code).toBe("context_length_exceeded");
    }
    expect(model.asked).toEqual([]);
  });

  it.each([
    [path, { ...hello, stop: "ab".repeat(501) }],
    [path, { ...hello, stop: ["a", "ab".repeat(501)] }],
    [path, { ...hello, stop: Array(17).fill("a") }],
    ["/v1/completions", { prompt: "a", stop: ["ab".repeat(501)] }],
    ["/v1/messages", { ...hello, max_tokens: 1, stop_sequences: ["ab".repeat(501)] }],
  ])("with stop strings that are too long or too many are refused: %s", async (at, body) => {
    // a reply that had begun 40,000 characters of one kept the engine for seconds when it went on otherwise
    const { model, handler } = served({ lines: [] });
    const response = await handler(post(at, body));
    expect(response.status).toBe(400);
    expect((await json(response)).error.message).toMatch(/'stop(_sequences)?(\[\d\])?': Too big|array/);
    expect(model.asked).toEqual([]);
  });

  // 128 replies of all tokens with 20 likeliest ones each were held until they could not be written any more
  it.each([
    ["/v1/completions", { prompt: "a", n: 100, max_tokens: 1000, logprobs: 20 }],
    ["/v1/completions", { prompt: Array(100).fill("a"), max_tokens: 1e9, logprobs: 20 }],
    [path, { ...hello, n: 100, max_tokens: 1000, logprobs: true, top_logprobs: 20 }],
    [path, { ...hello, n: 128, max_tokens: 1000, logprobs: true, top_logprobs: 6, return_routed_experts: true }],
  ])("that ask for more log-probabilities than an answer may hold are refused: %s", async (at, body) => {
    const { model, handler } = served({ lines: ["a"] }, { limits: { concurrent: 16 } });
    const response = await handler(post(at, body));
    expect(response.status).toBe(400);
    expect((await json(response)).error.message).toContain("more than 1,048,576 log-probabilities");
    expect(model.asked).toEqual([]);
    const { logprobs: _, top_logprobs: __, return_routed_experts: ___, ...none } = body as Record<string, unknown>;
    expect((await handler(post(at, none))).status).toBe(200);
    const stream = await handler(post(at, { ...body, stream: true }));
    expect(stream.status).toBe(200);
    await stream.body!.cancel();
  });

  it("whose replies turn out to tell more are given up", async () => {
    const { model, handler } = served({ lines: [] });
    model.chat = async function* () {
      const top = Array(1000).fill({ token: 1, logprob: -1, text: "a", bytes: [97] });
      const usage = { promptTokens: 1, cachedTokens: 0, completionTokens: 1 };
      for (;;) yield { text: "", tokens: [1], logprobs: [{ ...top[0], top }], usage };
    };
    const answers = [
      await handler(post(path, { ...hello, logprobs: true, top_logprobs: 20 })),
      await handler(post("/v1/responses", { input: "x", top_logprobs: 20 })),
    ];
    for (const { status } of answers) expect(status).toBe(400);
    const events = await eventsOf(await handler(post("/v1/responses", { input: "x", top_logprobs: 20, stream: true })));
    expect(events.at(-1)!.data.message).toContain("more than 1,048,576 log-probabilities");
  });

  // the others' bytes were all handed to the engine's thread at once
  it.each([
    [
      "one by one where there is an image",
      [{ type: "image_url", image_url: { url: "data:image/png;base64,AAAA" } }],
      1,
    ],
    ["together where there is none", "Hello", 3],
  ])("with many replies begin them %s", async (_, content, expected) => {
    const { model, handler } = served({ lines: ["a", "b"] });
    const chat = model.chat.bind(model);
    let reading = 0;
    let most = 0;
    model.chat = async function* (messages, options) {
      most = Math.max(most, ++reading);
      await soon(5);
      let isRead = false;
      for await (const piece of chat(messages, options)) {
        if (!isRead) reading--;
        isRead = true;
        yield piece;
      }
    };
    const { choices } = await json(await handler(post(path, { messages: [user(content)], n: 4 })));
    expect(choices.length).toBe(4);
    expect(most).toBe(expected);
  });

  it("with too many images are refused before they are decoded", async () => {
    const { model, handler } = served({ lines: [] });
    const image = { type: "image_url", image_url: { url: "data:image/png;base64,AAAA" } };
    const response = await handler(post(path, { messages: [user(Array(17).fill(image))] }));
    expect(response.status).toBe(400);
    expect((await json(response)).error.message).toContain("17 images; expected at most 16");
    expect(model.asked).toEqual([]);
  });
});

describe("errors", () => {
  it("of the request are told; those of the machine are not", async () => {
    const heard: unknown[] = [];
    const secret = "/home/somebody/weights.gguf";
    const status = async (error: Error) => {
      const { handler } = served({ lines: [error] }, { onError: (error) => heard.push(error) });
      const response = await handler(post(path, hello));
      const text = await response.text();
      expect(text).not.toContain(secret);
      expect(text).not.toContain("at ");
      return [response.status, JSON.parse(text).error.message, JSON.parse(text).error.code];
    };
    expect(await status(new RequestError("topP is 2; expected less"))).toEqual([400, "topP is 2; expected less", null]);
    const long = new CapacityError("the prompt has 1,257 tokens and the cache holds 1,000; open the model with more");
    expect(await status(long)).toEqual([
      400,
      "This model's maximum context length is 1000 tokens, and the prompt has 1,257 tokens; expected a shorter prompt.",
      "context_length_exceeded",
    ]);
    const images = new CapacityError(
      "the prompt's images take 9,000 tokens or more, and there is room for 5; give fewer",
    );
    expect((await status(images))[1]).toContain("is 1000 tokens, and the prompt's images take 9,000 tokens or more");
    expect(heard).toEqual([]);
    const told = "The server failed on this request; its log says why.";
    for (const error of [new CheckpointError(`${secret}: broken`), new TypeError(secret)])
      expect(await status(error)).toEqual([500, told, null]);
    expect(heard.length).toBe(2);
    expect((await status(new CapacityError(`no room at ${secret}`)))[0]).toBe(503);
  });

  it("in the middle of a stream are its last event", async () => {
    const heard: unknown[] = [];
    const { handler } = served({ lines: ["a", new Error("secret")] }, { onError: (error) => heard.push(error) });
    const events = await eventsOf(await handler(post(path, { ...hello, stream: true })));
    expect(events.at(-1)!.data.error).toMatchObject({ type: "server_error" });
    expect(JSON.stringify(events)).not.toContain("secret");
    expect(heard.length).toBe(1);
  });

  it("before the first token are told by their status, in a stream too", async () => {
    const { handler } = served({ lines: [new RequestError("no")] });
    expect((await handler(post(path, { ...hello, stream: true }))).status).toBe(400);
  });
});

describe("a request ends", () => {
  it("when its reader leaves the stream", async () => {
    const { model, handler } = served(slow);
    const response = await handler(post(path, { ...hello, stream: true }));
    const reader = response.body!.getReader();
    await reader.read();
    await reader.cancel();
    await soon();
    expect(model.left).toBe(1);
  });

  it("when the client leaves before the answer", async () => {
    const { model, handler } = served(slow);
    const cancel = new AbortController();
    const response = handler(post(path, hello, {}, cancel.signal));
    await soon();
    cancel.abort();
    expect((await response).status).toBe(499);
    expect(model.left).toBe(1);
  });

  // @hono/node-server aborts with a string, which was no error to hono: the handler rejected, and nothing was counted
  it("and is counted when the client leaves, whatever reason is given for it", async () => {
    const statuses: number[] = [];
    const observer = { ...prometheus(), answered: (_: string, status: number) => statuses.push(status) };
    const { handler } = served(slow, { observer });
    const cancel = new AbortController();
    const response = handler(post(path, hello, {}, cancel.signal));
    await soon();
    cancel.abort("Client connection prematurely closed.");
    expect((await response).status).toBe(499);
    expect(statuses).toEqual([499]);
  });

  it("when the client leaves the queue", async () => {
    const { model, handler } = served(slow, { limits: { concurrent: 1 } });
    const first = await handler(post(path, { ...hello, stream: true }));
    const cancel = new AbortController();
    const waiting = handler(post(path, hello, {}, cancel.signal));
    await soon();
    cancel.abort();
    expect((await waiting).status).toBe(499);
    expect(model.asked.length).toBe(1);
    await first.body!.cancel();
  });

  it("when its time is over, whole or streamed", async () => {
    const { model, handler } = served(slow, { limits: { requestMs: 30 } });
    expect((await handler(post(path, hello))).status).toBe(504);
    const events = await eventsOf(await handler(post(path, { ...hello, stream: true })));
    expect(events.at(-1)!.data.error.code).toBe("timeout");
    expect(model.left).toBe(2);
  });

  it("when its reader takes nothing for too long", async () => {
    const { model, handler } = served({ lines: Array(9).fill("a") }, { limits: { idleMs: 30 } });
    const response = await handler(post(path, { ...hello, stream: true }));
    const reader = response.body!.getReader();
    await reader.read();
    await soon(60);
    expect(model.left).toBe(1);
    await expect(reader.read()).rejects.toThrow("nothing was read for 30 ms");
  });

  it("when the server stops", async () => {
    const stop = new AbortController();
    const { model, handler } = served(slow, { signal: stop.signal });
    const whole = handler(post(path, hello));
    const streamed = await handler(post(path, { ...hello, stream: true }));
    await soon();
    stop.abort();
    expect((await whole).status).toBe(503);
    expect((await eventsOf(streamed)).at(-1)!.data.error.message).toContain("stopping");
    expect(model.left).toBe(2);
  });

  it("and its place in the queue is the next one's", async () => {
    const { handler } = served({ lines: ["a"] }, { limits: { concurrent: 1, queue: 50 } });
    const all = await Promise.all(Array.from({ length: 20 }, () => handler(post(path, hello))));
    expect(all.map(({ status }) => status)).toEqual(Array(20).fill(200));
  });

  it("with 429 and a time to come back where too many wait", async () => {
    const { handler } = served(slow, { limits: { concurrent: 1, queue: 0 } });
    const first = await handler(post(path, { ...hello, stream: true }));
    const second = await handler(post(path, hello));
    expect(second.status).toBe(429);
    expect(Number(second.headers.get("retry-after"))).toBeGreaterThan(0);
    expect((await json(second)).error).toMatchObject({ type: "rate_limit_error", code: "rate_limit_exceeded" });
    await first.body!.cancel();
  });
});

import { describe, expect, it } from "vitest";
import { RequestError } from "../../src/tensor/errors.ts";
import { call, eventsOf, json, post, served, user } from "./scripted.ts";

const path = "/v1/chat/completions";
const hello = { messages: [user("Hello")] };
const weather = {
  type: "function",
  function: { name: "weather", description: "Today's", parameters: { type: "object", properties: {} }, strict: true },
};

const allowing = (mode: string, ...names: string[]) => ({
  ...{ ...hello, tools: [weather] },
  tool_choice: {
    type: "allowed_tools",
    allowed_tools: { mode, tools: names.map((name) => ({ type: "function", function: { name } })) },
  },
});

describe("POST /v1/chat/completions", () => {
  it("answers whole, with usage and what was in the cache", async () => {
    const { handler } = served({ lines: ["Hi", " there"] });
    const response = await handler(post(path, hello));
    expect(response.status).toBe(200);
    expect(await json(response)).toEqual({
      id: expect.stringMatching(/^chatcmpl-\w{32}$/),
      object: "chat.completion",
      created: expect.any(Number),
      model: "m",
      choices: [
        {
          index: 0,
          message: { role: "assistant", content: "Hi there", refusal: null },
          logprobs: null,
          finish_reason: "stop",
        },
      ],
      usage: {
        prompt_tokens: 7,
        completion_tokens: 3,
        total_tokens: 10,
        prompt_tokens_details: { cached_tokens: 3 },
      },
    });
  });

  it("says which experts each token came by, where that is asked for", async () => {
    const { handler } = served({ lines: ["Hi", " there"] });
    const asked = { ...hello, return_routed_experts: true };
    const of = (token_id: number) => ({
      ...{ token_id, layers: [1], experts: [[token_id]], scores: [[0.1235]], margins: [2 / token_id] },
    });
    const whole = await json(await handler(post(path, asked)));
    expect(whole.choices[0].routed_experts).toEqual([of(1), of(2)]);
    const events = await eventsOf(await handler(post(path, { ...asked, stream: true })));
    expect(events.flatMap(({ data }) => data.choices?.[0]?.routed_experts ?? [])).toEqual([of(1), of(2)]);
    expect(JSON.stringify(await json(await handler(post(path, hello))))).not.toContain("routed_experts");
  });

  it("counts in every chunk, where that is asked for", async () => {
    const { handler } = served({ lines: ["Hi", " there"] });
    const options = { include_usage: true, continuous_usage_stats: true };
    const events = await eventsOf(await handler(post(path, { ...hello, stream: true, stream_options: options })));
    expect(events.slice(0, -1).map(({ data }) => data.usage.total_tokens)).toEqual([8, 9, 10, 10]);
  });

  it("streams the same, a chunk a piece, with usage where it is asked for", async () => {
    const { handler } = served({ lines: ["Hi", " there"], finishReason: "length" });
    const body = { ...hello, stream: true, stream_options: { include_usage: true } };
    const response = await handler(post(path, body));
    expect(response.headers.get("content-type")).toBe("text/event-stream");
    const events = await eventsOf(response);
    expect(events.at(-1)!.data).toBe("[DONE]");
    const chunks = events.slice(0, -1).map(({ data }) => data);
    expect(new Set(chunks.map(({ id }) => id)).size).toBe(1);
    expect(chunks.map(({ choices }) => choices[0]?.delta)).toEqual([
      { role: "assistant", content: "Hi", refusal: null },
      { content: " there" },
      {},
      undefined,
    ]);
    expect(chunks.map(({ choices }) => choices[0]?.finish_reason)).toEqual([null, null, "length", undefined]);
    expect(chunks.map(({ usage }) => usage?.total_tokens)).toEqual([undefined, undefined, undefined, 10]);
  });

  it("says nothing of usage in a stream that does not ask", async () => {
    const { handler } = served({ lines: ["Hi"] });
    const events = await eventsOf(await handler(post(path, { ...hello, stream: true })));
    expect(events.filter(({ data }) => data !== "[DONE]" && "usage" in data)).toEqual([]);
  });

  it("hands on how tokens are chosen; null is what is left out", async () => {
    const { model, handler } = served({ lines: [] });
    const choices = {
      ...{ temperature: 0.5, top_p: 0.8, presence_penalty: 1, frequency_penalty: -1, seed: -4, top_k: -1, min_p: 0.1 },
      ...{
        logit_bias: { 5: -100 },
        stop: "END",
        max_tokens: 9,
        max_completion_tokens: null,
        user: "somebody",
        n: null,
      },
    };
    await handler(post(path, { ...hello, ...choices }));
    expect(model.asked[0]).toMatchObject({
      ...{
        temperature: 0.5,
        topP: 0.8,
        presencePenalty: 1,
        frequencyPenalty: -1,
        seed: 2 ** 53 - 4,
        topK: 0,
        minP: 0.1,
      },
      ...{ logitBias: { 5: -100 }, stop: ["END"], maxTokens: 9 },
    });
    await handler(post(path, { ...hello, temperature: null, stop: null }));
    expect(model.asked[1]).toMatchObject({ temperature: undefined, stop: undefined, maxTokens: undefined });
  });

  it("takes the largest seed for many replies, and each has its own", async () => {
    const { model, handler } = served({ lines: ["a"] });
    await handler(post(path, { ...hello, n: 4, seed: 2 ** 53 - 2 }));
    expect(model.asked.map(({ seed }) => seed)).toEqual([2 ** 53 - 2, 2 ** 53 - 1, 0, 1]);
  });

  it("gives n replies to one prompt, each with a seed of its own", async () => {
    const { model, handler } = served({ lines: ["a"] });
    const { choices, usage } = await json(await handler(post(path, { ...hello, n: 3, seed: 10 })));
    expect(choices.map((c: { index: number }) => c.index)).toEqual([0, 1, 2]);
    expect(model.asked.map(({ seed }) => seed)).toEqual([10, 11, 12]);
    expect(usage).toMatchObject({ prompt_tokens: 7, completion_tokens: 6 });
  });

  it("computes a prompt before its second reply begins", async () => {
    let go = (_: unknown) => {};
    const wait = new Promise((resolve) => {
      go = resolve;
    });
    const { model, handler } = served({ lines: [{ wait }, "a"] });
    const response = handler(post(path, { ...hello, n: 2 }));
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(model.asked.length).toBe(1);
    go(undefined);
    await response;
    expect(model.asked.length).toBe(2);
  });

  it("shows log-probabilities of the reply's tokens, without the one that ended it", async () => {
    const { model, handler } = served({ lines: ["a", "b"] });
    const body = { ...hello, logprobs: true, top_logprobs: 1 };
    const { choices } = await json(await handler(post(path, body)));
    expect(model.asked[0]!.logprobs).toBe(1);
    const token = { token: "a", logprob: -1, bytes: [1] };
    expect(choices[0].logprobs.content).toEqual([
      { ...token, top_logprobs: [token] },
      expect.objectContaining({ token: "b" }),
    ]);
    const events = await eventsOf(await handler(post(path, { ...body, stream: true })));
    const streamed = events.flatMap(({ data }) => data.choices?.[0].logprobs?.content ?? []);
    expect(streamed).toEqual(choices[0].logprobs.content);
  });

  describe("with tools", () => {
    it("gives a call as JSON in a string, whole and streamed", async () => {
      const { model, handler } = served({ lines: ["Let me see. ", call("weather", { city: "Ulm" })] });
      const body = { ...hello, tools: [weather] };
      const { choices } = await json(await handler(post(path, body)));
      expect(model.asked[0]!.tools).toEqual([
        { name: "weather", description: "Today's", parameters: { type: "object", properties: {} } },
      ]);
      const written = {
        id: expect.stringMatching(/^call_/),
        type: "function",
        function: { name: "weather", arguments: '{"city":"Ulm"}' },
      };
      expect(choices[0]).toMatchObject({
        finish_reason: "tool_calls",
        message: { content: "Let me see. ", tool_calls: [written] },
      });
      const events = await eventsOf(await handler(post(path, { ...body, stream: true })));
      const deltas = events.flatMap(({ data }) => data.choices?.[0].delta.tool_calls ?? []);
      expect(deltas).toEqual([{ index: 0, ...written }]);
    });

    it("leaves content null where a reply is calls alone", async () => {
      const { handler } = served({ lines: [call("weather")] });
      const { choices } = await json(await handler(post(path, { ...hello, tools: [weather] })));
      expect(choices[0].message.content).toBeNull();
    });

    it("numbers parallel calls; with parallel_tool_calls off the first one ends the reply", async () => {
      const { model, handler } = served({ lines: [call("weather", { a: 1 }), call("weather", { a: 2 }), "more"] });
      const body = { ...hello, tools: [weather] };
      const both = await json(await handler(post(path, body)));
      expect(both.choices[0].message.tool_calls.length).toBe(2);
      const events = await eventsOf(await handler(post(path, { ...body, stream: true })));
      const deltas = events.flatMap(({ data }) => data.choices?.[0].delta.tool_calls ?? []);
      expect(deltas.map(({ index }: { index: number }) => index)).toEqual([0, 1]);
      const one = await json(await handler(post(path, { ...body, parallel_tool_calls: false })));
      expect(one.choices[0]).toMatchObject({ finish_reason: "tool_calls", message: { content: null } });
      expect(one.choices[0].message.tool_calls.length).toBe(1);
      expect(one.usage).toMatchObject({ prompt_tokens: 7, completion_tokens: 1 });
      expect(model.left).toBe(1);
    });

    it("ends a reply with its 128th call", async () => {
      const { model, handler } = served({ lines: Array.from({ length: 200 }, (_, a) => call("weather", { a })) });
      const { choices, usage } = await json(await handler(post(path, { ...hello, tools: [weather] })));
      expect(choices[0].finish_reason).toBe("tool_calls");
      expect(choices[0].message.tool_calls.length).toBe(128);
      expect([usage.completion_tokens, model.left]).toEqual([128, 1]);
    });

    it("refuses what tools have replaced", async () => {
      const { handler } = served({ lines: ["x"] });
      const functions = [{ name: "f", parameters: { type: "object" } }];
      const answer = await handler(post(path, { ...hello, functions, function_call: { name: "f" } }));
      expect(answer.status).toBe(400);
      expect((await json(answer)).error).toMatchObject({
        param: "functions",
        message: expect.stringContaining("`tools`"),
      });
      expect((await handler(post(path, { ...hello, functions: null }))).status).toBe(200);
    });

    it("shows the model no tools with tool_choice none", async () => {
      const { model, handler } = served({ lines: ["x"] });
      await handler(post(path, { ...hello, tools: [weather], tool_choice: "none" }));
      expect(model.asked[0]!.tools).toBeUndefined();
    });

    it("asks for a constraint where a call is required, and where JSON is", async () => {
      const { model, handler } = served({ lines: ["x"] });
      const tools = [weather];
      const asked = async (more: object) => {
        await handler(post(path, { ...hello, ...more }));
        return model.asked.at(-1)!.constraint;
      };
      const tool = expect.objectContaining({ name: "weather" });
      expect(await asked({ tools, tool_choice: "required" })).toEqual({
        type: "tool_calls",
        tools: [tool],
        parallel: true,
      });
      const named = { type: "function", function: { name: "weather" } };
      expect(await asked({ tools, tool_choice: named })).toEqual({
        type: "tool_calls",
        tools: [tool],
        parallel: false,
      });
      expect(await asked({ response_format: { type: "json_object" } })).toEqual({ type: "json" });
      const schema = { type: "object" };
      const format = { type: "json_schema", json_schema: { name: "x", schema } };
      expect(await asked({ response_format: format })).toEqual({ type: "json_schema", schema });
      expect(await asked({ response_format: { type: "text" } })).toBeUndefined();
    });

    it("tells the model of all tools, and lets it call those that are allowed", async () => {
      const { model, handler } = served({ lines: ["x"] });
      const other = { type: "function", function: { name: "other" } };
      const loose = { type: "function", function: { name: "weather" } };
      const asked = async (mode: string, more: object = {}) => {
        const tool_choice = { type: "allowed_tools", allowed_tools: { mode, tools: [loose, loose] } };
        await handler(post(path, { ...hello, tools: [loose, other], tool_choice, ...more }));
        return model.asked.at(-1)!;
      };
      const tools = [{ name: "weather" }];
      const { constraint, tools: told } = await asked("required");
      expect(told).toEqual([{ name: "weather" }, { name: "other" }]);
      expect(constraint).toEqual({ type: "tool_calls", tools, parallel: true });
      expect((await asked("auto", { parallel_tool_calls: false })).constraint).toEqual({
        ...{ type: "tool_calls", tools, parallel: false, otherwise: { type: "text" }, others: ["other"] },
      });
      expect((await asked("auto", { response_format: { type: "json_object" } })).constraint).toMatchObject({
        ...{ type: "tool_calls", tools, otherwise: { type: "json" } },
      });
    });

    it("holds calls that need not be to their schemas where that is promised, or where the rest is held too", async () => {
      const { model, handler } = served({ lines: ["x"] });
      const asked = async (more: object) => {
        await handler(post(path, { ...hello, ...more }));
        return model.asked.at(-1)!.constraint;
      };
      const loose = { ...weather, function: { ...weather.function, strict: false } };
      expect(await asked({ tools: [loose] })).toBeUndefined();
      expect(await asked({ tools: [loose, weather], parallel_tool_calls: false })).toMatchObject({
        ...{ type: "tool_calls", parallel: false, otherwise: { type: "text" } },
      });
      expect(await asked({ tools: [weather], tool_choice: "none" })).toBeUndefined();
      expect(await asked({ tools: [loose], response_format: { type: "json_object" } })).toMatchObject({
        ...{ type: "tool_calls", parallel: true, otherwise: { type: "json" } },
      });
      expect(await asked({ tools: [weather], tool_choice: "required" })).not.toHaveProperty("otherwise");
    });

    it("says in OpenAI's words what is wrong with a schema", async () => {
      const answer = async (message: string) => {
        const { handler } = served({ lines: [new RequestError(message)] });
        const response = await handler(post(path, hello));
        expect(response.status).toBe(400);
        return (await json(response)).error;
      };
      expect(await answer('json_schema: at #/a, "not" is not supported')).toEqual({
        ...{ type: "invalid_request_error", param: "response_format", code: null },
        message: 'Invalid schema for response_format: at #/a, "not" is not supported',
      });
      expect(await answer('tool "f": at #/a, "not" is not supported')).toMatchObject({
        ...{ param: "tools", code: "invalid_function_parameters" },
        message: 'Invalid schema for tool "f": at #/a, "not" is not supported',
      });
    });

    it("tells the model a conversation with calls, and their results in the calls' order", async () => {
      const { model, handler } = served({ lines: ["x"] });
      const calls = ["a", "b"].map((id) => ({
        id,
        type: "function",
        function: { name: "f", arguments: `{"id":"${id}"}` },
      }));
      const messages = [
        { role: "developer", content: "Be short." },
        user([{ type: "text", text: "Go" }]),
        { role: "assistant", content: null, tool_calls: calls },
        { role: "tool", tool_call_id: "b", content: "second" },
        { role: "tool", tool_call_id: "a", content: [{ type: "text", text: "first" }] },
      ];
      await handler(post(path, { messages }));
      expect(model.asked[0]!.messages).toEqual([
        { role: "system", content: "Be short." },
        { role: "user", content: [{ type: "text", text: "Go" }] },
        {
          role: "assistant",
          content: "",
          toolCalls: [
            { name: "f", arguments: { id: "a" } },
            { name: "f", arguments: { id: "b" } },
          ],
        },
        { role: "tool", content: [{ type: "text", text: "first" }] },
        { role: "tool", content: "second" },
      ]);
    });
  });

  describe("with pictures", () => {
    const png = (detail?: string) => ({
      type: "image_url",
      image_url: { url: `data:image/png;base64,${btoa("\x89PNG")}`, ...(detail && { detail }) },
    });

    it("hands on the bytes of images and videos, in order", async () => {
      const { model, handler } = served({ lines: ["x"] });
      const clip = { type: "video_url", video_url: { url: `data:video/mp4;base64,${btoa("\x00\xff")}` } };
      await handler(post(path, { messages: [user([png(), { type: "text", text: "?" }, clip])] }));
      expect(model.asked[0]!.messages![0]!.content).toEqual([
        { type: "image", data: Uint8Array.of(0x89, 80, 78, 71) },
        { type: "text", text: "?" },
        { type: "video", data: Uint8Array.of(0, 255) },
      ]);
    });

    it("decodes large ones in pieces, so that others have their turn", async () => {
      const { model, handler } = served({ lines: ["x"] });
      const bytes = Uint8Array.from({ length: 1_000_001 }, (_, i) => (i * 2654435761) >>> 11);
      const lines = Buffer.from(bytes)
        .toString("base64")
        .match(/.{1,76}/g)!
        .join("\r\n");
      let turns = 0;
      const timer = setInterval(() => turns++, 0);
      await handler(
        post(path, { messages: [user([{ type: "image_url", image_url: { url: `data:image/png;base64,${lines}` } }])] }),
      );
      clearInterval(timer);
      expect(model.asked[0]!.messages![0]!.content).toEqual([{ type: "image", data: bytes }]);
      expect(turns).toBeGreaterThan(2);
    });

    it.each([
      ["something in the middle", `${"A".repeat(400_000)}%${"A".repeat(400_003)}`],
      ["an end in the middle", `${"A".repeat((1 << 18) - 1)}=${"A".repeat(400_000)}`],
      ["half a byte at the end", "A".repeat(400_001)],
    ])("refuses base64 with %s", async (_, data) => {
      const { handler } = served({ lines: ["x"] });
      const url = `data:image/png;base64,${data}`;
      const response = await handler(post(path, { messages: [user([{ type: "image_url", image_url: { url } }])] }));
      expect((await json(response)).error.message).toContain("is not in base64");
    });

    it("takes one tile where all of them are asked for in low detail", async () => {
      const { model, handler } = served({ lines: ["x"] });
      await handler(post(path, { messages: [user([png("low"), png("low")])] }));
      await handler(post(path, { messages: [user([png("low"), png()])] }));
      expect(model.asked.map(({ media }) => media)).toEqual([{ maxTiles: 1 }, undefined]);
      await handler(post("/tokenize", { messages: [user([png("low")])] }));
      await handler(post("/tokenize", { messages: [user([png()])] }));
      expect(model.encoded.map(({ media }) => media)).toEqual([{ maxTiles: 1 }, undefined]);
    });

    it.each([
      ["ftp://host/a.png", 'begins with "ftp://host/a'],
      ["/etc/passwd", 'begins with "/etc/passwd"'],
      ["file:///etc/passwd", 'begins with "file:///etc/'],
      ["https://host/a.png", "this server fetches no files"],
      ["data:image/png,abc", 'is not "data:<type>;base64,<data>"'],
      ["data:image/png;base64,%%%", "is not in base64"],
    ])("refuses %s", async (url, message) => {
      const { handler } = served({ lines: ["x"] });
      const response = await handler(post(path, { messages: [user([{ type: "image_url", image_url: { url } }])] }));
      expect(response.status).toBe(400);
      const { error } = await json(response);
      expect(error.message).toContain(message);
      expect(error.param).toBe("messages[0].content[0].image_url");
    });
  });

  it.each([
    [{}, "messages", "messages"],
    [{ messages: [] }, "messages", ">=1"],
    [{ messages: [{ role: "robot", content: "x" }] }, "messages[0].role", "role"],
    [{ messages: [user([{ type: "audio" }])] }, "messages[0].content[0].type", "type"],
    [{ messages: [user(5)] }, "messages[0].content", "content"],
    [{ ...hello, tools: Array(513).fill(weather) }, "tools", "<=512"],
    [{ ...hello, temperature: 3 }, "temperature", "<=2"],
    [{ ...hello, temperature: "hot" }, "temperature", "number"],
    [{ ...hello, top_logprobs: 3 }, "top_logprobs", "logprobs: true"],
    [{ ...hello, n: 0 }, "n", ">=1"],
    [{ ...hello, tools: [weather], tool_choice: { type: "function", function: { name: "x" } } }, "tool_choice", '"x"'],
    [allowing("auto", "weather", "x"), "tool_choice", 'there is no tool "x"'],
    [allowing("auto"), "tool_choice.allowed_tools.tools", ">=1"],
    [allowing("none", "weather"), "tool_choice.allowed_tools.mode", "auto"],
    [{ ...hello, tool_choice: allowing("auto", "weather").tool_choice }, "tool_choice", "it needs 'tools'"],
    [{ ...hello, tool_choice: "required" }, "tool_choice", "tools"],
    [
      { messages: [{ role: "assistant", tool_calls: [{ id: "1", function: { name: "f", arguments: "[1]" } }] }] },
      "messages[0].tool_calls[0].function.arguments",
      "JSON object",
    ],
  ])("refuses %j and names the field", async (body, param, message) => {
    const { handler } = served({ lines: ["x"] });
    const response = await handler(post(path, body));
    expect(response.status).toBe(400);
    const { error } = await json(response);
    expect(error).toMatchObject({ type: "invalid_request_error", param });
    expect(error.message).toContain(message);
  });
});

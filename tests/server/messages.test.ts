import { describe, expect, it } from "vitest";
import { call, eventsOf, json, post, served, user } from "./scripted.ts";

const path = "/v1/messages";
const hello = { max_tokens: 9, messages: [user("Hello")] };
const tool = { name: "weather", description: "Today's", input_schema: { type: "object" } };

describe("POST /v1/messages", () => {
  it("answers whole; what was in the cache is counted apart", async () => {
    const { model, handler } = served({ lines: ["Hi", " there"] });
    const body = { ...hello, system: [{ type: "text", text: "Be short." }], top_k: 5, stop_sequences: ["END"] };
    const answer = await json(await handler(post(path, body)));
    expect(model.asked[0]).toMatchObject({
      ...{ maxTokens: 9, topK: 5, stop: ["END"] },
      messages: [
        { role: "system", content: "Be short." },
        { role: "user", content: "Hello" },
      ],
    });
    expect(answer).toEqual({
      id: expect.stringMatching(/^msg_/),
      ...{ type: "message", role: "assistant", model: "m", stop_reason: "end_turn", stop_sequence: null },
      content: [{ type: "text", text: "Hi there" }],
      usage: { input_tokens: 4, cache_creation_input_tokens: 0, cache_read_input_tokens: 3, output_tokens: 3 },
    });
  });

  it.each([
    [
      { lines: ["a"], finishReason: "length" as const },
      { stop_reason: "max_tokens", stop_sequence: null },
    ],
    [
      { lines: ["a"], stopString: "END" },
      { stop_reason: "stop_sequence", stop_sequence: "END" },
    ],
    [{ lines: [call("weather")] }, { stop_reason: "tool_use", stop_sequence: null }],
  ])("says why a reply ended: %#", async (script, ending) => {
    const { handler } = served(script);
    expect(await json(await handler(post(path, hello)))).toMatchObject(ending);
    const events = await eventsOf(await handler(post(path, { ...hello, stream: true })));
    expect(events.at(-2)!.data.delta).toEqual(ending);
  });

  it("streams blocks of text and of calls", async () => {
    const { handler } = served({ lines: ["Let", " me", call("weather", { city: "Ulm" }), "Done"] });
    const body = { ...hello, tools: [tool], stream: true };
    const events = await eventsOf(await handler(post(path, body)));
    expect(events.map(({ event, data }) => [event, data.index])).toEqual([
      ["message_start", undefined],
      ["content_block_start", 0],
      ["content_block_delta", 0],
      ["content_block_delta", 0],
      ["content_block_stop", 0],
      ["content_block_start", 1],
      ["content_block_delta", 1],
      ["content_block_stop", 1],
      ["content_block_start", 2],
      ["content_block_delta", 2],
      ["content_block_stop", 2],
      ["message_delta", undefined],
      ["message_stop", undefined],
    ]);
    expect(events[0]!.data.message).toMatchObject({ content: [], usage: { input_tokens: 4, output_tokens: 1 } });
    expect(events[5]!.data.content_block).toMatchObject({ type: "tool_use", name: "weather", input: {} });
    expect(events[6]!.data.delta).toEqual({ type: "input_json_delta", partial_json: '{"city":"Ulm"}' });
    expect(events.at(-2)!.data.usage.output_tokens).toBe(5);
  });

  it("reads calls, their results in order, and images", async () => {
    const { model, handler } = served({ lines: ["x"] });
    const image = { type: "image", source: { type: "base64", media_type: "image/png", data: btoa("\x89PNG") } };
    const messages = [
      user([image, { type: "text", text: "?", cache_control: { type: "ephemeral" } }]),
      {
        role: "assistant",
        content: [
          { type: "thinking", thinking: "hm", signature: "x" },
          { type: "text", text: "I look." },
          { type: "tool_use", id: "1", name: "f", input: { n: 1 } },
          { type: "tool_use", id: "2", name: "f", input: { n: 2 } },
        ],
      },
      user([
        { type: "tool_result", tool_use_id: "2", content: "second" },
        { type: "tool_result", tool_use_id: "1", content: [{ type: "text", text: "first" }, image] },
        { type: "text", text: "So?" },
      ]),
    ];
    expect((await handler(post(path, { max_tokens: 9, messages }))).status).toBe(200);
    const picture = { type: "image", data: Uint8Array.of(0x89, 80, 78, 71) };
    expect(model.asked[0]!.messages).toEqual([
      { role: "user", content: [picture, { type: "text", text: "?" }] },
      {
        role: "assistant",
        content: [{ type: "text", text: "I look." }],
        toolCalls: [
          { name: "f", arguments: { n: 1 } },
          { name: "f", arguments: { n: 2 } },
        ],
      },
      { role: "tool", content: [{ type: "text", text: "first" }, picture] },
      { role: "tool", content: "second" },
      { role: "user", content: [{ type: "text", text: "So?" }] },
    ]);
  });

  it("understands what may be called", async () => {
    const { model, handler } = served({ lines: [call("weather"), call("weather")] });
    const ask = async (tool_choice: object) => {
      const answer = await json(await handler(post(path, { ...hello, tools: [tool], tool_choice })));
      return { asked: model.asked.at(-1)!, answer };
    };
    expect((await ask({ type: "any" })).asked.constraint).toMatchObject({ type: "tool_calls", parallel: true });
    expect((await ask({ type: "tool", name: "weather" })).asked.constraint).toMatchObject({ parallel: false });
    expect((await ask({ type: "none" })).asked.tools).toBeUndefined();
    const one = await ask({ type: "auto", disable_parallel_tool_use: true });
    expect(one.answer.content.length).toBe(1);
    expect((await ask({ type: "auto" })).answer.content.length).toBe(2);
  });

  it("is held to a schema, and its calls to theirs", async () => {
    const { model, handler } = served({ lines: ["x"] });
    const asked = async (more: object) => {
      await handler(post(path, { ...hello, ...more }));
      return model.asked.at(-1)!.constraint;
    };
    const schema = { type: "object" };
    const output_config = { format: { type: "json_schema", schema } };
    expect(await asked({ output_config })).toEqual({ type: "json_schema", schema });
    expect(await asked({ tools: [tool], output_config })).toMatchObject({ otherwise: { type: "json_schema" } });
    expect(await asked({ tools: [{ ...tool, strict: true }] })).toMatchObject({ otherwise: { type: "text" } });
    expect(await asked({ tools: [tool] })).toBeUndefined();
  });

  it("counts tokens", async () => {
    const { handler } = served({ lines: [] });
    const counted = await handler(post(`${path}/count_tokens`, { messages: [user("Hello")], system: "x" }));
    expect(await json(counted)).toEqual({ input_tokens: 2 });
  });

  it("goes on with what the assistant has begun", async () => {
    const { model, handler } = served({ lines: [" am"] });
    for (const content of ["I", [{ type: "text", text: "I" }]]) {
      const messages = [...hello.messages, { role: "assistant", content }];
      const { content: said } = await json(await handler(post(path, { ...hello, messages })));
      expect(said).toEqual([{ type: "text", text: " am" }]);
      expect(model.asked.at(-1)!.messages!.at(-1)).toEqual({ role: "assistant", content: "I", isOpen: true });
    }
  });

  it("refuses in Anthropic's words", async () => {
    const { handler } = served({ lines: [] }, { keys: ["long-enough"] });
    const headers = { "x-api-key": "long-enough" };
    const refused = async (body: object, more: Record<string, string> = headers) => {
      const response = await handler(post(path, body, more));
      return [response.status, await json(response)];
    };
    const error = (type: string, message: string) => ({
      ...{ type: "error", request_id: expect.stringMatching(/^req_/) },
      error: { type, message: expect.stringContaining(message) },
    });
    expect(await refused({ messages: hello.messages })).toEqual([400, error("invalid_request_error", "max_tokens")]);
    expect(await refused(hello, {})).toEqual([401, error("authentication_error", "API key")]);
    const prefill = (content: unknown, more: object = {}) =>
      refused({ ...hello, messages: [...hello.messages, { role: "assistant", content }], ...more });
    const use = { type: "tool_use", id: "1", name: "f", input: {} };
    for (const [content, why] of [
      ["I ", "ends with a blank"],
      [[{ type: "text", text: "I\n" }], "ends with a blank"],
      ["", "is the assistant's and empty"],
      [[use], "calls a tool; expected its result"],
    ] as const)
      expect(await prefill(content)).toEqual([400, error("invalid_request_error", why)]);
    const format = { type: "json_schema", schema: {} };
    const held = error("invalid_request_error", "of a form from its beginning");
    expect(await prefill("I", { output_config: { format } })).toEqual([400, held]);
    const search = { ...hello, tools: [{ type: "web_search_20250305", name: "web_search" }] };
    expect(await refused(search)).toEqual([400, error("invalid_request_error", "tools[0]")]);
  });

  it("tells in the stream what goes wrong there", async () => {
    const { handler } = served({ lines: ["a", new Error("secret")] }, { onError: () => {} });
    const events = await eventsOf(await handler(post(path, { ...hello, stream: true })));
    expect(events.at(-1)).toMatchObject({ event: "error", data: { type: "error", error: { type: "api_error" } } });
    expect(JSON.stringify(events)).not.toContain("secret");
  });
});

import { describe, expect, it } from "vitest";
import { RequestError } from "../../src/tensor/errors.ts";
import { type Line, post, served, user } from "./scripted.ts";

const data = "data:image/png;base64,aGk=";
const failing = (message: string) => served({ lines: [new RequestError(message)] as Line[] });

async function errorOf(path: string, body: object, { handler } = failing("image 2: the file is empty; expected PNG")) {
  const response = await handler(post(path, body));
  expect(response.status).toBe(400);
  return ((await response.json()) as { error: { message: string; param?: string | null; code?: string } }).error;
}

describe("an error about a picture names the field where it stands", () => {
  const image = (url = data) => ({ type: "image_url", image_url: { url } });
  const video = { type: "video_url", video_url: { url: data } };
  const messages = [user("hi"), user([image(), { type: "text", text: "?" }, video]), user([image()])];
  const chat = "/v1/chat/completions";

  it("of a chat, streamed or not, in our words", async () => {
    for (const stream of [false, true])
      expect(await errorOf(chat, { messages, stream })).toEqual({
        message: "Invalid value for 'messages[2].content[0].image_url': the file is empty; expected PNG.",
        ...{ type: "invalid_request_error", param: "messages[2].content[0].image_url", code: "invalid_image" },
      });
  });

  it("and of a video", async () => {
    const error = await errorOf(chat, { messages }, failing("video: the file has no video stream; expected one"));
    expect(error.param).toBe("messages[1].content[2].video_url");
  });

  it("leaves out options that only the one who serves has", async () => {
    const { message } = await errorOf(
      chat,
      { messages },
      failing("image: it has 9 pixels; expected at most 8 (`maxPixels`)"),
    );
    expect(message).toMatch(/expected at most 8\.$/);
  });

  it("of /v1/responses, in messages and in what tools gave", async () => {
    const part = { type: "input_image", image_url: data };
    const input = [
      { type: "reasoning" },
      { role: "user", content: [part] },
      { type: "function_call", call_id: "c", name: "f", arguments: "{}" },
      { type: "function_call_output", call_id: "c", output: [{ type: "input_text", text: "x" }, part] },
    ];
    expect((await errorOf("/v1/responses", { input })).param).toBe("input[3].output[1].image_url");
    const first = failing("image 1: the file is empty; expected PNG");
    expect((await errorOf("/v1/responses", { input }, first)).param).toBe("input[1].content[0].image_url");
  });

  it("of /v1/messages, whose errors have no field for it", async () => {
    const source = { type: "base64", media_type: "image/png", data: "aGk=" };
    const picture = { type: "image", source };
    const result = { type: "tool_result", tool_use_id: "c", content: [picture] };
    const use = { type: "tool_use", id: "c", name: "f", input: {} };
    const asked = [
      user("hi"),
      { role: "assistant", content: [use] },
      user([{ type: "text", text: "?" }, result, picture]),
    ];
    const { message } = await errorOf("/v1/messages", { messages: asked, max_tokens: 1 });
    expect(message).toMatch(/^Invalid value for 'messages\[2\]\.content\[2\]\.source': the file is empty/);
    const first = failing("image 1: the file is empty; expected PNG");
    const { message: other } = await errorOf("/v1/messages", { messages: asked, max_tokens: 1 }, first);
    expect(other).toContain("'messages[2].content[1].content[0].source'");
  });

  it("of /tokenize", async () => {
    const { model, handler } = served({ lines: [] });
    model.encodeChat = () => Promise.reject(new RequestError("image 2: the file is empty; expected PNG"));
    expect((await errorOf("/tokenize", { messages }, { model, handler })).param).toBe(
      "messages[2].content[0].image_url",
    );
  });

  it("that could not be fetched", async () => {
    const { Refusal } = await import("../../src/server/errors.ts");
    const fetchMedia = () => Promise.reject(new Refusal(400, "A file could not be fetched."));
    const fetching = served({ lines: [] }, { fetchMedia });
    const error = await errorOf(chat, { messages: [user([image("https://host/a.png")])] }, fetching);
    expect(error.param).toBe("messages[0].content[0].image_url");
  });

  it("that is one too many, or of a model that reads text only", async () => {
    const few = served({ lines: [] }, { limits: { images: 2 } });
    expect((await errorOf(chat, { messages }, few)).param).toBe("messages[2].content[0].image_url");
    const blind = served({ lines: [] });
    Object.assign(blind.model.info, { vision: undefined });
    const error = await errorOf(chat, { messages }, blind);
    expect(error).toMatchObject({ param: "messages[1].content[0].image_url" });
    expect(error.message).toContain("this model reads text only");
  });
});

describe("an error about a token id names where it stands", () => {
  it.each([
    [[1, 2, 9999], "token 2 of the prompt is 9999; expected an id from 0 to 299", "prompt[2]"],
    [[[1], [1, 9999]], "token 1 of the prompt is 9999; expected an id from 0 to 299", "prompt[1][1]"],
    [[[1, 2, 9999]], "token id 9999; expected a whole number below 300", "prompt[0][2]"],
  ])("%j", async (prompt, message, param) => {
    expect(await errorOf("/v1/completions", { prompt }, failing(message))).toMatchObject({ message, param });
  });

  it("of /detokenize", async () => {
    const { model, handler } = served({ lines: [] });
    model.decode = () => Promise.reject(new RequestError("token id 9999; expected a whole number below 300"));
    expect((await errorOf("/detokenize", { tokens: [5, 9999] }, { model, handler })).param).toBe("tokens[1]");
  });
});

// It was taken, and told to the model behind whatever stood before it.
describe("a tool's result without its call is refused, with its id and those that are known", () => {
  const { handler } = served({ lines: ["x"] });
  const fn = (id: string) => ({ id, type: "function", function: { name: "f", arguments: "{}" } });
  const said = (...ids: string[]) => ({ role: "assistant", content: null, tool_calls: ids.map(fn) });
  const told = (tool_call_id: string) => ({ role: "tool", tool_call_id, content: "sunny" });
  const use = (id: string) => ({ role: "assistant", content: [{ type: "tool_use", id, name: "f", input: {} }] });
  const result = (tool_use_id: string) =>
    user([
      { type: "text", text: "?" },
      { type: "tool_result", tool_use_id },
    ]);
  const call = (call_id: string) => ({ type: "function_call", call_id, name: "f", arguments: "{}" });
  const output = (call_id: string) => ({ type: "function_call_output", call_id, output: "sunny" });

  it.each([
    ["/v1/chat/completions", { messages: [user("?"), told("a")] }, "messages[1].tool_call_id"],
    ["/v1/chat/completions", { messages: [user("?"), said("b"), told("b"), told("a")] }, "messages[3].tool_call_id"],
    ["/v1/chat/completions", { messages: [user("?"), told("a"), said("a")] }, "messages[1].tool_call_id"],
    [
      "/v1/messages",
      { messages: [user("?"), use("b"), result("a")], max_tokens: 1 },
      "messages[2].content[1].tool_use_id",
    ],
    ["/v1/messages/count_tokens", { messages: [result("a")] }, "messages[0].content[1].tool_use_id"],
    ["/v1/responses", { input: [{ type: "reasoning" }, call("b"), output("b"), output("a")] }, "input[3].call_id"],
    ["/tokenize", { messages: [user("?"), told("a")] }, "messages[1].tool_call_id"],
  ])("%s: %j", async (path, body, where) => {
    const { message, param = where } = await errorOf(path, body, { handler } as ReturnType<typeof served>);
    expect(param).toBe(where);
    expect(message).toContain(`Invalid value for '${where}': no call before it has the id "a"; expected `);
    if (JSON.stringify(body).includes('"b"')) expect(message).toMatch(/expected that of a call before it, as "b"\.$/);
  });

  it("of a call in any message before it is taken", async () => {
    const messages = [user("?"), said("a", "b"), told("b"), user("and?"), told("a"), user("so?")];
    expect((await handler(post("/v1/chat/completions", { messages }))).status).toBe(200);
  });

  it("of 20,000 are put in their calls' order at once", async () => {
    const ids = Array.from({ length: 20_000 }, (_, i) => String(i));
    const mixed = ids.map((_, i) => ids[(i * 7919) % ids.length]!);
    const messages = [user("?"), said(...ids), ...mixed.map(told)];
    const { model, handler } = served({ lines: ["x"] }, { limits: { bodyBytes: 1e9 } });
    Object.assign(model.info, { context: 1e9 });
    expect((await handler(post("/v1/chat/completions", { messages }))).status).toBe(200);
    expect(model.asked[0]!.messages).toHaveLength(20_002);
  });
});

it("an error about a bias has the request's word for it", async () => {
  const wrong = failing('"9999" of logitBias is no token; expected an id from 0 to 299');
  expect(await errorOf("/v1/completions", { prompt: "x", logit_bias: { 9999: 1 } }, wrong)).toEqual({
    message: '"9999" of logit_bias is no token; expected an id from 0 to 299',
    ...{ type: "invalid_request_error", param: "logit_bias", code: "invalid_value" },
  });
});

describe("an error about what is common to all APIs names each one's own field", () => {
  const asks = [
    ["/v1/chat/completions", { messages: [user("hi")] }, "messages", "response_format"],
    ["/v1/completions", { prompt: "hi" }, "prompt", null],
    ["/v1/responses", { input: "hi" }, "input", "text.format"],
  ] as const;

  it.each(asks)("%s", async (path, body, prompt, format) => {
    const long = failing("the prompt has 2,000 tokens and the model's context 1,000; expected a shorter prompt");
    expect(await errorOf(path, body, long)).toMatchObject({ param: prompt, code: "context_length_exceeded" });
    const [key] = Object.keys(body);
    const { handler } = served({ lines: [] });
    const text = "x".repeat(1000 * 128 + 1);
    const huge = { [key!]: key === "messages" ? [user(text)] : text };
    expect(await errorOf(path, huge, { handler } as ReturnType<typeof served>)).toMatchObject({ param: prompt });
    if (format === null) return;
    const wrong = failing("json_schema: at #, it is wrong");
    expect(await errorOf(path, body, wrong)).toMatchObject({
      ...{ param: format, message: `Invalid schema for ${format}: at #, it is wrong` },
    });
  });
});

// The unmodified clients against servers on ports of this machine.

import { type ChildProcess, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import sharp from "sharp";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Message } from "../../src/prompt/chat-format.ts";
import { createHandler } from "../../src/server/handler.ts";
import { type Listening, listen } from "../../src/server/node.ts";
import { llama4, main } from "../cli/llama4.ts";
import { temporaryPlace } from "../cli/models.ts";
import { type Asked, call, Scripted } from "../server/scripted.ts";

const isInstalled = existsSync(join(import.meta.dirname, "node_modules/openai"));
// biome-ignore lint/suspicious/noExplicitAny: the clients are installed in this folder alone, so the project's check has no types of theirs
type Client = any;
// Through a variable, which the type checker does not follow.
const load = async (name: string): Promise<Client> => import(/* @vite-ignore */ name);

const key = "a-key-of-this-test";

/** Calls the tool `weather`, and tells what that gave. */
class Weather extends Scripted {
  override chat(messages: readonly Message[], options: Omit<Asked, "messages"> = {}) {
    const { role, content } = messages.at(-1)!;
    const result =
      typeof content === "string" ? content : content.map((p) => (p.type === "text" ? p.text : "")).join("");
    const answer = role === "tool" ? ["It is ", result, "."] : ["I look. ", call("weather", { city: "Ulm" })];
    this.script = { lines: options.tools ? answer : ["No tools."] };
    return super.chat(messages, options);
  }
}

describe.skipIf(!isInstalled)("clients (skipped before `npm ci --prefix tests/clients`)", () => {
  const place = temporaryPlace();
  const weather = new Weather({ lines: [] });
  let child: ChildProcess;
  let url = "";
  let tools: Listening;
  let png: Buffer;

  beforeAll(async () => {
    const sizes =
      "--layers 2 --dim 64 --heads 4 --kv-heads 2 --head-dim 16 --ffn 64 --expert-ffn 64 --experts 4 --vocab 512";
    const eyes = "--vision-layers 1 --vision-dim 64 --vision-heads 2 --vision-tile 56";
    const made = await llama4(["init", "scout", place.at("tiny"), ...sizes.split(" "), ...eyes.split(" ")]);
    if (made.status !== 0) throw new Error(made.stderr);
    const args = ["serve", "--model", place.at("tiny"), "--port", "0", "--json", "--context", "2048"];
    child = spawn(process.execPath, [main, ...args], { env: { ...process.env, LLAMA4_API_KEY: key } });
    const lines = createInterface({ input: child.stdout! });
    url = await new Promise((resolve) => lines.once("line", (line) => resolve(JSON.parse(line).url)));
    const handler = createHandler(weather, { name: "weather", keys: [key] });
    tools = await listen(handler, { host: "127.0.0.1", port: 0 });
    png = await sharp({ create: { width: 90, height: 60, channels: 3, background: "#c04020" } })
      .png()
      .toBuffer();
  });
  afterAll(() => {
    child?.kill("SIGTERM");
    tools?.cut();
    tools?.drain();
    place.remove();
  });

  const dataUrl = () => `data:image/png;base64,${png.toString("base64")}`;
  const schema = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };

  describe("openai", () => {
    let openai: Client;
    let at: (base: string, apiKey?: string) => Client;
    beforeAll(async () => {
      openai = await load("openai");
      at = (base, apiKey = key) => new openai.OpenAI({ baseURL: `${base}/v1`, apiKey, maxRetries: 0 });
    });

    it("streams a chat, and counts it", async () => {
      const stream = await at(url).chat.completions.create({
        model: "tiny",
        messages: [{ role: "user", content: "Hello" }],
        ...{ max_completion_tokens: 20, seed: 1, stream: true, stream_options: { include_usage: true } },
      });
      let text = "";
      let usage: { completion_tokens: number; total_tokens: number } | undefined;
      for await (const chunk of stream) {
        text += chunk.choices[0]?.delta.content ?? "";
        usage = chunk.usage ?? usage;
      }
      const whole = await at(url).chat.completions.create({
        model: "tiny",
        messages: [{ role: "user", content: "Hello" }],
        ...{ max_completion_tokens: 20, seed: 1 },
      });
      expect(text).toBe(whole.choices[0].message.content);
      expect(usage!.total_tokens).toBe(whole.usage.total_tokens);
    });

    it("stops a stream that it leaves", async () => {
      const stream = await at(url).chat.completions.create({
        ...{ model: "tiny", messages: [{ role: "user", content: "Hello" }], stream: true },
        logit_bias: Object.fromEntries(Array.from({ length: 256 }, (_, i) => [256 + i, -100])),
      });
      for await (const _ of stream) break;
      const running = async () => {
        const page = await fetch(`${url}/metrics`, { headers: { authorization: `Bearer ${key}` } });
        return /^llama4_batch_sequences (\d+)$/m.exec(await page.text())![1];
      };
      await expect.poll(running, { timeout: 5000 }).toBe("0");
    });

    it("shows an image, to chats and to responses", async () => {
      const { usage } = await at(url).chat.completions.create({
        model: "tiny",
        max_tokens: 3,
        messages: [
          {
            role: "user",
            content: [
              { type: "image_url", image_url: { url: dataUrl() } },
              { type: "text", text: "What is it?" },
            ],
          },
        ],
      });
      const response = await at(url).responses.create({
        model: "tiny",
        max_output_tokens: 16,
        input: [
          {
            role: "user",
            content: [
              { type: "input_image", image_url: dataUrl(), detail: "auto" },
              { type: "input_text", text: "What is it?" },
            ],
          },
        ],
      });
      expect(response.usage.input_tokens).toBe(usage.prompt_tokens);
      expect(usage.prompt_tokens).toBeGreaterThan(30);
    });

    it("calls a tool and tells what it gave: chat", async () => {
      const asked: string[] = [];
      const runner = at(tools.url).chat.completions.runTools({
        model: "weather",
        stream: true,
        messages: [{ role: "user", content: "How is the weather in Ulm?" }],
        tools: [
          {
            type: "function",
            function: {
              ...{ name: "weather", description: "The weather", parameters: schema, parse: JSON.parse },
              function: ({ city }: { city: string }) => {
                asked.push(city);
                return "sunny";
              },
            },
          },
        ],
      });
      expect(await runner.finalContent()).toBe("It is sunny.");
      expect(asked).toEqual(["Ulm"]);
    });

    it("calls a tool and tells what it gave: responses, streamed", async () => {
      const tool = { type: "function", name: "weather", description: "The weather", parameters: schema, strict: false };
      const input: object[] = [{ role: "user", content: "How is the weather in Ulm?" }];
      const first = await at(tools.url)
        .responses.stream({ model: "weather", input, tools: [tool] })
        .finalResponse();
      expect(first.output[0].content[0].text).toBe("I look. ");
      const made = first.output.find((item: { type: string }) => item.type === "function_call");
      expect(JSON.parse(made.arguments)).toEqual({ city: "Ulm" });
      input.push(...first.output, { type: "function_call_output", call_id: made.call_id, output: "sunny" });
      const deltas: string[] = [];
      const stream = at(tools.url).responses.stream({ model: "weather", input, tools: [tool] });
      stream.on("response.output_text.delta", ({ delta }: { delta: string }) => deltas.push(delta));
      expect((await stream.finalResponse()).output[0].content[0].text).toBe("It is sunny.");
      expect(deltas).toEqual(["It is ", "sunny", "."]);
    });

    it("goes on from a text, lists models, and hands on log-probabilities", async () => {
      const { choices } = await at(url).completions.create({
        model: "tiny",
        prompt: "Once",
        max_tokens: 4,
        temperature: 0, // a drawn token may be one that ends the text
        logprobs: 2,
      });
      expect(choices[0].logprobs.tokens.length).toBeGreaterThan(0);
      const ids: string[] = [];
      for await (const model of at(url).models.list()) ids.push(model.id);
      expect(ids).toEqual(["tiny"]);
    });

    it("throws its own errors", async () => {
      const ask = (base: string, more: object, apiKey?: string) =>
        at(base, apiKey).chat.completions.create({
          model: "tiny",
          messages: [{ role: "user", content: "x" }],
          ...more,
        });
      await expect(ask(url, {}, "wrong")).rejects.toBeInstanceOf(openai.AuthenticationError);
      await expect(ask(url, { temperature: 9 })).rejects.toMatchObject({ status: 400, param: "temperature" });
      const long = { messages: [{ role: "user", content: "x".repeat(5000) }] };
      await expect(ask(url, long)).rejects.toMatchObject({ status: 400, code: "context_length_exceeded" });
      await expect(ask(url, { ...long, stream: true })).rejects.toBeInstanceOf(openai.BadRequestError);
    });

    it("gets what a zod schema says, from a random model: chats and responses", async () => {
      const { z } = await load("zod");
      const { zodResponseFormat, zodTextFormat } = await load("openai/helpers/zod");
      const pet = z.object({
        name: z.string().max(8),
        age: z.number().int().min(0).max(30),
        likes: z.array(z.enum(["fish", "sleep"])).max(3),
        owner: z.object({ mail: z.email() }).nullable(),
      });
      for (const seed of [1, 2, 3]) {
        const asked = { model: "tiny", messages: [{ role: "user", content: "A pet?" }], temperature: 1, seed };
        const format = { response_format: zodResponseFormat(pet, "pet") };
        const { choices } = await at(url).chat.completions.parse({ ...asked, ...format });
        expect(pet.parse(choices[0].message.parsed)).toEqual(choices[0].message.parsed);
        const stream = at(url).chat.completions.stream({ ...asked, ...format });
        expect((await stream.finalChatCompletion()).choices[0].message.parsed).toEqual(choices[0].message.parsed);
        const text = { format: zodTextFormat(pet, "pet") };
        const response = await at(url).responses.parse({ model: "tiny", input: `A pet? ${seed}`, text });
        expect(pet.parse(response.output_parsed)).toEqual(response.output_parsed);
      }
    });

    it("calls tools where it has to, with arguments that fit, from a random model", async () => {
      const { z } = await load("zod");
      const { zodFunction } = await load("openai/helpers/zod");
      const parameters = z.object({ city: z.string().max(6), days: z.number().int().min(1).max(9) });
      const trip = zodFunction({ name: "trip", parameters });
      const home = zodFunction({ name: "home", parameters: z.object({}) });
      const asked = {
        model: "tiny",
        messages: [{ role: "user", content: "Go!" }],
        temperature: 1,
        tools: [trip, home],
      };
      const names = new Set<string>();
      let most = 0;
      for (let seed = 0; seed < 8; seed++)
        for (const [tool_choice, parallel_tool_calls] of [
          ["required", false],
          ["required", true],
          [{ type: "function", function: { name: "trip" } }, true],
        ]) {
          const body = { ...asked, seed, tool_choice, parallel_tool_calls, max_tokens: 1500 };
          const { choices } = await at(url).chat.completions.create(body);
          const { content, tool_calls = [] } = choices[0].message;
          expect(content ?? "").toBe("");
          if (choices[0].finish_reason !== "length") expect(tool_calls.length).toBeGreaterThan(0);
          if (tool_choice !== "required" || !parallel_tool_calls) expect(tool_calls.length).toBeLessThan(2);
          for (const { function: called } of tool_calls) {
            names.add(called.name);
            if (called.name === "trip") parameters.parse(JSON.parse(called.arguments));
          }
          most = Math.max(most, tool_calls.length);
        }
      expect(names).toEqual(new Set(["trip", "home"]));
      expect(most).toBeGreaterThan(1);
    });

    it("is told what in a schema is not supported", async () => {
      const format = { type: "json_schema", json_schema: { name: "x", schema: { properties: { a: { if: {} } } } } };
      const bound = at(url).chat.completions.create({
        ...{ model: "tiny", messages: [{ role: "user", content: "x" }], response_format: format },
      });
      await expect(bound).rejects.toMatchObject({
        ...{ status: 400, param: "response_format", message: expect.stringContaining('at #/properties/a, "if"') },
      });
    });
  });

  describe("@anthropic-ai/sdk", () => {
    let anthropic: Client;
    let at: (base: string, apiKey?: string) => Client;
    beforeAll(async () => {
      anthropic = await load("@anthropic-ai/sdk");
      at = (baseURL, apiKey = key) => new anthropic.Anthropic({ baseURL, apiKey, maxRetries: 0 });
    });

    it("streams a message, and counts it", async () => {
      const asked = { model: "tiny", max_tokens: 20, messages: [{ role: "user", content: "Hello" }] };
      const greedy = { ...asked, temperature: 0 };
      const texts: string[] = [];
      const stream = at(url).messages.stream(greedy);
      stream.on("text", (text: string) => texts.push(text));
      const message = await stream.finalMessage();
      const whole = await at(url).messages.create(greedy);
      expect(texts.join("")).toBe(whole.content[0]?.text ?? "");
      expect(message.content).toEqual(whole.content);
      expect(message.usage.output_tokens).toBe(whole.usage.output_tokens);
      const { input_tokens } = await at(url).messages.countTokens({ model: "tiny", messages: asked.messages });
      expect(whole.usage.input_tokens + whole.usage.cache_read_input_tokens).toBe(input_tokens);
    });

    it("shows an image", async () => {
      const source = { type: "base64", media_type: "image/png", data: png.toString("base64") };
      const { usage } = await at(url).messages.create({
        model: "tiny",
        max_tokens: 3,
        messages: [
          {
            role: "user",
            content: [
              { type: "image", source },
              { type: "text", text: "What is it?" },
            ],
          },
        ],
      });
      expect(usage.input_tokens + usage.cache_read_input_tokens).toBeGreaterThan(30);
    });

    it("calls a tool and tells what it gave, streamed", async () => {
      const tool = { name: "weather", description: "The weather", input_schema: schema };
      const messages: object[] = [{ role: "user", content: "How is the weather in Ulm?" }];
      const ask = () =>
        at(tools.url)
          .messages.stream({ model: "weather", max_tokens: 99, messages, tools: [tool] })
          .finalMessage();
      const first = await ask();
      expect(first.stop_reason).toBe("tool_use");
      const use = first.content.find((block: { type: string }) => block.type === "tool_use");
      expect(use).toMatchObject({ name: "weather", input: { city: "Ulm" } });
      messages.push(
        { role: "assistant", content: first.content },
        { role: "user", content: [{ type: "tool_result", tool_use_id: use.id, content: "sunny" }] },
      );
      const last = await ask();
      expect(last).toMatchObject({ stop_reason: "end_turn", content: [{ type: "text", text: "It is sunny." }] });
    });

    it("throws its own errors", async () => {
      const asked = { model: "tiny", max_tokens: 1, messages: [{ role: "user", content: "x" }] };
      await expect(at(url, "wrong").messages.create(asked)).rejects.toBeInstanceOf(anthropic.AuthenticationError);
      const none = at(url).messages.create({ ...asked, max_tokens: 0 });
      await expect(none).rejects.toBeInstanceOf(anthropic.BadRequestError);
      const tool = { name: "weather", input_schema: { type: "null" } };
      const forced = at(url).messages.create({ ...asked, tools: [tool], tool_choice: { type: "any" } });
      await expect(forced).rejects.toMatchObject({ status: 400, message: expect.stringContaining('tool \\"weather') });
    });

    it("calls tools where it has to, and gets what a schema says, from a random model", async () => {
      const { z } = await load("zod");
      const { zodOutputFormat } = await load("@anthropic-ai/sdk/helpers/zod");
      const short = { type: "object", properties: { city: { type: "string", maxLength: 6 } }, required: ["city"] };
      const asked = {
        model: "tiny",
        max_tokens: 1000,
        temperature: 1,
        tools: [{ name: "weather", input_schema: short }],
      };
      for (let turn = 0; turn < 4; turn++) {
        const messages = [{ role: "user", content: `Turn ${turn}` }];
        for (const tool_choice of [
          { type: "any", disable_parallel_tool_use: true },
          { type: "tool", name: "weather" },
        ]) {
          const { content, stop_reason } = await at(url).messages.create({ ...asked, messages, tool_choice });
          expect([content.length, content[0].name, stop_reason]).toEqual([1, "weather", "tool_use"]);
          expect(Object.keys(content[0].input)).toEqual(["city"]);
        }
        const format = zodOutputFormat(z.object({ kind: z.enum(["cat", "dog"]) }));
        const parsed = await at(url).messages.parse({ ...asked, tools: [], messages, output_config: { format } });
        expect(["cat", "dog"]).toContain(parsed.parsed_output.kind);
      }
    });
  });

  describe("ai with @ai-sdk/openai-compatible", () => {
    let ai: Client;
    let model: (base: string, apiKey?: string) => Client;
    beforeAll(async () => {
      ai = await load("ai");
      const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
      model = (base, apiKey = key) =>
        createOpenAICompatible({
          ...{ name: "llama4", baseURL: `${base}/v1`, apiKey, includeUsage: true, supportsStructuredOutputs: true },
        })("tiny");
    });

    it("streams a chat, and counts it", async () => {
      const asked = { model: model(url), prompt: "Hello", maxOutputTokens: 20, seed: 1, maxRetries: 0 };
      const stream = ai.streamText(asked);
      let text = "";
      for await (const piece of stream.textStream) text += piece;
      const whole = await ai.generateText(asked);
      expect(text).toBe(whole.text);
      expect((await stream.usage).outputTokens).toBe(whole.usage.outputTokens);
      expect(whole.usage.inputTokens).toBeGreaterThan(0);
    });

    it("shows an image", async () => {
      const content = [
        { type: "image", image: png },
        { type: "text", text: "What is it?" },
      ];
      const asked = { model: model(url), messages: [{ role: "user", content }], maxOutputTokens: 3, maxRetries: 0 };
      expect((await ai.generateText(asked)).usage.inputTokens).toBeGreaterThan(30);
    });

    it("calls a tool and tells what it gave, streamed", async () => {
      const asked: string[] = [];
      const weather = ai.tool({
        description: "The weather",
        inputSchema: ai.jsonSchema(schema),
        execute: async ({ city }: { city: string }) => {
          asked.push(city);
          return "sunny";
        },
      });
      const stream = ai.streamText({
        ...{ model: model(tools.url), prompt: "How is the weather in Ulm?", tools: { weather }, maxRetries: 0 },
        stopWhen: ai.stepCountIs(2),
      });
      expect(await stream.text).toBe("It is sunny.");
      expect(asked).toEqual(["Ulm"]);
    });

    it("throws its own errors", async () => {
      const asked = { model: model(url, "wrong"), prompt: "x", maxRetries: 0 };
      await expect(ai.generateText(asked)).rejects.toMatchObject({ statusCode: 401 });
      const hot = ai.generateText({ model: model(url), prompt: "x", maxRetries: 0, temperature: 9 });
      await expect(hot).rejects.toMatchObject({ statusCode: 400, message: expect.stringContaining("temperature") });
    });

    it("calls a tool where it has to, from a random model", async () => {
      const short = { type: "object", properties: { city: { type: "string", maxLength: 6 } }, required: ["city"] };
      const weather = ai.tool({ description: "The weather", inputSchema: ai.jsonSchema(short) });
      for (let seed = 0; seed < 4; seed++) {
        const asked = { model: model(url), prompt: "Go!", tools: { weather }, maxRetries: 0, seed, temperature: 1 };
        const choice = { toolChoice: { type: "tool", toolName: "weather" } };
        const { toolCalls, text } = await ai.generateText({ ...asked, ...choice });
        expect([text, toolCalls.length, Object.keys(toolCalls[0].input)]).toEqual(["", 1, ["city"]]);
      }
    });

    it("gets what a schema says, from a random model: as generateObject, streamObject and generateText ask for it", async () => {
      const { z } = await load("zod");
      const pet = z.object({
        name: z.string().max(5),
        age: z.number().int().min(0).max(30),
        kind: z.enum(["cat", "dog"]),
      });
      for (let seed = 0; seed < 3; seed++) {
        const asked = { model: model(url), prompt: "A pet?", maxRetries: 0, seed, temperature: 1 };
        const { object, finishReason } = await ai.generateObject({ ...asked, schema: pet });
        expect([pet.parse(object), finishReason]).toEqual([object, "stop"]);
        const stream = ai.streamObject({ ...asked, schema: pet });
        const partial: object[] = [];
        for await (const piece of stream.partialObjectStream) partial.push(piece);
        expect([await stream.object, partial.at(-1)]).toEqual([object, object]);
        const { output } = await ai.generateText({ ...asked, output: ai.Output.object({ schema: pet }) });
        expect(output).toEqual(object);
        const list = await ai.generateObject({ ...asked, schema: z.enum(["cat", "dog"]), output: "array" });
        for (const kind of list.object) expect(["cat", "dog"]).toContain(kind);
      }
    });
  });

  describe("@langchain/openai", () => {
    let chat: (base: string, more?: object) => Client;
    let messages: Client;
    beforeAll(async () => {
      const { ChatOpenAI } = await load("@langchain/openai");
      messages = await load("@langchain/core/messages");
      chat = (base, more = {}) =>
        new ChatOpenAI({
          ...{ model: "tiny", apiKey: key, configuration: { baseURL: `${base}/v1` }, maxRetries: 0, ...more },
        });
    });

    it("streams a chat, and counts it", async () => {
      const model = chat(url, { temperature: 0, maxTokens: 20 });
      let all: { text: string; usage_metadata: { output_tokens: number } } | undefined;
      for await (const chunk of await model.stream("Hello")) all = all ? (all as Client).concat(chunk) : chunk;
      const whole = await model.invoke("Hello");
      expect(all!.text).toBe(whole.text);
      expect(all!.usage_metadata.output_tokens).toBe(whole.usage_metadata.output_tokens);
    });

    it("shows an image", async () => {
      const content = [
        { type: "image_url", image_url: { url: dataUrl() } },
        { type: "text", text: "What is it?" },
      ];
      const reply = await chat(url, { maxTokens: 3 }).invoke([new messages.HumanMessage({ content })]);
      expect(reply.usage_metadata.input_tokens).toBeGreaterThan(30);
    });

    it("calls a tool and tells what it gave, streamed", async () => {
      const tool = { type: "function", function: { name: "weather", description: "The weather", parameters: schema } };
      const model = chat(tools.url).bindTools([tool]);
      const talk = [new messages.HumanMessage("How is the weather in Ulm?")];
      const ask = async () => {
        let all: Client;
        for await (const chunk of await model.stream(talk)) all = all ? all.concat(chunk) : chunk;
        return all;
      };
      const first = await ask();
      expect(first.tool_calls).toMatchObject([{ name: "weather", args: { city: "Ulm" } }]);
      talk.push(first, new messages.ToolMessage({ content: "sunny", tool_call_id: first.tool_calls[0].id }));
      expect((await ask()).text).toBe("It is sunny.");
    });

    it("gets what a schema says, from a random model", async () => {
      const { z } = await load("zod");
      const pet = z.object({ name: z.string().max(5), age: z.number().int().min(0).max(30) });
      for (const method of ["jsonSchema", "functionCalling"])
        for (let turn = 0; turn < 3; turn++) {
          const bound = chat(url, { temperature: 1 }).withStructuredOutput(pet, { name: "pet", method });
          const found = await bound.invoke(`A pet? ${turn}`);
          expect(pet.parse(found)).toEqual(found);
        }
    });

    it("throws its own errors", async () => {
      await expect(chat(url, { apiKey: "wrong" }).invoke("x")).rejects.toMatchObject({ status: 401 });
      await expect(chat(url, { topP: 9 }).invoke("x")).rejects.toMatchObject({ status: 400 });
    });
  });
});

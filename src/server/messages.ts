// Anthropic's /v1/messages.

import { z } from "zod";
import type { Message, ToolCall } from "../prompt/chat-format.ts";
import type { Dialect, Meta } from "./dialect.ts";
import { anthropicError, Refusal } from "./errors.ts";
import type { ServerEvent } from "./events.ts";
import type { Ask, AskedPart, Chat, Finish, Reply, Said } from "./generation.ts";
import {
  CallIds,
  constraintOf,
  formatConstraint,
  jsonObject,
  list,
  MOST_TOOLS,
  maybe,
  newId,
  stopStrings,
  toolOf,
  wholeNumber,
} from "./wire.ts";

const text = z.object({ type: z.literal("text"), text: z.string() });
const image = z.object({
  type: z.literal("image"),
  source: z.discriminatedUnion("type", [
    z.object({ type: z.literal("base64"), media_type: z.string(), data: z.string() }),
    z.object({ type: z.literal("url"), url: z.string() }),
  ]),
});
const seen = z.union([z.string(), list(z.discriminatedUnion("type", [text, image]))]);

const message = z.discriminatedUnion("role", [
  z.object({
    role: z.literal("user"),
    content: z.union([
      z.string(),
      list(
        z.discriminatedUnion("type", [
          text,
          image,
          z.object({
            type: z.literal("tool_result"),
            tool_use_id: z.string(),
            content: maybe(seen),
            is_error: maybe(z.boolean()),
          }),
        ]),
        { least: 1 },
      ),
    ]),
  }),
  z.object({
    role: z.literal("assistant"),
    content: z.union([
      z.string(),
      list(
        z.discriminatedUnion("type", [
          text,
          z.object({ type: z.literal("tool_use"), id: z.string(), name: z.string(), input: jsonObject }),
          z.object({ type: z.enum(["thinking", "redacted_thinking"]) }), // of another model: left aside
        ]),
      ),
    ]),
  }),
]);

/** A conversation and its tools: what /v1/messages/count_tokens takes too. */
const conversation = {
  model: maybe(z.string()).describe("any name is served by the one model"),
  messages: list(message, { least: 1 }),
  system: maybe(z.union([z.string(), list(text)])),
  tools: maybe(
    list(
      z.object({
        type: maybe(z.literal("custom", "this server runs no tools of its own")),
        name: z.string().regex(/^[\w.:/-]{1,64}$/),
        description: maybe(z.string()),
        input_schema: jsonObject,
        strict: maybe(z.boolean()),
      }),
      { most: MOST_TOOLS },
    ),
  ),
  tool_choice: maybe(
    z.discriminatedUnion("type", [
      z.object({ type: z.enum(["auto", "any"]), disable_parallel_tool_use: maybe(z.boolean()) }),
      z.object({ type: z.literal("tool"), name: z.string() }),
      z.object({ type: z.literal("none") }),
    ]),
  ),
};

export const countedSchema = z.object(conversation);

const schema = z.object({
  ...conversation,
  max_tokens: wholeNumber(1),
  stop_sequences: maybe(stopStrings),
  temperature: maybe(z.number().min(0).max(2)),
  top_p: maybe(z.number().min(0).max(1)),
  top_k: maybe(wholeNumber(0)),
  output_config: maybe(z.object({ format: maybe(z.object({ type: z.literal("json_schema"), schema: jsonObject })) })),
  stream: maybe(z.boolean()),
});

type Body = z.output<typeof schema>;

export const messages: Dialect<typeof schema> = {
  summary: "Anthropic's messages: a reply to a conversation.",
  schema,
  ask,
  isStreamed: (body) => body.stream ?? false,
  whole: (_, [reply], { model }) => whole(reply!, model),
  events,
  failure: (refusal, { requestId }) => event("error", anthropicError(refusal, requestId)),
  keepAlive: 'event: ping\ndata: {"type":"ping"}\n\n',
  error: anthropicError,
};

function ask(body: Body): Ask {
  const { tool_choice: choice, max_tokens: maxTokens, stop_sequences: stop, temperature } = body;
  const chat = chatOf(body);
  const format = body.output_config?.format;
  const oneCall = (choice?.type === "auto" || choice?.type === "any") && choice.disable_parallel_tool_use === true;
  const isOpen = chat.messages.at(-1)!.isOpen;
  if (isOpen && (format || choice?.type === "any" || choice?.type === "tool"))
    throw new Refusal(
      400,
      "Invalid value for 'messages': the reply goes on with the last message, and is to be a call or of a form from its beginning; expected one of them.",
      { param: "messages" },
    );
  const named = choice?.type === "tool" ? choice : choice?.type === "any" ? "required" : choice?.type;
  return {
    prompts: chat,
    fields: { prompt: () => "messages", format: "output_config.format" },
    n: 1,
    options: {
      ...{ maxTokens, stop, temperature, topP: body.top_p, topK: body.top_k },
      constraint: constraintOf({
        choice: named,
        tools: chat.tools ?? [],
        isStrict: body.tools?.some(({ strict }) => strict) ?? false,
        parallel: !oneCall,
        format: formatConstraint(format?.type, format?.schema),
      }),
    },
    oneCall,
  };
}

/** The conversation in a body, as the model takes it. */
export function chatOf({ messages, system, tools = [], tool_choice }: z.output<typeof countedSchema>): Chat {
  const told = typeof system === "string" ? system : system?.map(({ text }) => text).join("\n");
  const list: Message<AskedPart>[] = told === undefined ? [] : [{ role: "system", content: told }];
  const calls = new CallIds();
  for (const [i, { role, content }] of messages.entries()) {
    const where = `messages[${i}].content`;
    if (typeof content === "string") {
      list.push({ role, content });
      continue;
    }
    if (role === "assistant") {
      const uses = content.filter((part) => part.type === "tool_use");
      calls.add(uses.map(({ id }) => id));
      list.push({
        role,
        content: content.filter((part) => part.type === "text"),
        ...(uses.length > 0 && { toolCalls: uses.map(({ name, input }): ToolCall => ({ name, arguments: input })) }),
      });
      continue;
    }
    const results = content.flatMap((part, at) => {
      const place = `${where}[${at}]`;
      return part.type === "tool_result"
        ? [{ ...part, place, id: part.tool_use_id, where: `${place}.tool_use_id` }]
        : [];
    });
    for (const { content, place } of calls.inOrder(results))
      list.push({ role: "tool", content: partsOf(content ?? "", (j) => `${place}.content[${j}]`) });
    const rest = content.filter((part) => part.type !== "tool_result");
    if (rest.length > 0) list.push({ role, content: partsOf(rest, (j) => `${where}[${content.indexOf(rest[j]!)}]`) });
  }
  const listed = tool_choice?.type === "none" ? [] : tools;
  const known = listed.map(({ name, description, input_schema }) => toolOf(name, description, input_schema));
  const last = list.at(-1)!;
  if (messages.at(-1)!.role === "assistant") list[list.length - 1] = opened(last, messages.length - 1);
  return { messages: list, ...(known.length > 0 && { tools: known }) };
}

/** The assistant's beginning of a reply, which goes on with it. Anthropic refuses blanks at its end, too: they change how it goes on. */
function opened({ content, toolCalls }: Message<AskedPart>, i: number): Message<AskedPart> {
  const parts =
    typeof content === "string" ? [content] : content.map((part) => (part.type === "text" ? part.text : ""));
  const text = parts.join("");
  const wrong = toolCalls
    ? "the last message calls a tool; expected its result behind it"
    : text === ""
      ? "the last message is the assistant's and empty; expected a text, or the user's"
      : /\s$/.test(text)
        ? "the last message is the assistant's and ends with a blank; expected a text without it, which the reply goes on with"
        : undefined;
  const param = `messages[${i}].content`;
  if (wrong !== undefined) throw new Refusal(400, `Invalid value for '${param}': ${wrong}.`, { param });
  return { role: "assistant", content: text, isOpen: true };
}

/** `where` says at which field one of them stands. */
const partsOf = (content: z.output<typeof seen>, where: (j: number) => string): string | AskedPart[] =>
  typeof content === "string"
    ? content
    : content.map((part, j) => {
        if (part.type === "text") return part;
        const { source } = part;
        const url = source.type === "url" ? source.url : `data:${source.media_type};base64,${source.data}`;
        return { type: "image", url, param: `${where(j)}.source` };
      });

const useOf = ({ name, arguments: input }: ToolCall) => ({ type: "tool_use", id: newId("toolu_"), name, input });

function whole({ text, toolCalls, finish }: Reply, model: string): object {
  return {
    ...envelope(model),
    content: [...(text === "" ? [] : [{ type: "text", text }]), ...toolCalls.map(useOf)],
    ...ending(finish),
    usage: usageOf(finish.usage),
  };
}

const envelope = (model: string) => ({ id: newId("msg_"), type: "message", role: "assistant", model });

function ending({ reason, stopString }: Finish) {
  const stop_reason =
    reason === "length"
      ? "max_tokens"
      : reason === "tool_calls"
        ? "tool_use"
        : stopString === undefined
          ? "end_turn"
          : "stop_sequence";
  return { stop_reason, stop_sequence: stop_reason === "stop_sequence" ? stopString : null };
}

/** What was in the cache is counted apart, as Anthropic does. */
const usageOf = ({ promptTokens, cachedTokens, completionTokens }: Finish["usage"]) => ({
  input_tokens: promptTokens - cachedTokens,
  cache_creation_input_tokens: 0,
  cache_read_input_tokens: cachedTokens,
  output_tokens: completionTokens,
});

const event = (type: string, more: object): ServerEvent => ({ event: type, data: JSON.stringify({ type, ...more }) });

async function* events(_: Body, said: AsyncIterable<Said>, { model }: Meta): AsyncGenerator<ServerEvent> {
  let index = 0;
  let isOpen = false; // a block of text
  for await (const { text, toolCalls, usage, finish } of said) {
    if (usage) {
      const begun = { ...envelope(model), content: [], stop_reason: null, stop_sequence: null, usage: usageOf(usage) };
      yield event("message_start", { message: begun });
    }
    if (text !== "") {
      if (!isOpen) yield event("content_block_start", { index, content_block: { type: "text", text: "" } });
      isOpen = true;
      yield event("content_block_delta", { index, delta: { type: "text_delta", text } });
    }
    if (isOpen && (finish || toolCalls.length > 0)) {
      yield event("content_block_stop", { index: index++ });
      isOpen = false;
    }
    for (const call of toolCalls) {
      const use = useOf(call);
      yield event("content_block_start", { index, content_block: { ...use, input: {} } });
      const partial_json = JSON.stringify(use.input);
      yield event("content_block_delta", { index, delta: { type: "input_json_delta", partial_json } });
      yield event("content_block_stop", { index: index++ });
    }
    if (!finish) continue;
    yield event("message_delta", { delta: ending(finish), usage: usageOf(finish.usage) });
    yield event("message_stop", {});
  }
}

// OpenAI's /v1/chat/completions.

import { z } from "zod";
import type { TokenLogprob, Usage } from "../engine/completion.ts";
import type { Message, ToolCall } from "../prompt/chat-format.ts";
import type { Dialect, Meta } from "./dialect.ts";
import { openAiError } from "./errors.ts";
import type { ServerEvent } from "./events.ts";
import { type Ask, type AskedPart, type Chat, type Finish, type Reply, type Said, totalUsage } from "./generation.ts";
import {
  type Asked,
  allowedTools,
  argumentsOf,
  CallIds,
  constraintOf,
  formatConstraint,
  jsonObject,
  list,
  MOST_TOOLS,
  maybe,
  mediaOf,
  newId,
  samplingFields,
  samplingOf,
  seconds,
  stop,
  toolOf,
  wholeNumber,
} from "./wire.ts";

const url = z.object({ url: z.string(), detail: maybe(z.enum(["auto", "low", "high"])) });

const textPart = z.object({ type: z.literal("text"), text: z.string() });
const part = z.discriminatedUnion("type", [
  textPart,
  z.object({ type: z.literal("image_url"), image_url: url }),
  // not OpenAI's, but as vLLM and others have it
  z.object({ type: z.literal("video_url"), video_url: z.object({ url: z.string() }) }),
]);

const text = z.union([z.string(), list(textPart)]);

const toolCall = z.object({
  id: z.string(),
  type: z.literal("function").default("function"),
  function: z.object({ name: z.string(), arguments: z.string() }),
});

const message = z.discriminatedUnion("role", [
  z.object({ role: z.enum(["system", "developer"]), content: text }),
  z.object({ role: z.literal("user"), content: z.union([z.string(), list(part, { least: 1 })]) }),
  z.object({
    role: z.literal("assistant"),
    content: maybe(
      z.union([z.string(), list(z.union([textPart, z.object({ type: z.literal("refusal"), refusal: z.string() })]))]),
    ),
    tool_calls: maybe(list(toolCall)),
  }),
  z.object({ role: z.literal("tool"), tool_call_id: z.string(), content: text }),
]);

/** A conversation and the tools that may be called in it. */
export const chatFields = {
  messages: list(message, { least: 1 }),
  tools: maybe(
    list(
      z.object({
        type: z.literal("function"),
        function: z.object({
          name: z.string().regex(/^[\w.:/-]{1,64}$/),
          description: maybe(z.string()),
          parameters: maybe(jsonObject),
          strict: maybe(z.boolean()),
        }),
      }),
      { most: MOST_TOOLS },
    ),
  ),
};

const namedTool = z.object({ type: z.literal("function"), function: z.object({ name: z.string() }) });

type ChatBody = z.output<z.ZodObject<typeof chatFields>>;

const schema = z
  .object({
    ...samplingFields,
    model: maybe(z.string()).describe("any name is served by the one model"),
    ...chatFields,
    max_completion_tokens: maybe(wholeNumber(1)),
    max_tokens: maybe(wholeNumber(1)),
    n: maybe(wholeNumber(1, 128)),
    stop,
    stream: maybe(z.boolean()),
    stream_options: maybe(
      z.object({
        include_usage: maybe(z.boolean()),
        continuous_usage_stats: maybe(z.boolean()).describe("with `include_usage`: in every chunk (not OpenAI's)"),
      }),
    ),
    logprobs: maybe(z.boolean()),
    return_routed_experts: maybe(z.boolean()).describe(
      "each choice gets `routed_experts`, for each token: its id, the layers with experts, the experts chosen there with " +
        "their scores, and by how much the choice was ahead of the next (not OpenAI's)",
    ),
    top_logprobs: maybe(wholeNumber(0, 20)),
    tool_choice: maybe(
      z.union([
        z.enum(["none", "auto", "required"]),
        namedTool,
        z.object({ type: z.literal("allowed_tools"), allowed_tools: z.object(allowedTools(namedTool)) }),
      ]),
    ),
    parallel_tool_calls: maybe(z.boolean()),
    functions: maybe(z.never("this server has `tools` in their place")),
    function_call: maybe(z.never("this server has `tool_choice` in its place")),
    response_format: maybe(
      z.discriminatedUnion("type", [
        z.object({ type: z.literal("text") }),
        z.object({ type: z.literal("json_object") }),
        z.object({
          type: z.literal("json_schema"),
          json_schema: z.object({ name: z.string(), schema: maybe(jsonObject), strict: maybe(z.boolean()) }),
        }),
      ]),
    ),
    modalities: maybe(list(z.literal("text", "this model writes text only"))),
  })
  .refine((body) => body.top_logprobs === undefined || body.logprobs, {
    path: ["top_logprobs"],
    message: "expected `logprobs: true` with it",
  });

type Body = z.output<typeof schema>;

export const chatCompletions: Dialect<typeof schema> = {
  summary: "OpenAI's chat completions: a reply to a conversation.",
  schema,
  ask,
  isStreamed: (body) => body.stream ?? false,
  whole,
  events,
  failure: (refusal) => ({ data: JSON.stringify(openAiError(refusal)) }),
  keepAlive: ": keep-alive\n\n",
  error: openAiError,
};

function ask(body: Body): Ask {
  const { tool_choice, response_format: format, logprobs, top_logprobs = 0, stop, n = 1 } = body;
  const { messages, tools = [] } = chatOf(tool_choice === "none" ? { ...body, tools: [] } : body);
  const oneCall = body.parallel_tool_calls === false;
  return {
    prompts: { messages, ...(tools.length > 0 && { tools }) },
    fields: { prompt: () => "messages", format: "response_format" },
    n,
    options: {
      ...samplingOf(body),
      ...(logprobs && { logprobs: top_logprobs }),
      routes: body.return_routed_experts,
      maxTokens: body.max_completion_tokens ?? body.max_tokens,
      stop: typeof stop === "string" ? [stop] : stop,
      media: mediaOf(detailsOf(body.messages)),
      constraint: constraintOf({
        choice: choiceOf(tool_choice),
        tools,
        isStrict: body.tools?.some(({ function: { strict } }) => strict) ?? false,
        parallel: !oneCall,
        format: formatConstraint(format?.type, format?.type === "json_schema" ? format.json_schema.schema : undefined),
      }),
    },
    oneCall,
  };
}

function choiceOf(choice: Body["tool_choice"]): Asked["choice"] {
  if (typeof choice !== "object") return choice;
  if (choice.type === "function") return choice.function;
  const { mode, tools } = choice.allowed_tools;
  return { mode, names: tools.map(({ function: { name } }) => name) };
}

/** In what detail each image is asked to be seen. */
export const detailsOf = (messages: Body["messages"]): (string | undefined)[] =>
  messages
    .flatMap(({ role, content }) => (role === "user" && Array.isArray(content) ? content : []))
    .flatMap((part) => (part.type === "image_url" ? [part.image_url.detail] : []));

/** The conversation in a body, as the model takes it. */
export function chatOf({ messages, tools = [] }: ChatBody): Chat {
  const list = tools.map(({ function: f }) => toolOf(f.name, f.description, f.parameters));
  return { messages: messagesOf(messages), tools: list };
}

function messagesOf(messages: Body["messages"]): Message<AskedPart>[] {
  const list: Message<AskedPart>[] = [];
  const calls = new CallIds();
  for (let i = 0; i < messages.length; i++) {
    const message = messages[i]!;
    const where = `messages[${i}].content`;
    if (message.role === "tool") {
      const from = i;
      while (messages[i + 1]?.role === "tool") i++;
      const results = messages.slice(from, i + 1).flatMap((m, j) => {
        return m.role === "tool" ? [{ ...m, id: m.tool_call_id, where: `messages[${from + j}].tool_call_id` }] : [];
      });
      for (const { content } of calls.inOrder(results)) list.push({ role: "tool", content: partsOf(content, "") }); // texts only
      continue;
    }
    if (message.role === "assistant") {
      calls.add(message.tool_calls?.map(({ id }) => id) ?? []);
      list.push({
        role: "assistant",
        content: partsOf(message.content ?? "", where),
        ...(message.tool_calls?.length && { toolCalls: message.tool_calls.map((call, j) => callOf(call, i, j)) }),
      });
    } else if (message.role === "user") list.push({ role: "user", content: partsOf(message.content, where) });
    else list.push({ role: "system", content: partsOf(message.content, where) });
  }
  return list;
}

type WirePart = z.output<typeof part> | { readonly type: "refusal"; readonly refusal: string };

/** `where` is the field that holds them. */
const partsOf = (content: string | readonly WirePart[], where: string): string | AskedPart[] =>
  typeof content === "string"
    ? content
    : content.map((part, i) => {
        if (part.type === "text") return part;
        if (part.type === "refusal") return { type: "text", text: part.refusal };
        const param = `${where}[${i}].${part.type}`;
        return part.type === "image_url"
          ? { type: "image", url: part.image_url.url, param }
          : { type: "video", url: part.video_url.url, param };
      });

function callOf({ function: { name, arguments: json } }: z.output<typeof toolCall>, i: number, j: number): ToolCall {
  return { name, arguments: argumentsOf(json, `messages[${i}].tool_calls[${j}].function.arguments`) };
}

function whole(body: Body, replies: readonly Reply[], { model }: Meta): object {
  return {
    id: newId("chatcmpl-"),
    object: "chat.completion",
    created: seconds(),
    model,
    choices: replies.map(({ text, tokens, toolCalls, logprobs, routes, finish }, index) => ({
      index,
      message: {
        role: "assistant",
        content: toolCalls.length > 0 && text.trim() === "" ? null : text,
        refusal: null,
        ...(toolCalls.length > 0 && { tool_calls: toolCalls.map(written) }),
      },
      logprobs: body.logprobs ? logprobsOf(logprobs) : null,
      finish_reason: finish.reason,
      ...(body.return_routed_experts && { routed_experts: routedOf(tokens, routes) }),
    })),
    usage: usageOf(
      totalUsage(
        replies.map(({ finish }) => finish),
        body.n ?? 1,
      ),
    ),
  };
}

const written = ({ name, arguments: given }: ToolCall) => ({
  id: newId("call_"),
  type: "function",
  function: { name, arguments: JSON.stringify(given) },
});

export const usageOf = ({ promptTokens, cachedTokens, completionTokens }: Usage) => ({
  prompt_tokens: promptTokens,
  completion_tokens: completionTokens,
  total_tokens: promptTokens + completionTokens,
  prompt_tokens_details: { cached_tokens: cachedTokens },
});

const logprobsOf = (list: Said["logprobs"]) => ({
  content: list.map(({ top, ...token }) => ({ ...logprobOf(token), top_logprobs: top.map(logprobOf) })),
  refusal: null,
});

/** Rounded: four digits are more than can be seen, and a token of 48 layers is long enough. */
const routedOf = (tokens: readonly number[], routes: Said["routes"]) =>
  routes.map(({ layers, experts, scores, margins }, i) => ({
    ...{ token_id: tokens[i], layers, experts },
    scores: scores.map((of) => of.map(rounded)),
    margins: margins.map((margin) => margin && rounded(margin)),
  }));

const rounded = (x: number) => Math.round(x * 1e4) / 1e4;

const logprobOf = ({ text, logprob, bytes }: TokenLogprob) => ({ token: text, logprob, bytes });

async function* events(body: Body, said: AsyncIterable<Said>, { model }: Meta): AsyncGenerator<ServerEvent> {
  const id = newId("chatcmpl-");
  const created = seconds();
  const wantsUsage = body.stream_options?.include_usage ?? false;
  const isContinuous = wantsUsage && body.stream_options?.continuous_usage_stats;
  const chunk = (choices: readonly object[], usage?: object) => ({
    data: JSON.stringify({
      ...{ id, object: "chat.completion.chunk", created, model, choices },
      ...(wantsUsage && { usage: usage ?? null }),
    }),
  });
  const begun = new Set<number>();
  const calls = new Map<number, number>();
  const used: Pick<Finish, "usage">[] = []; // so far, by reply
  const n = body.n ?? 1;
  for await (const { index, text, tokens, toolCalls, logprobs, routes, usage, finish } of said) {
    const before = used[index]?.usage ?? { ...usage!, completionTokens: 0 }; // the first piece brings it
    used[index] = finish ?? { usage: { ...before, completionTokens: before.completionTokens + tokens.length } };
    const choice = (delta: object, finish_reason: string | null = null) => {
      const shown = body.logprobs && logprobs.length > 0 && "content" in delta ? logprobsOf(logprobs) : null;
      const routed = routes.length > 0 && "content" in delta && { routed_experts: routedOf(tokens, routes) };
      return chunk(
        [{ index, delta, logprobs: shown, finish_reason, ...routed }],
        isContinuous ? usageOf(totalUsage(used, n)) : undefined,
      );
    };
    if (!begun.has(index)) {
      begun.add(index);
      yield choice({ role: "assistant", content: text, refusal: null });
    } else if (text !== "" || logprobs.length > 0 || routes.length > 0) yield choice({ content: text });
    for (const call of toolCalls) {
      const at = calls.get(index) ?? 0;
      calls.set(index, at + 1);
      yield choice({ tool_calls: [{ index: at, ...written(call) }] });
    }
    if (!finish) continue;
    yield choice({}, finish.reason);
  }
  if (wantsUsage) yield chunk([], usageOf(totalUsage(used, n)));
  yield { data: "[DONE]" };
}

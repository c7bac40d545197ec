// OpenAI's /v1/responses. Nothing is stored: each request brings its whole conversation.

import { z } from "zod";
import type { TokenLogprob, Usage } from "../engine/completion.ts";
import type { Message, ToolCall } from "../prompt/chat-format.ts";
import type { Dialect, Meta } from "./dialect.ts";
import { openAiError } from "./errors.ts";
import type { ServerEvent } from "./events.ts";
import { type Ask, type AskedPart, type Finish, type Reply, type Said, toldCount } from "./generation.ts";
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
  seconds,
  toolOf,
  valuesByName,
  wholeNumber,
} from "./wire.ts";

const part = z.discriminatedUnion("type", [
  z.object({ type: z.enum(["input_text", "output_text"]), text: z.string() }),
  z.object({ type: z.literal("refusal"), refusal: z.string() }),
  z.object({
    type: z.literal("input_image"),
    image_url: z.string(),
    detail: maybe(z.enum(["auto", "low", "high", "original"])),
  }),
  z.object({ type: z.literal("input_video"), video_url: z.string() }), // not OpenAI's: as /v1/chat/completions takes them
]);

const content = z.union([z.string(), list(part)]);

const message = z.object({
  type: z.literal("message").default("message"),
  role: z.enum(["user", "assistant", "system", "developer"]),
  content,
});
const item = z.union([
  message,
  z.object({ type: z.literal("function_call"), call_id: z.string(), name: z.string(), arguments: z.string() }),
  z.object({ type: z.literal("function_call_output"), call_id: z.string(), output: content }),
  z.object({ type: z.literal("reasoning") }), // of another model: left aside
]);

const namedTool = z.object({ type: z.literal("function"), name: z.string() });

const schema = z.object({
  model: maybe(z.string()).describe("any name is served by the one model"),
  input: z.union([z.string(), list(item, { least: 1 })]),
  instructions: maybe(z.string()),
  max_output_tokens: maybe(wholeNumber(1)),
  temperature: maybe(z.number().min(0).max(2)),
  top_p: maybe(z.number().min(0).max(1)),
  top_logprobs: maybe(wholeNumber(0, 20)),
  include: maybe(list(z.string())),
  tools: maybe(
    list(
      z.object({
        type: z.literal("function", "this server runs no tools of its own"),
        name: z.string().regex(/^[\w.:/-]{1,64}$/),
        description: maybe(z.string()),
        parameters: maybe(jsonObject),
        strict: maybe(z.boolean()),
      }),
      { most: MOST_TOOLS },
    ),
  ),
  tool_choice: maybe(
    z.union([
      z.enum(["none", "auto", "required"]),
      namedTool,
      z.object({ type: z.literal("allowed_tools"), ...allowedTools(namedTool) }),
    ]),
  ),
  parallel_tool_calls: maybe(z.boolean()),
  text: maybe(
    z.object({
      format: maybe(
        z.discriminatedUnion("type", [
          z.object({ type: z.literal("text") }),
          z.object({ type: z.literal("json_object") }),
          z.object({ type: z.literal("json_schema"), name: z.string(), schema: jsonObject }),
        ]),
      ),
    }),
  ),
  stream: maybe(z.boolean()),
  metadata: maybe(valuesByName(z.string())),
  truncation: maybe(z.literal("disabled", "this server cuts no conversations")),
  background: maybe(z.literal(false, "this server stores nothing")),
  conversation: maybe(z.undefined("this server stores nothing; send the conversation as `input`")),
  previous_response_id: maybe(z.undefined("this server stores nothing; send the conversation as `input`")),
});

type Body = z.output<typeof schema>;

export const responses: Dialect<typeof schema> = {
  summary: "OpenAI's responses: a reply to a conversation, as items.",
  schema,
  ask,
  isStreamed: (body) => body.stream ?? false,
  whole: (body, [reply], { model }) => response(body, newId("resp_"), seconds(), model, itemsOf(reply!), reply!.finish),
  events,
  failure(refusal, _, told) {
    const { error } = openAiError(refusal);
    const { type, code, message, param } = error;
    return event("error", { sequence_number: told, code: code ?? type, message, param, error });
  },
  keepAlive: ": keep-alive\n\n",
  error: openAiError,
};

function ask(body: Body): Ask {
  const { tool_choice: choice, top_logprobs, include = [] } = body;
  const listed = choice === "none" ? [] : (body.tools ?? []);
  const tools = listed.map(({ name, description, parameters }) => toolOf(name, description, parameters));
  const format = body.text?.format;
  const oneCall = body.parallel_tool_calls === false;
  const wantsLogprobs = top_logprobs !== undefined || include.includes("message.output_text.logprobs");
  return {
    prompts: { messages: messagesOf(body), ...(tools.length > 0 && { tools }) },
    fields: { prompt: () => "input", format: "text.format" },
    n: 1,
    options: {
      temperature: body.temperature,
      topP: body.top_p,
      ...(wantsLogprobs && { logprobs: top_logprobs ?? 0 }),
      maxTokens: body.max_output_tokens,
      media: mediaOf(detailsOf(body)),
      constraint: constraintOf({
        choice: choiceOf(choice),
        tools,
        isStrict: listed.some(({ strict }) => strict),
        parallel: !oneCall,
        format: formatConstraint(format?.type, format?.type === "json_schema" ? format.schema : undefined),
      }),
    },
    oneCall,
  };
}

const choiceOf = (choice: Body["tool_choice"]): Asked["choice"] =>
  typeof choice === "object" && choice.type === "allowed_tools"
    ? { mode: choice.mode, names: choice.tools.map(({ name }) => name) }
    : choice;

/** In what detail each image is asked to be seen. */
function detailsOf({ input }: Body): (string | undefined)[] {
  if (typeof input === "string") return [];
  const contents = input.map((item) =>
    item.type === "message" ? item.content : item.type === "function_call_output" ? item.output : "",
  );
  const parts = contents.flatMap((content) => (typeof content === "string" ? [] : content));
  return parts.flatMap((part) => (part.type === "input_image" ? [part.detail] : []));
}

function messagesOf({ input, instructions }: Body): Message<AskedPart>[] {
  const list: Message<AskedPart>[] = instructions === undefined ? [] : [{ role: "system", content: instructions }];
  if (typeof input === "string") return [...list, { role: "user", content: input }];
  const items = input.flatMap((item, i) => (item.type === "reasoning" ? [] : [{ ...item, where: `input[${i}]` }]));
  const known = new CallIds();
  for (let i = 0; i < items.length; ) {
    const item = items[i]!;
    const from = i++;
    if (item.type === "message") {
      const role = item.role === "developer" ? "system" : item.role;
      if (role !== "assistant" || items[i]?.type !== "function_call")
        list.push({ role, content: partsOf(item.content, `${item.where}.content`) });
      continue; // what the assistant says before calls belongs to them
    }
    while (items[i]?.type === item.type) i++;
    if (item.type === "function_call") {
      const before = items[from - 1];
      const calls = items.slice(from, i).filter((item) => item.type === "function_call");
      known.add(calls.map((call) => call.call_id));
      list.push({
        role: "assistant",
        content:
          before?.type === "message" && before.role === "assistant"
            ? partsOf(before.content, `${before.where}.content`)
            : "",
        toolCalls: calls.map(({ name, arguments: json, where }): ToolCall => {
          return { name, arguments: argumentsOf(json, `${where}.arguments`) };
        }),
      });
    } else {
      const results = items.slice(from, i).flatMap((item) => {
        if (item.type !== "function_call_output") return [];
        return [{ ...item, id: item.call_id, item: item.where, where: `${item.where}.call_id` }];
      });
      for (const { output, item } of known.inOrder(results))
        list.push({ role: "tool", content: partsOf(output, `${item}.output`) });
    }
  }
  return list;
}

/** `where` is the field that holds them. */
const partsOf = (given: z.output<typeof content>, where: string): string | AskedPart[] =>
  typeof given === "string"
    ? given
    : given.map((part, i) => {
        const param = (field: string) => `${where}[${i}].${field}`;
        if (part.type === "input_image") return { type: "image", url: part.image_url, param: param("image_url") };
        if (part.type === "input_video") return { type: "video", url: part.video_url, param: param("video_url") };
        return { type: "text", text: part.type === "refusal" ? part.refusal : part.text };
      });

/** What the model wrote, as items: a message, and the calls behind it. */
function itemsOf({ text, logprobs, toolCalls, finish }: Reply): object[] {
  const isSilent = text === "" && toolCalls.length > 0;
  const said = isSilent ? [] : [messageItem(newId("msg_"), text, logprobs, statusOf(finish))];
  return [...said, ...toolCalls.map((call) => callItem(newId("fc_"), newId("call_"), call))];
}

const statusOf = ({ reason }: Finish) => (reason === "length" ? "incomplete" : "completed");

const messageItem = (id: string, text: string, logprobs: Said["logprobs"], status: string) => ({
  ...{ id, type: "message", status, role: "assistant" },
  content: [textPart(text, logprobs)],
});

const textPart = (text: string, logprobs: Said["logprobs"]) => ({
  ...{ type: "output_text", text, annotations: [] },
  logprobs: logprobs.map(({ top, ...token }) => ({ ...logprobOf(token), top_logprobs: top.map(logprobOf) })),
});

const logprobOf = ({ text, logprob, bytes }: TokenLogprob) => ({ token: text, logprob, bytes });

const callItem = (id: string, call_id: string, { name, arguments: given }: ToolCall) => ({
  ...{ id, type: "function_call", status: "completed", call_id, name },
  arguments: JSON.stringify(given),
});

/** The response, as it stands: without `finish` in progress. */
function response(
  body: Body,
  id: string,
  created_at: number,
  model: string,
  output: readonly object[],
  finish?: Finish,
): object {
  return {
    ...{ id, object: "response", created_at, model, output },
    status: finish ? statusOf(finish) : "in_progress",
    error: null,
    incomplete_details: finish?.reason === "length" ? { reason: "max_output_tokens" } : null,
    instructions: body.instructions ?? null,
    max_output_tokens: body.max_output_tokens ?? null,
    metadata: body.metadata ?? {},
    parallel_tool_calls: body.parallel_tool_calls ?? true,
    previous_response_id: null,
    reasoning: { effort: null, summary: null },
    store: false,
    temperature: body.temperature ?? null,
    text: { format: body.text?.format ?? { type: "text" } },
    tool_choice: body.tool_choice ?? "auto",
    tools: body.tools ?? [],
    top_p: body.top_p ?? null,
    truncation: "disabled",
    usage: finish ? usageOf(finish.usage) : null,
  };
}

const usageOf = ({ promptTokens, cachedTokens, completionTokens }: Usage) => ({
  input_tokens: promptTokens,
  input_tokens_details: { cached_tokens: cachedTokens },
  output_tokens: completionTokens,
  output_tokens_details: { reasoning_tokens: 0 },
  total_tokens: promptTokens + completionTokens,
});

const event = (type: string, more: object): ServerEvent => ({ event: type, data: JSON.stringify({ type, ...more }) });

async function* events(body: Body, said: AsyncIterable<Said>, { model }: Meta): AsyncGenerator<ServerEvent> {
  const id = newId("resp_");
  const created = seconds();
  const output: object[] = [];
  let sequence_number = 0;
  const tell = (type: string, more: object) => event(type, { sequence_number: sequence_number++, ...more });
  const whole = (finish?: Finish) => ({ response: response(body, id, created, model, output, finish) });
  /** The message that is being written. */
  let open: { readonly id: string; text: string; readonly logprobs: Said["logprobs"][number][] } | undefined;
  const at = (item_id: string) => ({ item_id, output_index: output.length });
  function* closed(status: string): Generator<ServerEvent> {
    if (!open) return;
    const { id, text, logprobs } = open;
    const part = textPart(text, logprobs);
    const item = messageItem(id, text, logprobs, status);
    yield tell("response.output_text.done", { ...at(id), content_index: 0, text, logprobs: part.logprobs });
    yield tell("response.content_part.done", { ...at(id), content_index: 0, part });
    yield tell("response.output_item.done", { output_index: output.length, item });
    output.push(item);
    open = undefined;
  }
  const hold = toldCount(); // the last events tell all of them again
  let isBegun = false; // with the first piece: a refusal before it is told with its status
  for await (const { text, logprobs, routes, toolCalls, finish } of said) {
    hold({ logprobs, routes });
    if (!isBegun) {
      isBegun = true;
      yield tell("response.created", whole());
      yield tell("response.in_progress", whole());
    }
    if (text !== "" || (finish && !open && output.length === 0 && toolCalls.length === 0)) {
      if (!open) {
        open = { id: newId("msg_"), text: "", logprobs: [] };
        const item = { ...messageItem(open.id, "", [], "in_progress"), content: [] };
        yield tell("response.output_item.added", { output_index: output.length, item });
        yield tell("response.content_part.added", { ...at(open.id), content_index: 0, part: textPart("", []) });
      }
    }
    if (open) {
      open.text += text;
      open.logprobs.push(...logprobs);
      const shown = textPart("", logprobs).logprobs;
      if (text !== "")
        yield tell("response.output_text.delta", { ...at(open.id), content_index: 0, delta: text, logprobs: shown });
    }
    for (const call of toolCalls) {
      yield* closed("completed");
      const item = callItem(newId("fc_"), newId("call_"), call);
      const begun = { ...item, status: "in_progress", arguments: "" };
      yield tell("response.output_item.added", { output_index: output.length, item: begun });
      yield tell("response.function_call_arguments.delta", { ...at(item.id), delta: item.arguments });
      const { name, arguments: json } = item;
      yield tell("response.function_call_arguments.done", { ...at(item.id), name, arguments: json });
      yield tell("response.output_item.done", { output_index: output.length, item });
      output.push(item);
    }
    if (!finish) continue;
    yield* closed(statusOf(finish));
    yield tell(`response.${statusOf(finish)}`, whole(finish));
  }
}

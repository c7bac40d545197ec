// Messages to ids, as Meta's llama-models does it (spec §10); a checkpoint's own template is in template.ts.
import { RequestError } from "../tensor/errors.ts";
import { shown } from "./shown.ts";
import type { Tokenizer } from "./tokenizer.ts";

export type Role = "system" | "user" | "assistant" | "tool";

/** A file's bytes, or where the file is. */
export type Media =
  | { readonly data: Uint8Array; readonly path?: undefined }
  | { readonly path: string; readonly data?: undefined };

export type TextPart = { readonly type: "text"; readonly text: string };
export type ImagePart = { readonly type: "image" } & Media;
export type VideoPart = { readonly type: "video" } & Media;
export type ContentPart = TextPart | ImagePart | VideoPart;

/** What the chat format sees of parts: text, and places for images. */
export type PlainPart = TextPart | { readonly type: "image" };

/** A call of a tool, as the model makes it. */
export interface ToolCall {
  readonly name: string;
  readonly arguments: Readonly<Record<string, unknown>>;
}

/** A function that the model may call; `parameters` is a JSON schema. */
export interface Tool {
  readonly name: string;
  readonly description?: string;
  readonly parameters?: Readonly<Record<string, unknown>>;
}

export interface Message<Part = ContentPart> {
  readonly role: Role;
  readonly content: string | readonly Part[];
  readonly toolCalls?: readonly ToolCall[];
  /** Of a last message by the assistant: the reply goes on with it. */
  readonly isOpen?: boolean | undefined;
}

export interface ChatOptions {
  readonly tools?: readonly Tool[];
  /** Whether the prompt ends with the header of the reply to come. Default: yes. */
  readonly addGenerationPrompt?: boolean;
}

/** A conversation as ids, where each image is one `<|image|>` for now. */
export interface ChatPrompt {
  readonly ids: Int32Array;
  /** Where in `ids` the images stand, in the order of the image parts. */
  readonly images: readonly number[];
}

/** Turns conversations into ids. Text from messages never yields a special token. */
export interface ChatFormat {
  encode(messages: readonly Message<PlainPart>[], options?: ChatOptions): ChatPrompt;
}

/** Meta's format: header, blank line, contents, terminator, each encoded on its own. */
export function metaFormat(tokenizer: Tokenizer): ChatFormat {
  return {
    encode: (messages, options = {}) => {
      checkMessages(messages);
      return encodeMeta(tokenizer, messages, options);
    },
  };
}

function encodeMeta(
  tokenizer: Tokenizer,
  messages: readonly Message<PlainPart>[],
  { tools = [], addGenerationPrompt = true }: ChatOptions,
): ChatPrompt {
  const ids: number[] = [];
  const images: number[] = [];
  const special = (text: string) => ids.push(tokenizer.specialId(text));
  const text = (content: string) => {
    for (const id of tokenizer.encode(content)) ids.push(id);
  };
  const header = (role: Role) => {
    special("<|header_start|>");
    text(role === "tool" ? "ipython" : role);
    special("<|header_end|>");
    text("\n\n");
  };
  const firstUser = messages.findIndex((m) => m.role === "user");
  if (tools.length > 0 && firstUser < 0)
    throw new RequestError("tools without a user message; expected one, since the first user message lists them");

  special("<|begin_of_text|>");
  for (const [i, { role, content, toolCalls = [], isOpen }] of messages.entries()) {
    header(role);
    if (tools.length > 0 && i === 0 && role === "system") text("Environment: ipython\n");
    if (tools.length > 0 && i === firstUser) text(toolListing(tools));
    for (const part of partsOf(content)) {
      if (part.type === "text") text(part.text);
      else images.push(special("<|image|>") - 1);
    }
    for (const call of toolCalls)
      text(`{"name": ${pythonJson(call.name)}, "parameters": ${pythonJson(call.arguments)}}`);
    if (isOpen) return { ids: Int32Array.from(ids), images };
    special(role === "tool" || toolCalls.length > 0 ? "<|eom|>" : "<|eot|>");
  }
  if (addGenerationPrompt) header("assistant");
  return { ids: Int32Array.from(ids), images };
}

// The wording of Hugging Face's template for the instruct models, a missing space included.
function toolListing(tools: readonly Tool[]): string {
  const listed = tools.map((t) => `${JSON.stringify({ type: "function", function: t }, null, 4)}\n\n`);
  return (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that best " +
    'answers the given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of argument name ' +
    `and its value}.Do not use variables.\n\n${listed.join("")}`
  );
}

// json.dumps puts a space after "," and ":"; the model was trained on its output.
function pythonJson(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(pythonJson).join(", ")}]`;
  if (typeof value === "object" && value !== null)
    return `{${Object.entries(value)
      .filter(([, v]) => v !== undefined)
      .map(([k, v]) => `${JSON.stringify(k)}: ${pythonJson(v)}`)
      .join(", ")}}`;
  return JSON.stringify(value) ?? "null";
}

export const partsOf = (content: Message<PlainPart>["content"]): readonly PlainPart[] =>
  typeof content === "string" ? [{ type: "text", text: content }] : content;

const ROLES: readonly unknown[] = ["system", "user", "assistant", "tool"] satisfies Role[];

const MAX_DEPTH = 64; // of the objects in a call's arguments and a tool's schema

/** Checks what came from outside; the types alone do not hold there. */
export function checkMessages(messages: readonly Message<PlainPart>[]): void {
  if (messages.length === 0) throw new RequestError("a chat without messages; expected at least one");
  for (const [i, { role, content, toolCalls = [], isOpen }] of messages.entries()) {
    if (isOpen && (role !== "assistant" || toolCalls.length > 0 || i < messages.length - 1))
      throw new RequestError(`message ${i}: it is open; expected that of a text of the assistant's at the end only`);
    if (!ROLES.includes(role))
      throw new RequestError(`message ${i}: role is ${shown(role)}; expected one of ${ROLES.join(", ")}`);
    if (typeof content !== "string" && !Array.isArray(content))
      throw new RequestError(`message ${i}: content is ${typeof content}; expected a text or a list of parts`);
    const parts: readonly { readonly type: unknown; readonly text?: unknown }[] = partsOf(content); // as callers made them
    for (const part of parts) {
      if (part.type !== "image" && part.type !== "text")
        throw new RequestError(`message ${i}: a part of type ${shown(part.type)}; expected a text or an image`);
      if (part.type === "text" && typeof part.text !== "string")
        throw new RequestError(
          `message ${i}: the text of a part is ${typeof part.text}; expected {type: "text", text}`,
        );
    }
    if (toolCalls.length > 0 && role !== "assistant")
      throw new RequestError(`message ${i}: tool calls by the ${role}; expected them from the assistant only`);
    for (const call of toolCalls) checkDepth(call.arguments, `message ${i}: the arguments of ${call.name}`);
  }
}

/** Refuses values nested so deep that a recursive walk could exhaust the stack. */
export function checkDepth(value: unknown, what: string, depth = 0): void {
  if (depth > MAX_DEPTH)
    throw new RequestError(`${what} nest deeper than ${MAX_DEPTH} levels; expected a flatter value`);
  if (typeof value === "object" && value !== null)
    for (const inner of Object.values(value)) checkDepth(inner, what, depth + 1);
}

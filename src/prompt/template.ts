// A checkpoint's own chat template, in Jinja. The special tokens that the template writes count; text that came in
// messages never yields one.
import { Environment, Interpreter, type Program, parse, tokenize } from "@huggingface/jinja";
import { CheckpointError, RequestError } from "../tensor/errors.ts";
import {
  type ChatFormat,
  type ChatOptions,
  type ChatPrompt,
  checkDepth,
  checkMessages,
  type Message,
  metaFormat,
  type PlainPart,
  partsOf,
} from "./chat-format.ts";
import type { Tokenizer } from "./tokenizer.ts";

const MAX_TEMPLATE = 1 << 20; // characters
const MAX_STEPS = 1_000_000; // of the interpreter; a message takes some 24 in a template like Llama 4's

/**
 * Of a model that has learnt from texts alone: what is said is gone on with, turns a paragraph each. Any program that reads
 * templates then does the same.
 */
export const continuationTemplate =
  "{{ bos_token }}{% for message in messages %}" +
  "{% if not loop.first and message.role == 'user' %}{{ '\\n\\n' }}{% endif %}" +
  "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}" +
  "{% if part.type == 'image' %}<|image|>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}";

/** The format of a checkpoint: its template's where it has one, else Meta's. */
export function chatFormat(tokenizer: Tokenizer, template?: string): ChatFormat {
  return template === undefined ? metaFormat(tokenizer) : templateFormat(tokenizer, template);
}

/** The format that a Jinja template describes. */
export function templateFormat(tokenizer: Tokenizer, template: string): ChatFormat {
  const program = parseTemplate(template);
  return {
    encode: (messages, options = {}) => {
      checkMessages(messages);
      const guard = new Guard(tokenizer, [template, messages, options.tools]);
      const last = messages.at(-1)!;
      const shown = last.isOpen ? { ...options, addGenerationPrompt: false } : options;
      const rendered = render(program, variables(tokenizer, guard, messages, shown));
      return encodeRendered(tokenizer, guard, last.isOpen ? upTo(rendered, guard, last) : rendered, messages);
    },
  };
}

/** What a template writes up to the end of an open message's text, without what would end the message. Templates may trim it. */
function upTo(rendered: string, guard: Guard, { content }: Message<PlainPart>): string {
  const part = partsOf(content).at(-1);
  const text = guard.mark(part?.type === "text" ? part.text : "").trim();
  const at = text === "" ? -1 : rendered.lastIndexOf(text);
  if (at < 0)
    throw new RequestError(
      "the last message is open, and the checkpoint's chat template does not write its text; expected a text, or none",
    );
  return rendered.slice(0, at + text.length);
}

const faulty = (why: string) =>
  new CheckpointError(`chat template: ${why}; expected a Jinja template, or none, which means Meta's own format`);

function parseTemplate(template: string): Program {
  if (template.length > MAX_TEMPLATE)
    throw faulty(`it has ${template.length} characters, more than the ${MAX_TEMPLATE} allowed`);
  try {
    return parse(tokenize(template, { lstrip_blocks: true, trim_blocks: true }));
  } catch (error) {
    throw faulty(error instanceof RangeError ? "it nests too deep" : messageOf(error));
  }
}

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** Stops a template that would run for ever. */
class BoundedInterpreter extends Interpreter {
  #steps = 0;

  count(steps: number): void {
    this.#steps += steps;
    if (this.#steps > MAX_STEPS) throw faulty(`it takes more than ${MAX_STEPS} steps`);
  }

  override evaluate(...args: Parameters<Interpreter["evaluate"]>): ReturnType<Interpreter["evaluate"]> {
    this.count(1);
    return super.evaluate(...args);
  }

  override evaluateBlock(...args: Parameters<Interpreter["evaluateBlock"]>): ReturnType<Interpreter["evaluateBlock"]> {
    this.count(1);
    return super.evaluateBlock(...args);
  }
}

function render(program: Program, values: Readonly<Record<string, unknown>>): string {
  const environment = new Environment();
  const interpreter = new BoundedInterpreter(environment);
  const range = (first: number, second?: number, step = 1) => {
    const [start, stop] = typeof second === "number" ? [first, second] : [0, first];
    const length = Math.max(0, Math.ceil((stop - start) / step));
    interpreter.count(Number.isNaN(length) ? Infinity : length);
    return Array.from({ length }, (_, i) => start + i * step);
  };
  for (const [name, value] of Object.entries({ ...GLOBALS, range, ...values })) environment.set(name, value);
  try {
    return String(interpreter.run(program).value);
  } catch (error) {
    if (error instanceof RequestError || error instanceof CheckpointError) throw error;
    throw faulty(error instanceof RangeError ? "it nests too deep or writes too much" : messageOf(error));
  }
}

const GLOBALS: Readonly<Record<string, unknown>> = {
  true: true,
  false: false,
  none: null,
  True: true,
  False: false,
  None: null,
  raise_exception: (why: unknown) => {
    throw new RequestError(`the checkpoint's chat template refuses these messages: ${String(why)}`);
  },
  strftime_now: (format: string) => strftime(new Date(), format),
};

function strftime(date: Date, format: string): string {
  const name = (options: Intl.DateTimeFormatOptions) => date.toLocaleString("en-US", options);
  const two = (n: number) => String(n).padStart(2, "0");
  const fields: Readonly<Record<string, string>> = {
    Y: String(date.getFullYear()),
    m: two(date.getMonth() + 1),
    d: two(date.getDate()),
    H: two(date.getHours()),
    M: two(date.getMinutes()),
    S: two(date.getSeconds()),
    b: name({ month: "short" }),
    B: name({ month: "long" }),
    a: name({ weekday: "short" }),
    A: name({ weekday: "long" }),
    "%": "%",
  };
  return format.replaceAll(/%(.)/g, (whole, field: string) => fields[field] ?? whole);
}

// What Hugging Face's apply_chat_template hands to a template, under the same names.
function variables(
  tokenizer: Tokenizer,
  guard: Guard,
  messages: readonly Message<PlainPart>[],
  { tools = [], addGenerationPrompt = true }: ChatOptions,
) {
  const tokenText = (id: number | undefined) => (id === undefined ? "" : tokenizer.decode([id]));
  return {
    messages: messages.map(({ role, content, toolCalls }) => ({
      role,
      content:
        typeof content === "string"
          ? guard.mark(content)
          : content.map((part) =>
              part.type === "text" ? { type: "text", text: guard.mark(part.text) } : { type: "image" },
            ),
      ...(toolCalls?.length
        ? { tool_calls: toolCalls.map((call) => ({ type: "function", function: guard.markAll(call) })) }
        : {}),
    })),
    tools: tools.length > 0 ? tools.map((tool) => ({ type: "function", function: guard.markAll(tool) })) : null,
    add_generation_prompt: addGenerationPrompt,
    bos_token: tokenText(tokenizer.bos),
    eos_token: tokenText(tokenizer.special.get("<|eot|>") ?? tokenizer.special.get("<|eot_id|>") ?? tokenizer.eos),
  };
}

function encodeRendered(
  tokenizer: Tokenizer,
  guard: Guard,
  rendered: string,
  messages: readonly Message<PlainPart>[],
): ChatPrompt {
  const ids: number[] = [];
  const images: number[] = [];
  const image = tokenizer.special.get("<|image|>");
  for (const segment of tokenizer.segments(rendered)) {
    if (typeof segment === "string") for (const id of tokenizer.encode(guard.unmark(segment))) ids.push(id);
    else {
      if (segment === image) images.push(ids.length);
      ids.push(segment);
    }
  }
  const given = messages.flatMap((m) => partsOf(m.content)).filter((part) => part.type === "image").length;
  if (images.length !== given)
    throw faulty(`it places ${images.length} images and the messages have ${given}; expected <|image|> once for each`);
  return { ids: Int32Array.from(ids), images };
}

/**
 * Keeps special tokens out of what messages say: where a text holds the string of one, or ends with the start of one,
 * a character that occurs nowhere else is put behind the string's first, and taken out again once the rendered text
 * has been cut at the special tokens that are whole.
 */
class Guard {
  readonly #tokenizer: Tokenizer;
  readonly #mark: string;

  constructor(tokenizer: Tokenizer, texts: readonly unknown[]) {
    for (const [i, text] of texts.entries()) checkDepth(text, i === 1 ? "messages" : "tools");
    this.#tokenizer = tokenizer;
    const used = JSON.stringify(texts);
    const free = NONCHARACTERS.find((c) => !used.includes(c));
    if (free === undefined) throw new RequestError("the messages use all of U+FDD0 to U+FDEF, which are no characters");
    this.#mark = free;
  }

  mark(text: string): string {
    let marked = "";
    let done = 0;
    for (const at of this.#tokenizer.specialStarts(text)) {
      marked += text.slice(done, at + 1) + this.#mark;
      done = at + 1;
    }
    return marked + text.slice(done);
  }

  markAll(value: unknown): unknown {
    if (typeof value === "string") return this.mark(value);
    if (Array.isArray(value)) return value.map((inner) => this.markAll(inner));
    if (typeof value !== "object" || value === null) return value;
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [this.mark(key), this.markAll(inner)]));
  }

  unmark(text: string): string {
    return text.replaceAll(this.#mark, "");
  }
}

const NONCHARACTERS = Array.from({ length: 32 }, (_, i) => String.fromCharCode(0xfdd0 + i));

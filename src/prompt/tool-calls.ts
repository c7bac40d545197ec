// Finds tool calls in the text of a reply while it is generated: `[f(a="x"), g(b=2)]`, `{"name": "f", "parameters": {…}}`
// and `<function=f>{…}</function>`, anywhere in the text (spec §10). What turns out to be none is text again.
import type { ToolCall } from "./chat-format.ts";

export type ReplyEvent =
  | { readonly type: "text"; readonly text: string }
  | { readonly type: "call"; readonly call: ToolCall };

/** Fed the pieces of a reply, gives back text and calls in order; nothing of the text is lost. */
export class ToolCallParser {
  readonly #accepts: (name: string) => boolean;
  readonly #mayBecome: (start: string) => boolean;
  readonly #isOff: boolean;
  readonly #areSure: boolean;
  #input = new Input();
  #scan: Scan | undefined; // of what may be a call, from the first character of #input on
  #hasTold = false; // a call of the list that is read
  #code: string | undefined; // what came since <|python_start|>

  /**
   * With `tools`, only their names count as calls; without, any name does. `areSure`: what begins as a list of calls goes on
   * as one, so each is told when it ends, and of a list that is cut off those that ended; and in JSON, keys and names count
   * as what holds a reply to calls knows them, without escapes and triple quotes.
   */
  constructor({ tools, areSure = false }: { tools?: Iterable<string> | undefined; areSure?: boolean } = {}) {
    const names = tools && [...tools];
    this.#accepts = (name) => !names || names.includes(name);
    this.#mayBecome = (start) => !names || names.some((name) => name.startsWith(start));
    this.#isOff = names?.length === 0;
    this.#areSure = areSure;
  }

  /** The next piece of ordinary text. */
  push(piece: string): ReplyEvent[] {
    if (this.#isOff) return textEvents(piece);
    if (this.#code !== undefined) {
      this.#code += piece;
      return [];
    }
    this.#input.text += piece;
    return this.#read();
  }

  /** A special token, by its text: `<|python_start|>` and `<|python_end|>` enclose calls or code, others end what is open. */
  special(token: string): ReplyEvent[] {
    const events = this.end();
    if (token === "<|python_start|>" && !this.#isOff && this.#accepts(CODE_TOOL)) this.#code = "";
    return events;
  }

  /** The reply is over; what was held back is given out. */
  end(): ReplyEvent[] {
    if (this.#code !== undefined) {
      const code = this.#code;
      this.#code = undefined;
      return code === "" ? [] : this.#codeEvents(code);
    }
    this.#input.isClosed = true;
    const events = this.#read();
    this.#input = new Input();
    return events;
  }

  // Between the python tokens a list of calls is a list of calls; anything else is a program.
  #codeEvents(code: string): ReplyEvent[] {
    const events = joined([...this.push(code), ...this.end()]);
    if (events.some((event) => event.type === "call")) return events;
    return [{ type: "call", call: { name: CODE_TOOL, arguments: { code } } }];
  }

  #read(): ReplyEvent[] {
    const events: ReplyEvent[] = [];
    for (;;) {
      if (!this.#scan) {
        const at = this.#input.text.search(START);
        events.push(...textEvents(this.#input.take(at < 0 ? this.#input.text.length : at)));
        if (at < 0) return joined(events);
        this.#scan = scanCalls(this.#input, this.#accepts, this.#mayBecome, this.#areSure);
        this.#hasTold = false;
      }
      const { done, value: calls } = this.#scan.next();
      if (!done && !calls) return joined(events); // it needs more text
      if (done) this.#scan = undefined;
      if (calls) {
        this.#input.take(this.#input.at);
        events.push(...calls.map((call) => ({ type: "call" as const, call })));
        this.#hasTold = true;
      } else if (this.#hasTold)
        this.#input.take(this.#input.text.length); // of a list that was cut off
      else events.push(...textEvents(this.#input.take(1)));
    }
  }
}

// Where a call may start: what follows the bracket fits, or has not come yet.
const START = /\[(?=\s*(?:[\p{L}_{]|[\ud800-\udbff]?$))|\{(?=\s*(?:["']|$))|<(?=f|$)/u;

/** Meta's name for the tool that runs the code between `<|python_start|>` and `<|python_end|>`. */
const CODE_TOOL = "code_interpreter";

/** What may be called in a list as Python has it. */
export const isCallName = (name: string): boolean =>
  /^[\p{L}_]/u.test(name) && Array.from(name).every((c) => IN_NAME.test(c));

/** What may be an argument's name there. */
export const isKeyword = (name: string): boolean => name !== "" && Array.from(name).every((c) => IN_KEYWORD.test(c));

const IN_NAME = /[\p{L}\p{N}_.:/-]/u;
const IN_KEYWORD = /[\p{L}\p{N}_]/u;

const textEvents = (text: string): ReplyEvent[] => (text === "" ? [] : [{ type: "text", text }]);

function joined(events: readonly ReplyEvent[]): ReplyEvent[] {
  const result: ReplyEvent[] = [];
  for (const event of events) {
    const last = result.at(-1);
    if (event.type === "text" && last?.type === "text")
      result[result.length - 1] = { type: "text", text: last.text + event.text };
    else result.push(event);
  }
  return result;
}

/** Text that arrives in pieces, read by generators that yield where they need more. */
class Input {
  text = "";
  at = 0;
  isClosed = false;

  take(length: number): string {
    const taken = this.text.slice(0, length);
    this.text = this.text.slice(length);
    this.at = 0;
    return taken;
  }

  /** The next character, "" at the end. */
  *peek(): Generator<undefined, string> {
    for (;;) {
      const c = this.#here();
      if (c !== undefined) return c;
      if (this.isClosed) return "";
      yield;
    }
  }

  /** The character that has come, whole: of a surrogate pair, both halves. */
  #here(): string | undefined {
    const c = this.text[this.at];
    if (c === undefined || c < "\ud800" || c > "\udbff") return c;
    const hasCome = this.isClosed || this.at + 1 < this.text.length;
    return hasCome ? String.fromCodePoint(this.text.codePointAt(this.at)!) : undefined;
  }

  *next(): Generator<undefined, string> {
    const c = yield* this.peek();
    if (c === "") throw NO_CALL;
    this.at += c.length;
    return c;
  }

  *expect(word: string): Generator<undefined, void> {
    for (const c of word) if ((yield* this.next()) !== c) throw NO_CALL;
  }

  /** Characters as long as they are of a set. */
  *run(set: RegExp): Generator<undefined, string> {
    const start = this.at;
    for (;;) {
      let c = this.#here();
      for (; c !== undefined && set.test(c); c = this.#here()) this.at += c.length;
      if (c !== undefined || this.isClosed) return this.text.slice(start, this.at);
      yield;
    }
  }

  *blanks(): Generator<undefined, void> {
    yield* this.run(/\s/);
  }

  /** Whether the next character after blanks is this one, which is then read. */
  *skips(c: string): Generator<undefined, boolean> {
    yield* this.blanks();
    if ((yield* this.peek()) !== c) return false;
    this.at++;
    return true;
  }
}

// Thrown where the text cannot be a call; no Error, because nobody reads its stack and it is thrown often.
const NO_CALL = Symbol("no call");

/** Yields calls that are taken from the input at once, or nothing where it needs more text. */
type Scan = Generator<readonly ToolCall[] | undefined, readonly ToolCall[] | undefined>;

/** Reads the calls at the start of the input and leaves `at` behind them, or finds that there is none. */
function* scanCalls(
  input: Input,
  accepts: (name: string) => boolean,
  mayBecome: (start: string) => boolean,
  areSure: boolean,
): Scan {
  try {
    const first = yield* input.peek();
    if (first === "<") return [yield* functionTag(input, accepts, mayBecome)];
    if (first === "{") return [yield* jsonCall(input, accepts, areSure)];
    return yield* list(input, accepts, mayBecome, areSure);
  } catch (error) {
    if (error === NO_CALL) return undefined;
    throw error;
  }
}

/** `[f(a="x"), g(b=2)]`, or the same with calls in JSON. Where they are sure each is yielded when it has ended. */
function* list(
  input: Input,
  accepts: (name: string) => boolean,
  mayBecome: (start: string) => boolean,
  areSure: boolean,
): Generator<ToolCall[] | undefined, ToolCall[]> {
  let calls: ToolCall[] = [];
  let isFirst = true;
  yield* input.expect("[");
  do {
    yield* input.blanks();
    const c = yield* input.peek();
    if (c === "]" && !isFirst) break;
    calls.push(c === "{" ? yield* jsonCall(input, accepts, areSure) : yield* pythonCall(input, accepts, mayBecome));
    isFirst = false;
    if (areSure) {
      yield calls;
      calls = [];
    }
  } while (yield* input.skips(","));
  yield* input.blanks();
  yield* input.expect("]");
  return calls;
}

/** `f(a="x", b=2)` with arguments by keyword only. */
function* pythonCall(
  input: Input,
  accepts: (name: string) => boolean,
  mayBecome: (start: string) => boolean,
): Generator<undefined, ToolCall> {
  const name = yield* toolName(input, "(", accepts, mayBecome);
  const given: [string, unknown][] = [];
  while (!(yield* input.skips(")"))) {
    if (given.length > 0) yield* input.expect(",");
    if (given.length > 0 && (yield* input.skips(")"))) break;
    yield* input.blanks();
    const key = yield* input.run(IN_KEYWORD);
    if (key === "" || !(yield* input.skips("="))) throw NO_CALL;
    given.push([key, yield* value(input)]);
  }
  return { name, arguments: Object.fromEntries(given) };
}

// A name is given up as soon as no tool's name starts that way, so that text is not held back for long.
function* toolName(
  input: Input,
  end: string,
  accepts: (name: string) => boolean,
  mayBecome: (start: string) => boolean,
): Generator<undefined, string> {
  let name = "";
  for (let c = yield* input.next(); c !== end; c = yield* input.next()) {
    name += c;
    if (!IN_NAME.test(c) || !mayBecome(name)) throw NO_CALL;
  }
  if (name === "" || !accepts(name)) throw NO_CALL;
  return name;
}

/** `<function=f>{…}</function>`; the closing tag may be missing. */
function* functionTag(
  input: Input,
  accepts: (name: string) => boolean,
  mayBecome: (start: string) => boolean,
): Generator<undefined, ToolCall> {
  yield* input.expect("<function=");
  const name = yield* toolName(input, ">", accepts, mayBecome);
  yield* input.blanks();
  const call = { name, arguments: record(yield* value(input)) };
  const end = input.at;
  try {
    yield* input.blanks();
    yield* input.expect("</function>");
  } catch (error) {
    if (error !== NO_CALL) throw error;
    input.at = end;
  }
  return call;
}

const CALL_KEYS = ["type", "name", "parameters", "arguments", "function", "id"];

/** `{"name": "f", "parameters": {…}}`, Meta's, or OpenAI's with `arguments`, `type` or the call under `function`. */
function* jsonCall(input: Input, accepts: (name: string) => boolean, isPlain: boolean): Generator<undefined, ToolCall> {
  yield* input.expect("{");
  const fields = new Map<string, unknown>();
  do {
    yield* input.blanks();
    const key = isPlain ? yield* plain(input) : yield* string(input);
    if (!CALL_KEYS.includes(key) || fields.has(key) || !(yield* input.skips(":"))) throw NO_CALL;
    yield* input.blanks();
    const nested = key === "function" && (yield* input.peek()) === "{";
    const isName = key === "name" || (key === "function" && !nested);
    const other = isName && isPlain ? plain : value;
    const field = nested ? yield* jsonCall(input, accepts, isPlain) : yield* other(input);
    if (key === "type" && field !== "function") throw NO_CALL;
    if (isName && !(typeof field === "string" && accepts(field))) throw NO_CALL;
    if (nested) fields.set("call", field);
    fields.set(key, field);
  } while (yield* input.skips(","));
  yield* input.blanks();
  yield* input.expect("}");
  return callOf(fields);
}

function callOf(fields: ReadonlyMap<string, unknown>): ToolCall {
  const nested = fields.get("call");
  if (nested !== undefined) return nested as ToolCall; // put there by jsonCall alone
  const name = fields.get("name") ?? fields.get("function");
  const given = fields.get("parameters") ?? fields.get("arguments");
  if (typeof name !== "string") throw NO_CALL;
  return { name, arguments: record(typeof given === "string" ? parsed(given) : given) };
}

// OpenAI writes a call's arguments as JSON inside a string.
function parsed(json: string): unknown {
  try {
    return JSON.parse(json);
  } catch {
    throw NO_CALL;
  }
}

function record(given: unknown): Readonly<Record<string, unknown>> {
  if (typeof given !== "object" || given === null || Array.isArray(given)) throw NO_CALL;
  return given as Readonly<Record<string, unknown>>; // an object with string keys: value() makes no other
}

const MAX_DEPTH = 64;

const WORDS: ReadonlyMap<string, unknown> = new Map<string, unknown>([
  ["True", true],
  ["False", false],
  ["None", null],
  ["true", true],
  ["false", false],
  ["null", null],
]);

/** A literal as Python or JSON writes it. */
function* value(input: Input, depth = 0): Generator<undefined, unknown> {
  if (depth > MAX_DEPTH) throw NO_CALL;
  yield* input.blanks();
  const c = yield* input.peek();
  if (c === '"' || c === "'") return yield* string(input);
  if (c === "{") return yield* dictionary(input, depth);
  if (c === "[") return yield* sequence(input, "[", "]", depth);
  if (c === "(") return yield* sequence(input, "(", ")", depth);
  const word = yield* input.run(/[\w.+-]/);
  if (WORDS.has(word)) return WORDS.get(word);
  if (!/^[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?$/.test(word)) throw NO_CALL;
  return Number(word.replaceAll("_", ""));
}

function* sequence(input: Input, open: string, close: string, depth: number): Generator<undefined, unknown[]> {
  const items: unknown[] = [];
  yield* input.expect(open);
  while (!(yield* input.skips(close))) {
    if (items.length > 0) yield* input.expect(",");
    if (items.length > 0 && (yield* input.skips(close))) break;
    items.push(yield* value(input, depth + 1));
  }
  return items;
}

function* dictionary(input: Input, depth: number): Generator<undefined, Record<string, unknown>> {
  const entries: [string, unknown][] = [];
  yield* input.expect("{");
  while (!(yield* input.skips("}"))) {
    if (entries.length > 0) yield* input.expect(",");
    if (entries.length > 0 && (yield* input.skips("}"))) break;
    yield* input.blanks();
    const key = yield* string(input);
    if (!(yield* input.skips(":"))) throw NO_CALL;
    entries.push([key, yield* value(input, depth + 1)]);
  }
  return Object.fromEntries(entries); // defines, so that "__proto__" is a key like any other
}

/** A string in either kind of quotes, or in three of them as Python has it. */
function* string(input: Input): Generator<undefined, string> {
  const quote = yield* input.next();
  if (quote !== '"' && quote !== "'") throw NO_CALL;
  let isTriple = false;
  if ((yield* input.peek()) === quote) {
    input.at++;
    if ((yield* input.peek()) !== quote) return "";
    input.at++;
    isTriple = true;
  }
  const plain = quote === '"' ? /[^"\\]/ : /[^'\\]/;
  let text = "";
  for (;;) {
    text += yield* input.run(plain);
    if ((yield* input.next()) === "\\") text += yield* escaped(input);
    else if (!isTriple) return text;
    else {
      if ((yield* input.peek()) === quote) {
        input.at++;
        if ((yield* input.peek()) === quote) {
          input.at++;
          return text;
        }
        text += quote;
      }
      text += quote;
    }
  }
}

/** A string that is written as it is, or as JSON has it. */
function* plain(input: Input): Generator<undefined, string> {
  const start = input.at;
  const text = yield* string(input);
  const written = input.text.slice(start, input.at);
  if (written !== JSON.stringify(text) && written !== `'${text}'`) throw NO_CALL;
  return text;
}

const ESCAPES: ReadonlyMap<string, string> = new Map([
  ["n", "\n"],
  ["t", "\t"],
  ["r", "\r"],
  ["b", "\b"],
  ["f", "\f"],
  ["a", "\x07"],
  ["v", "\v"],
  ["0", "\0"],
  ["\\", "\\"],
  ["/", "/"],
  ["'", "'"],
  ['"', '"'],
  ["\n", ""], // Python continues a string on the next line
]);
const HEX_DIGITS: ReadonlyMap<string, number> = new Map([
  ["x", 2],
  ["u", 4],
  ["U", 8],
]);

// What follows a backslash; one that Python and JSON do not know stays as it is, as in Python.
function* escaped(input: Input): Generator<undefined, string> {
  const c = yield* input.next();
  const digits = HEX_DIGITS.get(c);
  if (digits === undefined) return ESCAPES.get(c) ?? `\\${c}`;
  let hex = "";
  for (let i = 0; i < digits; i++) hex += yield* input.next();
  const code = /^[\da-fA-F]+$/.test(hex) ? Number.parseInt(hex, 16) : Infinity;
  if (code > 0x10ffff) throw NO_CALL;
  return String.fromCodePoint(code);
}

// A request's body: JSON, of a bounded size, and all bodies together of a bounded size.

import { checkDepth } from "../prompt/chat-format.ts";
import { Refusal } from "./errors.ts";
import { checkExact, EXACT_DIGITS } from "./exact-numbers.ts";

/** Bytes of all requests that are held at once. */
export class ByteBudget {
  readonly #most: number;
  #used = 0;

  constructor(most: number) {
    this.#most = most;
  }

  /** Throws Refusal where there is no room now. */
  take(bytes: number): void {
    if (this.#used + bytes > this.#most)
      throw new Refusal(429, "The server holds as many bytes of requests as it may; try again later.", {
        retryAfterSeconds: 2,
      });
    this.#used += bytes;
  }

  give(bytes: number): void {
    this.#used -= bytes;
  }
}

/** A part of the budget that one request holds. */
export class Held {
  readonly #budget: ByteBudget;
  #bytes = 0;
  #isReleased = false;

  constructor(budget: ByteBudget) {
    this.#budget = budget;
  }

  /** Throws once it is released: nobody would give the bytes back. */
  take(bytes: number): void {
    if (this.#isReleased) throw new Error("the request is over; expected no more bytes for it");
    this.#budget.take(bytes);
    this.#bytes += bytes;
  }

  release(): void {
    this.#isReleased = true;
    this.#budget.give(this.#bytes);
    this.#bytes = 0;
  }
}

const MOST_VALUES = 2_000_000;
const FREE_VALUES = 10_000; // what conversations have
const BYTES_OF_A_VALUE = 64; // a list or an object, once it is read
const QUOTE = 0x22;
const BACKSLASH = 0x5c;

/**
 * Counts the strings, lists and objects of JSON while its bytes come, and refuses too many: JSON.parse takes 0.6 s for a
 * million lists, in one piece, and twenty times their bytes of memory.
 */
export class ValueCount {
  readonly #most: number;
  #count = 0;
  #isInString = false;
  /** Whether the string's bytes so far end in an odd number of backslashes. */
  #isEscaped = false;
  /** Digits in a row, outside of strings. */
  #digits = 0;
  #hasLong = false;

  constructor(most = MOST_VALUES) {
    this.#most = most;
  }

  /** Whether there has been a number of so many digits, or with an exponent, that it may be none that a double holds. */
  get hasLongNumbers(): boolean {
    return this.#hasLong;
  }

  /** How many more there are that take room of their own. Throws Refusal. */
  read(bytes: Uint8Array): number {
    const before = this.#count;
    for (let at = 0; at < bytes.length; ) at = this.#isInString ? this.#string(bytes, at) : this.#between(bytes, at);
    if (this.#count > this.#most)
      throw new Refusal(
        400,
        `The body has more than ${this.#most.toLocaleString("en")} strings, lists and objects; expected at most that.`,
      );
    return Math.max(0, this.#count - Math.max(before, FREE_VALUES));
  }

  /** To behind the string's end, or to the end of the bytes. */
  #string(bytes: Uint8Array, from: number): number {
    const quote = bytes.indexOf(QUOTE, from);
    const end = quote < 0 ? bytes.length : quote;
    let before = end;
    while (before > from && bytes[before - 1] === BACKSLASH) before--;
    const isOdd = (end - before) % 2 === 1;
    const isEscaped = before === from && this.#isEscaped ? !isOdd : isOdd;
    this.#isEscaped = quote < 0 && isEscaped;
    if (quote < 0) return end;
    this.#isInString = isEscaped;
    return quote + 1;
  }

  /** To behind the next string's beginning, or to the end of the bytes. */
  #between(bytes: Uint8Array, from: number): number {
    for (let at = from; at < bytes.length; at++) {
      const byte = bytes[at]!;
      if (byte === QUOTE) {
        this.#count++;
        this.#digits = 0;
        this.#isInString = true;
        return at + 1;
      }
      if (byte === 0x5b || byte === 0x7b) this.#count++; // [ {
      if (byte >= 0x30 && byte <= 0x39) {
        if (++this.#digits > EXACT_DIGITS) this.#hasLong = true;
      } else {
        if (this.#digits > 0 && (byte === 0x65 || byte === 0x45)) this.#hasLong = true; // e E
        this.#digits = 0;
      }
    }
    return bytes.length;
  }
}

/** The value in a body of JSON. */
export async function readJson(
  request: Request,
  mostBytes: number,
  into: { readonly held: Held; readonly signal: AbortSignal },
): Promise<unknown> {
  const type = request.headers.get("content-type") ?? "";
  // Others can be sent by any web page without asking first.
  if (!/^application\/json\s*(;|$)/i.test(type))
    throw new Refusal(415, `The content type is "${type.slice(0, 60)}"; expected application/json.`);
  const { text, hasLongNumbers } = await readText(request, mostBytes, into);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw new Refusal(400, "The body is no JSON; expected one JSON object.");
  }
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw new Refusal(400, "The body is no JSON object; expected one.");
  checkDepth(value, "the values of the body");
  if (hasLongNumbers) checkExact(text);
  return value;
}

/** Decoded as it comes, so that a large body does not hold up others when all of it is there. */
async function readText(
  request: Request,
  mostBytes: number,
  { held, signal }: { readonly held: Held; readonly signal: AbortSignal },
): Promise<{ readonly text: string; readonly hasLongNumbers: boolean }> {
  const tooLarge = () =>
    new Refusal(413, `The body is larger than ${mostBytes.toLocaleString("en")} bytes; expected at most that.`);
  const announced = Number(request.headers.get("content-length") ?? 0);
  if (announced > mostBytes) throw tooLarge();
  const decoder = new TextDecoder();
  const texts: string[] = [];
  const values = new ValueCount();
  let length = 0;
  if (request.body) {
    const reader = request.body.getReader();
    const leave = () => void reader.cancel().catch(() => {}); // ends a read that waits
    signal.addEventListener("abort", leave);
    try {
      for (let next = await reader.read(); !next.done; next = await reader.read()) {
        length += next.value.byteLength;
        if (length > mostBytes) throw tooLarge();
        held.take(next.value.byteLength + BYTES_OF_A_VALUE * values.read(next.value));
        texts.push(decoder.decode(next.value, { stream: true }));
      }
      signal.throwIfAborted();
    } catch (error) {
      leave();
      throw error;
    } finally {
      signal.removeEventListener("abort", leave);
    }
  }
  return { text: texts.join("") + decoder.decode(), hasLongNumbers: values.hasLongNumbers };
}

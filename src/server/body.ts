// A request's body: JSON, of a bounded size, and all bodies together of a bounded size.

import { checkDepth } from "../prompt/chat-format.ts";
import { Refusal } from "./errors.ts";

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
  const text = await readText(request, mostBytes, into);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw new Refusal(400, "The body is no JSON; expected one JSON object.");
  }
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw new Refusal(400, "The body is no JSON object; expected one.");
  checkDepth(value, "the values of the body");
  return value;
}

/** Decoded as it comes, so that a large body does not hold up others when all of it is there. */
async function readText(
  request: Request,
  mostBytes: number,
  { held, signal }: { readonly held: Held; readonly signal: AbortSignal },
): Promise<string> {
  const tooLarge = () =>
    new Refusal(413, `The body is larger than ${mostBytes.toLocaleString("en")} bytes; expected at most that.`);
  const announced = Number(request.headers.get("content-length") ?? 0);
  if (announced > mostBytes) throw tooLarge();
  const decoder = new TextDecoder();
  const texts: string[] = [];
  let length = 0;
  if (request.body) {
    const reader = request.body.getReader();
    const leave = () => void reader.cancel().catch(() => {}); // ends a read that waits
    signal.addEventListener("abort", leave);
    try {
      for (let next = await reader.read(); !next.done; next = await reader.read()) {
        length += next.value.byteLength;
        if (length > mostBytes) throw tooLarge();
        held.take(next.value.byteLength);
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
  return texts.join("") + decoder.decode();
}

// The images and videos of a request: data URLs decoded, others fetched, by those who may.

import type { ContentPart, Message } from "../prompt/chat-format.ts";
import { Refusal } from "./errors.ts";
import type { AskedPart, UrlPart } from "./generation.ts";

/** Fetches the file behind a URL, or throws Refusal. Says what it holds by `take` as it comes, which throws where there is no room. */
export type FetchMedia = (url: string, signal: AbortSignal, take?: (bytes: number) => void) => Promise<Uint8Array>;

/** The same messages with the files' bytes in place of their URLs. */
export async function withFiles(
  messages: readonly Message<AskedPart>[],
  fetchMedia: FetchMedia | undefined,
  signal: AbortSignal,
): Promise<Message[]> {
  const part = async (part: AskedPart): Promise<ContentPart> =>
    part.type === "text" ? part : { type: part.type, data: await fileOf(part, fetchMedia, signal) };
  return Promise.all(
    messages.map(async (message) => ({
      ...message,
      content: typeof message.content === "string" ? message.content : await Promise.all(message.content.map(part)),
    })),
  );
}

export const filesOf = (messages: readonly Message<AskedPart>[]): UrlPart[] =>
  messages.flatMap(({ content }) =>
    typeof content === "string" ? [] : content.filter((part) => part.type !== "text"),
  );

async function fileOf(part: UrlPart, fetchMedia: FetchMedia | undefined, signal: AbortSignal) {
  const { type, url, param } = part;
  if (url.slice(0, 5).toLowerCase() === "data:") return fromDataUrl(part, signal);
  if (!/^https?:/i.test(url))
    throw wrongFile(part, `the URL begins with "${url.slice(0, 12)}"; expected a data URL or https`);
  if (!fetchMedia) throw wrongFile(part, `this server fetches no files; expected the ${type} as a data URL`);
  return fetchMedia(url, signal).catch((error: unknown) => {
    throw error instanceof Refusal ? error.about(param) : error;
  });
}

/** An error about a file, which names the field where it stands. */
const wrongFile = ({ param }: UrlPart, what: string, code = "invalid_image_url") =>
  new Refusal(400, `Invalid value for '${param}': ${what}.`, { code, param });

/** Characters of base64 that are decoded at once, about a millisecond: others have their turn in between. */
const PIECE = 1 << 18;

async function fromDataUrl(part: UrlPart, signal: AbortSignal): Promise<Uint8Array> {
  const { url } = part;
  const comma = url.indexOf(",", 5);
  if (comma < 0 || !/;base64$/i.test(url.slice(5, Math.min(comma, 200))))
    throw wrongFile(part, 'the data URL is not "data:<type>;base64,<data>"; expected that');
  const bytes = new Uint8Array(Math.ceil(((url.length - comma - 1) * 3) / 4));
  let length = 0;
  let left = ""; // of a group of four
  for (let at = comma + 1; at < url.length; at += PIECE) {
    if (at > comma + 1) await new Promise((resolve) => setTimeout(resolve, 0));
    signal.throwIfAborted();
    const text = left + url.slice(at, at + PIECE).replaceAll(/[\t\n\f\r ]+/g, "");
    const isLast = at + PIECE >= url.length;
    const whole = isLast ? text.length : text.length - (text.length % 4);
    left = text.slice(whole);
    let binary: string;
    try {
      binary = atob(text.slice(0, whole));
      if (length % 3 > 0 && text !== "") throw new Error("data behind the end"); // a group before was padded
    } catch {
      throw wrongFile(part, "the data behind the comma is not in base64; expected that", "invalid_base64_image");
    }
    for (let i = 0; i < binary.length; i++) bytes[length++] = binary.charCodeAt(i);
  }
  return bytes.subarray(0, length);
}

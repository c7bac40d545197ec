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

async function fileOf({ type, url }: UrlPart, fetchMedia: FetchMedia | undefined, signal: AbortSignal) {
  if (url.slice(0, 5).toLowerCase() === "data:") return fromDataUrl(type, url);
  if (!/^https?:/i.test(url))
    throw new Refusal(400, `The URL of the ${type} begins with "${url.slice(0, 12)}"; expected a data URL or https.`);
  if (!fetchMedia)
    throw new Refusal(400, `This server fetches no files; expected the ${type} as a data URL.`, {
      code: "invalid_image_url",
    });
  return fetchMedia(url, signal);
}

function fromDataUrl(type: string, url: string): Uint8Array {
  const comma = url.indexOf(",", 5);
  if (comma < 0 || !/;base64$/i.test(url.slice(5, Math.min(comma, 200))))
    throw new Refusal(400, `The data URL of the ${type} is not "data:<type>;base64,<data>"; expected that.`);
  let binary: string;
  try {
    binary = atob(url.slice(comma + 1));
  } catch {
    throw new Refusal(400, `The data URL of the ${type} is not in base64; expected that.`);
  }
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

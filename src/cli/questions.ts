// Documents as questions with known answers: chats whose last message is the answer, their pictures as files.
//
// S pixels along a tile

import type { ContentPart, Message } from "../index.ts";
import type { Role } from "../prompt/chat-format.ts";
import { timestamp } from "../prompt/video.ts";
import { RequestError } from "../tensor/errors.ts";
import type { Documents } from "../train/documents.ts";

export interface Question {
  /** Up to the answer. */
  readonly messages: readonly Message[];
  readonly answer: string;
  /** All answers that are right, `answer` among them. */
  readonly accepted: readonly string[];
  readonly nPictures: number;
}

/** What takes the place of a question's pictures: they themselves, or as many grey ones, which say nothing. */
export type Pictures = "shown" | "grey";

const roles: ReadonlySet<unknown> = new Set<Role>(["system", "user", "assistant", "tool"]);

const grey = 128; // nearest to 0 once normalised

/** Question i of a file. Throws RequestError for a document that is none. */
export async function questionOf(documents: Documents, i: number, pictures: Pictures): Promise<Question> {
  const refuse = (found: string): never => {
    throw new RequestError(
      `${documents.name}: line ${i + 1}: ${found}; expected {"messages": […, {"role": "assistant", "content": "…"}]}, and beside it perhaps "accepted": a list of answers`,
    );
  };
  const record = await documents.record(i);
  if (!isRecord(record) || !Array.isArray(record["messages"])) return refuse("no chat");
  const last: unknown = record["messages"].at(-1);
  if (!isRecord(last) || last["role"] !== "assistant" || typeof last["content"] !== "string")
    return refuse("the last message is no answer in words");
  if (last["content"].trim() === "") return refuse("the answer is empty");
  if (record["messages"].length < 2) return refuse("no question before the answer");
  const accepted = record["accepted"] ?? [];
  if (!Array.isArray(accepted) || accepted.some((answer) => typeof answer !== "string"))
    return refuse('"accepted" is no list of texts');
  const messages: Message[] = [];
  let nPictures = 0;
  for (const message of record["messages"].slice(0, -1) as unknown[]) {
    if (!isRecord(message)) return refuse("a message is no object");
    const { role, content } = message;
    if (!roles.has(role)) return refuse(`a role that is ${JSON.stringify(role)}, none of ${[...roles].join(", ")}`);
    const parts: ContentPart[] = [];
    for (const part of Array.isArray(content) ? content : [content]) {
      if (typeof part === "string") parts.push({ type: "text", text: part });
      else
        for (const { tile, text } of tilesOfPart(part) ??
          refuse("a part that is no text, no picture of one tile, no clip")) {
          if (text !== undefined) parts.push({ type: "text", text });
          if (documents.tileSize !== undefined && !(tile >= 0 && tile < documents.tileCount))
            return refuse(`a picture that is tile ${tile}, of ${documents.tileCount}`);
          parts.push({ type: "image", data: await pictureFile(documents, tile, pictures) });
          nPictures++;
        }
    }
    messages.push({ role: role as Role, content: parts });
  }
  const answer = last["content"];
  return { messages, answer, accepted: [...new Set([answer, ...accepted])], nPictures };
}

/** The tiles of a picture, or of a clip's frames with their times; undefined for what is neither. */
function tilesOfPart(part: unknown): { tile: number; text?: string }[] | undefined {
  if (!isRecord(part)) return undefined;
  const { image, rows = 1, cols = 1, video, times } = part;
  if (Number.isInteger(image) && rows === 1 && cols === 1) return [{ tile: Number(image) }];
  if (!Array.isArray(video) || !Array.isArray(times) || video.length !== times.length) return undefined;
  return video.map((tile, frame) => ({ tile: Number(tile), text: timestamp(Number(times[frame])) }));
}

/** A tile as a PNG, which keeps every pixel. */
async function pictureFile(documents: Documents, tile: number, pictures: Pictures): Promise<Uint8Array> {
  const side = documents.tileSize;
  if (side === undefined)
    throw new RequestError(`${documents.name}: pictures without their file of tiles beside it; build both again`);
  const planes = await documents.pixels([tile]); // [3, S, S]
  const pixels = new Uint8Array(planes.length).fill(grey); // [S, S, 3]
  if (pictures === "shown")
    for (let at = 0; at < side ** 2; at++) for (let c = 0; c < 3; c++) pixels[3 * at + c] = planes[c * side ** 2 + at]!;
  const { default: sharp } = await import("sharp");
  return sharp(pixels, { raw: { width: side, height: side, channels: 3 } })
    .png()
    .toBuffer();
}

const isRecord = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

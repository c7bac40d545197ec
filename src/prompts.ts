// What a call gives — text, ids, parts or messages — as ids and images for the engine.

import { tokensPerTile } from "./model/config.ts";
import type { OpenModel } from "./open.ts";
import type { ContentPart } from "./prompt/chat-format.ts";
import { openImage } from "./prompt/decode-image.ts";
import { openVideo } from "./prompt/decode-video.ts";
import {
  type Eyes,
  encodeParts,
  type MediaOptions,
  type SeenImage,
  type SeenPrompt,
  Viewer,
  withImages,
} from "./prompt/media.ts";
import type { Tokenizer } from "./prompt/tokenizer.ts";
import type { Chat, Prompt } from "./protocol.ts";
import { CheckpointError } from "./tensor/errors.ts";

export interface PromptOptions {
  readonly bos?: boolean | undefined;
  readonly media?: MediaOptions | undefined;
  readonly signal: AbortSignal;
}

/** A prompt without chat format. */
export async function seePrompt(model: OpenModel, prompt: Prompt, options: PromptOptions): Promise<SeenPrompt> {
  const { bos = false, media = {}, signal } = options;
  if (typeof prompt === "string") return { ids: needTokenizer(model).encode(prompt, { bos }), images: [] };
  if (!isParts(prompt)) return { ids: Int32Array.from(prompt), images: [] };
  const tokenizer = needTokenizer(model);
  const images: SeenImage[] = [];
  const parts = await viewerOf(model).parts(prompt, images, media, signal);
  return withImages(encodeParts(parts, tokenizer, { bos }), images, tokenizer, eyesOf(model));
}

/** A conversation in the checkpoint's chat format. */
export async function seeChat(model: OpenModel, chat: Chat, options: Omit<PromptOptions, "bos">): Promise<SeenPrompt> {
  const { media = {}, signal } = options;
  const tokenizer = needTokenizer(model);
  const { messages, images } = await viewerOf(model).messages(chat.messages, media, signal);
  return withImages(model.chatFormat!.encode(messages, chat.options), images, tokenizer, eyesOf(model));
}

const viewerOf = (model: OpenModel) => new Viewer(eyesOf(model), { image: openImage, video: openVideo });

/** What the model's vision encoder asks of images; undefined where it has none. */
export function eyesOf({ config: { vision }, vision: parameters }: OpenModel): Eyes | undefined {
  return vision && parameters && { tileSize: vision.imageSize, tokensPerTile: tokensPerTile(vision) };
}

const isParts = (prompt: ArrayLike<number> | readonly ContentPart[]): prompt is readonly ContentPart[] =>
  typeof prompt[0] === "object";

export function needTokenizer({ tokenizer, path }: OpenModel): Tokenizer {
  if (!tokenizer)
    throw new CheckpointError(
      `${path}: no tokenizer; expected tokenizer.json or tokenizer.model beside the weights, or token ids in place of text`,
    );
  return tokenizer;
}

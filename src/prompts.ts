// What a call gives — text, ids, parts or messages — as ids and images for the engine.

import { tokensPerTile } from "./model/config.ts";
import type { OpenModel } from "./open.ts";
import type { ContentPart, Message } from "./prompt/chat-format.ts";
import { openImage, openVideo } from "./prompt/decode-video.ts";
import { type Eyes, encodeParts, type MediaOptions, type SeenPrompt, Viewer, withImages } from "./prompt/media.ts";
import type { Tokenizer } from "./prompt/tokenizer.ts";
import type { Chat, Prompt } from "./protocol.ts";
import { CheckpointError, RequestError } from "./tensor/errors.ts";

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
  const { messages, images } = await see(model, [{ role: "user", content: prompt }], media, signal);
  const [content = []] = messages.map((message) => message.content);
  const plain = encodeParts(typeof content === "string" ? [] : content, tokenizer, { bos });
  return images.length === 0 ? { ids: plain.ids, images } : withImages(plain, images, tokenizer, eyesOf(model)!);
}

/** A conversation in the checkpoint's chat format. */
export async function seeChat(model: OpenModel, chat: Chat, options: Omit<PromptOptions, "bos">): Promise<SeenPrompt> {
  const tokenizer = needTokenizer(model);
  const { messages, images } = await see(model, chat.messages, options.media ?? {}, options.signal);
  const plain = model.chatFormat!.encode(messages, chat.options);
  return images.length === 0 ? { ids: plain.ids, images } : withImages(plain, images, tokenizer, eyesOf(model)!);
}

async function see(model: OpenModel, messages: readonly Message[], media: MediaOptions, signal: AbortSignal) {
  const eyes = eyesOf(model);
  const viewer = new Viewer(eyes ?? { tileSize: 1, tokensPerTile: 1 }, {
    image: eyes ? openImage : blind,
    video: eyes ? openVideo : blind,
  });
  return viewer.messages(messages, media, signal);
}

const blind = (): never => {
  throw new RequestError(
    "an image or a video for a model that reads text only; expected a checkpoint with a vision encoder (a GGUF model's is in its mmproj file, `mmproj`), or no images",
  );
};

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

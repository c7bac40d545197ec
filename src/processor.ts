// What a call gives — text, ids, parts or messages — as ids and images for the engine.

import { tokensPerTile } from "./model/config.ts";
import type { OpenModel } from "./open.ts";
import type { ContentPart } from "./prompt/chat-format.ts";
import { openImage } from "./prompt/decode-image.ts";
import { openVideo } from "./prompt/decode-video.ts";
import {
  encodeParts,
  expandImages,
  ImageProcessor,
  type ImageProcessorConfig,
  type MediaOptions,
  type ProcessedImage,
  type ProcessedPrompt,
} from "./prompt/media.ts";
import type { Tokenizer } from "./prompt/tokenizer.ts";
import type { Chat, Prompt } from "./protocol.ts";
import { CheckpointError } from "./tensor/errors.ts";

export interface ProcessOptions {
  /** Begin-of-text before a prompt that is no conversation. */
  readonly bos?: boolean | undefined;
  readonly media?: MediaOptions | undefined;
  readonly signal: AbortSignal;
}

/** A model's tokenizer, chat format and image processor together. */
export class Processor {
  readonly #model: OpenModel;
  readonly #images: ImageProcessor;

  constructor(model: OpenModel) {
    this.#model = model;
    this.#images = new ImageProcessor(imageProcessorConfig(model), { image: openImage, video: openVideo });
  }

  async process(prompt: Prompt | Chat, { bos = false, media = {}, signal }: ProcessOptions): Promise<ProcessedPrompt> {
    if (typeof prompt === "string") return { ids: needTokenizer(this.#model).encode(prompt, { bos }), images: [] };
    if (isIds(prompt)) return { ids: Int32Array.from(prompt), images: [] };
    const tokenizer = needTokenizer(this.#model);
    const options = { ...media, mostTokens: this.#model.context };
    if ("messages" in prompt) {
      const { messages, images } = await this.#images.messages(prompt.messages, options, signal);
      return this.#expanded(this.#model.chatFormat!.encode(messages, prompt.options), images, tokenizer);
    }
    const { contents, images } = await this.#images.contents([prompt], options, signal);
    return this.#expanded(encodeParts(contents[0]!, tokenizer, { bos }), images, tokenizer);
  }

  #expanded(prompt: ReturnType<typeof encodeParts>, images: readonly ProcessedImage[], tokenizer: Tokenizer) {
    return expandImages(prompt, images, tokenizer, imageProcessorConfig(this.#model));
  }
}

/** What the model's vision encoder asks of images; undefined where it has none. */
export function imageProcessorConfig(model: OpenModel): ImageProcessorConfig | undefined {
  const { vision } = model.config;
  if (!vision || !model.vision) return undefined;
  const { maxTiles, toMaxCanvas } = vision.preprocessing;
  return { tileSize: vision.imageSize, tokensPerTile: tokensPerTile(vision), maxTiles, toMaxCanvas };
}

const isIds = (prompt: ArrayLike<number> | readonly ContentPart[] | Chat): prompt is ArrayLike<number> =>
  !("messages" in prompt) && typeof prompt[0] !== "object";

export function needTokenizer({ tokenizer, path }: OpenModel): Tokenizer {
  if (!tokenizer)
    throw new CheckpointError(
      `${path}: no tokenizer; expected tokenizer.json or tokenizer.model beside the weights, or token ids in place of text`,
    );
  return tokenizer;
}

// What index.ts and worker.ts say to each other.

import type { CompletionRequest } from "./engine/completion.ts";
import type { ModelShape } from "./engine/model-shape.ts";
import type { ChatOptions, ContentPart, Message } from "./prompt/chat-format.ts";
import type { ImageProcessorConfig, MediaOptions } from "./prompt/media.ts";
import type { KVDType } from "./tensor/backend.ts";
import { CapacityError, CheckpointError, EngineError, RequestError } from "./tensor/errors.ts";

/** What the worker is told first. */
export interface Start {
  readonly path: string;
  readonly backend?: "native" | "reference" | undefined;
  readonly threads?: number | undefined;
  readonly activations?: "f32" | "int8" | undefined;
  readonly context?: number | undefined;
  readonly kvDtype?: KVDType | undefined;
  /** The vision part of a GGUF model; default: `mmproj-<name>` beside it, if it is there. */
  readonly mmproj?: string | undefined;
  /** A folder with an adapter in PEFT's layout, for a model in Hugging Face's: it goes into the weights as they are read. */
  readonly adapter?: string | undefined;
  readonly sequences?: number | undefined;
  /** Most tokens computed at once; a prompt comes in slices of this size. */
  readonly stepTokens?: number | undefined;
  /**
   * Guesses tokens ahead and computes several in a step: what follows repeats the prompt ("lookup"), or what a smaller
   * model of the same vocabulary says (`draft`: its path). Default "off".
   */
  readonly speculation?: "off" | "lookup" | { readonly draft: string } | undefined;
  /** Bytes of image features that are kept for images that come again; default 256 MB. */
  readonly imageCacheBytes?: number | undefined;
}

export interface ModelInfo {
  readonly path: string;
  readonly backend: string;
  readonly vocabSize: number;
  /** Longest prompt and reply together, in tokens. */
  readonly context: number;
  readonly parameters: { readonly total: number; readonly active: number };
  readonly shape: ModelShape;
  readonly weightBytes: number;
  readonly kvBytes: number;
  readonly kvDtype: string;
  readonly loadMs: number;
  readonly hasTokenizer: boolean;
  /** False of a model that has learnt from texts alone, and goes on with what it is told. */
  readonly knowsChats: boolean;
  /** What its vision encoder asks of images; absent where it reads text only. */
  readonly vision?: ImageProcessorConfig | undefined;
}

/** Text, ids, or parts one behind the other, without chat format. */
export type Prompt = string | ArrayLike<number> | readonly ContentPart[];

/** Messages in the checkpoint's chat format. */
export interface Chat {
  readonly messages: readonly Message[];
  readonly options: ChatOptions;
}

interface Options extends Omit<CompletionRequest, "tokens" | "images" | "signal" | "tools"> {
  readonly media?: MediaOptions | undefined;
}

export type Call =
  | { readonly method: "chat"; readonly messages: readonly Message[]; readonly options: Options & ChatOptions }
  | {
      readonly method: "complete";
      readonly prompt: Prompt;
      readonly options: Options & { readonly bos?: boolean | undefined };
    }
  | {
      readonly method: "logits";
      readonly prompt: Prompt | Chat;
      readonly bos: boolean;
      readonly last: boolean;
      readonly media?: MediaOptions | undefined;
    }
  | {
      readonly method: "promptLogprobs";
      readonly prompt: string | ArrayLike<number>;
      readonly bos: boolean;
      readonly top: number;
    }
  | {
      readonly method: "likeliest";
      readonly prompt: Prompt | Chat;
      readonly continuations: readonly (string | ArrayLike<number>)[];
      readonly k: number | undefined;
      readonly bos: boolean;
      readonly media?: MediaOptions | undefined;
    }
  | {
      readonly method: "encode";
      readonly prompt: Prompt | Chat;
      readonly bos: boolean;
      readonly media?: MediaOptions | undefined;
    }
  | { readonly method: "decode"; readonly tokens: ArrayLike<number> }
  | { readonly method: "stats" };

export type ToWorker =
  | { readonly type: "call"; readonly id: number; readonly call: Call }
  | { readonly type: "cancel"; readonly id: number }
  | { readonly type: "close" };

export type ToMain =
  | { readonly type: "progress"; readonly done: number; readonly total: number }
  | { readonly type: "warning"; readonly message: string }
  | { readonly type: "opened"; readonly info: ModelInfo }
  | { readonly type: "failed"; readonly error: PlainError }
  | { readonly type: "value"; readonly id: number; readonly value: unknown }
  | { readonly type: "end"; readonly id: number }
  | { readonly type: "error"; readonly id: number; readonly error: PlainError }
  | { readonly type: "closed" };

/** An error as it crosses the border: a clone would forget its class. */
export interface PlainError {
  readonly name: string;
  readonly message: string;
  readonly stack: string | undefined;
}

export function flatten(error: unknown): PlainError {
  if (!(error instanceof Error)) return { name: "Error", message: String(error), stack: undefined };
  return { name: error.name, message: error.message, stack: error.stack };
}

const classes: Readonly<Record<string, new (message: string) => Error>> = {
  CheckpointError,
  RequestError,
  CapacityError,
  EngineError,
  RangeError,
  TypeError,
};

/** The same class with the same message; the stack is that of the engine's thread. */
export function revive({ name, message, stack }: PlainError): Error {
  const error = new (classes[name] ?? Error)(message);
  if (error.name !== name) Object.defineProperty(error, "name", { value: name });
  if (stack !== undefined) Object.defineProperty(error, "stack", { value: stack });
  return error;
}

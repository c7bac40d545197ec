// The library's door. The model lives in a thread of its own, so nothing here blocks the caller.

import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { Worker } from "node:worker_threads";
import { Channel } from "./engine/channel.ts";
import type { Piece } from "./engine/completion.ts";
import type { Constraint } from "./engine/constraint.ts";
import type { EngineStats } from "./engine/engine.ts";
import type { Ranked } from "./engine/likeliest.ts";
import type { PromptToken } from "./engine/prompt-logprobs.ts";
import type { LogitRows } from "./engine/requests.ts";
import type { Sampling } from "./engine/sampler.ts";
import type { Message, Tool } from "./prompt/chat-format.ts";
import type { MediaOptions } from "./prompt/media.ts";
import {
  type Call,
  type Chat,
  type ModelInfo,
  type Prompt,
  revive,
  type Start,
  type ToMain,
  type ToWorker,
} from "./protocol.ts";
import { EngineError, RequestError } from "./tensor/errors.ts";
import { type EngineThread, startThread } from "./thread.ts";

export type { Piece, Timings, TokenLogprob, Usage } from "./engine/completion.ts";
export type { CallConstraint, Constraint, TextConstraint } from "./engine/constraint.ts";
export type { EngineStats } from "./engine/engine.ts";
export type { Ranked } from "./engine/likeliest.ts";
export type { PromptToken } from "./engine/prompt-logprobs.ts";
export type { LogitRows } from "./engine/requests.ts";
export type { TokenRoutes } from "./engine/route-trace.ts";
export type { Sampling } from "./engine/sampler.ts";
export type { ContentPart, Media, Message, Role, Tool, ToolCall } from "./prompt/chat-format.ts";
export type { MediaOptions } from "./prompt/media.ts";
export type { ModelInfo, Prompt } from "./protocol.ts";
export { CapacityError, CheckpointError, EngineError, RequestError } from "./tensor/errors.ts";
export { type EngineThread, startThread } from "./thread.ts";

export interface LoadOptions extends Omit<Start, "path"> {
  /** One that `startThread` began earlier, to warm up meanwhile; it ends with the model. Default: a new one. */
  readonly thread?: EngineThread | undefined;
  /** Bytes read so far and in all. */
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
  /** Hears what is not as asked, but goes on; default: printed on stderr. */
  readonly onWarning?: ((message: string) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface CompleteOptions extends Sampling {
  /** Default: until the context is full. */
  readonly maxTokens?: number | undefined;
  /** Texts that end the reply, and are left out of it. */
  readonly stop?: string | readonly string[] | undefined;
  /** Puts the begin-of-text token before a text. */
  readonly bos?: boolean | undefined;
  /** How images and videos become tokens, and how large they may be. */
  readonly media?: MediaOptions | undefined;
  /** What the reply has to be: JSON, what a schema allows, what a regular expression matches, or tool calls. */
  readonly constraint?: Constraint | undefined;
  /** Whether each piece says which experts its token came by. */
  readonly routes?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface ChatOptions extends Omit<CompleteOptions, "bos"> {
  readonly tools?: readonly Tool[] | undefined;
}

interface LogitsOptions extends Pick<CompleteOptions, "bos" | "media" | "signal"> {
  readonly last?: boolean | undefined;
}

interface PromptLogprobsOptions extends Pick<CompleteOptions, "bos" | "signal"> {
  /** How many of the likeliest are told in each place, 0 to 20. Default: 0. */
  readonly top?: number | undefined;
}

interface LikeliestOptions extends Pick<CompleteOptions, "bos" | "media" | "signal"> {
  /** Default: all of them. */
  readonly k?: number | undefined;
}

type EncodeOptions = Pick<ChatOptions, "media" | "tools" | "signal">;

/** A loaded model. Any number of calls may run at the same time. */
export interface Llama4 extends AsyncDisposable {
  readonly info: ModelInfo;
  /** Why it answers no more: its thread has ended, or it was closed. Undefined while it answers. */
  readonly ended: Error | undefined;
  /** The assistant's reply, piece by piece. */
  chat(messages: readonly Message[], options?: ChatOptions): AsyncIterable<Piece>;
  /** What follows a text, ids or parts, as they stand. */
  complete(prompt: Prompt, options?: CompleteOptions): AsyncIterable<Piece>;
  /** Logits of every position, or of the last, some positions at a time. */
  logits(prompt: Prompt | Pick<Chat, "messages">, options?: LogitsOptions): AsyncIterable<LogitRows>;
  /** A prompt's tokens with their log-probabilities, each behind those before it. */
  promptLogprobs(prompt: string | ArrayLike<number>, options?: PromptLogprobsOptions): Promise<PromptToken[]>;
  /**
   * The k likeliest of some continuations, texts or ids, each as a whole, the likeliest first. The prompt is computed once, and
   * what its first token rules out is not computed at all.
   */
  likeliest(
    prompt: Prompt | Pick<Chat, "messages">,
    continuations: readonly (string | ArrayLike<number>)[],
    options?: LikeliestOptions,
  ): Promise<Ranked[]>;
  encode(prompt: Prompt, options?: Pick<LogitsOptions, "bos" | "media" | "signal">): Promise<Int32Array>;
  /** The tokens that `chat` computes. */
  encodeChat(messages: readonly Message[], options?: EncodeOptions): Promise<Int32Array>;
  decode(tokens: ArrayLike<number>): Promise<string>;
  /** What the engine is doing now. */
  stats(): Promise<EngineStats>;
  /** Ends what runs and frees the memory. */
  close(): Promise<void>;
}

/** Loads a checkpoint: a folder or a .gguf file; without a path, the model that ships. */
export async function load(path: string = shippedModel(), options: LoadOptions = {}): Promise<Llama4> {
  const { onProgress, onWarning = console.warn, signal, thread = startThread(), ...start } = options;
  const unknown = Object.keys(start).find((name) => !(name in START));
  if (unknown !== undefined)
    throw new RequestError(
      `load: there is no option "${unknown}"; expected ${Object.keys(START).join(", ")}, thread, onProgress, onWarning or signal`,
    );
  checkSignal(signal);
  const { worker, ended } = thread;
  const calls = new Calls(worker);
  const { promise, resolve, reject } = settlement<ModelInfo>();
  const abort = () => reject(signal?.reason);
  signal?.addEventListener("abort", abort);
  worker.on("message", (message: ToMain) => {
    if (message.type === "progress") onProgress?.(message.done, message.total);
    else if (message.type === "warning") onWarning(message.message);
    else if (message.type === "opened") resolve(message.info);
    else if (message.type === "failed") reject(revive(message.error));
    else calls.hear(message);
  });
  ended.then((error) => {
    reject(error);
    calls.failAll(error);
  });
  try {
    signal?.throwIfAborted();
    worker.ref();
    worker.postMessage({ path, ...start } satisfies Start);
    return new LoadedModel(await promise, calls, worker);
  } catch (error) {
    await worker.terminate();
    throw error;
  } finally {
    signal?.removeEventListener("abort", abort);
  }
}

const START: Record<keyof Omit<Start, "path">, true> = {
  ...{ backend: true, threads: true, activations: true, context: true, kvDtype: true, mmproj: true },
  ...{ adapter: true, sequences: true, stepTokens: true, speculation: true, imageCacheBytes: true },
};

function checkSignal(signal: AbortSignal | undefined): void {
  if (signal && typeof signal.throwIfAborted !== "function")
    throw new RequestError(`signal is ${JSON.stringify(signal) ?? typeof signal}; expected an AbortSignal`);
}

class LoadedModel implements Llama4 {
  readonly info: ModelInfo;
  readonly #calls: Calls;
  readonly #worker: Worker;

  constructor(info: ModelInfo, calls: Calls, worker: Worker) {
    this.info = info;
    this.#calls = calls;
    this.#worker = worker;
  }

  get ended(): Error | undefined {
    return this.#calls.ended;
  }

  chat(messages: readonly Message[], { tools, signal, ...options }: ChatOptions = {}): AsyncIterable<Piece> {
    const call: Call = { method: "chat", messages, options: { ...requestOf(options), ...(tools && { tools }) } };
    return this.#calls.start<Piece>(call, signal);
  }

  complete(prompt: Prompt, { bos, signal, ...options }: CompleteOptions = {}): AsyncIterable<Piece> {
    return this.#calls.start<Piece>({ method: "complete", prompt, options: { ...requestOf(options), bos } }, signal);
  }

  logits(of: Prompt | Pick<Chat, "messages">, { bos = false, last = false, media, signal }: LogitsOptions = {}) {
    return this.#calls.start<LogitRows>({ method: "logits", prompt: promptOf(of), bos, last, media }, signal);
  }

  likeliest(
    of: Prompt | Pick<Chat, "messages">,
    continuations: readonly (string | ArrayLike<number>)[],
    { k, bos = false, media, signal }: LikeliestOptions = {},
  ): Promise<Ranked[]> {
    const call: Call = { method: "likeliest", prompt: promptOf(of), continuations, k, bos, media };
    return this.#calls.ask<Ranked[]>(call, signal);
  }

  promptLogprobs(
    prompt: string | ArrayLike<number>,
    { bos = false, top = 0, signal }: PromptLogprobsOptions = {},
  ): Promise<PromptToken[]> {
    return this.#calls.ask<PromptToken[]>({ method: "promptLogprobs", prompt, bos, top }, signal);
  }

  encode(prompt: Prompt, { bos = false, media, signal }: Omit<LogitsOptions, "last"> = {}): Promise<Int32Array> {
    return this.#calls.ask<Int32Array>({ method: "encode", prompt, bos, media }, signal);
  }

  encodeChat(messages: readonly Message[], { tools, media, signal }: EncodeOptions = {}): Promise<Int32Array> {
    const prompt = { messages, options: tools ? { tools } : {} };
    return this.#calls.ask<Int32Array>({ method: "encode", prompt, bos: false, media }, signal);
  }

  decode(tokens: ArrayLike<number>): Promise<string> {
    return this.#calls.ask<string>({ method: "decode", tokens });
  }

  stats(): Promise<EngineStats> {
    return this.#calls.ask<EngineStats>({ method: "stats" });
  }

  async close(): Promise<void> {
    await this.#calls.close();
    await this.#worker.terminate();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

const promptOf = (of: Prompt | Pick<Chat, "messages">): Prompt | Chat =>
  typeof of === "object" && "messages" in of ? { messages: of.messages, options: {} } : of;

function requestOf({
  maxTokens,
  stop,
  media,
  constraint,
  routes,
  ...sampling
}: Omit<CompleteOptions, "bos" | "signal">) {
  return { maxTokens, stop: typeof stop === "string" ? [stop] : stop, media, constraint, routes, sampling };
}

/** The calls that wait for the engine's thread. */
class Calls {
  readonly #worker: Worker;
  readonly #open = new Map<number, { readonly channel: Channel<unknown>; readonly forget: () => boolean }>();
  #next = 0;
  #ended: Error | undefined;
  #closed: (() => void) | undefined;
  #closing: Promise<void> | undefined;

  constructor(worker: Worker) {
    this.#worker = worker;
  }

  get ended(): Error | undefined {
    return this.#ended;
  }

  /** The call begins with the first next(): one that nobody iterates computes nothing. */
  start<T>(call: Call, signal?: AbortSignal): AsyncIterable<T> {
    checkSignal(signal);
    signal?.throwIfAborted();
    if (this.#ended) throw this.#ended;
    const id = this.#next++;
    const forget = () => {
      signal?.removeEventListener("abort", abort);
      return this.#open.delete(id);
    };
    const cancel = () => {
      if (forget()) this.#post({ type: "cancel", id });
    };
    const begin = () => {
      signal?.throwIfAborted();
      if (this.#ended) throw this.#ended;
      this.#post({ type: "call", id, call }); // throws where something in the call cannot be cloned
      signal?.addEventListener("abort", abort);
      this.#open.set(id, { channel, forget });
    };
    const channel = new Channel<unknown>(cancel, begin);
    const abort = () => {
      channel.fail(signal?.reason);
      cancel();
    };
    return channel as AsyncIterable<unknown> as AsyncIterable<T>; // what worker.ts answers to this call
  }

  async ask<T>(call: Call, signal?: AbortSignal): Promise<T> {
    for await (const value of this.start<T>(call, signal)) return value;
    throw new Error(`no answer to ${call.method}`);
  }

  hear(message: Extract<ToMain, { type: "value" | "end" | "error" | "closed" }>): void {
    if (message.type === "closed") {
      this.#closed?.();
      return;
    }
    const { channel, forget } = this.#open.get(message.id) ?? {}; // none: it was cancelled meanwhile
    if (message.type === "value") channel?.push(message.value);
    else {
      forget?.();
      if (message.type === "end") channel?.end();
      else channel?.fail(revive(message.error));
    }
  }

  failAll(error: Error): void {
    this.#ended ??= error;
    for (const { channel, forget } of [...this.#open.values()]) {
      forget();
      channel.fail(this.#ended);
    }
    this.#closed?.();
  }

  close(): Promise<void> {
    this.#closing ??= this.#ended ? Promise.resolve() : this.#end();
    return this.#closing;
  }

  #end(): Promise<void> {
    this.failAll(new EngineError("the model was closed; load it again"));
    return new Promise((resolve) => {
      this.#closed = resolve;
      this.#post({ type: "close" });
    });
  }

  #post(message: ToWorker): void {
    this.#worker.postMessage(message);
  }
}

/** The folder of the model that ships, or of the random one that `npm start` makes. */
export function shippedModel(): string {
  const folders = ["models/tiny", "models/random"].map((name) => fileURLToPath(new URL(`../${name}`, import.meta.url)));
  const found = folders.find((folder) => existsSync(`${folder}/config.json`));
  if (found === undefined)
    throw new RequestError(
      `no path was given and there is no model at ${folders.join(" nor at ")}; give the path of a checkpoint, or run \`npm start\` once, which makes a small random one`,
    );
  return found;
}

function settlement<T>() {
  let resolve!: (value: T) => void;
  let reject!: (error: unknown) => void;
  const promise = new Promise<T>((yes, no) => {
    resolve = yes;
    reject = no;
  });
  return { promise, resolve, reject };
}

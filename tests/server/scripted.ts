// A model that says what it is told to, a piece a token, and notes what it was asked; and a handler around it.

import type { Piece } from "../../src/engine/completion.ts";
import type { Message, ToolCall } from "../../src/prompt/chat-format.ts";
import type { ReplyOptions, ServedModel } from "../../src/server/generation.ts";
import { createHandler, type Handler, type HandlerOptions } from "../../src/server/handler.ts";

export type Line = string | { readonly toolCalls: readonly ToolCall[] } | { readonly wait: Promise<unknown> } | Error;

export interface Script {
  readonly lines: readonly Line[];
  readonly finishReason?: "stop" | "length";
  readonly stopString?: string;
}

export interface Asked extends ReplyOptions {
  readonly messages?: readonly Message[];
  readonly prompt?: string | ArrayLike<number>;
  readonly tools?: unknown;
  readonly bos?: boolean | undefined;
}

export class Scripted implements ServedModel {
  readonly info: ServedModel["info"] = {
    context: 1000,
    parameters: { total: 1, active: 1 },
    shape: { layers: 4, globalLayers: [3], attentionChunk: 8, expertLayers: [1, 3], experts: 16, expertsPerToken: 1 },
    vision: {},
  };
  readonly asked: Asked[] = [];
  /** With what conversations were encoded. */
  readonly encoded: Pick<Asked, "media">[] = [];
  script: Script;
  ended: Error | undefined;
  /** Replies that were left before their end. */
  left = 0;

  constructor(script: Script) {
    this.script = script;
  }

  chat(messages: readonly Message[], options: Omit<Asked, "messages"> = {}): AsyncIterable<Piece> {
    this.asked.push({ messages, ...options });
    return this.#say(options);
  }

  complete(prompt: string | ArrayLike<number>, options: Omit<Asked, "prompt"> = {}): AsyncIterable<Piece> {
    this.asked.push({ prompt, ...options });
    return this.#say(options);
  }

  async *#say({ signal, logprobs: wanted, routes: wantsRoutes }: ReplyOptions): AsyncGenerator<Piece> {
    const { lines, finishReason = "stop", stopString } = this.script;
    const gone = new Promise<never>((_, reject) => signal?.addEventListener("abort", () => reject(signal.reason)));
    gone.catch(() => {});
    let completionTokens = 0;
    let isWhole = false;
    const usage = () => ({ promptTokens: 7, cachedTokens: 3, completionTokens });
    try {
      for (const line of lines) {
        signal?.throwIfAborted();
        if (line instanceof Error) throw line;
        if (typeof line !== "string" && "wait" in line) {
          await Promise.race([line.wait, gone]);
          continue;
        }
        const token = ++completionTokens;
        const logprob = { token, logprob: -token, text: String(line), bytes: [token] };
        yield {
          text: typeof line === "string" ? line : "",
          tokens: [token],
          ...(typeof line !== "string" && { toolCalls: line.toolCalls }),
          ...(wanted !== undefined && { logprobs: [{ ...logprob, top: wanted > 0 ? [logprob] : [] }] }),
          ...(token === 1 && { usage: usage() }),
          ...(wantsRoutes && {
            routes: { layers: [1], experts: [[token]], scores: [[0.123456]], margins: [2 / token] },
          }),
        };
      }
      completionTokens++; // the one that ends it
      isWhole = true;
      yield {
        ...{ text: "", tokens: [0], finishReason, usage: usage() },
        ...(stopString !== undefined && { stopString }),
        ...(wanted !== undefined && { logprobs: [{ token: 0, logprob: 0, text: "<|eot|>", bytes: [], top: [] }] }),
      };
    } finally {
      if (!isWhole) this.left++;
    }
  }

  /** A token a byte; the n-th has the log-probability −n. */
  async promptLogprobs(
    prompt: string | ArrayLike<number>,
    { bos = false, top = 0 }: { readonly bos?: boolean | undefined; readonly top?: number | undefined } = {},
  ) {
    const tokens = typeof prompt === "string" ? await this.encode(prompt, { bos }) : Int32Array.from(prompt);
    return Array.from(tokens, (token, i) => {
      const of = { token, text: token === 256 ? "<|begin|>" : String.fromCharCode(token), bytes: [token] };
      const likeliest = { ...of, text: "?", logprob: -0.5 };
      return { ...of, logprob: i === 0 ? null : -i, top: i === 0 ? [] : [likeliest].slice(0, top) };
    });
  }

  async encode(prompt: string, { bos = false }: { readonly bos?: boolean | undefined } = {}): Promise<Int32Array> {
    const bytes = new TextEncoder().encode(prompt);
    return Int32Array.from(bos ? [256, ...bytes] : bytes);
  }

  async encodeChat(messages: readonly Message[], options: Pick<Asked, "media"> = {}): Promise<Int32Array> {
    this.encoded.push(options);
    return Int32Array.from(messages.map((_, i) => i));
  }

  async decode(tokens: ArrayLike<number>): Promise<string> {
    return new TextDecoder().decode(Uint8Array.from(tokens));
  }

  async stats() {
    return {
      waiting: 0,
      running: 1,
      steps: 2,
      stepTokens: 3,
      cache: { global: { used: 4, total: 8 }, local: undefined },
      experts: [{ layer: 1, tokens: [5, 6] }],
      images: { tilesEncoded: 7, found: 8, kept: 9, bytes: 10, mostBytes: 11 },
    };
  }
}

/** The model and its server; an error that a client is not told fails the test, unless it is listened for. */
export function served(script: Script, options: Partial<HandlerOptions> = {}): { model: Scripted; handler: Handler } {
  const model = new Scripted(script);
  const onError = (error: unknown) => {
    throw error;
  };
  return { model, handler: createHandler(model, { name: "m", onError, ...options }) };
}

export function post(path: string, body: unknown, headers: Record<string, string> = {}, signal?: AbortSignal): Request {
  return new Request(`http://server${path}`, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: typeof body === "string" ? body : JSON.stringify(body),
    ...(signal && { signal }),
  });
}

// biome-ignore lint/suspicious/noExplicitAny: a body of JSON has any shape; what a test expects of it is its assertion
type Answered = any;
export const json = async (response: Response): Promise<Answered> => response.json();

/** The events of a stream: their names where they have one, and their data. */
export async function eventsOf(response: Response): Promise<{ event: string | undefined; data: Answered }[]> {
  const text = await response.text();
  return text
    .split("\n\n")
    .filter((block) => block !== "" && !block.startsWith(":"))
    .map((block) => {
      const data = /^data: (.*)$/m.exec(block)![1]!;
      return { event: /^event: (.*)$/m.exec(block)?.[1], data: data === "[DONE]" ? data : JSON.parse(data) };
    });
}

export const call = (name: string, given: Record<string, unknown> = {}) => ({
  toolCalls: [{ name, arguments: given }],
});
export const user = (content: unknown) => ({ role: "user", content });

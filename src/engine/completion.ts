// Tokens become text here: whole characters only, cut at stop strings, tool calls taken out.

import type { ToolCall } from "../prompt/chat-format.ts";
import type { Tokenizer } from "../prompt/tokenizer.ts";
import { ToolCallParser } from "../prompt/tool-calls.ts";
import { RequestError } from "../tensor/errors.ts";
import { type Constraint, type Grammars, isForcedCall } from "./constraint.ts";
import type { Engine } from "./engine.ts";
import type { PromptImage } from "./images.ts";
import type { Finish, Generated } from "./requests.ts";
import type { TokenRoutes } from "./route-trace.ts";
import type { Logprob, Sampling } from "./sampler.ts";

export interface CompletionRequest {
  readonly tokens: ArrayLike<number>;
  /** The images of its `<|patch|>` tokens, in order. */
  readonly images?: readonly PromptImage[] | undefined;
  readonly maxTokens?: number | undefined;
  readonly sampling?: Sampling | undefined;
  /** Texts that end the reply, and are left out of it. */
  readonly stop?: readonly string[] | undefined;
  /** Names of tools whose calls are taken out of the text; absent: the text stays as it is. */
  readonly tools?: readonly string[] | undefined;
  /** What the reply has to be. A stop string ends it all the same, and so does `maxTokens`. */
  readonly constraint?: Constraint | undefined;
  /** Whether each token comes with the experts behind it. */
  readonly routes?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** A token's log-probability with what the token says. */
export interface TokenLogprob extends Logprob {
  readonly text: string;
  readonly bytes: readonly number[];
}

export interface Usage {
  /** Begin-of-text included. */
  readonly promptTokens: number;
  /** Of them, those that another request had left in the cache. */
  readonly cachedTokens: number;
  /** A stop token included. */
  readonly completionTokens: number;
}

export interface Timings {
  readonly queuedMs: number;
  /** Without the encoding of its own images. */
  readonly prefillMs: number;
  readonly decodeMs: number;
  readonly prefillTokensPerSecond: number;
  readonly decodeTokensPerSecond: number;
  /** Tokens guessed ahead, and how many of them were right: as many steps were saved. */
  readonly guessedTokens: number;
  readonly acceptedTokens: number;
  /** Tiles of images that had to be encoded, and how long that took; known images cost nothing. */
  readonly encodedTiles: number;
  readonly encodeMs: number;
}

/** What one more token brought: often some text, sometimes none yet. The last piece carries the end. */
export interface Piece {
  readonly text: string;
  readonly tokens: readonly number[];
  readonly logprobs?: readonly (TokenLogprob & { readonly top: readonly TokenLogprob[] })[];
  readonly toolCalls?: readonly ToolCall[];
  /** Where asked for: the experts of the pass that gave the token; their `layers` is empty in a model without experts. */
  readonly routes?: TokenRoutes;
  readonly finishReason?: Finish["reason"];
  /** With the end: the stop string that brought it. */
  readonly stopString?: string;
  /** With the first piece and the last. */
  readonly usage?: Usage;
  readonly timings?: Timings;
}

/**
 * The reply to a prompt, piece by piece. Refuses at once what cannot be served, as Engine.generate does. Constraints need
 * the grammars of the tokenizer.
 */
export function complete(
  engine: Engine,
  tokenizer: Tokenizer | undefined,
  stopTokens: ReadonlySet<number>,
  request: CompletionRequest,
  grammars?: Grammars,
): AsyncIterable<Piece> {
  const { tokens, images, maxTokens, sampling, stop = [], constraint, routes, signal } = request;
  if (constraint && !grammars)
    throw new RequestError("a constraint without a tokenizer; expected a checkpoint that has one");
  signal?.throwIfAborted();
  const matcher = constraint && grammars!.begin(constraint);
  const text = tokenizer && new ReplyText(tokenizer, stop, toolsOf(request), constraint);
  if (!text && stop.length > 0)
    throw new RequestError("stop strings without a tokenizer; expected a checkpoint that has one");
  const said: Said[] = []; // by the tokens sampled and not yet handed on
  const onToken = (token: number) => {
    const next = text ? text.push(token, stopTokens.has(token)) : { text: "", toolCalls: [], isOver: false };
    said.push(next);
    return next.isOver;
  };
  return pieces(
    engine.generate({ tokens, images, maxTokens, sampling, matcher, routes, stopTokens, signal, onToken }),
    said,
    text,
    tokenizer,
  );
}

/** Names of tools whose calls are looked for: none in a reply that is held to be something else. */
function toolsOf({ tools, constraint }: CompletionRequest): readonly string[] | undefined {
  if (constraint?.type !== "tool_calls") return constraint ? [] : tools;
  return constraint.tools.map(({ name }) => name);
}

async function* pieces(
  generated: AsyncIterable<Generated>,
  said: Said[],
  text: ReplyText | undefined,
  tokenizer: Tokenizer | undefined,
): AsyncGenerator<Piece> {
  for await (const { token, logprob, top, prompt, routes, finish } of generated) {
    const now = said.shift()!;
    const rest = finish && text ? text.end() : { text: "", toolCalls: [] };
    const toolCalls = [...now.toolCalls, ...rest.toolCalls];
    const shown = (of: Logprob) => shownToken(of, tokenizer);
    yield {
      text: now.text + rest.text,
      tokens: [token],
      ...(logprob !== undefined && { logprobs: [{ ...shown({ token, logprob }), top: (top ?? []).map(shown) }] }),
      ...(toolCalls.length > 0 && { toolCalls }),
      ...(routes && { routes }),
      ...(prompt && { usage: { ...prompt, completionTokens: 1 } }),
      ...(finish && { finishReason: finish.reason, usage: usageOf(finish), timings: timingsOf(finish) }),
      ...(finish && text?.stopString !== undefined && { stopString: text.stopString }),
    };
  }
}

/** A token's log-probability, with its text where there is a tokenizer. */
export function shownToken({ token, logprob }: Logprob, tokenizer: Tokenizer | undefined): TokenLogprob {
  const bytes = tokenizer?.tokenBytes(token) ?? new Uint8Array();
  return { token, logprob, text: new TextDecoder().decode(bytes), bytes: [...bytes] };
}

function usageOf({ promptTokens, cachedTokens, completionTokens }: Finish): Usage {
  return { promptTokens, cachedTokens, completionTokens };
}

function timingsOf(finish: Finish): Timings {
  const { queuedMs, prefillMs, decodeMs, promptTokens, cachedTokens, completionTokens } = finish;
  const { guessedTokens, acceptedTokens, encodedTiles, encodeMs } = finish;
  const perSecond = (n: number, ms: number) => (ms > 0 ? (n * 1000) / ms : 0);
  return {
    ...{ queuedMs, prefillMs, decodeMs, guessedTokens, acceptedTokens, encodedTiles, encodeMs },
    prefillTokensPerSecond: perSecond(promptTokens - cachedTokens, prefillMs),
    decodeTokensPerSecond: perSecond(completionTokens - 1, decodeMs), // the first token belongs to the prefill
  };
}

interface Said {
  readonly text: string;
  readonly toolCalls: readonly ToolCall[];
  /** A stop string has come. */
  readonly isOver: boolean;
}

/** The text of a reply, from its tokens. */
class ReplyText {
  readonly #tokenizer: Tokenizer;
  readonly #decoder: ReturnType<Tokenizer["streamDecoder"]>;
  readonly #stops: StopStrings;
  readonly #calls: ToolCallParser;
  readonly #hasNoText: boolean;

  /** Of a forced call nothing is told as text, not even what is left of one that was cut off. */
  constructor(tokenizer: Tokenizer, stop: readonly string[], tools: readonly string[] = [], constraint?: Constraint) {
    this.#hasNoText = isForcedCall(constraint);
    this.#tokenizer = tokenizer;
    this.#decoder = tokenizer.streamDecoder({ skipSpecial: true });
    this.#stops = new StopStrings(stop);
    this.#calls = new ToolCallParser({ tools, areSure: constraint?.type === "tool_calls" });
  }

  get stopString(): string | undefined {
    return this.#stops.found;
  }

  push(token: number, isStop: boolean): Said {
    const isSilent = isStop || this.#tokenizer.isSpecial(token);
    const text = this.#stops.push(isSilent ? this.#decoder.end() : this.#decoder.push(token));
    const events = this.#calls.push(text);
    if (isSilent && this.#stops.found === undefined) {
      events.push(...this.#calls.push(this.#stops.end()));
      events.push(...this.#calls.special(this.#tokenizer.decode([token])));
    }
    return { ...this.#sorted(events), isOver: this.#stops.found !== undefined };
  }

  /** What was held back; nothing of it behind a stop string. */
  end(): Omit<Said, "isOver"> {
    const text = this.#stops.found !== undefined ? "" : this.#stops.push(this.#decoder.end()) + this.#stops.end();
    return this.#sorted([...this.#calls.push(text), ...this.#calls.end()]);
  }

  #sorted(events: ReturnType<ToolCallParser["push"]>): Omit<Said, "isOver"> {
    let text = "";
    const toolCalls: ToolCall[] = [];
    for (const event of events) {
      if (event.type === "call") toolCalls.push(event.call);
      else if (!this.#hasNoText) text += event.text;
    }
    return { text, toolCalls };
  }
}

/** Cuts a text that comes in pieces at the first of some strings; holds back what may be the start of one. */
export class StopStrings {
  /** The one that has come; nothing follows it. */
  found: string | undefined;
  readonly #strings: readonly string[];
  #held = "";

  constructor(strings: readonly string[]) {
    if (!Array.isArray(strings)) throw new RequestError(`stop is ${typeof strings}; expected a list of texts`);
    if (strings.some((s) => typeof s !== "string" || s === ""))
      throw new RequestError("a stop string is empty; expected a text");
    this.#strings = strings;
  }

  push(piece: string): string {
    if (this.found !== undefined) return "";
    const text = this.#held + piece;
    let end = text.length;
    for (const string of this.#strings) {
      const at = text.indexOf(string);
      if (at < 0 || at >= end) continue;
      end = at;
      this.found = string;
    }
    const keep = this.found === undefined ? this.#unfinished(text) : text.length - end;
    this.#held = this.found === undefined ? text.slice(text.length - keep) : "";
    return text.slice(0, text.length - keep);
  }

  /** What was held back and turned out to be no stop string. */
  end(): string {
    const text = this.#held;
    this.#held = "";
    return text;
  }

  /** Length of the longest end of the text with which a stop string begins. */
  #unfinished(text: string): number {
    const longest = Math.max(0, ...this.#strings.map((s) => s.length - 1));
    for (let n = Math.min(longest, text.length); n > 0; n--) {
      const end = text.slice(text.length - n);
      if (this.#strings.some((s) => s.startsWith(end))) return n;
    }
    return 0;
  }
}

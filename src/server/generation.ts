// What every API asks of the model, whatever its words: a prompt, choices, and replies piece by piece.

import type { Piece, Timings, TokenLogprob, Usage } from "../engine/completion.ts";
import type { Constraint } from "../engine/constraint.ts";
import type { EngineStats } from "../engine/engine.ts";
import type { ModelShape } from "../engine/model-shape.ts";
import type { PromptToken } from "../engine/prompt-logprobs.ts";
import type { TokenRoutes } from "../engine/route-trace.ts";
import type { Sampling } from "../engine/sampler.ts";
import type { ContentPart, Message, Tool, ToolCall } from "../prompt/chat-format.ts";
import type { MediaOptions } from "../prompt/media.ts";
import { Refusal } from "./errors.ts";

export interface ReplyOptions extends Sampling {
  readonly maxTokens?: number | undefined;
  readonly stop?: readonly string[] | undefined;
  readonly media?: MediaOptions | undefined;
  readonly constraint?: Constraint | undefined;
  /** Whether each token comes with the experts behind it. */
  readonly routes?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** A model as the server needs it; `load()` gives one. */
export interface ServedModel {
  readonly info: {
    /** Longest prompt and reply together, in tokens. */
    readonly context: number;
    readonly parameters: { readonly total: number; readonly active: number };
    readonly shape?: ModelShape | undefined;
    readonly vision?: object | undefined;
  };
  /** Why it can answer no more; undefined while it can. */
  readonly ended?: Error | undefined;
  chat(
    messages: readonly Message[],
    options?: ReplyOptions & { readonly tools?: readonly Tool[] | undefined },
  ): AsyncIterable<Piece>;
  complete(
    prompt: string | ArrayLike<number>,
    options?: ReplyOptions & { readonly bos?: boolean | undefined },
  ): AsyncIterable<Piece>;
  promptLogprobs(
    prompt: string | ArrayLike<number>,
    options?: {
      readonly bos?: boolean | undefined;
      readonly top?: number | undefined;
      readonly signal?: AbortSignal | undefined;
    },
  ): Promise<readonly PromptToken[]>;
  encode(
    prompt: string,
    options?: { readonly bos?: boolean | undefined; readonly signal?: AbortSignal | undefined },
  ): Promise<Int32Array>;
  encodeChat(
    messages: readonly Message[],
    options?: Pick<ReplyOptions, "media" | "signal"> & { readonly tools?: readonly Tool[] | undefined },
  ): Promise<Int32Array>;
  decode(tokens: ArrayLike<number>): Promise<string>;
  stats(): Promise<EngineStats>;
}

/** An image or a video as it comes in a request. */
export interface UrlPart {
  readonly type: "image" | "video";
  /** A data URL, or where the file is. */
  readonly url: string;
  /** The field of the request in which it stands. */
  readonly param: string;
}

export type AskedPart = Extract<ContentPart, { type: "text" }> | UrlPart;

export interface Chat<Part = AskedPart> {
  readonly messages: readonly Message<Part>[];
  readonly tools?: readonly Tool[] | undefined;
}

/** What the request calls what it asks for, so that an error can name the field that is wrong. */
export interface Fields {
  /** The prompt of a number; a conversation is the first. */
  prompt(i: number): string;
  /** What the form of the reply is given by. */
  readonly format?: string | undefined;
}

/** What a request asks for, in no API's words. */
export interface Ask {
  /** One conversation, or some texts or tokens to go on from. */
  readonly prompts: Chat | readonly (string | readonly number[])[];
  readonly fields: Fields;
  /** Replies to each prompt. */
  readonly n: number;
  readonly options: ReplyOptions;
  /** Whether a reply ends with its first tool call. */
  readonly oneCall: boolean;
  /** Text prompts begin with the begin-of-text token. */
  readonly bos?: boolean | undefined;
  /** Whether a reply begins with its prompt, which no conversation can be. */
  readonly echo?: boolean | undefined;
}

export interface Finish {
  readonly reason: "stop" | "length" | "tool_calls";
  readonly stopString?: string | undefined;
  readonly usage: Usage;
  /** Unknown where the reply was ended here. */
  readonly timings?: Timings | undefined;
}

/** A piece of one of the replies. */
export interface Said {
  /** Which reply. */
  readonly index: number;
  readonly text: string;
  readonly tokens: readonly number[];
  readonly logprobs: readonly (TokenLogprob & { readonly top: readonly TokenLogprob[] })[];
  readonly toolCalls: readonly ToolCall[];
  /** Those of the prompt, where `text` is the prompt and log-probabilities are asked for. */
  readonly promptTokens?: readonly ToldToken[] | undefined;
  /** Of its tokens, where asked for. */
  readonly routes: readonly TokenRoutes[];
  /** With the reply's first piece. */
  readonly usage?: Usage | undefined;
  readonly finish?: Finish | undefined;
}

/** A whole reply. */
export interface Reply extends Pick<Said, "text" | "tokens" | "logprobs" | "toolCalls" | "routes" | "promptTokens"> {
  readonly finish: Finish;
}

/**
 * The replies to all prompts: to prompt p, n·p to n·p + n − 1. A prompt is computed once for all its replies. Those to one
 * with images or videos begin one after the other: each hands its bytes to the engine's thread once more.
 */
export async function* generate(
  model: ServedModel,
  {
    prompts,
    n,
    options,
    oneCall,
    bos,
    echo,
  }: Omit<Ask, "prompts"> & { prompts: Exclude<Ask["prompts"], Chat> | Chat<ContentPart> },
  { signal, atOnce }: { readonly signal: AbortSignal; readonly atOnce: number },
): AsyncGenerator<Said> {
  const begin = (i: number): AsyncGenerator<Said> => {
    // a seed means the same n replies again, not n times the same one
    const seed = options.seed === undefined ? undefined : seedAfter(options.seed, i % n);
    const all = { ...options, seed, signal };
    if ("messages" in prompts) return reply(i, model.chat(prompts.messages, { ...all, tools: prompts.tools }), oneCall);
    const prompt = prompts[Math.floor(i / n)]!;
    const rest = () => reply(i, model.complete(prompt, { ...all, bos }), oneCall);
    if (!echo) return rest();
    const first = i - (i % n);
    const told = echoes.get(first) ?? echoOf(model, prompt, { ...all, bos });
    if (i === first + n - 1) echoes.delete(first);
    else echoes.set(first, told);
    return withPrompt(i, told, options.maxTokens === 0 ? undefined : rest());
  };
  if (echo && options.logprobs !== undefined && !("messages" in prompts))
    await checkTold(model, prompts, { n, top: options.logprobs, bos, signal });
  const echoes = new Map<number, Promise<Echo>>();
  const count = n * ("messages" in prompts ? 1 : prompts.length);
  const inTurn = "messages" in prompts && prompts.messages.some(hasFiles);
  const isRead = ({ usage }: Said) => usage !== undefined;
  yield* together(count, begin, { waits: (i) => i % n !== 0, isRead, inTurn, atOnce });
}

const hasFiles = ({ content }: Message) => typeof content !== "string" && content.some(({ type }) => type !== "text");

/** Round at 2⁵³, beyond which not every whole number is one; no sum on the way is. */
function seedAfter(seed: number, i: number): number {
  const beyond = seed + (i - 2 ** 53);
  return beyond >= 0 ? beyond : seed + i;
}

/** Log-probabilities that an answer may tell of its prompts, and of its replies; the experts of a layer count as one. */
const MOST_TOLD = 2 ** 20;

const tooMuchTold = () =>
  new Refusal(
    400,
    `The answer would tell more than ${MOST_TOLD.toLocaleString("en")} log-probabilities, and layers' experts: tokens of the replies times replies times those of a token; ` +
      "expected fewer tokens or replies, fewer likeliest tokens, or a stream.",
    { param: "max_tokens" },
  );

/** Refuses more before any is computed: a whole answer holds them all. One that names no `maxTokens` is counted as it comes. */
export function checkAnswer(
  { prompts, n, options: { maxTokens = 0, logprobs, routes } }: Pick<Ask, "prompts" | "n" | "options">,
  { context, shape }: ServedModel["info"],
): void {
  const count = n * ("messages" in prompts ? 1 : prompts.length);
  const ofToken = (logprobs === undefined ? 0 : 1 + logprobs) + (routes ? (shape?.expertLayers.length ?? 0) : 0);
  if (count * Math.min(maxTokens, context) * ofToken > MOST_TOLD) throw tooMuchTold();
}

/** Hears what is told of the replies of one answer, and throws Refusal where that is more than it may hold. */
export function toldCount(): (said: Pick<Said, "logprobs" | "routes">) => void {
  let told = 0;
  return ({ logprobs, routes }) => {
    for (const { top } of logprobs) told += 1 + top.length;
    for (const { layers } of routes) told += layers.length;
    if (told > MOST_TOLD) throw tooMuchTold();
  };
}

/** Refuses more before any is computed: they are held, and sent, all at once. */
async function checkTold(
  model: ServedModel,
  prompts: readonly (string | readonly number[])[],
  { n, top, bos = false, signal }: { n: number; top: number; bos: boolean | undefined; signal: AbortSignal },
): Promise<void> {
  let tokens = 0;
  for (const prompt of prompts) {
    tokens += typeof prompt === "string" ? (await model.encode(prompt, { bos, signal })).length : prompt.length;
    if (tokens * n * (1 + top) <= MOST_TOLD) continue;
    throw new Refusal(
      400,
      `"echo" with "logprobs" would tell more than ${MOST_TOLD.toLocaleString("en")} log-probabilities, tokens of the prompts times replies times 1 + logprobs; expected shorter prompts, fewer of them, or fewer likeliest tokens.`,
      { param: "prompt" },
    );
  }
}

/** A token of a prompt without its bytes, which no API tells. */
export type ToldToken = Pick<PromptToken, "text" | "logprob"> & {
  readonly top: readonly Pick<TokenLogprob, "text" | "logprob">[];
};

const told = ({ text, logprob, top }: PromptToken): ToldToken => ({
  text,
  logprob,
  top: top.map(({ text, logprob }) => ({ text, logprob })),
});

/** A prompt as it is told; its tokens where log-probabilities are asked for. */
interface Echo {
  readonly text: string;
  readonly promptTokens: readonly ToldToken[] | undefined;
  readonly length: number;
}

async function echoOf(
  model: ServedModel,
  prompt: string | readonly number[],
  { bos = false, logprobs: top, maxTokens, signal }: ReplyOptions & { readonly bos?: boolean | undefined },
): Promise<Echo> {
  const isText = typeof prompt === "string";
  const text = isText ? prompt : await model.decode(prompt);
  if (top === undefined) {
    const tokens = isText && maxTokens === 0 ? await model.encode(prompt, { bos, signal }) : prompt;
    return { text, promptTokens: undefined, length: tokens.length };
  }
  const tokens = await model.promptLogprobs(prompt, { bos, top, signal });
  return { text, promptTokens: tokens.slice(isText && bos ? 1 : 0).map(told), length: tokens.length }; // a text's begin is none of it
}

/** A reply behind its prompt; the prompt alone, where nothing is to follow. */
async function* withPrompt(
  index: number,
  told: Promise<Echo>,
  rest: AsyncGenerator<Said> | undefined,
): AsyncGenerator<Said> {
  const { text, promptTokens, length } = await told;
  const said: Said = { index, text, tokens: [], logprobs: [], toolCalls: [], routes: [], promptTokens };
  if (rest) {
    yield said;
    yield* rest;
    return;
  }
  const usage: Usage = { promptTokens: length, cachedTokens: 0, completionTokens: 0 };
  yield { ...said, usage, finish: { reason: "length", usage } };
}

/** Calls in a reply, which ends with the last of them: a small model that has to call goes on and on. */
const MOST_CALLS = 128;

async function* reply(index: number, pieces: AsyncIterable<Piece>, oneCall: boolean): AsyncGenerator<Said> {
  const most = oneCall ? 1 : MOST_CALLS;
  let prompt: Usage | undefined;
  let completionTokens = 0;
  let calls = 0;
  for await (const piece of pieces) {
    const { text, tokens, logprobs = [], toolCalls = [], routes, finishReason, stopString, usage, timings } = piece;
    completionTokens += tokens.length;
    const room = most - calls;
    calls += toolCalls.length;
    const first = prompt ? undefined : usage;
    prompt ??= usage;
    // OpenAI's lists end before the token that ended the reply
    const isEnd = finishReason === "stop" && stopString === undefined;
    const heard = { tokens, logprobs: isEnd ? [] : logprobs, routes: routes ? [routes] : [] };
    const said = { index, text, ...heard, toolCalls, usage: first };
    if (calls >= most) {
      const usage = { ...prompt!, completionTokens }; // the first piece has brought it
      yield { ...said, toolCalls: toolCalls.slice(0, room), finish: { reason: "tool_calls", usage } };
      return; // leaving the loop ends the rest
    }
    if (!finishReason) yield said;
    else {
      const reason = calls > 0 && finishReason === "stop" ? "tool_calls" : finishReason;
      yield { ...said, finish: { reason, stopString, usage: usage!, timings } };
    }
  }
}

/**
 * What several generators yield, as it comes, from at most `atOnce` at a time. Those that wait begin when the one before them
 * has yielded what says that their common prompt is read; `inTurn` one by one.
 */
async function* together<T>(
  count: number,
  begin: (i: number) => AsyncGenerator<T>,
  {
    waits,
    isRead,
    inTurn,
    atOnce,
  }: {
    readonly waits: (i: number) => boolean;
    readonly isRead: (value: T) => boolean;
    readonly inTurn: boolean;
    readonly atOnce: number;
  },
): AsyncGenerator<T> {
  const running = new Map<number, AsyncGenerator<T>>();
  const next = new Map<number, Promise<{ i: number; result: IteratorResult<T> }>>();
  const advance = (i: number) => {
    const step = running
      .get(i)!
      .next()
      .then((result) => ({ i, result }));
    step.catch(() => {}); // it may fail while the one before it is being read, and is asked for below
    next.set(i, step);
  };
  let ready = Array.from({ length: count }, (_, i) => i).filter((i) => !waits(i));
  const read = new Set<number>();
  const open = () => {
    const now = ready.slice(0, Math.max(0, atOnce - next.size));
    ready = ready.slice(now.length);
    for (const i of now) {
      running.set(i, begin(i));
      advance(i);
    }
  };
  try {
    for (open(); next.size > 0; open()) {
      const { i, result } = await Promise.race(next.values());
      if (result.done) {
        next.delete(i);
        running.delete(i);
        continue;
      }
      advance(i);
      if ((inTurn || !waits(i)) && !read.has(i) && isRead(result.value)) {
        read.add(i);
        const behind: number[] = [];
        for (let j = i + 1; j < count && waits(j) && !(inTurn && behind.length > 0); j++) behind.push(j);
        ready = [...behind, ...ready];
        open();
      }
      yield result.value;
    }
  } finally {
    for (const generator of running.values()) generator.return(undefined).catch(() => {});
  }
}

/** All replies, once they are whole, in order. Throws Refusal where they tell too much. */
export async function collect(said: AsyncIterable<Said>): Promise<Reply[]> {
  const empty = () => ({
    text: "",
    tokens: [] as number[],
    logprobs: [] as Said["logprobs"][number][],
    routes: [] as TokenRoutes[],
    toolCalls: [] as ToolCall[],
    promptTokens: undefined as Said["promptTokens"],
  });
  const replies = new Map<number, ReturnType<typeof empty>>();
  const done: Reply[] = [];
  const hold = toldCount();
  for await (const { index, text, tokens, logprobs, routes, toolCalls, promptTokens, finish } of said) {
    hold({ logprobs, routes });
    const reply = replies.get(index) ?? empty();
    replies.set(index, reply);
    reply.text += text;
    reply.promptTokens ??= promptTokens;
    reply.tokens.push(...tokens);
    reply.logprobs.push(...logprobs);
    reply.routes.push(...routes);
    reply.toolCalls.push(...toolCalls);
    if (finish) done[index] = { ...reply, finish };
  }
  return done;
}

/** Tokens of all replies together; a prompt counts once for all its replies. */
export function totalUsage(finishes: readonly Pick<Finish, "usage">[], n: number): Usage {
  const total = { promptTokens: 0, cachedTokens: 0, completionTokens: 0 };
  for (const [i, { usage }] of finishes.entries()) {
    total.completionTokens += usage.completionTokens;
    if (i % n !== 0) continue;
    total.promptTokens += usage.promptTokens;
    total.cachedTokens += usage.cachedTokens;
  }
  return total;
}

// How a request becomes a reply: what all requests share, and the way of each through the queue to the model.

import { z } from "zod";
import type { Message } from "../prompt/chat-format.ts";
import type { MediaOptions } from "../prompt/media.ts";
import { Admission, type AdmissionLimits, TokenRate } from "./admission.ts";
import { ByteBudget, Held, readJson } from "./body.ts";
import { chatFields, chatOf, detailsOf } from "./chat-completions.ts";
import { tokenIds } from "./completions.ts";
import type { Dialect, Meta } from "./dialect.ts";
import { Refusal } from "./errors.ts";
import { eventStream, type ServerEvent, within } from "./events.ts";
import { Exchange } from "./exchange.ts";
import {
  type Ask,
  type AskedPart,
  type Chat,
  checkAnswer,
  collect,
  type Fields,
  generate,
  type Said,
  type ServedModel,
} from "./generation.ts";
import { chatOf as conversationOf, countedSchema } from "./messages.ts";
import { failed, refusalOf } from "./refusals.ts";
import { type FetchMedia, filesOf, withFiles } from "./urls.ts";
import { maybe, mediaOf, parsed } from "./wire.ts";

export interface Limits extends AdmissionLimits {
  /** Of a request's body. */
  readonly bodyBytes: number;
  /** Of all requests that are held at once; an image counts as the 6 MB that its tiles may take. */
  readonly heldBytes: number;
  readonly images: number;
  /** Tokens, of prompts and replies, that a client may use in a minute. */
  readonly tokensPerMinute: number;
  /** From a request's arrival to the end of its reply: a stream's last byte; of a whole answer, when it is computed. */
  readonly requestMs: number;
  /** A reader of a stream that takes nothing for so long is given up; on a port, one of any answer (`listen`). */
  readonly idleMs: number;
}

export const LIMITS: Limits = {
  concurrent: 32,
  queue: 128,
  perClient: 64,
  bodyBytes: 64e6,
  heldBytes: 512e6,
  images: 16,
  tokensPerMinute: Number.POSITIVE_INFINITY,
  requestMs: 600_000,
  idleMs: 60_000,
};

/** Hears what happens, for those who measure. Times are in milliseconds. */
export interface Observer {
  /** A request has its answer; a stream has its beginning. */
  answered(route: string, status: number, ms: number): void;
  /** A prompt has been read, once for all its replies. */
  prompt(tokens: { readonly promptTokens: number; readonly cachedTokens: number }): void;
  /** A reply's first token came so long after its request. */
  firstToken(ms: number): void;
  /** One more came so long after the one before. */
  nextToken(ms: number): void;
  /** A reply was given up: its reader left, or took nothing. */
  cancelled(): void;
  /** The page of /metrics. */
  page(now: {
    readonly queued: number;
    readonly running: number;
    readonly engine: Awaited<ReturnType<ServedModel["stats"]>>;
  }): Promise<{ readonly type: string; readonly text: string }>;
}

export interface ServingOptions {
  /** Fetches files behind URLs; without it, only data URLs are taken. */
  readonly fetchMedia?: FetchMedia | undefined;
  readonly observer?: Observer | undefined;
  /** Hears of errors that the client is not told; default: printed on stderr. */
  readonly onError?: ((error: unknown, requestId: string) => void) | undefined;
  /** Ends everything that runs. */
  readonly signal?: AbortSignal | undefined;
}

export const tokenizeSchema = z.union([
  z.object({ messages: chatFields.messages, tools: chatFields.tools }),
  z.object({ prompt: z.string(), add_special_tokens: maybe(z.boolean()) }),
]);

export const detokenizeSchema = z.object({ tokens: tokenIds({ least: 0 }) });

/** Texts that a message has, its calls' arguments among them; what is too long is known before it is tokenized. */
const textsOf = ({ content, toolCalls = [] }: Message<AskedPart>): string[] => [
  ...(typeof content === "string" ? [content] : content.flatMap((part) => (part.type === "text" ? [part.text] : []))),
  ...toolCalls.map((call) => JSON.stringify(call)),
];

/** What is asked for, with the files' bytes in place of their URLs. */
type Seen = Parameters<typeof generate>[1];

const sum = (numbers: readonly number[]): number => numbers.reduce((all, number) => all + number, 0);

const MOST_CHARACTERS = 128; // of a token of Llama 4's
const BYTES_OF_AN_IMAGE = 6e6; // 17 tiles of 336 × 336 pixels
const COMMITS_AFTER_MS = 5000; // a stream whose first token takes longer begins without it

/** What requests share: the queue, the budget, and how a reply is made. */
export class Server {
  readonly #model: ServedModel;
  readonly #options: ServingOptions;
  readonly #limits: Limits;
  readonly #admission: Admission;
  readonly #rate: TokenRate;
  readonly #budget: ByteBudget;
  readonly #exchanges = new Set<Exchange>();

  constructor(model: ServedModel, limits: Limits, options: ServingOptions) {
    this.#model = model;
    this.#options = options;
    this.#limits = limits;
    this.#admission = new Admission(limits);
    this.#rate = new TokenRate(limits.tokensPerMinute);
    this.#budget = new ByteBudget(limits.heldBytes);
    options.signal?.addEventListener("abort", () => {
      for (const exchange of this.#exchanges) exchange.stop();
    });
  }

  get load() {
    return { queued: this.#admission.queued, running: this.#admission.running };
  }

  /** Answers in the words of an API, whole or as a stream. */
  async reply(request: Request, dialect: Dialect, meta: Meta, client: string): Promise<Response> {
    const exchange = this.#open(request);
    let ask: Ask | undefined;
    try {
      this.#rate.check(client);
      const body = parsed(dialect.schema, await readJson(request, this.#limits.bodyBytes, exchange));
      ask = dialect.ask(body);
      const isStreamed = dialect.isStreamed(body);
      if (!isStreamed) checkAnswer(ask, this.#model.info);
      const said = await this.#said(ask, client, exchange);
      if (!isStreamed) {
        const whole = dialect.whole(body, await collect(said), meta);
        exchange.end();
        return Response.json(whole);
      }
      const refusal = (error: unknown) => refusalOf(error, this.#model.info.context, ask);
      return await this.#stream(dialect, dialect.events(body, said, meta), { meta, exchange, refusal });
    } catch (error) {
      if (request.signal.aborted) this.#options.observer?.cancelled();
      exchange.end();
      throw refusalOf(error, this.#model.info.context, ask) ?? error;
    }
  }

  async tokenize(request: Request, client: string): Promise<object> {
    return this.#short(request, client, async (body, exchange) => {
      const { signal } = exchange;
      const [conversation, text] = tokenizeSchema.options;
      const isChat = typeof body === "object" && body !== null && "messages" in body;
      const asked = isChat ? parsed(conversation, body) : parsed(text, body);
      let tokens: Int32Array;
      if ("messages" in asked)
        tokens = await this.#encodeChat(chatOf(asked), exchange, mediaOf(detailsOf(asked.messages)));
      else {
        this.#checkLength([asked.prompt], { prompt: () => "prompt" });
        tokens = await this.#model.encode(asked.prompt, { bos: asked.add_special_tokens ?? true, signal });
      }
      return { count: tokens.length, max_model_len: this.#model.info.context, tokens: [...tokens] };
    });
  }

  /** As Anthropic's /v1/messages/count_tokens. */
  async countTokens(request: Request, client: string): Promise<object> {
    return this.#short(request, client, async (body, exchange) => {
      const tokens = await this.#encodeChat(conversationOf(parsed(countedSchema, body)), exchange);
      return { input_tokens: tokens.length };
    });
  }

  async detokenize(request: Request, client: string): Promise<object> {
    return this.#short(request, client, async (body) => {
      const { tokens } = parsed(detokenizeSchema, body);
      const fields = { prompt: () => "tokens" };
      this.#checkLength([tokens], fields);
      const prompt = await this.#model.decode(tokens).catch((error: unknown) => {
        throw refusalOf(error, this.#model.info.context, { prompts: [tokens], fields }) ?? error;
      });
      return { prompt };
    });
  }

  /** Work without a reply of the model; it takes its place in the queue all the same. */
  async #short<T>(
    request: Request,
    client: string,
    work: (body: unknown, exchange: Exchange) => Promise<T>,
  ): Promise<T> {
    const exchange = this.#open(request);
    try {
      const body = await readJson(request, this.#limits.bodyBytes, exchange);
      exchange.onEnd(await this.#admission.enter(client, 1, exchange.signal));
      return await work(body, exchange);
    } finally {
      exchange.end();
    }
  }

  #open(request: Request): Exchange {
    const exchange = new Exchange(request.signal, this.#limits.requestMs, new Held(this.#budget));
    this.#exchanges.add(exchange);
    exchange.onEnd(() => this.#exchanges.delete(exchange));
    if (this.#options.signal?.aborted) exchange.stop();
    return exchange;
  }

  /** The replies, once it is the request's turn. */
  async #said(ask: ReturnType<Dialect["ask"]>, client: string, exchange: Exchange): Promise<AsyncGenerator<Said>> {
    const { signal, held } = exchange;
    const { prompts, n } = ask;
    const isChat = "messages" in prompts;
    if (isChat) this.#checkChat(prompts, held, ask.fields);
    else this.#checkLength(prompts, ask.fields);
    const count = n * (isChat ? 1 : prompts.length);
    // one request of many replies leaves room for others
    const { concurrent } = this.#limits;
    const atOnce = count > concurrent ? Math.ceil(concurrent / 2) : count;
    exchange.onEnd(await this.#admission.enter(client, atOnce, signal));
    const seen = isChat
      ? { ...prompts, messages: await withFiles(prompts.messages, this.#charged(held), signal) }
      : prompts;
    const charged = await this.#charge(client, { ...ask, prompts: seen }, signal);
    const said = generate(this.#model, { ...ask, prompts: seen }, { signal, atOnce });
    return this.#measured(said, { client, n, charged }, exchange);
  }

  /**
   * Takes the prompts' tokens from those that the client may use before any is computed: requests that come at once would
   * all find the same left. Says how many each prompt has; none where clients may use what they want.
   */
  async #charge(client: string, { prompts, bos = false, options: { media } }: Seen, signal: AbortSignal) {
    const charged: number[] = [];
    if (!this.#rate.isLimited) return charged;
    if ("messages" in prompts) {
      const { messages, tools } = prompts;
      charged.push((await this.#model.encodeChat(messages, { media, ...(tools && { tools }), signal })).length);
    } else
      for (const prompt of prompts) {
        const tokens = typeof prompt === "string" ? await this.#model.encode(prompt, { bos, signal }) : prompt;
        charged.push(tokens.length);
      }
    this.#rate.check(client);
    this.#rate.spend(client, sum(charged));
    return charged;
  }

  async #encodeChat(chat: Chat, { held, signal }: Exchange, media?: MediaOptions): Promise<Int32Array> {
    const fields = { prompt: () => "messages" };
    this.#checkChat(chat, held, fields);
    const messages = await withFiles(chat.messages, this.#charged(held), signal);
    const options = { media, ...(chat.tools?.length && { tools: chat.tools }), signal };
    return this.#model.encodeChat(messages, options).catch((error: unknown) => {
      throw refusalOf(error, this.#model.info.context, { prompts: chat, fields }) ?? error;
    });
  }

  /** What fetches files, whose bytes are the request's as those of its body are. */
  #charged(held: Held): FetchMedia | undefined {
    const { fetchMedia } = this.#options;
    if (!fetchMedia) return undefined;
    return async (url, signal) => {
      let taken = 0;
      const take = (bytes: number) => {
        held.take(bytes);
        taken += bytes;
      };
      const file = await fetchMedia(url, signal, take);
      if (file.byteLength > taken) take(file.byteLength - taken);
      return file;
    };
  }

  /** Refuses a conversation that is too long, or has too many images for the server or for its budget now. */
  #checkChat({ messages, tools = [] }: Chat, held: Held, fields: Fields): void {
    this.#checkLength([...messages.flatMap(textsOf), ...tools.map((tool) => JSON.stringify(tool))], fields);
    const files = filesOf(messages);
    const [{ type, param } = { type: "image", param: null }] = files;
    if (param !== null && !this.#model.info.vision)
      throw new Refusal(
        400,
        `Invalid value for '${param}': there is ${type === "image" ? "an image" : "a video"}, and this model reads text only; expected text.`,
        {
          param,
        },
      );
    const { images } = this.#limits;
    if (files.length > images)
      throw new Refusal(400, `The request has ${files.length} images; expected at most ${images}.`, {
        param: files[images]!.param,
      });
    held.take(files.length * BYTES_OF_AN_IMAGE);
  }

  /** Refuses what is too long, texts however they are tokenized: that would hold up everybody's replies. */
  #checkLength(texts: readonly (string | readonly number[])[], fields: Fields): void {
    const { context } = this.#model.info;
    const characters = texts.reduce((sum, text) => sum + (typeof text === "string" ? text.length : 0), 0);
    if (
      characters > context * MOST_CHARACTERS ||
      texts.some((text) => typeof text !== "string" && text.length > context)
    )
      throw new Refusal(400, `This model's maximum context length is ${context} tokens; expected a shorter prompt.`, {
        code: "context_length_exceeded",
        param: fields.prompt(0),
      });
  }

  /** The same, measured and counted. What was `charged` for a prompt is set right by what it took. */
  async *#measured(
    said: AsyncGenerator<Said>,
    { client, n, charged }: { readonly client: string; readonly n: number; readonly charged: number[] },
    exchange: Exchange,
  ): AsyncGenerator<Said> {
    const { observer } = this.#options;
    const last = new Map<number, number>();
    try {
      for await (const piece of said) {
        const { index, tokens, usage } = piece;
        const now = performance.now();
        if (usage && index % n === 0) {
          observer?.prompt(usage);
          this.#rate.spend(client, usage.promptTokens - (charged[index / n] ?? 0));
          charged[index / n] = 0;
        }
        if (usage && tokens.length > 0) observer?.firstToken(now - exchange.start);
        else if (last.has(index)) observer?.nextToken(now - last.get(index)!);
        if (usage || last.has(index)) last.set(index, now); // a prompt that is told comes before
        this.#rate.spend(client, tokens.length);
        yield piece;
      }
    } catch (error) {
      if (!exchange.signal.aborted) this.#rate.spend(client, -sum(charged)); // of prompts that were refused
      throw error;
    }
  }

  async #stream(
    dialect: Dialect,
    events: AsyncGenerator<ServerEvent>,
    {
      meta,
      exchange,
      refusal,
    }: {
      readonly meta: Meta;
      readonly exchange: Exchange;
      readonly refusal: (error: unknown) => Refusal | undefined;
    },
  ): Promise<Response> {
    const first = events.next();
    first.catch(() => {}); // heard below, perhaps only later
    await within(first, COMMITS_AFTER_MS); // what is wrong with a request is told with its status, where that is known by then
    const { onError = console.error } = this.#options;
    const all = async function* (): AsyncGenerator<ServerEvent> {
      let told = 0;
      try {
        const { value, done } = await first;
        if (done) return;
        told = 1;
        yield value;
        for await (const event of events) {
          told++;
          yield event;
        }
      } catch (error) {
        const known = refusal(error);
        if (!known && !exchange.signal.aborted) onError(error, meta.requestId);
        yield dialect.failure(known ?? failed(), meta, told);
      } finally {
        await events.return(undefined);
      }
    };
    const body = eventStream(all(), {
      idleMs: this.#limits.idleMs,
      keepAliveMs: 15_000,
      keepAlive: dialect.keepAlive,
      onEnd: (isWhole, reason) => {
        if (!isWhole) this.#options.observer?.cancelled();
        exchange.end(reason);
      },
    });
    return new Response(body, {
      headers: { "content-type": "text/event-stream", "cache-control": "no-store", "x-accel-buffering": "no" },
    });
  }
}

// The loop: takes requests, plans a step, runs it, samples, and again, with everybody's tokens in one batch.

import type { Llama4Config } from "../model/config.ts";
import type { Parameters } from "../model/parameters.ts";
import { forward as modelForward, type Step } from "../model/transformer.ts";
import type { Backend, KVPool, LayerCache, Segment } from "../tensor/backend.ts";
import type { DType } from "../tensor/dtype.ts";
import { CapacityError, RequestError } from "../tensor/errors.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { Channel } from "./channel.ts";
import { cacheSizes, KVCache } from "./kv-cache.ts";
import type { Logprob } from "./sampler.ts";
import { Sampler, type Sampling } from "./sampler.ts";
import { type Schedulable, schedule } from "./scheduler.ts";

export interface EngineOptions {
  readonly backend: Backend;
  readonly parameters: Parameters;
  readonly config: Llama4Config;
  /** Tokens that the cache holds, and the longest that prompt and reply can be together. */
  readonly context: number;
  readonly kvDtype?: DType;
  /** Tokens that the chunk-local layers hold, of all requests together. */
  readonly localTokens?: number;
  /** Most tokens of a step; a prompt is computed in slices of this size. */
  readonly stepTokens?: number;
  /** Most sequences computed at the same time; others wait. */
  readonly sequences?: number;
  readonly sharePrefixes?: boolean;
  /** Computes the logits of a step; the model's, but for tests of the loop. */
  readonly forward?: (p: Parameters, c: Llama4Config, step: Step) => Promise<Tensor>;
}

export interface GenerateRequest {
  readonly tokens: ArrayLike<number>;
  /** Default: until the context is full. */
  readonly maxTokens?: number | undefined;
  readonly sampling?: Sampling | undefined;
  /** Tokens that end the reply. */
  readonly stopTokens?: ReadonlySet<number> | undefined;
  /** Hears each token as it is sampled, stop tokens too; true ends the reply with it. */
  readonly onToken?: ((token: number) => boolean) | undefined;
  /** Ends the request within one step; the iteration then rejects with the signal's reason. */
  readonly signal?: AbortSignal | undefined;
}

/** A sampled token. The last one, which may be a stop token, carries the request's end. */
export interface Generated {
  readonly token: number;
  readonly logprob?: number;
  readonly top?: readonly Logprob[];
  readonly finish?: Finish;
}

export interface Finish {
  readonly reason: "stop" | "length";
  readonly promptTokens: number;
  /** Tokens of the prompt that were in the cache already. */
  readonly cachedTokens: number;
  readonly completionTokens: number;
  /** From the request to its first step. */
  readonly queuedMs: number;
  /** From its first step to its first token. */
  readonly prefillMs: number;
  /** From its first token to its last. */
  readonly decodeMs: number;
}

/** Logits `[n, V]` of consecutive positions, in a buffer of their own. */
export interface LogitRows {
  readonly position: number;
  readonly logits: Float32Array | Float64Array;
}

/** Runs many requests at once. Close it to free the cache; backend and parameters belong to the caller. */
export class Engine {
  readonly context: number;
  readonly #options: EngineOptions & Required<Pick<EngineOptions, "stepTokens" | "sequences" | "forward">>;
  readonly #cache: KVCache;
  readonly #pools: readonly KVPool[];
  readonly #layers: readonly LayerCache[];
  readonly #waiting: Job[] = [];
  readonly #running: Job[] = [];
  #loop: Promise<void> | undefined;
  #sequences = 0;
  #isClosed = false;

  constructor(options: EngineOptions) {
    const { stepTokens = 512, sequences = 256, forward = modelForward, sharePrefixes = true } = options;
    const { backend, config, context, kvDtype = "f32", localTokens } = options;
    this.#options = { ...options, stepTokens, sequences, forward };
    this.context = context;
    const sizes = cacheSizes(config, { context, dtype: kvDtype, localTokens });
    this.#cache = new KVCache(sizes, { sharePrefixes });
    const poolOf = (kind: "global" | "local") => {
      const blocks = kind === "global" ? sizes.globalBlocks : sizes.localBlocks;
      if (blocks === undefined) return undefined;
      const layers = config.layers.filter((layer) => layer.chunked === (kind === "local")).length;
      const { blockSize } = sizes;
      return backend.kvPool({
        layers,
        blocks,
        blockSize,
        heads: config.nKvHeads,
        headDim: config.headDim,
        dtype: kvDtype,
      });
    };
    const pools = { global: poolOf("global"), local: poolOf("local") };
    this.#pools = [pools.global, pools.local].filter((pool) => pool !== undefined);
    const next = { global: 0, local: 0 };
    this.#layers = config.layers.map(({ chunked }) => {
      const kind = chunked ? "local" : "global";
      return { pool: pools[kind]!, layer: next[kind]++, table: (sequence) => this.#cache.table(kind, sequence) };
    });
  }

  /** Tokens as they are sampled. Throws RequestError or CapacityError at once where the request cannot be served. */
  generate(request: GenerateRequest): AsyncIterableIterator<Generated> {
    const { sampling = {}, stopTokens = new Set(), maxTokens = this.context + 1, onToken, signal } = request;
    const { vocabSize } = this.#options.config;
    const tokens = this.#checkPrompt(request.tokens);
    if (!Number.isInteger(maxTokens) || maxTokens < 1)
      throw new RequestError(`maxTokens is ${maxTokens}; expected a whole number from 1`);
    const sampler = new Sampler(sampling, tokens, vocabSize);
    const channel = new Channel<Generated>(() => this.#cancel(job));
    // the last token sampled is never computed, so it needs no room
    const most = Math.min(maxTokens, this.context - tokens.length + 1);
    const job: Job = new Job(this.#sequences++, tokens, false, {
      failed: (error) => channel.fail(error),
      computed: (rows) => {
        job.firstTokenAt ??= performance.now();
        const sample = sampler.sample(rows);
        const token = typeof sample === "number" ? sample : sample.token;
        job.tokens.push(token);
        const sampled = typeof sample === "number" ? { token } : sample;
        const isLast = onToken?.(token) || stopTokens.has(token);
        const reason = isLast ? "stop" : job.tokens.length - job.promptTokens >= most ? "length" : undefined;
        channel.push(reason ? { ...sampled, finish: job.finish(reason) } : sampled);
        if (reason) channel.end();
        return reason === undefined;
      },
    });
    this.#submit(job, signal);
    return channel;
  }

  /** The logits of every position, or of the last one only, a step's worth at a time. */
  logits(
    tokens: ArrayLike<number>,
    { last = false, signal }: { last?: boolean; signal?: AbortSignal | undefined } = {},
  ) {
    const channel = new Channel<LogitRows>(() => this.#cancel(job));
    let delivered = 0;
    const job: Job = new Job(this.#sequences++, this.#checkPrompt(tokens), !last, {
      failed: (error) => channel.fail(error),
      computed: (logits, position) => {
        const again = Math.max(0, delivered - position); // after a preemption the first positions come once more
        if (position + again < job.position)
          channel.push({ position: position + again, logits: logits.slice(again * this.#options.config.vocabSize) });
        delivered = Math.max(delivered, job.position);
        const more = job.position < job.length;
        if (!more) channel.end();
        return more;
      },
    });
    this.#submit(job, signal);
    return channel as AsyncIterableIterator<LogitRows>;
  }

  /** Ends every request with an error and frees the cache. */
  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    for (const job of [...this.#waiting, ...this.#running]) this.#cancel(job, new Error("the engine was closed"));
    await this.#loop;
    for (const pool of this.#pools) pool.close();
  }

  #checkPrompt(tokens: ArrayLike<number>): number[] {
    const { vocabSize, contextLength } = this.#options.config;
    const count = tokens.length.toLocaleString("en");
    if (tokens.length === 0) throw new RequestError("the prompt has no tokens; expected at least one");
    if (tokens.length > contextLength)
      throw new RequestError(
        `the prompt has ${count} tokens and the model's context ${contextLength.toLocaleString("en")}; expected a shorter prompt`,
      );
    if (tokens.length > this.context)
      throw new CapacityError(
        `the prompt has ${count} tokens and the cache holds ${this.context.toLocaleString("en")}; open the model with a larger \`context\``,
      );
    const wrong = Array.prototype.findIndex.call(tokens, (t) => !Number.isInteger(t) || t < 0 || t >= vocabSize);
    if (wrong >= 0)
      throw new RequestError(
        `token ${wrong} of the prompt is ${tokens[wrong]}; expected an id from 0 to ${vocabSize - 1}`,
      );
    return Array.from(tokens);
  }

  #submit(job: Job, signal: AbortSignal | undefined): void {
    if (this.#isClosed) throw new Error("the engine was closed");
    signal?.throwIfAborted();
    const abort = () => this.#cancel(job, signal?.reason);
    signal?.addEventListener("abort", abort);
    job.over = () => signal?.removeEventListener("abort", abort);
    this.#waiting.push(job);
    this.#loop ??= this.#run();
  }

  #cancel(job: Job, error?: unknown): void {
    job.isOver = true;
    if (error !== undefined) job.reader.failed(error);
  }

  async #run(): Promise<void> {
    for (;;) {
      await turn();
      this.#removeFinished();
      if (this.#waiting.length + this.#running.length === 0) {
        this.#loop = undefined;
        return;
      }
      let segments: Segment[] = [];
      try {
        const { stepTokens, sequences } = this.#options;
        const budget = { tokens: stepTokens, chunk: this.#cache.sizes.chunk, sequences };
        segments = schedule({ waiting: this.#waiting, running: this.#running }, this.#cache, budget);
        await this.#step(segments);
      } catch (error) {
        // with a step, its requests fail; without one, the bookkeeping is wrong and nobody can go on
        const touched = new Set(segments.map((s) => s.sequence));
        for (const job of [...this.#waiting, ...this.#running])
          if (segments.length === 0 || touched.has(job.sequence)) this.#cancel(job, error);
      }
    }
  }

  async #step(segments: readonly Segment[]): Promise<void> {
    const { backend, parameters, config, forward } = this.#options;
    const jobs = segments.map((s) => this.#running.find((job) => job.sequence === s.sequence)!);
    const now = performance.now();
    const tokens: number[] = [];
    const wanted: number[] = [];
    const parts = segments.map((s, i) => {
      const job = jobs[i]!;
      if (job.startedAt === undefined) {
        job.startedAt = now;
        job.cachedTokens = s.position;
      }
      for (let t = 0; t < s.length; t++) tokens.push(job.tokens[s.position + t]!);
      const first = job.wantsAll ? 0 : s.position + s.length === job.length ? s.length - 1 : s.length;
      const from = wanted.length;
      for (let t = first; t < s.length; t++) wanted.push(s.row + t);
      return { job, segment: s, position: s.position + first, from, to: wanted.length };
    });
    let logits: Float32Array | Float64Array = new Float32Array();
    await backend.scope(async () => {
      const step = { tokens: Int32Array.from(tokens), segments, wanted: Int32Array.from(wanted), cache: this.#layers };
      logits = await backend.read(await forward(parameters, config, step));
    });
    for (const { job, segment, position, from, to } of parts) {
      job.position += segment.length;
      this.#cache.commit(job.sequence, job.tokens, job.position);
      if (job.isOver || from === to) continue;
      const V = config.vocabSize;
      try {
        if (!job.reader.computed(logits.subarray(from * V, to * V), position)) job.isOver = true;
      } catch (error) {
        this.#cancel(job, error); // this request's sampling went wrong, nobody else's
      }
    }
  }

  #removeFinished(): void {
    for (const job of this.#running) if (job.isOver) this.#cache.close(job.sequence);
    for (const job of [...this.#waiting, ...this.#running]) if (job.isOver) job.over();
    for (const queue of [this.#waiting, this.#running])
      queue.splice(0, queue.length, ...queue.filter((job) => !job.isOver));
  }
}

/** Where a request's results go. */
interface Reader {
  failed(error: unknown): void;
  /** Gets logits `[n, V]` from `position` on; false where the request is done. */
  computed(logits: Float32Array | Float64Array, position: number): boolean;
}

/** A request on its way. */
class Job implements Schedulable {
  readonly sequence: number;
  readonly tokens: number[];
  readonly promptTokens: number;
  /** Logits of all its positions are wanted, so none may come from the cache. */
  readonly wantsAll: boolean;
  readonly reader: Reader;
  readonly submittedAt = performance.now();
  position = 0;
  cachedTokens = 0;
  startedAt: number | undefined;
  firstTokenAt: number | undefined;
  refusedAt: number | undefined;
  isOver = false;
  /** Called when it has left the loop. */
  over: () => void = () => {};

  constructor(sequence: number, tokens: number[], wantsAll: boolean, reader: Reader) {
    this.sequence = sequence;
    this.tokens = tokens;
    this.promptTokens = tokens.length;
    this.wantsAll = wantsAll;
    this.reader = reader;
  }

  get length(): number {
    return this.tokens.length;
  }

  finish(reason: Finish["reason"]): Finish {
    const { submittedAt, startedAt = submittedAt, firstTokenAt = startedAt } = this;
    return {
      reason,
      promptTokens: this.promptTokens,
      cachedTokens: this.cachedTokens,
      completionTokens: this.tokens.length - this.promptTokens,
      queuedMs: startedAt - submittedAt,
      prefillMs: firstTokenAt - startedAt,
      decodeMs: performance.now() - firstTokenAt,
    };
  }
}

/** Lets everything else that is ready run: messages, timers, cancellations. A browser has no setImmediate. */
function turn(): Promise<void> {
  return new Promise((resolve) => {
    if (typeof setImmediate === "function") setImmediate(resolve);
    else setTimeout(resolve);
  });
}

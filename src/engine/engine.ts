// The loop: takes requests, plans a step, runs it, samples, and again, with everybody's tokens in one batch.

import type { Llama4Config } from "../model/config.ts";
import type { Parameters, VisionParameters } from "../model/parameters.ts";
import { forward as modelForward, type Step } from "../model/transformer.ts";
import type { Backend, KVDType, Routes, Segment } from "../tensor/backend.ts";
import { CapacityError, RequestError } from "../tensor/errors.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { Channel } from "./channel.ts";
import { type Draft, DraftModel, type Sampled } from "./draft-model.ts";
import { IMAGE_CACHE_BYTES, ImageEncoder, type ImageStats, type PromptImage, PromptImages } from "./images.ts";
import { isReply, Job } from "./job.ts";
import { openPages, type Pages } from "./pages.ts";
import { PromptLookup } from "./prompt-lookup.ts";
import { RecordedSteps } from "./recorded-steps.ts";
import type { Generated, GenerateRequest, Held, LogitRows, LogitsRequest } from "./requests.ts";
import { RouteTrace, type TokenRoutes } from "./route-trace.ts";
import { Sampler } from "./sampler.ts";
import { schedule } from "./scheduler.ts";
import { type Judged, Speculation } from "./speculation.ts";

export interface EngineOptions {
  readonly backend: Backend;
  readonly parameters: Parameters;
  readonly config: Llama4Config;
  /** Without it, requests have no images. */
  readonly vision?: VisionParameters | undefined;
  /** Bytes of features that are kept for images that come again, and at most encoded ahead; default 256 MB. */
  readonly imageCacheBytes?: number | undefined;
  /** Tokens that the cache holds, and the longest that prompt and reply can be together. */
  readonly context: number;
  /** How keys and values are kept; default f32. */
  readonly kvDtype?: KVDType;
  /** Tokens that the chunk-local layers hold, of all requests together. */
  readonly localTokens?: number;
  /** Most tokens of a step; a prompt is computed in slices of this size. */
  readonly stepTokens?: number;
  /** Most sequences computed at the same time; others wait. */
  readonly sequences?: number;
  readonly sharePrefixes?: boolean;
  /** Guesses tokens ahead, from the sequence's own or by a smaller model with the same vocabulary; changes no reply. */
  readonly speculation?: "off" | "lookup" | Draft | Speculation<Sampled> | undefined;
  /** Hears what is not as asked, but goes on; default: printed on stderr. */
  readonly onWarning?: ((message: string) => void) | undefined;
  /** Computes the logits of a step; the model's, but for tests of the loop. */
  readonly forward?: (p: Parameters, c: Llama4Config, step: Step) => Promise<Tensor>;
}

/** What an engine is doing now. */
export interface EngineStats {
  readonly waiting: number;
  readonly running: number;
  /** Steps so far, and the tokens computed in them. */
  readonly steps: number;
  readonly stepTokens: number;
  /** Slots of the cache, each for a token in every layer of a kind, and how many of them running requests hold. */
  readonly cache: Readonly<Record<"global" | "local", { readonly used: number; readonly total: number } | undefined>>;
  /** By layer with experts: how many tokens each expert has had. */
  readonly experts: readonly { readonly layer: number; readonly tokens: readonly number[] }[];
  /** Where there is a vision encoder. */
  readonly images?: ImageStats;
}

/** So many logits have memory that stays: 64 MB, 83 rows of Llama 4's vocabulary. */
const MOST_LOGITS = 2 ** 24;

/** So long short steps follow each other without a turn of the event loop, which costs 40 us where nothing has come. */
const MOST_UNHEARD_MS = 8;

/** Runs many requests at once. Close it to free the cache; backend and parameters belong to the caller. */
export class Engine {
  readonly context: number;
  readonly #options: EngineOptions &
    Required<Pick<EngineOptions, "stepTokens" | "sequences" | "forward">> & {
      readonly imageCacheBytes: number;
      onWarning(message: string): void;
    };
  readonly #pages: Pages;
  readonly #recorded: RecordedSteps | undefined;
  /** Undefined after it has failed, too. */
  #speculation: Speculation<Sampled> | undefined;
  readonly #encoder: ImageEncoder | undefined;
  readonly #waiting: Job[] = [];
  readonly #running: Job[] = [];
  #logits = new Float32Array();
  #loop: Promise<void> | undefined;
  /** Settles when the last that asked to be held was let go. */
  #held: Promise<void> = Promise.resolve();
  #sequences = 0;
  /** By layer, `[E]`. */
  readonly #expertTokens = new Map<number, Float64Array>();
  #steps = 0;
  #stepTokens = 0;
  #isClosed = false;

  constructor(options: EngineOptions) {
    const { stepTokens = 512, sequences = 256, forward = modelForward, sharePrefixes = true } = options;
    const { onWarning = console.warn, imageCacheBytes = IMAGE_CACHE_BYTES } = options;
    const { backend, config, context, kvDtype = "f32", localTokens, speculation = "off" } = options;
    this.#options = { ...options, stepTokens, sequences, forward, onWarning, imageCacheBytes };
    this.context = context;
    if (speculation instanceof Speculation) this.#speculation = speculation;
    else if (speculation === "lookup") this.#speculation = new Speculation(new PromptLookup());
    else if (speculation !== "off") {
      const { vocabSize } = config;
      this.#speculation = new Speculation(new DraftModel(speculation, { vocabSize, stepTokens }));
    }
    this.#pages = openPages(backend, config, { context, dtype: kvDtype, localTokens, sharePrefixes });
    if (forward === modelForward) this.#recorded = new RecordedSteps(options.parameters, config);
    const { vision } = options;
    if (vision) this.#encoder = new ImageEncoder(vision, config, imageCacheBytes);
  }

  /** Tokens as they are sampled. Throws RequestError or CapacityError at once where the request cannot be served. */
  generate(request: GenerateRequest): AsyncIterableIterator<Generated> {
    const { sampling = {}, stopTokens = new Set(), maxTokens = this.context + 1, onToken, signal } = request;
    const { matcher, routes: wantsRoutes } = request;
    const { backend, config } = this.#options;
    const tokens = this.#checkPrompt(request.tokens);
    if (!Number.isInteger(maxTokens) || maxTokens < 1)
      throw new RequestError(`maxTokens is ${maxTokens}; expected a whole number from 1`);
    const sampler = new Sampler(sampling, tokens, config.vocabSize, matcher, backend);
    const channel = new Channel<Generated>(() => this.#cancel(job));
    // the last token sampled is never computed, so it needs no room
    const most = Math.min(maxTokens, this.context - tokens.length + 1);
    const job: Job = new Job(
      this.#sequences++,
      tokens,
      { sampler, mostTokens: tokens.length + most, wantsRoutes, images: this.#checkImages(tokens, request.images) },
      {
        failed: (error) => channel.fail(error),
        computed: (rows, _, routes) => {
          job.firstTokenAt ??= performance.now();
          const sample = sampler.sample(rows);
          const token = typeof sample === "number" ? sample : sample.token;
          job.tokens.push(token);
          const { promptTokens, cachedTokens = 0 } = job;
          const sampled = {
            ...(typeof sample === "number" ? { token } : sample),
            ...(job.length === promptTokens + 1 && { prompt: { promptTokens, cachedTokens } }),
            ...(routes && { routes }),
          };
          const isLast = onToken?.(token) || stopTokens.has(token);
          const reason = isLast ? "stop" : job.length >= job.mostTokens ? "length" : undefined;
          channel.push(reason ? { ...sampled, finish: job.finish(reason) } : sampled);
          if (reason) channel.end();
          return reason === undefined;
        },
      },
    );
    this.#submit(job, signal);
    return channel;
  }

  /**
   * The logits of every position, or of the last one only, a step's worth at a time. With `from` the tokens are what follows a
   * prompt that is held, and positions go on from its last.
   */
  logits(
    prompt: ArrayLike<number>,
    { last = false, from, images, signal }: LogitsRequest = {},
  ): AsyncIterableIterator<LogitRows> {
    const tokens = this.#checkPrompt(from ? [...from.tokens, ...Array.from(prompt)] : prompt);
    const channel = new Channel<LogitRows>(() => this.#cancel(job));
    let delivered = 0;
    // each of its rows has logits: slices keep to memory that stays, and hold up others' replies no longer than that takes
    const mostRows = Math.max(1, Math.floor(MOST_LOGITS / this.#options.config.vocabSize));
    const job: Job = new Job(
      this.#sequences++,
      tokens,
      {
        ...{ wantsAll: !last, mostRows: last ? undefined : mostRows, from: from?.sequence },
        images: from ? undefined : this.#checkImages(tokens, images),
      },
      {
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
      },
    );
    this.#submit(job, signal);
    return channel;
  }

  /** Computes a prompt and keeps it, for `logits` to go on from. One is held at a time: the next waits until it is closed. */
  async hold(prompt: ArrayLike<number>, { images, signal }: Omit<LogitsRequest, "last" | "from"> = {}): Promise<Held> {
    const tokens = this.#checkPrompt(prompt);
    const placed = this.#checkImages(tokens, images);
    const before = this.#held;
    let release!: () => void;
    this.#held = new Promise((resolve) => {
      release = resolve;
    });
    return new Promise<Held>((resolve, reject) => {
      const failed = (error: unknown) => {
        void before.then(release);
        reject(error);
      };
      const computed = (logits: Float32Array | Float64Array) => {
        const close = () => {
          this.#cancel(job);
          release();
        };
        resolve({ sequence: job.sequence, tokens, logits: logits.slice(), close });
        return true;
      };
      const job: Job = new Job(this.#sequences++, tokens, { images: placed }, { failed, computed });
      const leave = () => failed(signal?.reason); // its turn has not come
      signal?.addEventListener("abort", leave);
      void before.then(() => {
        signal?.removeEventListener("abort", leave);
        try {
          this.#submit(job, signal);
        } catch (error) {
          failed(error);
        }
      });
    });
  }

  stats(): EngineStats {
    return {
      waiting: this.#waiting.length,
      running: this.#running.length,
      steps: this.#steps,
      stepTokens: this.#stepTokens,
      cache: this.#pages.tables.occupation(),
      experts: [...this.#expertTokens].map(([layer, tokens]) => ({ layer, tokens: [...tokens] })),
      ...(this.#encoder && { images: this.#encoder.stats() }),
    };
  }

  /** Ends every request with an error and frees the cache. */
  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    for (const job of [...this.#waiting, ...this.#running]) this.#cancel(job, new Error("the engine was closed"));
    await this.#loop;
    this.#recorded?.close();
    this.#pages.close();
    this.#speculation?.close();
  }

  #checkPrompt(tokens: ArrayLike<number>): number[] {
    const { vocabSize, contextLength } = this.#options.config;
    const shown = (n: number) => n.toLocaleString("en"); // only for those it refuses: the first call costs 30 ms
    if (tokens.length === 0) throw new RequestError("the prompt has no tokens; expected at least one");
    if (tokens.length > contextLength)
      throw new RequestError(
        `the prompt has ${shown(tokens.length)} tokens and the model's context ${shown(contextLength)}; expected a shorter prompt`,
      );
    if (tokens.length > this.context)
      throw new CapacityError(
        `the prompt has ${shown(tokens.length)} tokens and the cache holds ${shown(this.context)}; open the model with a larger \`context\``,
      );
    const wrong = Array.prototype.findIndex.call(tokens, (t) => !Number.isInteger(t) || t < 0 || t >= vocabSize);
    if (wrong >= 0)
      throw new RequestError(
        `token ${wrong} of the prompt is ${tokens[wrong]}; expected an id from 0 to ${vocabSize - 1}`,
      );
    return Array.from(tokens);
  }

  #checkImages(tokens: readonly number[], images: readonly PromptImage[] = []): PromptImages | undefined {
    const { config } = this.#options;
    if (this.#encoder && (images.length > 0 || tokens.some((id) => id === config.tokens.patch)))
      return new PromptImages(tokens, images, config);
    if (images.length > 0)
      throw new RequestError(
        "an image for a model that reads text only; expected a checkpoint with a vision encoder (a GGUF model's is in its mmproj file), or no images",
      );
    return undefined;
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
    this.#loop ??= this.#run(); // which sleeps where all that there is is held
  }

  async #run(): Promise<void> {
    let heard = -Infinity;
    for (;;) {
      if (performance.now() - heard >= MOST_UNHEARD_MS) {
        await turn();
        heard = performance.now();
      } else await readersTurn();
      this.#removeFinished();
      if (this.#waiting.length + this.#running.length === 0) {
        this.#loop = undefined;
        return;
      }
      let segments: Segment[] = [];
      try {
        const { stepTokens, sequences } = this.#options;
        const { tables } = this.#pages;
        if (this.#encoder) await this.#encodeImages(this.#encoder);
        const speculation = this.#speculation && (await this.#guess(this.#speculation));
        const budget = { tokens: stepTokens, chunk: tables.sizes.chunk, sequences };
        segments = schedule({ waiting: this.#waiting, running: this.#running }, tables, budget);
        if (segments.length === 0) {
          heard = -Infinity;
          if (this.#isWaiting()) continue;
          this.#loop = undefined;
          return;
        }
        const judged = await this.#step(segments);
        if (judged.length === segments.length)
          speculation?.learn(judged); // with a prompt in it, a step tells nothing
        else heard = -Infinity; // and it was no short one
      } catch (error) {
        // with a step, its requests fail; without one, the bookkeeping is wrong and nobody can go on
        const touched = new Set(segments.map((s) => s.sequence));
        for (const job of [...this.#waiting, ...this.#running])
          if (segments.length === 0 || touched.has(job.sequence)) this.#cancel(job, error);
      }
    }
  }

  /** Whether nothing to compute means to wait, for an image; where a prompt is held and that is all, whoever calls next begins. */
  #isWaiting(): boolean {
    const isOver = [...this.#waiting, ...this.#running].some((job) => job.isOver);
    if (isOver || this.#running.some((job) => job.position < job.length)) return true;
    const next = this.#waiting.find(({ from }) => from !== undefined);
    if (next === undefined) return false;
    const what = `the prompt of ${next.length} tokens and what follows it`;
    this.#cancel(
      next,
      new CapacityError(`the cache has no room for ${what}; open the model with a larger \`context\``),
    );
    return true;
  }

  /** Encodes some tiles of what the next step could reach. */
  async #encodeImages(encoder: ImageEncoder): Promise<void> {
    for (const job of this.#running)
      for (const { key } of this.#unencoded(job)) {
        const features = encoder.find(key);
        if (features) job.images?.setFeatures(key, features);
      }
    const job = this.#nextToEncode(encoder);
    if (!job) return;
    const start = performance.now();
    job.startedAt ??= start;
    try {
      const { tiles, whole } = await encoder.encodeSome(this.#unencoded(job));
      job.encodedTiles += tiles;
      for (const [key, features] of whole) for (const { images } of this.#running) images?.setFeatures(key, features);
    } catch (error) {
      this.#cancel(job, error);
    }
    job.encodeMs += performance.now() - start;
  }

  /** The longest unserved; where all together hold as many features as may be kept, only the oldest goes on. */
  #nextToEncode(encoder: ImageEncoder): Job | undefined {
    const job = this.#running.find((job) => this.#unencoded(job).length > 0);
    if (!job) return undefined;
    const held = new Set(this.#running.flatMap(({ images }) => images?.held() ?? []));
    const heldBytes = [...held].reduce((sum, { byteLength }) => sum + byteLength, encoder.begunBytes);
    if (heldBytes < this.#options.imageCacheBytes) return job;
    const unread = this.#running.filter(({ images, position }) => images && !images.isRead(position));
    const oldest = unread.reduce((a, b) => (b.sequence < a.sequence ? b : a));
    return this.#unencoded(oldest).length > 0 ? oldest : undefined;
  }

  /** A job's images that the next step could reach and that have not been encoded. */
  #unencoded({ images, position }: Job): readonly PromptImage[] {
    return images?.unencoded(position, position + this.#options.stepTokens) ?? [];
  }

  /** Guesses for the next step; undefined, and none, unless all that run need one token. */
  async #guess(speculation: Speculation<Sampled>): Promise<Speculation<Sampled> | undefined> {
    const batch = this.#running.filter(isReply);
    const room = this.#options.stepTokens - batch.length;
    for (const job of batch) job.guesses = undefined;
    const computed = this.#running.filter((job) => job.position < job.length); // a prompt that is held is not
    if (batch.length === 0 || batch.length < computed.length || room < 0) return undefined;
    if (batch.some((job) => job.length - job.position > 1)) return undefined;
    try {
      const guesses = await speculation.propose(batch, room);
      for (const job of batch) job.guesses = guesses.get(job.sequence);
      return speculation;
    } catch (error) {
      this.#endSpeculation(error);
      return undefined;
    }
  }

  /** Replies do not depend on guesses, so they go on, one token a step. */
  #endSpeculation(error: unknown): void {
    this.#options.onWarning(
      `guessing tokens ahead has failed (${error instanceof Error ? error.message : error}); going on without it`,
    );
    this.#speculation?.close();
    this.#speculation = undefined;
  }

  /** Computes a step and hands out what it gave. Says of the sequences that needed one token what came of their guesses. */
  async #step(segments: readonly Segment[]): Promise<Judged[]> {
    const { backend, parameters, config, forward } = this.#options;
    const { dim: D, vocabSize: V } = config;
    const { tokens, wanted, features, patches, parts } = this.#batch(segments);
    const traced = parts.flatMap(({ job, from, to }) => (job.wantsRoutes ? wanted.slice(from, to) : []));
    const trace = traced.length > 0 ? new RouteTrace(traced) : undefined;
    const [rows, at, cache] = [new Int32Array(tokens), new Int32Array(wanted), this.#pages.layers];
    const plain = { tokens: rows, segments, wanted: at, cache };
    const routed = (layer: number, routes: Routes, logits?: Tensor) => {
      this.#countExperts(layer, routes.experts);
      return logits && trace?.hear(layer, routes, logits);
    };
    const room = this.#roomFor(wanted.length * V);
    const logits =
      this.#recorded && patches.length === 0 && !trace
        ? await this.#recorded.run(plain, routed, room)
        : await backend.scope(async () => {
            const images = patches.length > 0 && {
              rows: backend.from(joined(features, D), [patches.length, D]),
              at: Int32Array.from(patches),
            };
            return backend.read(
              await forward(parameters, config, { ...plain, routed, ...(images && { images }) }),
              room,
            );
          });
    this.#steps++;
    this.#stepTokens += tokens.length;
    const judged: Judged[] = [];
    for (const { job, guesses, isDecode, position, end, from, to } of parts) {
      job.position = end;
      const routesAt = trace && job.wantsRoutes ? (i: number) => trace.of(wanted[from + i]!) : undefined;
      const rows = logits.subarray(from * V, to * V);
      const accepted = from === to ? 0 : this.#handOut(job, rows, position, guesses, routesAt);
      job.position += accepted;
      job.images?.forgetBefore(job.position);
      this.#pages.tables.commit(job.sequence, job.tokens, job.position);
      if (isDecode) judged.push({ sequence: job.sequence, guessed: guesses.length, accepted });
    }
    return judged;
  }

  /** Everybody's tokens, patches and wanted rows, one segment behind the other. */
  #batch(segments: readonly Segment[]) {
    const now = performance.now();
    const tokens: number[] = [];
    const features: Float32Array[] = [];
    const patches: number[] = [];
    const wanted: number[] = [];
    const parts = segments.map(({ sequence, row, position, length }) => {
      const job = this.#running.find((job) => job.sequence === sequence)!;
      job.startedAt ??= now;
      job.cachedTokens ??= position;
      const places: number[] = [];
      job.images?.collect(position, position + length, this.#options.config.dim, features, places);
      for (const place of places) patches.push(row + place);
      const known = Math.min(length, job.length - position);
      const guesses = job.guesses?.slice(0, length - known) ?? [];
      for (let t = 0; t < known; t++) tokens.push(job.tokens[position + t]!);
      tokens.push(...guesses);
      const first = job.wantsAll ? 0 : position + known === job.length ? known - 1 : length;
      const from = wanted.length;
      for (let t = first; t < length; t++) wanted.push(row + t);
      const isDecode = job.length - position === 1;
      return { job, guesses, isDecode, position: position + first, end: position + known, from, to: wanted.length };
    });
    return { tokens, features, patches, wanted, parts };
  }

  #countExperts(layer: number, experts: Int32Array): void {
    const counts = this.#expertTokens.get(layer) ?? new Float64Array(this.#options.config.nExperts);
    this.#expertTokens.set(layer, counts);
    for (const expert of experts) counts[expert]!++;
  }

  /** Memory for so many logits, the same in every step: a new one would cost more than to fill it. */
  #roomFor(count: number): Float32Array | undefined {
    if (count > MOST_LOGITS) return undefined;
    if (count > this.#logits.length) this.#logits = new Float32Array(count);
    return this.#logits;
  }

  /** Gives a request its logits, up to and with those behind its last right guess. How many guesses were right. */
  #handOut(
    job: Job,
    logits: Float32Array | Float64Array,
    position: number,
    guesses: readonly number[],
    routesAt?: (row: number) => TokenRoutes | undefined,
  ): number {
    const size = guesses.length > 0 ? this.#options.config.vocabSize : logits.length;
    job.guessedTokens += guesses.length;
    let accepted = 0;
    try {
      while (!job.isOver) {
        const rows = logits.subarray(accepted * size, (accepted + 1) * size);
        if (!job.reader.computed(rows, position + accepted, routesAt?.(accepted))) job.isOver = true;
        if (accepted === guesses.length || job.tokens.at(-1) !== guesses[accepted]) break;
        job.acceptedTokens++;
        accepted++;
      }
    } catch (error) {
      this.#cancel(job, error); // this request's sampling went wrong, nobody else's
    }
    return accepted;
  }

  #removeFinished(): void {
    const isOver = (job: Job) => job.isOver;
    if (!this.#waiting.some(isOver) && !this.#running.some(isOver)) return;
    const over = new Set([...this.#waiting, ...this.#running].filter(isOver).map((job) => job.sequence));
    for (const job of [...this.#waiting, ...this.#running])
      if (job.from !== undefined && over.has(job.from) && !job.isOver)
        this.#cancel(job, new Error("the prompt that it follows was let go"));
    for (const job of this.#running) if (job.isOver) this.#pages.tables.close(job.sequence);
    for (const job of [...this.#waiting, ...this.#running]) {
      if (!job.isOver) continue;
      this.#speculation?.forget(job.sequence);
      job.over();
    }
    for (const queue of [this.#waiting, this.#running])
      queue.splice(0, queue.length, ...queue.filter((job) => !job.isOver));
    const jobs = [...this.#waiting, ...this.#running];
    this.#encoder?.forgetBegun((key) => jobs.some(({ images }) => images?.placed.some((image) => image.key === key)));
  }
}

/** Rows of D numbers, one behind the other. */
function joined(rows: readonly Float32Array[], D: number): Float32Array {
  const all = new Float32Array(rows.length * D);
  for (const [i, row] of rows.entries()) all.set(row, i * D);
  return all;
}

/** Lets everyone who awaits a token have it: Node runs a tick when no promise is left to be settled. */
function readersTurn(): Promise<void> {
  return typeof process === "object" ? new Promise((resolve) => process.nextTick(resolve)) : turn();
}

/** Lets everything else that is ready run: messages, timers, cancellations. A browser has no setImmediate. */
function turn(): Promise<void> {
  return new Promise((resolve) => {
    if (typeof setImmediate === "function") setImmediate(resolve);
    else setTimeout(resolve);
  });
}

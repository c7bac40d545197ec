// A request on its way through the engine.

import type { PromptImages } from "./images.ts";
import type { Finish } from "./requests.ts";
import type { TokenRoutes } from "./route-trace.ts";
import type { Sampler } from "./sampler.ts";
import type { Schedulable } from "./scheduler.ts";

/** Where a request's results go. */
export interface Reader {
  failed(error: unknown): void;
  /** Gets logits `[n, V]` from `position` on; false where the request is done. */
  computed(logits: Float32Array | Float64Array, position: number, routes?: TokenRoutes): boolean;
}

/** What a request wants: a reply of so many tokens, prompt counted, or logits. */
export interface Wish {
  readonly sampler?: Sampler;
  readonly mostTokens?: number;
  readonly wantsAll?: boolean;
  readonly from?: number | undefined;
  readonly mostRows?: number | undefined;
  readonly wantsRoutes?: boolean | undefined;
  readonly images?: PromptImages | undefined;
}

/** A request for a reply. */
export type Reply = Job & { readonly sampler: Sampler };

export const isReply = (job: Job): job is Reply => job.sampler !== undefined;

/** A request on its way. */
export class Job implements Schedulable {
  readonly sequence: number;
  readonly tokens: number[];
  readonly promptTokens: number;
  readonly sampler: Sampler | undefined;
  readonly mostTokens: number;
  /** Logits of all its positions are wanted, so none may come from the cache. */
  readonly wantsAll: boolean;
  readonly from: number | undefined;
  readonly mostRows: number | undefined;
  readonly wantsRoutes: boolean;
  readonly images: PromptImages | undefined;
  readonly reader: Reader;
  readonly submittedAt = performance.now();
  position = 0;
  guesses: readonly number[] | undefined;
  guessedTokens = 0;
  acceptedTokens = 0;
  encodedTiles = 0;
  encodeMs = 0;
  cachedTokens: number | undefined;
  startedAt: number | undefined;
  firstTokenAt: number | undefined;
  refusedAt: number | undefined;
  isOver = false;
  /** Called when it has left the loop. */
  over: () => void = () => {};

  constructor(sequence: number, tokens: number[], wish: Wish, reader: Reader) {
    const { sampler, mostTokens = 0, wantsAll = false, from, mostRows, wantsRoutes = false, images } = wish;
    this.from = from;
    this.wantsRoutes = wantsRoutes;
    this.images = images;
    this.sequence = sequence;
    this.tokens = tokens;
    this.promptTokens = tokens.length;
    this.sampler = sampler;
    this.mostTokens = mostTokens;
    this.wantsAll = wantsAll;
    this.mostRows = mostRows;
    this.reader = reader;
  }

  get length(): number {
    return this.tokens.length;
  }

  get readable(): number | undefined {
    return this.images?.unencoded(this.position)[0]?.from;
  }

  /** A step brings one token more than are guessed. */
  get most(): number {
    return this.mostTokens - this.length - 1;
  }

  finish(reason: Finish["reason"]): Finish {
    const { submittedAt, startedAt = submittedAt, firstTokenAt = startedAt } = this;
    return {
      reason,
      promptTokens: this.promptTokens,
      cachedTokens: this.cachedTokens ?? 0,
      completionTokens: this.tokens.length - this.promptTokens,
      guessedTokens: this.guessedTokens,
      acceptedTokens: this.acceptedTokens,
      encodedTiles: this.encodedTiles,
      encodeMs: this.encodeMs,
      queuedMs: startedAt - submittedAt,
      prefillMs: firstTokenAt - startedAt - this.encodeMs,
      decodeMs: performance.now() - firstTokenAt,
    };
  }
}

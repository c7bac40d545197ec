// What is asked of the engine, and what it answers.

import type { Matcher } from "./constraint.ts";
import type { PromptImage } from "./images.ts";
import type { TokenRoutes } from "./route-trace.ts";
import type { Logprob, Sampling } from "./sampler.ts";

export interface GenerateRequest {
  readonly tokens: ArrayLike<number>;
  /** The images of its `<|patch|>` tokens, in order. */
  readonly images?: readonly PromptImage[] | undefined;
  /** Default: until the context is full. */
  readonly maxTokens?: number | undefined;
  readonly sampling?: Sampling | undefined;
  /** Holds the reply to a grammar; for this request alone. */
  readonly matcher?: Matcher | undefined;
  /** Whether each token comes with the experts behind it. */
  readonly routes?: boolean | undefined;
  /** Tokens that end the reply. */
  readonly stopTokens?: ReadonlySet<number> | undefined;
  /** Hears each token as it is sampled, stop tokens too; true ends the reply with it. */
  readonly onToken?: ((token: number) => boolean) | undefined;
  /** Ends the request within one step, or 10 ms where steps are shorter; the iteration then rejects with the signal's reason. */
  readonly signal?: AbortSignal | undefined;
}

export interface LogitsRequest extends Pick<GenerateRequest, "images" | "signal"> {
  readonly last?: boolean | undefined;
  readonly from?: Held | undefined;
}

/** A sampled token. The first one says what the prompt took; the last one, which may be a stop token, carries the end. */
export interface Generated {
  readonly token: number;
  readonly logprob?: number;
  readonly top?: readonly Logprob[];
  readonly prompt?: Pick<Finish, "promptTokens" | "cachedTokens">;
  readonly routes?: TokenRoutes;
  readonly finish?: Finish;
}

export interface Finish {
  readonly reason: "stop" | "length";
  readonly promptTokens: number;
  /** Tokens of the prompt that were in the cache already. */
  readonly cachedTokens: number;
  readonly completionTokens: number;
  /** Tokens that were guessed ahead, and how many of them were right. */
  readonly guessedTokens: number;
  readonly acceptedTokens: number;
  /** Tiles of its images that were encoded for it; the others were known. */
  readonly encodedTiles: number;
  readonly encodeMs: number;
  /** From the request to its first step. */
  readonly queuedMs: number;
  /** From its first step to its first token, without the encoding of its images; others' share of the steps is in it. */
  readonly prefillMs: number;
  /** From its first token to its last. */
  readonly decodeMs: number;
}

/** Logits `[n, V]` of consecutive positions, in a buffer of their own. */
export interface LogitRows {
  readonly position: number;
  readonly logits: Float32Array | Float64Array;
}

/** A prompt that was computed and stays in the cache. */
export interface Held {
  readonly sequence: number;
  readonly tokens: readonly number[];
  /** Of its last position `[V]`. */
  readonly logits: Float32Array | Float64Array;
  /** Ends what still goes on from it. */
  close(): void;
}

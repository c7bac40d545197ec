// A smaller model with the same vocabulary guesses what the larger will say.

import type { Llama4Config } from "../model/config.ts";
import type { Parameters } from "../model/parameters.ts";
import type { Backend, KVDType } from "../tensor/backend.ts";
import { RequestError } from "../tensor/errors.ts";
import { openPages, type Pages } from "./pages.ts";
import { RecordedSteps } from "./recorded-steps.ts";
import type { Sampler } from "./sampler.ts";
import { plan } from "./scheduler.ts";
import { type Decoding, type Guesser, MOST_GUESSED, type Wanted } from "./speculation.ts";

/** The model that guesses; it belongs to the caller. */
export interface Draft {
  readonly backend: Backend;
  readonly parameters: Parameters;
  readonly config: Llama4Config;
  /** Tokens that its cache holds; what is longer is not guessed. */
  readonly context: number;
  readonly kvDtype: KVDType;
}

export interface Sampled extends Decoding {
  readonly sampler: Sampler;
  /** The draft model sees none, and would read their patches as words: a sequence with images is not guessed. */
  readonly images?: unknown;
}

/** How far the draft model has read a sequence. */
interface Reading {
  readonly sequence: number;
  /** Tokens of the sequence when it was first seen: its prompt, most often. */
  readonly beginning: number;
  /** Positions that are in the cache and stay. */
  position: number;
  /** Guesses that stand in the cache behind them. */
  guesses: readonly number[];
  /** It is not guessed any more: there was no room for it, or its grammar went no further. */
  isOut: boolean;
}

/** A sequence in one of the draft model's steps. */
interface Reader {
  readonly of: Sampled;
  readonly reading: Reading;
  readonly sequence: number;
  /** Tokens to read: the sequence's, and the guesses made so far. */
  length: number;
  position: number;
  readonly made: number[];
  readonly count: number;
}

/** Guesses are sampled as the reply is, with the same random numbers: where both models agree they draw the same. */
export class DraftModel implements Guesser<Sampled> {
  readonly hopes = [0.7];
  readonly #draft: Draft;
  readonly #pages: Pages;
  readonly #recorded: RecordedSteps;
  readonly #budget: { readonly tokens: number; readonly chunk: number };
  readonly #readings = new Map<number, Reading>();

  constructor(draft: Draft, { vocabSize, stepTokens }: { vocabSize: number; stepTokens: number }) {
    if (draft.config.vocabSize !== vocabSize)
      throw new RequestError(
        `the draft model has ${draft.config.vocabSize} tokens and the model ${vocabSize}; expected the same vocabulary`,
      );
    this.#draft = draft;
    this.#pages = openPages(draft.backend, draft.config, { context: draft.context, dtype: draft.kvDtype });
    this.#recorded = new RecordedSteps(draft.parameters, draft.config);
    this.#budget = { tokens: stepTokens, chunk: this.#pages.tables.sizes.chunk };
  }

  /** One slice of the beginnings that are not read yet. */
  async follow(batch: readonly Sampled[]): Promise<void> {
    const readers = batch
      .filter(({ images }) => !images)
      .map((of) => {
        const reading = this.#reading(of);
        return { ...reader(of, reading, 0), length: reading.beginning - 1 };
      });
    await this.#step(readers.filter(({ reading, length }) => !reading.isOut && reading.position < length));
  }

  look(of: Sampled): { kind: number; most: number } | undefined {
    if (of.images) return undefined;
    const { isOut, position, beginning } = this.#reading(of);
    if (isOut || position < beginning - 1) return undefined;
    // Guesses are written behind the last token; in the local layers that may overwrite nothing of the chunk before.
    const { chunk } = this.#budget;
    return { kind: 0, most: chunk === Infinity ? MOST_GUESSED : chunk - (of.tokens.length % chunk) + 1 };
  }

  async guess(wanted: readonly Wanted<Sampled>[]): Promise<number[][]> {
    const readers = wanted.map(({ of, count }) => {
      const reading = this.#reading(of);
      this.#keepRight(reading, of.tokens);
      return reader(of, reading, count);
    });
    const isDone = ({ reading, made, count }: Reader) => reading.isOut || made.length === count;
    while (!readers.every(isDone)) await this.#step(readers.filter((r) => !isDone(r)));
    for (const { reading, position, made } of readers) reading.guesses = made.slice(0, position - reading.position);
    return readers.map(({ made }) => made);
  }

  forget(sequence: number): void {
    const reading = this.#readings.get(sequence);
    if (reading && !reading.isOut) this.#pages.tables.close(sequence);
    this.#readings.delete(sequence);
  }

  close(): void {
    this.#recorded.close();
    this.#pages.close();
  }

  #reading({ sequence, tokens }: Sampled): Reading {
    let reading = this.#readings.get(sequence);
    if (!reading) {
      const position = this.#pages.tables.open(sequence, tokens);
      reading = { sequence, beginning: tokens.length, position, guesses: [], isOut: false };
      this.#readings.set(sequence, reading);
    }
    return reading;
  }

  /** Guesses that have become tokens are read already; but the last token's logits are wanted once more. */
  #keepRight(reading: Reading, tokens: readonly number[]): void {
    const wrong = reading.guesses.findIndex((guess, i) => tokens[reading.position + i] !== guess);
    const right = wrong < 0 ? reading.guesses.length : wrong;
    reading.position = Math.min(reading.position + right, tokens.length - 1);
    reading.guesses = [];
    if (!reading.isOut) this.#pages.tables.commit(reading.sequence, tokens, reading.position);
  }

  /** Reads on, each sequence up to its length at most; where that is reached and guesses are wanted, makes one. */
  async #step(readers: readonly Reader[]): Promise<void> {
    const { tables, layers } = this.#pages;
    const { config } = this.#draft;
    const fits = readers.filter((r) => this.#makeRoom(r));
    if (fits.length === 0) return;
    const segments = plan(fits, this.#budget);
    const parts = segments.map((segment) => ({ segment, r: fits.find((r) => r.sequence === segment.sequence)! }));
    const tokens = parts.flatMap(({ segment: { position, length }, r }) =>
      Array.from({ length }, (_, i) => r.of.tokens[position + i] ?? r.made[position + i - r.of.tokens.length]!),
    );
    const sampling = parts.filter(({ segment: s, r }) => r.count > 0 && s.position + s.length === r.length);
    const wanted = Int32Array.from(sampling, ({ segment }) => segment.row + segment.length - 1);
    const step = { tokens: Int32Array.from(tokens), segments, wanted, cache: layers };
    const logits = await this.#recorded.run(step, () => {});
    for (const { segment, r } of parts) {
      r.position += segment.length;
      if (r.position > r.of.tokens.length) continue; // a guess stays only once it has proved right
      r.reading.position = r.position;
      tables.commit(r.sequence, r.of.tokens, r.position);
    }
    const V = config.vocabSize;
    for (const [i, { r }] of sampling.entries()) {
      try {
        r.made.push(r.of.sampler.guess(logits.subarray(i * V, (i + 1) * V), r.made));
        r.length++;
      } catch (error) {
        if (!(error instanceof RequestError)) throw error;
        this.#giveUp(r.reading); // its grammar is exhausted, nobody else's
      }
    }
  }

  /** Room for the next slice; a sequence without it is not guessed any more. */
  #makeRoom({ reading, position, length, sequence }: Reader): boolean {
    const { tokens, chunk } = this.#budget;
    const end = Math.min(length, position + tokens, position - (position % chunk) + chunk);
    if (this.#pages.tables.reserve(sequence, end)) return true;
    this.#giveUp(reading);
    return false;
  }

  #giveUp(reading: Reading): void {
    this.#pages.tables.close(reading.sequence);
    reading.isOut = true;
  }
}

function reader(of: Sampled, reading: Reading, count: number): Reader {
  const { sequence, position } = reading;
  return { of, reading, sequence, length: of.tokens.length, position, made: [], count };
}

// Prompt lookup: what may follow is what followed where the sequence's newest tokens stood before. Code that is edited
// and text that is quoted repeat long stretches (after Saxena 2023, "Prompt lookup decoding").

import { type Decoding, type Guesser, MOST_GUESSED, type Wanted } from "./speculation.ts";

/** Lengths of the repeated ends that are looked for, the longest first. */
export const GRAMS = [8, 4, 2] as const;

export interface Match {
  /** The position after the earlier place: where the guess begins. */
  readonly at: number;
  /** Index into GRAMS: how long an end is known to have stood there. */
  readonly gram: number;
}

/** An index of a sequence that only grows: a token costs a few operations, and so does a look, however long it is. */
export class NgramIndex {
  readonly #tokens: readonly number[];
  /** For each length a hash table: where the newest place of a gram ends; 0 is an empty slot. */
  #ends: readonly Int32Array[] = [];
  /** Grams that end at most here are in the index. */
  #indexed = 0;

  constructor(tokens: readonly number[]) {
    this.#tokens = tokens;
  }

  /** The newest place before the end where the last tokens stood, by the longest gram that has one. */
  find(): Match | undefined {
    const { length } = this.#tokens;
    this.#index(length - 1);
    for (const [gram, n] of GRAMS.entries()) {
      if (n >= length) continue;
      const at = this.#ends[gram]![this.#slot(gram, length)]!;
      if (at > 0) return { at, gram };
    }
    return undefined;
  }

  /** Tokens from `at` on. A guess that reaches the end goes round: what repeats with a period is guessed to go on. */
  after(at: number, count: number): number[] {
    const period = this.#tokens.length - at;
    return Array.from({ length: count }, (_, i) => this.#tokens[at + (i % period)]!);
  }

  #index(upTo: number): void {
    const slots = this.#ends[0]?.length ?? 0;
    if (upTo * 2 > slots) {
      const size = 2 ** Math.ceil(Math.log2(Math.max(256, upTo * 4)));
      this.#ends = GRAMS.map(() => new Int32Array(size));
      this.#indexed = 0;
    }
    for (let end = this.#indexed + 1; end <= upTo; end++)
      for (const [gram, n] of GRAMS.entries()) if (n <= end) this.#ends[gram]![this.#slot(gram, end)] = end;
    this.#indexed = Math.max(this.#indexed, upTo);
  }

  /** Where the gram before `end` is, or would be: at most half of the slots are taken. */
  #slot(gram: number, end: number): number {
    const n = GRAMS[gram]!;
    const ends = this.#ends[gram]!;
    let slot = 0;
    for (let i = end - n; i < end; i++) {
      slot = Math.imul(slot ^ this.#tokens[i]!, 0x9e3779b1);
      slot ^= slot >>> 15;
    }
    for (; ; slot++) {
      slot &= ends.length - 1;
      if (ends[slot] === 0 || this.#isSame(ends[slot]!, end, n)) return slot;
    }
  }

  #isSame(a: number, b: number, n: number): boolean {
    for (let i = 1; i <= n; i++) if (this.#tokens[a - i] !== this.#tokens[b - i]) return false;
    return true;
  }
}

/** Guesses from each sequence's own tokens. */
export class PromptLookup implements Guesser {
  readonly hopes = [0.8, 0.6, 0.4]; // for each of GRAMS
  readonly #found = new Map<number, { readonly index: NgramIndex; match: Match | undefined }>();

  async follow(): Promise<void> {}

  look({ sequence, tokens }: Decoding) {
    let found = this.#found.get(sequence);
    if (!found) {
      found = { index: new NgramIndex(tokens), match: undefined };
      this.#found.set(sequence, found);
    }
    found.match = found.index.find();
    return found.match && { kind: found.match.gram, most: MOST_GUESSED };
  }

  async guess(wanted: readonly Wanted<Decoding>[]): Promise<number[][]> {
    return wanted.map(({ of, count }) => {
      const { index, match } = this.#found.get(of.sequence)!;
      return index.after(match!.at, count);
    });
  }

  forget(sequence: number): void {
    this.#found.delete(sequence);
  }

  close(): void {}
}

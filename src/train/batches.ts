// Steps out of documents: sources mixed by their shares, each shuffled anew every time it is through, packed side by side
// as segments. Where it stands is a small object, so that a run can go on where it was.

import type { Tokenizer } from "../prompt/tokenizer.ts";
import type { Segment } from "../tensor/backend.ts";
import { TrainingError } from "../tensor/errors.ts";
import type { Documents, Example, Loss } from "./documents.ts";

/** One forward and backward pass. */
export interface Batch {
  readonly tokens: Int32Array; // [T]
  readonly segments: readonly Segment[];
  /** Rows that predict a token which counts, and these tokens. */
  readonly wanted: Int32Array;
  readonly targets: Int32Array; // [wanted]
  /** Tiles of bytes `[N, 3, S, S]` and the rows that stand for them. */
  readonly images?: { readonly pixels: Uint8Array; readonly tiles: number; readonly at: Int32Array };
}

/** What is drawn from, and how. */
export interface Mix {
  /** A source's share of the tokens; those left out have none. */
  readonly shares: Readonly<Record<string, number>>;
  readonly loss: Loss;
}

export interface BatchOptions {
  /** Most tokens of a batch. */
  readonly rows: number;
  /** Most tokens of a document in it; longer texts are cut. */
  readonly context: number;
  readonly tokensPerTile: number;
  readonly seed: number;
}

/** Where a source stands: the place in its shuffled order, how often it is through, and the token inside a cut document. */
interface Place {
  epoch: number;
  next: number;
  token: number;
  /** Tokens taken in this mix. */
  taken: number;
}

export type Cursor = Record<string, Place>;

const leastPiece = 64; // tokens; a text is not cut for less

/** Endless batches. The same seed and the same files give the same batches. */
export class Batches {
  readonly #sources: ReadonlyMap<string, Documents>;
  readonly #tokenizer: Tokenizer;
  readonly #options: BatchOptions;
  readonly #orders = new Map<string, { epoch: number; order: Uint32Array }>();
  #cursor: Cursor;

  constructor(sources: ReadonlyMap<string, Documents>, tokenizer: Tokenizer, options: BatchOptions, cursor?: Cursor) {
    this.#sources = sources;
    this.#tokenizer = tokenizer;
    this.#options = options;
    const start = () => ({ epoch: 0, next: 0, token: 0, taken: 0 });
    // A source that the cursor does not know is new in a run that goes on: it begins at its beginning.
    this.#cursor = Object.fromEntries(
      [...sources.keys()].map((name) => [name, cursor?.[name] ? { ...cursor[name] } : start()]),
    );
  }

  /** Where it stands, to go on from. */
  get cursor(): Cursor {
    return structuredClone(this.#cursor);
  }

  /** Begins a new mix: shares are counted from here. */
  remix(): void {
    for (const place of Object.values(this.#cursor)) place.taken = 0;
  }

  /**
   * The next batch: 2 to `rows` tokens, taken from the source that is furthest behind its share, a document a segment. Throws
   * TrainingError for a mix without a share or of an unknown source, for a wrong document, and for one that must not be
   * cut and does not fit.
   */
  async next(mix: Mix): Promise<Batch> {
    const packer = new Packer(this.#options, this.#tokenizer);
    while (packer.room > 0) {
      const name = this.#due(mix);
      const documents = this.#sources.get(name)!;
      const place = this.#cursor[name]!;
      const example = await documents.example(this.#orderOf(name)[place.next]!, this.#tokenizer, {
        loss: mix.loss,
        tokensPerTile: this.#options.tokensPerTile,
      });
      const taken = packer.add(example, place.token, documents);
      if (taken === 0) break; // the next batch begins with it
      place.taken += taken;
      place.token += taken;
      if (place.token + 1 < example.tokens.length) {
        if (example.divisible) continue; // the rest is next in line
        throw new Error(`${name}: a document was cut that must not be`);
      }
      place.token = 0;
      place.next++;
      if (place.next === documents.length) {
        place.next = 0;
        place.epoch++;
      }
    }
    return packer.batch();
  }

  /** The source that is furthest behind its share. */
  #due({ shares }: Mix): string {
    let due: string | undefined;
    let least = Infinity;
    for (const [name, share] of Object.entries(shares)) {
      const place = this.#cursor[name];
      if (!place)
        throw new TrainingError(`the mix names "${name}"; expected one of ${[...this.#sources.keys()].join(", ")}`);
      const done = share > 0 ? place.taken / share : Infinity;
      if (done < least) [due, least] = [name, done];
    }
    if (due === undefined) throw new TrainingError("a mix without a share above 0; expected at least one");
    return due;
  }

  #orderOf(name: string): Uint32Array {
    const { epoch } = this.#cursor[name]!;
    const known = this.#orders.get(name);
    if (known?.epoch === epoch) return known.order;
    const order = shuffled(this.#sources.get(name)!.length, `${this.#options.seed} ${name} ${epoch}`);
    this.#orders.set(name, { epoch, order });
    return order;
  }
}

/** The first documents of a source in the order of its file, in as many batches as hold `most` tokens. */
export async function* inOrder(
  documents: Documents,
  tokenizer: Tokenizer,
  options: Omit<BatchOptions, "seed">,
  { loss, most }: { loss: Loss; most: number },
): AsyncGenerator<Batch> {
  let packer = new Packer(options, tokenizer);
  let seen = 0;
  for (let i = 0; i < documents.length && seen < most; i++) {
    const example = await documents.example(i, tokenizer, { loss, tokensPerTile: options.tokensPerTile });
    for (let token = 0; token + 1 < example.tokens.length; ) {
      const taken = packer.add(example, token, documents);
      if (taken === 0) {
        yield packer.batch();
        packer = new Packer(options, tokenizer);
      }
      token += taken;
      seen += taken;
    }
  }
  if (seen > 0) yield packer.batch();
}

/** Fills a batch from its first row on. */
class Packer {
  readonly #options: Omit<BatchOptions, "seed">;
  readonly #patch: number | undefined;
  readonly #tokens: Int32Array;
  readonly #segments: Segment[] = [];
  readonly #wanted: number[] = [];
  readonly #targets: number[] = [];
  readonly #patches: number[] = [];
  readonly #tiles: { documents: Documents; tiles: readonly number[] }[] = [];
  #rows = 0;

  constructor(options: Omit<BatchOptions, "seed">, tokenizer: Tokenizer) {
    this.#options = options;
    this.#patch = tokenizer.special.get("<|patch|>");
    this.#tokens = new Int32Array(options.rows);
  }

  get room(): number {
    return this.#options.rows - this.#rows;
  }

  /**
   * Takes tokens of an example from `from` on and returns how many of them were learnt from: the last one taken is seen
   * again at the beginning of the next piece. 0 where nothing fits any more.
   */
  add({ tokens, counts, tiles, divisible }: Example, from: number, documents: Documents): number {
    const { context, rows } = this.#options;
    const left = tokens.length - from;
    const most = Math.min(context, this.room);
    if (left > most) {
      if (!divisible && left > Math.min(context, rows))
        throw new TrainingError(
          `${documents.name}: a chat or a document with images has ${left} tokens; expected at most ${Math.min(context, rows)}, the context and a batch's rows: shorten it, or raise them`,
        );
      if (!divisible || (this.#rows > 0 && most < Math.min(leastPiece, left))) return 0;
    }
    const length = Math.min(left, most);
    if (length < 2) return left < 2 ? left : 0;
    const row = this.#rows;
    for (let i = 0; i < length; i++) {
      const token = tokens[from + i]!;
      this.#tokens[row + i] = token;
      if (token === this.#patch) this.#patches.push(row + i);
      if (i + 1 < length && counts[from + i + 1]) {
        this.#wanted.push(row + i);
        this.#targets.push(tokens[from + i + 1]!);
      }
    }
    this.#segments.push({ row, length, position: 0, sequence: this.#segments.length });
    if (tiles.length > 0) this.#tiles.push({ documents, tiles });
    this.#rows += length;
    return length === left ? length : length - 1;
  }

  async batch(): Promise<Batch> {
    const pixels = await Promise.all(this.#tiles.map(({ documents, tiles }) => documents.pixels(tiles)));
    const all = new Uint8Array(pixels.reduce((sum, { length }) => sum + length, 0));
    let at = 0;
    for (const bytes of pixels) {
      all.set(bytes, at);
      at += bytes.length;
    }
    const tiles = this.#tiles.reduce((sum, { tiles }) => sum + tiles.length, 0);
    return {
      tokens: this.#tokens.slice(0, this.#rows),
      segments: this.#segments,
      wanted: Int32Array.from(this.#wanted),
      targets: Int32Array.from(this.#targets),
      ...(tiles > 0 && { images: { pixels: all, tiles, at: Int32Array.from(this.#patches) } }),
    };
  }
}

/** 0 … n − 1 in an order that depends on the key alone (Fisher–Yates). */
export function shuffled(n: number, key: string): Uint32Array {
  let state = 0;
  for (let i = 0; i < key.length; i++) state = Math.imul(state ^ key.charCodeAt(i), 0x9e3779b1) ^ (state >>> 15);
  const order = Uint32Array.from({ length: n }, (_, i) => i);
  for (let i = n - 1; i > 0; i--) {
    state = (state + 0x9e3779b9) | 0; // SplitMix's walk, mixed by MurmurHash3's finaliser
    let x = Math.imul(state ^ (state >>> 16), 0x85ebca6b);
    x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
    const j = Math.floor((((x ^ (x >>> 16)) >>> 0) / 2 ** 32) * (i + 1));
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  return order;
}

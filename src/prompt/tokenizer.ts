// Text to ids and back. tiktoken.ts, tokenizer-json.ts and gguf-vocabulary.ts make tokenizers out of files.
import { CheckpointError, RequestError } from "../tensor/errors.ts";
import { BytePairs, type MergeList, type MergeReader, type Vocabulary } from "./byte-pairs.ts";
import { type PreTokenizer, preTokenizer, sliceEnds } from "./pre-tokenizer.ts";
import { STOP_TOKENS } from "./special-tokens.ts";

export interface TokenizerParts {
  readonly vocabulary: Vocabulary;
  readonly special: ReadonlyMap<string, number>;
  /** Absent: the ids are the ranks. */
  readonly merges?: MergeList | MergeReader | undefined;
  /** Whether a piece that is a token as a whole is not merged step by step. */
  readonly wholePieces: boolean;
  /** The pre-tokeniser's regular expression. */
  readonly pattern: string;
}

/** What the checkpoint says beside its vocabulary; where it says nothing, tokens are found by their text. */
export interface TokenizerOptions {
  /** How many rows the model's embedding has; a vocabulary of another size is refused. */
  readonly vocabSize?: number | undefined;
  readonly bos?: number | undefined;
  /** Ids that end a reply, beside `<|end_of_text|>`, `<|eom|>` and `<|eot|>`. */
  readonly eos?: readonly number[] | undefined;
}

export interface EncodeOptions {
  /** Special tokens whose strings in the text become ids: all, or these. Default: none, they are ordinary text. */
  readonly allowSpecial?: boolean | ReadonlySet<string>;
  /** Whether the begin-of-text token stands in front. */
  readonly bos?: boolean;
}

export interface DecodeOptions {
  /** Leaves special tokens out of the text. */
  readonly skipSpecial?: boolean;
}

/** A byte-level BPE tokenizer. Never changes once made. */
export class Tokenizer {
  readonly pattern: string;
  readonly vocabSize: number;
  readonly special: ReadonlyMap<string, number>;
  readonly bos: number | undefined;
  /** The first of the tokens that end a reply: `<|end_of_text|>` where there is one. */
  readonly eos: number | undefined;
  /** All tokens that end a reply. */
  readonly stop: ReadonlySet<number>;
  readonly #pairs: BytePairs;
  readonly #pre: PreTokenizer;
  readonly #specialIds: ReadonlySet<number>;
  readonly #specialTrie: TrieNode;

  constructor(parts: TokenizerParts, options: TokenizerOptions = {}) {
    const { vocabulary, special, merges, wholePieces, pattern } = parts;
    this.vocabSize = vocabulary.offsets.length - 1;
    this.special = special;
    this.#specialIds = new Set(special.values());
    if (this.#specialIds.size !== special.size)
      throw new CheckpointError("tokenizer: two special tokens have the same id; expected one each");
    this.#specialTrie = trieOf(special);
    this.#pairs = new BytePairs(vocabulary, { merges, wholePieces });
    this.pattern = pattern;
    this.#pre = preTokenizer(pattern);
    const { vocabSize, bos = special.get("<|begin_of_text|>"), eos = [] } = options;
    if (vocabSize !== undefined && vocabSize !== this.vocabSize)
      throw new CheckpointError(
        `tokenizer: ${this.vocabSize} tokens and the model has ${vocabSize}; expected as many, so take the tokenizer that belongs to the model`,
      );
    for (const id of bos === undefined ? eos : [bos, ...eos])
      if (!(Number.isInteger(id) && id >= 0 && id < this.vocabSize))
        throw new CheckpointError(`tokenizer: the begin or end token is ${id}; expected an id below ${this.vocabSize}`);
    this.bos = bos;
    this.stop = new Set([...STOP_TOKENS.flatMap((text) => special.get(text) ?? []), ...eos]);
    this.eos = special.get("<|end_of_text|>") ?? eos[0];
  }

  /** The ids of a text. */
  encode(text: string, { allowSpecial = false, bos = false }: EncodeOptions = {}): Int32Array {
    const parts: Int32Array[] = [];
    if (bos) parts.push(Int32Array.of(this.#begin()));
    if (allowSpecial === false) this.#encodeOrdinary(text, parts);
    else
      for (const segment of this.segments(text, allowSpecial))
        if (typeof segment === "string") this.#encodeOrdinary(segment, parts);
        else parts.push(Int32Array.of(segment));
    if (parts.length === 1) return parts[0]!;
    const ids = new Int32Array(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) {
      ids.set(part, at);
      at += part.length;
    }
    return ids;
  }

  /** A text cut at the special tokens in it: strings between them, ids for them. */
  *segments(text: string, allowed: true | ReadonlySet<string> = true): Generator<string | number> {
    let done = 0;
    for (let i = 0; i < text.length; ) {
      const match = longestIn(this.#specialTrie, text, i, allowed);
      if (match === undefined) {
        i++;
        continue;
      }
      if (i > done) yield text.slice(done, i);
      yield match.id;
      i += match.length;
      done = i;
    }
    if (done < text.length) yield text.slice(done);
  }

  /** Where in a text the string of a special token starts, whole or cut off by the text's end (or the blanks there). */
  *specialStarts(text: string): Generator<number> {
    const end = text.trimEnd().length;
    for (let i = 0; i < end; i++) {
      let node: TrieNode | undefined = this.#specialTrie;
      for (let j = i; node; node = node.next.get(text.charCodeAt(j++))) {
        if (node.word || (j === end && j > i)) {
          yield i;
          break;
        }
      }
    }
  }

  /** The text of ids; bytes that are not UTF-8 become U+FFFD. */
  decode(ids: Iterable<number>, { skipSpecial = false }: DecodeOptions = {}): string {
    const { bytes, offsets } = this.#pairs.vocabulary;
    let out = new Uint8Array(1 << 10);
    let length = 0;
    for (const id of ids) {
      this.#checkId(id);
      if (skipSpecial && this.isSpecial(id)) continue;
      const end = offsets[id + 1]!;
      if (length + end - offsets[id]! > out.length) {
        const grown = new Uint8Array(2 * (length + end - offsets[id]!));
        grown.set(out);
        out = grown;
      }
      for (let i = offsets[id]!; i < end; i++) out[length++] = bytes[i]!;
    }
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(out.subarray(0, length));
  }

  /** A decoder fed one id at a time, which holds back the bytes of a character until it is whole. */
  streamDecoder({ skipSpecial = false }: DecodeOptions = {}): StreamDecoder {
    return new StreamDecoder(this, skipSpecial);
  }

  /** The bytes of a token; a special token's are its text. */
  tokenBytes(id: number): Uint8Array {
    this.#checkId(id);
    const { bytes, offsets } = this.#pairs.vocabulary;
    return bytes.subarray(offsets[id]!, offsets[id + 1]!);
  }

  isSpecial(id: number): boolean {
    return this.#specialIds.has(id);
  }

  /** The id of a special token that the caller cannot do without. */
  specialId(text: string): number {
    const id = this.special.get(text);
    if (id === undefined)
      throw new CheckpointError(
        `tokenizer: no special token ${text} among its ${this.special.size}; expected a vocabulary of Llama 4, or a checkpoint with a chat template of its own`,
      );
    return id;
  }

  /** What it was made of; without a merge list where that says no more than the ids. */
  get parts(): TokenizerParts & { readonly merges: MergeList | undefined } {
    const { vocabulary, merges, wholePieces } = this.#pairs;
    return { vocabulary, special: this.special, merges, wholePieces, pattern: this.pattern };
  }

  /** The merge list, derived from the ids where they are the ranks. */
  mergeList(): MergeList {
    return this.#pairs.merges ?? this.#pairs.impliedMerges();
  }

  #checkId(id: number): void {
    if (!(Number.isInteger(id) && id >= 0 && id < this.vocabSize))
      throw new RequestError(`token id ${id}; expected a whole number below ${this.vocabSize}`);
  }

  #begin(): number {
    if (this.bos === undefined)
      throw new CheckpointError(
        "tokenizer: no begin-of-text token; expected `<|begin_of_text|>` or one that the checkpoint names",
      );
    return this.bos;
  }

  #encodeOrdinary(text: string, parts: Int32Array[]): void {
    const bytes = new TextEncoder().encode(text);
    let start = 0;
    for (const end of sliceEnds(bytes)) {
      const ends = new Int32Array(end - start);
      const ids = new Int32Array(end - start);
      const pieces = this.#pre.split(bytes, start, end, ends);
      let n = 0;
      for (let i = 0; i < pieces; i++) {
        n = this.#pairs.encode(bytes, start, ends[i]!, ids, n);
        start = ends[i]!;
      }
      parts.push(ids.slice(0, n));
    }
  }
}

/** Turns ids into text one at a time: the pieces joined are what `decode` gives for all ids. */
export class StreamDecoder {
  readonly #tokenizer: Tokenizer;
  readonly #skipSpecial: boolean;
  readonly #utf8 = new TextDecoder("utf-8", { ignoreBOM: true });

  constructor(tokenizer: Tokenizer, skipSpecial: boolean) {
    this.#tokenizer = tokenizer;
    this.#skipSpecial = skipSpecial;
  }

  /** The text that this id completes, which may be none. */
  push(id: number): string {
    const bytes = this.#tokenizer.tokenBytes(id);
    if (this.#skipSpecial && this.#tokenizer.isSpecial(id)) return "";
    return this.#utf8.decode(bytes, { stream: true });
  }

  /** What was held back, as U+FFFD; the decoder is then as new. */
  end(): string {
    return this.#utf8.decode();
  }
}

interface TrieNode {
  readonly next: Map<number, TrieNode>; // by code unit
  word?: { readonly id: number; readonly text: string; readonly length: number };
}

function trieOf(words: ReadonlyMap<string, number>): TrieNode {
  const root: TrieNode = { next: new Map() };
  for (const [text, id] of words) {
    let node = root;
    for (let i = 0; i < text.length; i++) {
      const unit = text.charCodeAt(i);
      let child = node.next.get(unit);
      if (!child) {
        child = { next: new Map() };
        node.next.set(unit, child);
      }
      node = child;
    }
    if (node !== root) node.word = { id, text, length: text.length };
  }
  return root;
}

function longestIn(root: TrieNode, text: string, at: number, allowed: true | ReadonlySet<string>): TrieNode["word"] {
  let longest: TrieNode["word"];
  let node: TrieNode | undefined = root;
  for (let i = at; i < text.length; i++) {
    node = node.next.get(text.charCodeAt(i));
    if (!node) break;
    if (node.word && (allowed === true || allowed.has(node.word.text))) longest = node.word;
  }
  return longest;
}

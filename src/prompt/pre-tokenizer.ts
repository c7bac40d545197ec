// Text is cut into pieces before byte pairs merge; no token crosses a piece. Everything here works on UTF-8 bytes.
import { CheckpointError } from "../tensor/errors.ts";

/** Cuts `bytes[start .. end]`, which is whole UTF-8, into pieces. */
export interface PreTokenizer {
  /** The regular expression as Hugging Face's tokenizer.json and tiktoken write it. */
  readonly pattern: string;
  /** Writes where each piece ends to `ends` (at most one a byte) and returns how many there are. */
  split(bytes: Uint8Array, start: number, end: number, ends: Int32Array): number;
}

/** Llama 4's own pattern, the one OpenAI calls o200k: spec §9.2. */
export const LLAMA4_PATTERN =
  "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|" +
  "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|" +
  "\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/** Llama 3's pattern; small dense relatives of Llama 4 carry it. */
export const LLAMA3_PATTERN =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/** GPT-2's pattern, which a tokenizer.json means by ByteLevel with `use_regex`. */
export const GPT2_PATTERN = "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/** The pre-tokeniser for a pattern: by hand for Llama 4's, by JavaScript's engine for any other. */
export function preTokenizer(pattern: string): PreTokenizer {
  return pattern === LLAMA4_PATTERN ? new Llama4PreTokenizer() : new PatternPreTokenizer(pattern);
}

/** Meta encodes text in slices of this many characters, and no run of spaces or of non-spaces longer than `MAX_RUN`. */
const MAX_SLICE = 400_000;
const MAX_RUN = 25_000;

/** Where the slices of a text end, which are encoded independently (spec §9.4; characters are code points). */
export function sliceEnds(bytes: Uint8Array): number[] {
  const ends: number[] = [];
  if (bytes.length > MAX_RUN) {
    let characters = 0; // in the slice of MAX_SLICE that is open
    let run = 0;
    let inSpace = false;
    for (let i = 0, width = 1; i < bytes.length; i += width) {
      if (characters === MAX_SLICE) {
        ends.push(i);
        characters = 0;
        run = 0;
      }
      characters++;
      const lead = bytes[i]!;
      width = widthOf(lead);
      const isSpace = isPythonSpace(lead < 0x80 ? lead : codePointAt(bytes, i));
      if (run > 0 && isSpace !== inSpace) run = 0;
      inSpace = isSpace;
      if (++run > MAX_RUN) {
        ends.push(i);
        run = 1;
      }
    }
  }
  if (bytes.length > 0) ends.push(bytes.length);
  return ends;
}

// Python's str.isspace(), which cuts the runs: Unicode White_Space and the four separators U+001C .. U+001F.
function isPythonSpace(c: number): boolean {
  return c < 0x80 ? c === 0x20 || (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x1f) : isWhiteSpace(c);
}

// Unicode White_Space, which the regular expression's \s means. JavaScript's \s differs at U+0085 and U+FEFF.
function isWhiteSpace(c: number): boolean {
  if (c < 0x80) return c === 0x20 || (c >= 0x09 && c <= 0x0d);
  if (c < 0x1680) return c === 0x85 || c === 0xa0;
  return (
    c === 0x1680 ||
    (c >= 0x2000 && c <= 0x200a) ||
    c === 0x2028 ||
    c === 0x2029 ||
    c === 0x202f ||
    c === 0x205f ||
    c === 0x3000
  );
}

const widthOf = (lead: number): number => (lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4);

function codePointAt(bytes: Uint8Array, i: number): number {
  const lead = bytes[i]!;
  if (lead < 0x80) return lead;
  if (lead < 0xe0) return ((lead & 0x1f) << 6) | (bytes[i + 1]! & 0x3f);
  if (lead < 0xf0) return ((lead & 0x0f) << 12) | ((bytes[i + 1]! & 0x3f) << 6) | (bytes[i + 2]! & 0x3f);
  return (
    ((lead & 0x07) << 18) | ((bytes[i + 1]! & 0x3f) << 12) | ((bytes[i + 2]! & 0x3f) << 6) | (bytes[i + 3]! & 0x3f)
  );
}

// The classes of characters that Llama 4's pattern tells apart; every character is in exactly one. They are those of
// the Unicode version that JavaScript's engine has: tiktoken 0.14 has 16.0, so that a character assigned since then,
// such as U+0C5C, can be cut differently.
const UPPER = 1; // Lu, Lt: only in the first set of letters
const LOWER = 2; // Ll: only in the second
const LETTER = 4; // Lm, Lo: in both
const MARK = 8; // M: in both, but no letter, so also what [^\s\p{L}\p{N}] takes
const NUMBER = 16;
const NEWLINE = 32; // \r and \n
const SPACE = 64; // the rest of White_Space
const OTHER = 128;

const UNICODE_CLASSES: readonly (readonly [RegExp, number])[] = [
  [/^[\p{Lu}\p{Lt}]$/u, UPPER],
  [/^\p{Ll}$/u, LOWER],
  [/^\p{L}$/u, LETTER],
  [/^\p{M}$/u, MARK],
  [/^\p{N}$/u, NUMBER],
];

function classOf(c: number): number {
  if (c === 0x0a || c === 0x0d) return NEWLINE;
  if (isWhiteSpace(c)) return SPACE;
  const character = String.fromCodePoint(c);
  return UNICODE_CLASSES.find(([set]) => set.test(character))?.[1] ?? OTHER;
}

/**
 * Llama 4's pattern by hand: what its alternatives match, in their order, after backtracking. In the comments U is
 * UPPER, l LOWER, B LETTER or MARK; `[UB]*` is the first set of letters, `[lB]*` the second.
 */
class Llama4PreTokenizer implements PreTokenizer {
  readonly pattern = LLAMA4_PATTERN;
  readonly #pages: (Uint8Array | undefined)[] = []; // classes of 256 code points a page, made when first met
  readonly #ascii = this.#page(0);
  #bytes: Uint8Array = new Uint8Array(0);
  #end = 0;
  #width = 0; // of the character that #classAt saw

  split(bytes: Uint8Array, start: number, end: number, ends: Int32Array): number {
    this.#bytes = bytes;
    this.#end = end;
    let count = 0;
    for (let at = start; at < end; ) {
      at = this.#next(at);
      ends[count++] = at;
    }
    this.#bytes = new Uint8Array(0); // the text is the caller's; keep no hold on it
    return count;
  }

  #next(start: number): number {
    const first = this.#classAt(start);
    if (first & NUMBER) return this.#number(start);
    const afterFirst = start + this.#width;
    const letters = this.#letters(start, first, afterFirst);
    if (letters > 0) return this.#contraction(letters);
    return this.#punctuation(start) || this.#space(start);
  }

  // \p{N}{1,3}
  #number(at: number): number {
    for (let i = 0; i < 3 && this.#classAt(at) & NUMBER; i++) at += this.#width;
    return at;
  }

  // [^\r\n\p{L}\p{N}]?[UB]*[lB]+ and, failing that, [^\r\n\p{L}\p{N}]?[UB]+[lB]*; 0 where neither matches.
  #letters(start: number, first: number, afterFirst: number): number {
    const body = first & (MARK | SPACE | OTHER) ? afterFirst : start;
    let at = body;
    let lastBoth = 0; // where the last B of [UB]* ends
    let set = this.#classAt(at);
    while (set & (UPPER | LETTER | MARK)) {
      at += this.#width;
      if (set & (LETTER | MARK)) lastBoth = at;
      set = this.#classAt(at);
    }
    if (set & LOWER) {
      while (set & (LOWER | LETTER | MARK)) {
        at += this.#width;
        set = this.#classAt(at);
      }
      return at;
    }
    if (lastBoth > 0) return lastBoth; // [UB]* gives back its last B, which is then all of [lB]+
    if (first & MARK) return afterFirst; // the mark is not the leading character but [lB]+
    return at > body ? at : 0; // only U: the second alternative
  }

  // (?i:'s|'t|'re|'ve|'m|'ll|'d)?, where (?i:s) is also U+017F, the long s
  #contraction(at: number): number {
    const bytes = this.#bytes;
    if (at + 1 >= this.#end || bytes[at] !== 0x27) return at;
    const a = bytes[at + 1]! | 0x20;
    if (a === 0x73 || a === 0x74 || a === 0x6d || a === 0x64) return at + 2;
    if (at + 2 >= this.#end) return at;
    if (bytes[at + 1] === 0xc5 && bytes[at + 2] === 0xbf) return at + 3;
    const b = bytes[at + 2]! | 0x20;
    return ((a === 0x72 || a === 0x76) && b === 0x65) || (a === 0x6c && b === 0x6c) ? at + 3 : at;
  }

  // " ?[^\s\p{L}\p{N}]+[\r\n/]*"; 0 where it does not match
  #punctuation(start: number): number {
    const bytes = this.#bytes;
    let at = bytes[start] === 0x20 ? start + 1 : start;
    const body = at;
    while (this.#classAt(at) & (OTHER | MARK)) at += this.#width;
    if (at === body) return 0;
    while (at < this.#end && (bytes[at] === 0x0d || bytes[at] === 0x0a || bytes[at] === 0x2f)) at++;
    return at;
  }

  // \s*[\r\n]+|\s+(?!\S)|\s+
  #space(start: number): number {
    let at = start;
    let lastStart = start; // of the run's last character
    let afterNewline = 0;
    for (let set = this.#classAt(at); set & (NEWLINE | SPACE); set = this.#classAt(at)) {
      lastStart = at;
      at += this.#width;
      if (set & NEWLINE) afterNewline = at;
    }
    if (afterNewline > 0) return afterNewline;
    return at === this.#end || lastStart === start ? at : lastStart;
  }

  #classAt(at: number): number {
    if (at >= this.#end) return 0;
    const lead = this.#bytes[at]!;
    if (lead < 0x80) {
      this.#width = 1;
      return this.#ascii[lead]!;
    }
    this.#width = widthOf(lead);
    const c = codePointAt(this.#bytes, at);
    return (this.#pages[c >> 8] ?? this.#page(c >> 8))[c & 0xff]!;
  }

  #page(number: number): Uint8Array {
    const page = new Uint8Array(256);
    for (let i = 0; i < 256; i++) page[i] = classOf(256 * number + i);
    this.#pages[number] = page;
    return page;
  }
}

const MAX_PATTERN = 4096;

/** Any other pattern, by JavaScript's engine. Text between two matches is a piece of its own. */
class PatternPreTokenizer implements PreTokenizer {
  readonly pattern: string;
  readonly #regex: RegExp;
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });

  constructor(pattern: string) {
    this.pattern = pattern;
    this.#regex = compile(pattern);
  }

  split(bytes: Uint8Array, start: number, end: number, ends: Int32Array): number {
    const text = this.#decoder.decode(bytes.subarray(start, end));
    let count = 0;
    let at = start;
    let seen = 0; // code units of `text` that lie before `at`
    const cut = (unit: number) => {
      if (unit === seen) return;
      for (; seen < unit; seen++) {
        const width = widthOf(bytes[at]!);
        at += width;
        if (width === 4) seen++; // a surrogate pair
      }
      ends[count++] = at;
    };
    for (const match of text.matchAll(this.#regex)) {
      cut(match.index);
      cut(match.index + match[0].length);
    }
    cut(text.length);
    return count;
  }
}

// Oniguruma's and Rust's spelling to JavaScript's: \s as Unicode means it, and (?i:…) written out.
function compile(pattern: string): RegExp {
  const problem = (what: string) =>
    new CheckpointError(
      `tokenizer: the pre-tokeniser's pattern ${JSON.stringify(pattern.slice(0, 80))} ${what}; expected one like Llama 4's, Llama 3's or GPT-2's`,
    );
  if (pattern.length > MAX_PATTERN) throw problem(`has ${pattern.length} characters`);
  // A repeated group can take exponential time on chosen text; no known tokenizer has one.
  if (/\)(?:[*+]|\{\d+,?\d*\})/u.test(pattern)) throw problem("repeats a group");
  const portable = pattern
    .replaceAll(/\(\?i:([A-Za-z'|]*)\)/gu, (_, body: string) => `(?:${body.replaceAll(/[A-Za-z]/gu, foldLetter)})`)
    .replaceAll(/\\([sS])/gu, (_, letter: string) => `\\${letter === "s" ? "p" : "P"}{White_Space}`);
  try {
    return new RegExp(portable, "gu");
  } catch {
    throw problem("is not one that JavaScript can run");
  }
}

const foldLetter = (letter: string): string =>
  `[${letter.toLowerCase()}${letter.toUpperCase()}${letter.toLowerCase() === "s" ? "\u017f" : ""}]`;

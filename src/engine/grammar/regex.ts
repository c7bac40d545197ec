// Regular languages over bytes as terms, and their derivatives: what is left of a language once a byte has been read
// (Brzozowski 1964, "Derivatives of regular expressions"). Equal terms are one object, so a term is a state of an automaton
// that comes into being as it is walked, and intersection and complement are terms like others.

import { RequestError } from "../../tensor/errors.ts";
import { type CodePoints, utf8Ranges } from "./code-points.ts";

type Kind = "empty" | "end" | "bytes" | "concat" | "union" | "loop" | "and" | "not" | "multiples";

/** A language, and a state: what may still come. */
export interface Regex {
  readonly id: number;
  readonly kind: Kind;
  readonly parts: readonly Regex[];
  /** Of "bytes": 256 bits. */
  readonly set: Uint32Array | undefined;
  /** Of "loop": how often its part comes; of "multiples": what is left of the digits before, divided by `most`. */
  readonly least: number;
  readonly most: number;
  /** Whether the language may end here. */
  readonly isNullable: boolean;
  /** Whether it may be empty although it is not written so. */
  readonly isDoubtful: boolean;
  /** So many plain characters of a JSON string, whichever, can follow before anything else can. */
  readonly plainRun: number;
  /** By byte, once it has been asked for; `empty` where the byte cannot come. */
  readonly next: (Regex | undefined)[];
  /** The sets of bytes that its derivatives tell apart, or more than many of them, once they have been asked for. */
  firsts: readonly Uint32Array[] | undefined;
  /** Classes of bytes that lead back to it (`selfLoops`), once they have been asked for. */
  loops: number | undefined;
  isAlive: boolean | undefined;
}

/** What work uses up. */
interface Account {
  /** Each needs some 3 kB, its transitions included. */
  terms: number;
  /** Derivatives, those of parts of terms among them. */
  derived: number;
}

const MOST: Readonly<Account> = { terms: 100_000, derived: 20_000_000 }; // 300 MB, some seconds
const MOST_OF_GUESSES: Readonly<Account> = { terms: 25_000, derived: 5_000_000 };
const MOST_TRIED = 1_000_000; // derivatives, to find out whether anything is in a language; some seconds
const MOST_TEXT = 20_000; // bytes
const MANY_SETS = 64; // of bytes that a term tells apart: then each byte is looked at by itself
const MANY_RANGES = 100; // what Unicode's properties have, and hardly another class
const MOST_RANGES = 50_000; // of code points, in all large classes: half a second

/** All terms of a grammar. */
export class Regexes {
  readonly empty: Regex;
  readonly end: Regex;
  readonly #terms = new Map<string, Regex>();
  /** What a plain character of a JSON string is, among others: see `plainRun`. */
  readonly #plain = new Set<Regex>();
  /** Concatenations by the numbers of their two parts: most terms of a schema are, and a number is found sooner than a text. */
  readonly #pairs = new Map<number, Regex>();
  /** By byte, once it has come up in a text. */
  readonly #single: Regex[] = [];
  /** Of texts that have come up: a schema's brackets and names come again with each alternative. */
  readonly #texts = new Map<string, Regex>();
  #ranges = 0; // of large classes
  #size = 0;
  /** What the grammar and its replies have used, and what it was when the grammar was made. */
  readonly #used: Account = { terms: 0, derived: 0 };
  #made: Readonly<Account> = { terms: 0, derived: 0 };
  readonly #usedByGuesses: Account = { terms: 0, derived: 0 };
  #isGuessing = false;

  constructor() {
    this.empty = this.#term("empty", [], { isNullable: false });
    this.end = this.#term("end", [], { isNullable: true });
  }

  get size(): number {
    return this.#size;
  }

  /** Derivatives so far, those of parts of terms among them: the work that was done. */
  get derived(): number {
    return this.#used.derived + this.#usedByGuesses.derived;
  }

  /** The grammar is made: what is used from here on, replies use. */
  made(): void {
    this.#made = { ...this.#used };
  }

  /** Whether replies, or guesses, have used half of what the grammar left them: the next one better begins with a fresh one. */
  get isHalfFull(): boolean {
    const isHalf = (used: Account, made: Account, most: Account) =>
      used.terms > (most.terms + made.terms) / 2 || used.derived > (most.derived + made.derived) / 2;
    return (
      isHalf(this.#used, this.#made, MOST) || isHalf(this.#usedByGuesses, { terms: 0, derived: 0 }, MOST_OF_GUESSES)
    );
  }

  /** Work for a guess, which has less to use than a reply has, and takes nothing from it: where it is wrong, nobody needs it. */
  guessing<T>(work: () => T): T {
    this.#isGuessing = true;
    try {
      return work();
    } finally {
      this.#isGuessing = false;
    }
  }

  #use(what: keyof Account): void {
    const [used, most] = this.#isGuessing ? [this.#usedByGuesses, MOST_OF_GUESSES] : [this.#used, MOST];
    if (used[what] >= most[what]) throw what === "terms" ? tooManyStates() : tooManySteps();
    used[what]++;
  }

  bytes(set: Uint32Array): Regex {
    if (set.every((word) => word === 0)) return this.empty;
    return this.#term("bytes", [], { set, isNullable: false, extra: [...set].join() });
  }

  range(low: number, high: number): Regex {
    const set = new Uint32Array(8);
    for (let byte = low; byte <= high; byte++) set[byte >> 5]! |= 1 << (byte & 31);
    return this.bytes(set);
  }

  /** The bytes of a text. */
  text(text: string): Regex {
    const known = this.#texts.get(text) ?? this.#text(text);
    this.#texts.set(text, known);
    return known;
  }

  #text(text: string): Regex {
    const bytes = new TextEncoder().encode(text);
    if (bytes.length > MOST_TEXT)
      throw new RequestError(
        `the constraint has a text of ${bytes.length.toLocaleString("en")} bytes; expected at most ${MOST_TEXT.toLocaleString("en")}`,
      );
    return this.concat(...Array.from(bytes, (byte) => (this.#single[byte] ??= this.range(byte, byte))));
  }

  /** One character of a set, in UTF-8. */
  character(set: CodePoints): Regex {
    if (set.length > MANY_RANGES) this.#ranges += set.length;
    if (this.#ranges > MOST_RANGES)
      throw new RequestError(
        "the constraint has too many large classes of characters; expected fewer different ones with \\p{…} in them",
      );
    const sequences = Array.from(utf8Ranges(set), (ranges) => this.concat(...ranges.map(([a, b]) => this.range(a, b))));
    return this.union(...sequences);
  }

  /** One behind the other. */
  concat(...parts: readonly Regex[]): Regex {
    return parts.reduceRight((tail, head) => this.#pair(head, tail), this.end);
  }

  #pair(head: Regex, tail: Regex): Regex {
    if (head === this.empty || tail === this.empty) return this.empty;
    if (head === this.end) return tail;
    if (tail === this.end) return head;
    if (head.kind === "concat") return this.#pair(head.parts[0]!, this.#pair(head.parts[1]!, tail));
    const key = head.id * 2 ** 20 + tail.id; // MOST.terms are far fewer
    const known = this.#pairs.get(key) ?? this.#once(head, tail);
    this.#pairs.set(key, known);
    return known;
  }

  /** Two that are no concatenation yet. */
  #once(head: Regex, tail: Regex): Regex {
    const { head: loop, tail: behind } = this.#counted(tail);
    if (head.kind === "loop" && loop && loop.parts[0] === head.parts[0])
      return this.#pair(this.loop(head.parts[0]!, head.least + loop.least, head.most + loop.most), behind);
    const isRun = head.kind === "loop" && this.#plain.has(head.parts[0]!) && !tail.isNullable;
    return this.#new("concat", [head, tail], {
      isNullable: head.isNullable && tail.isNullable,
      plainRun: isRun ? head.most : 0,
    });
  }

  /** Any of them. */
  union(...parts: readonly Regex[]): Regex {
    const members = new Set<Regex>();
    let set: Uint32Array | undefined;
    for (const part of flat("union", parts)) {
      if (part.kind !== "bytes") members.add(part);
      else if (!set) set = part.set!.slice();
      else for (let i = 0; i < 8; i++) set[i]! |= part.set![i]!;
    }
    if (set) members.add(this.bytes(set));
    members.delete(this.empty);
    const sorted = [...members].sort((a, b) => a.id - b.id);
    if (sorted.length === 0) return this.empty;
    if (sorted.length === 1) return sorted[0]!;
    return this.#term("union", sorted, { isNullable: sorted.some((part) => part.isNullable) });
  }

  /** `least` to `most` times, one behind the other. */
  loop(part: Regex, least: number, most: number): Regex {
    if (most < least) return this.empty;
    if (part === this.empty || part === this.end || most === 0) return least > 0 ? part : this.end;
    if (part.isNullable) least = 0;
    if (least === 1 && most === 1) return part;
    const isNullable = least === 0;
    return this.#term("loop", [part], { isNullable, least, most, extra: `${least} ${most}` });
  }

  optional(part: Regex): Regex {
    return this.union(part, this.end);
  }

  many(part: Regex): Regex {
    return this.loop(part, 0, Infinity);
  }

  /** Digits of the multiples of a whole number, behind digits that leave `rest`; a point among them changes nothing. */
  multiples(of: number, rest = 0): Regex {
    return this.#term("multiples", [], { isNullable: rest === 0, least: rest, most: of, extra: `${rest} ${of}` });
  }

  /** What all of them have in common. */
  and(...parts: readonly Regex[]): Regex {
    const members = new Set(flat("and", parts));
    if (members.has(this.empty)) return this.empty;
    if (members.has(this.end)) return [...members].every((part) => part.isNullable) ? this.end : this.empty;
    for (const { kind, parts } of members)
      if (kind === "not") for (const other of flat("union", parts)) if (members.has(other)) return this.empty;
    const sorted = [...members].sort((a, b) => a.id - b.id);
    if (sorted.length === 1) return sorted[0]!;
    return this.#term("and", sorted, { isNullable: sorted.every((part) => part.isNullable), isDoubtful: true });
  }

  /** All byte strings but its. */
  not(part: Regex): Regex {
    if (part.kind === "not") return part.parts[0]!;
    return this.#term("not", [part], { isNullable: !part.isNullable, isDoubtful: true });
  }

  /** A term of which it is promised that every plain character of a JSON string is in it. */
  plain(part: Regex): Regex {
    this.#plain.add(part);
    return part;
  }

  /** A term that agrees with this one for the next `length` bytes; the same one for counts that are farther away than that. */
  near(term: Regex, length: number): Regex {
    const { head, tail } = this.#counted(term);
    if (!head || (head.least <= length + 1 && (head.most <= length + 1 || head.most === Infinity))) return term;
    const most = head.most > length + 1 ? Infinity : head.most;
    return this.#pair(this.loop(head.parts[0]!, Math.min(head.least, length + 1), most), tail);
  }

  /** A number of bytes that its counts are farther away than, so that `near` is the same for many counts; 0 where it counts nothing. */
  countedBytes(term: Regex): number {
    const { least = 0, most = Infinity } = this.#counted(term).head ?? {};
    if (least > 1) return 2 ** Math.floor(Math.log2(least - 1));
    return most < Infinity ? Math.max(0, most - 2) : 0;
  }

  /** The loop with which a term begins, and what follows it. */
  #counted(term: Regex): { readonly head: Regex | undefined; readonly tail: Regex } {
    const [head, tail] = term.kind === "concat" ? (term.parts as [Regex, Regex]) : [term, this.end];
    return { head: head.kind === "loop" ? head : undefined, tail };
  }

  /** What is left once `byte` has been read; `empty` exactly where nothing is. */
  next(term: Regex, byte: number): Regex {
    const known = term.next[byte];
    if (known) return known;
    const derived = this.#derive(term, byte);
    const next = this.isAlive(derived) ? derived : this.empty;
    const alike = this.#alike(term, byte);
    for (let i = 0; i < 8; i++)
      for (let left = alike[i]!; left !== 0; left &= left - 1) term.next[32 * i + 31 - Math.clz32(left & -left)] = next;
    return next;
  }

  /** The bytes whose derivatives are the same as this one's (Owens et al. 2009, "Regular-expression derivatives re-examined"). */
  #alike(term: Regex, byte: number): Uint32Array {
    const sets = this.#firsts(term);
    const bytes = new Uint32Array(8).fill(sets.length > MANY_SETS ? 0 : 0xffffffff);
    bytes[byte >> 5]! |= 1 << (byte & 31);
    for (const set of sets) {
      const flip = (set[byte >> 5]! >>> (byte & 31)) & 1 ? 0 : -1;
      for (let i = 0; i < 8; i++) bytes[i]! &= set[i]! ^ flip;
    }
    return bytes;
  }

  /** Not all, where there are more than many. */
  #firsts(term: Regex): readonly Uint32Array[] {
    if (term.firsts) return term.firsts;
    const [head] = term.parts;
    const parts = term.kind === "concat" && !head!.isNullable ? [head!] : term.parts;
    const sets = new Set(term.kind === "multiples" ? DIGITS : term.set ? [term.set] : []);
    for (const part of parts) if (sets.size <= MANY_SETS) for (const set of this.#firsts(part)) sets.add(set);
    term.firsts = parts.length === 1 ? this.#firsts(parts[0]!) : [...sets];
    return term.firsts;
  }

  /** Whether any string is in it. */
  isAlive(term: Regex): boolean {
    if (term.isAlive !== undefined) return term.isAlive;
    if (!term.isDoubtful || term.isNullable) {
      term.isAlive = term !== this.empty;
      return term.isAlive;
    }
    return this.#search(term);
  }

  /** Whether a string is in it. */
  has(term: Regex, text: string): boolean {
    return new TextEncoder().encode(text).reduce((left, byte) => this.next(left, byte), term).isNullable;
  }

  // Goes deep until something can end; all on the way there is alive. Where nothing can, all that was seen is dead.
  #search(term: Regex): boolean {
    const seen = new Set([term]);
    const untried = () => new Uint32Array(8).fill(0xffffffff);
    const path = [{ term, at: 0, left: untried() }];
    let tried = 0;
    while (path.length > 0) {
      const here = path.at(-1)!;
      const byte = LIKELY_FIRST[here.at++];
      if (byte === undefined) {
        path.pop();
        continue;
      }
      if (!((here.left[byte >> 5]! >>> (byte & 31)) & 1)) continue;
      if (++tried > MOST_TRIED) throw tooManyStates();
      const alike = this.#alike(here.term, byte);
      for (let i = 0; i < 8; i++) here.left[i]! &= ~alike[i]!;
      const next = this.#derive(here.term, byte);
      const isFound = next.isAlive ?? (next !== this.empty && (next.isNullable || !next.isDoubtful));
      if (isFound) {
        for (const { term } of path) term.isAlive = true;
        return true;
      }
      if (next.isAlive === false || next === this.empty || seen.has(next)) continue;
      seen.add(next);
      path.push({ term: next, at: 0, left: untried() });
    }
    for (const dead of seen) dead.isAlive = false;
    return false;
  }

  #derive(term: Regex, byte: number): Regex {
    this.#use("derived");
    switch (term.kind) {
      case "empty":
      case "end":
        return this.empty;
      case "bytes":
        return (term.set![byte >> 5]! >>> (byte & 31)) & 1 ? this.end : this.empty;
      case "concat": {
        const [head, tail] = term.parts as [Regex, Regex];
        const through = this.#pair(this.#derive(head, byte), tail);
        if (!head.isNullable) return through;
        // in a row of what may be nothing each tail is asked for by all that stand before it: once is enough
        return this.union(through, tail.isDoubtful ? this.#derive(tail, byte) : this.next(tail, byte));
      }
      case "union":
        return this.union(...term.parts.map((part) => this.#derive(part, byte)));
      case "loop": {
        const part = term.parts[0]!;
        return this.#pair(this.#derive(part, byte), this.loop(part, Math.max(0, term.least - 1), term.most - 1));
      }
      case "multiples":
        if (byte === POINT) return term;
        if (byte < ZERO || byte > ZERO + 9) return this.empty;
        return this.multiples(term.most, (10 * term.least + byte - ZERO) % term.most);
      case "and": {
        const parts: Regex[] = [];
        for (const part of term.parts) {
          const next = this.#derive(part, byte);
          if (next === this.empty) return next;
          parts.push(next);
        }
        return this.and(...parts);
      }
      case "not":
        return this.not(this.#derive(term.parts[0]!, byte));
      default:
        throw new Error(`no such term: ${term.kind satisfies never}`);
    }
  }

  #term(kind: Kind, parts: readonly Regex[], { extra = "", ...more }: Own & { readonly extra?: string }): Regex {
    const key = `${kind} ${parts.map(({ id }) => id).join()} ${extra}`;
    const known = this.#terms.get(key) ?? this.#new(kind, parts, more);
    this.#terms.set(key, known);
    return known;
  }

  #new(kind: Kind, parts: readonly Regex[], { isDoubtful = false, ...more }: Own): Regex {
    this.#use("terms");
    return {
      ...{ id: this.#size++, kind, parts, set: undefined, least: 0, most: 0, plainRun: 0 },
      ...more,
      isDoubtful: isDoubtful || parts.some((part) => part.isDoubtful),
      next: [],
      firsts: undefined,
      loops: undefined,
      isAlive: undefined,
    };
  }
}

/** What a term says beside its kind and its parts. */
type Own = Partial<Omit<Regex, "id" | "kind" | "parts" | "next" | "firsts" | "loops">> & {
  readonly isNullable: boolean;
};

const tooManyStates = () =>
  new RequestError(
    "the constraint needs more than 100,000 states; expected simpler patterns: fewer long counts beside each other",
  );

const tooManySteps = () =>
  new RequestError(
    "the constraint's patterns take too long to go through; expected fewer of them at once, or fewer parts that may be anything",
  );

const ZERO = 0x30;
const POINT = 0x2e;
/** The sets of bytes that multiples tell apart. */
const DIGITS = [POINT, ...Array.from({ length: 10 }, (_, digit) => ZERO + digit)].map((byte) => {
  const set = new Uint32Array(8);
  set[byte >> 5]! |= 1 << (byte & 31);
  return set;
});

/** Letters, digits and marks before the rest: most languages end soon along them. */
const LIKELY_FIRST: readonly number[] = [
  ...[0x22, 0x61, 0x30, 0x41],
  ...Array.from({ length: 256 }, (_, byte) => byte).sort((a, b) => ((a + 224) % 256) - ((b + 224) % 256)),
].filter((byte, i, all) => all.indexOf(byte) === i);

function* flat(kind: Kind, parts: readonly Regex[]): Generator<Regex> {
  for (const part of parts)
    if (part.kind === kind) yield* part.parts;
    else yield part;
}

// JavaScript's regular expressions, with flag u, as terms. The subset: characters, classes, escapes (\d \w \s \p{…} \u…),
// groups, alternatives, counts, ^ and $, and what looks ahead. What looks behind, refers back or knows words is refused.

import { RequestError } from "../../tensor/errors.ts";
import { ALL, type CodePoints, complement, ofClass, ofText, union } from "./code-points.ts";
import type { Regex, Regexes } from "./regex.ts";

type Node =
  | { readonly type: "characters"; readonly set: CodePoints }
  | { readonly type: "sequence"; readonly parts: readonly Node[] }
  | { readonly type: "choice"; readonly parts: readonly Node[] }
  | { readonly type: "repeat"; readonly part: Node; readonly least: number; readonly most: number }
  | { readonly type: "start" | "end" }
  | { readonly type: "ahead"; readonly node: Node; readonly isNegated: boolean };

/** How a character is written where the pattern's text stands. */
export type Alphabet = (set: CodePoints) => Regex;

export interface PatternOptions {
  readonly alphabet: Alphabet;
  /** Whether something may stand before and behind, where ^ and $ do not forbid it; else the whole text has to match. */
  readonly searches: boolean;
}

/** The texts that a pattern matches. Throws RequestError for what is not in the subset; `what` names the pattern. */
export function pattern(source: string, what: string, regexes: Regexes, { alphabet, searches }: PatternOptions): Regex {
  if (typeof source !== "string") throw new RequestError(`${what}: the pattern is ${typeof source}; expected a text`);
  const node = new PatternParser(source, what).parse();
  const written = new Map<CodePoints, Regex>(); // a class that comes again is one set
  const once: Alphabet = (set) => {
    const known = written.get(set) ?? alphabet(set);
    written.set(set, known);
    return known;
  };
  const any = regexes.many(alphabet(ALL));
  const texts = new Texts(what, regexes, once, any);
  const alternatives = node.type === "choice" ? node.parts : [node];
  return regexes.union(
    ...alternatives.map((alternative) => {
      const matched = texts.of(alternative, () => (searches ? any : regexes.end));
      const [first, later] = [matched(true), searches ? matched(false) : regexes.empty];
      if (first === later) return regexes.concat(any, later);
      return regexes.union(first, regexes.concat(alphabet(ALL), any, later));
    }),
  );
}

/** Texts from some place on, by whether it is the beginning of all. */
type Tail = (isStart: boolean) => Regex;

/** What matches a node and goes on as `rest` says: so that ^, $ and what looks ahead are about the text up to its end. */
class Texts {
  readonly #what: string;
  readonly #regexes: Regexes;
  readonly #alphabet: Alphabet;
  readonly #any: Regex;
  #writtenOut = 0;

  constructor(what: string, regexes: Regexes, alphabet: Alphabet, any: Regex) {
    this.#what = what;
    this.#regexes = regexes;
    this.#alphabet = alphabet;
    this.#any = any;
  }

  of(node: Node, rest: Tail): Tail {
    const { and, not, union, empty, end } = bound(this.#regexes);
    if (!looks(node)) return this.#behind(this.#plain(node), rest);
    switch (node.type) {
      case "sequence":
        return node.parts.reduceRight((rest, part) => this.of(part, rest), rest);
      case "choice": {
        const ways = node.parts.map((part) => this.of(part, rest));
        return once((isStart) => union(...ways.map((way) => way(isStart))));
      }
      case "start":
        return (isStart) => (isStart ? rest(true) : empty);
      case "end":
        return (isStart) => and(rest(isStart), end);
      case "ahead": {
        const ahead = this.of(node.node, () => this.#any);
        return once((isStart) => and(rest(isStart), node.isNegated ? not(ahead(isStart)) : ahead(isStart)));
      }
      case "repeat":
        return this.#repeat(node, rest);
      default:
        throw new Error(`a node of type ${node.type} looks at nothing`);
    }
  }

  /** A term that looks at nothing, and then the rest. */
  #behind(term: Regex, rest: Tail): Tail {
    const { and, concat, not, union, end } = bound(this.#regexes);
    return once((isStart) => {
      const later = concat(term, rest(false));
      if (!isStart || !term.isNullable || rest(true) === rest(false)) return later;
      return union(concat(and(term, not(end)), rest(false)), rest(true));
    });
  }

  #repeat({ part, least, most }: Extract<Node, { type: "repeat" }>, rest: Tail): Tail {
    const isEmpty = part.type === "start" || part.type === "end" || part.type === "ahead"; // and sees the same each time
    const times = isEmpty ? 1 : most;
    this.#writtenOut += times;
    if (times > MOST_WRITTEN_OUT || this.#writtenOut > MOST_WRITTEN_OUT_IN_ALL)
      throw new RequestError(
        `${this.#what}: what repeats and looks beyond itself (^, $, (?=…), (?!…)) is not supported; expected it outside of what repeats, or at most ${MOST_WRITTEN_OUT} times and ${MOST_WRITTEN_OUT_IN_ALL} in all`,
      );
    let tail = rest;
    for (let i = times; i > 0; i--) {
      const more = this.of(part, tail);
      tail = i > least ? once((isStart) => this.#regexes.union(more(isStart), rest(isStart))) : more;
    }
    return tail;
  }

  #plain(node: Node): Regex {
    switch (node.type) {
      case "characters":
        return this.#alphabet(node.set);
      case "sequence":
        return this.#regexes.concat(...node.parts.map((part) => this.#plain(part)));
      case "choice":
        return this.#regexes.union(...node.parts.map((part) => this.#plain(part)));
      case "repeat": {
        const part = looks(node.part) ? this.of(node.part, () => this.#regexes.end)(false) : this.#plain(node.part);
        return this.#regexes.loop(part, node.least, node.most);
      }
      default:
        throw new Error(`a node of type ${node.type} is no text`);
    }
  }
}

/** Asked once for each of its two answers. */
function once(tail: Tail): Tail {
  const known: (Regex | undefined)[] = [];
  return (isStart) => (known[Number(isStart)] ??= tail(isStart));
}

const known = new WeakMap<Node, boolean>();

/** Whether it is about more than its own text. Asked of a node once: repeats in repeats ask twice about what is in them. */
function looks(node: Node): boolean {
  const before = known.get(node);
  if (before !== undefined) return before;
  let found = node.type !== "characters";
  if (node.type === "sequence" || node.type === "choice") found = node.parts.some(looks);
  if (node.type === "repeat") found = looks(node.part) && !looksInside(node.part);
  known.set(node, found);
  return found;
}

/** Whether all that it looks at is inside of it: what looks ahead, not farther than what follows is long at least. */
function looksInside(node: Node): boolean {
  const parts = node.type === "sequence" ? node.parts : [node];
  return parts.every((part, i) => {
    if (part.type !== "ahead") return !looks(part);
    const behind: Node = { type: "sequence", parts: parts.slice(i + 1) };
    return !looks(part.node) && lengths(part.node)[1] <= lengths(behind)[0];
  });
}

/** The fewest and the most characters of its texts. */
function lengths(node: Node): readonly [number, number] {
  switch (node.type) {
    case "characters":
      return [1, 1];
    case "sequence":
      return node.parts.map(lengths).reduce((a, b) => [a[0] + b[0], a[1] + b[1]], [0, 0]);
    case "choice":
      return node.parts.map(lengths).reduce((a, b) => [Math.min(a[0], b[0]), Math.max(a[1], b[1])]);
    case "repeat": {
      const [least, most] = lengths(node.part);
      return [node.least * least, most === 0 ? 0 : node.most * most];
    }
    default:
      return [0, 0];
  }
}

const MOST_COUNT = 10_000;
const MOST_WRITTEN_OUT = 64; // repetitions of what looks beyond itself
const MOST_WRITTEN_OUT_IN_ALL = 1000; // those in repetitions count each time
const MOST_LENGTH = 10_000;
const MOST_NESTED = 100;
const MOST_PROPERTIES = 16; // each takes some hundred terms, and the first time its tables

/** What \s is: blanks of any kind. */
export const BLANKS: CodePoints = union(ofText("\t\n\v\f\r \u00a0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff"), [
  [0x2000, 0x200a],
]);

const CLASSES: Readonly<Record<string, CodePoints>> = {
  d: ofText("0123456789"),
  w: union(ofText("_"), ...(["09", "az", "AZ"] as const).map((s): CodePoints => [[s.charCodeAt(0), s.charCodeAt(1)]])),
  s: BLANKS,
};
const CONTROLS: Readonly<Record<string, string>> = { n: "\n", r: "\r", t: "\t", v: "\v", f: "\f", "0": "\0" };

/**
 * Flag u allows no backslash that means nothing (`\-` outside of a class), no bracket alone, and no hyphen between a class and
 * something else (`[\w-.]`), but many patterns have some.
 */
const strict = (source: string): string =>
  source
    .replaceAll(/\\(.)/gsu, (written, c: string) =>
      /[\dA-Za-z^$\\.*+?()[\]{}|/]/.test(c) ? written : `\\u{${c.codePointAt(0)!.toString(16)}}`,
    )
    .replaceAll(/\\[pPu]\{[^}]*\}|\\.|\[(?:\\.|[^\]\\])*\]|\{\d+(?:,\d*)?\}|[\]{}]/gsu, (written) =>
      /^[\]{}]$/.test(written) ? `\\${written}` : written.startsWith("[") ? bracketed(written) : written,
    );

const MEMBER = String.raw`\\[pPu]\{[^}]*\}|\\u[\da-fA-F]{4}|\\x[\da-fA-F]{2}|\\c[A-Za-z]|\\.|[^\\]`;
const MEMBERS = new RegExp(`(${MEMBER})(?:-(${MEMBER}))?`, "gsu"); // and ranges

/** A class in brackets, its hyphens escaped that make no range. */
function bracketed(written: string): string {
  const [, open, members] = /^(\[\^?)(.*)\]$/su.exec(written)!;
  const isClass = (member: string) => /^\\[dDsSwWpP]/.test(member);
  const literal = (member: string) => (member === "-" ? "\\-" : member);
  const ranges = members!.replaceAll(MEMBERS, (range, low: string, high: string | undefined) => {
    if (high === undefined) return literal(low);
    return isClass(low) || isClass(high) ? `${literal(low)}\\-${literal(high)}` : range;
  });
  return `${open}${ranges}]`;
}

class PatternParser {
  readonly #source: string;
  readonly #what: string;
  readonly #characters: readonly string[];
  readonly #properties = new Set<string>();
  readonly #classes = new Map<string, CodePoints>();
  #at = 0;

  constructor(source: string, what: string) {
    this.#source = strict(source);
    this.#what = what;
    this.#characters = Array.from(this.#source);
  }

  parse(): Node {
    if (this.#characters.length > MOST_LENGTH)
      throw new RequestError(
        `${this.#what}: the pattern has ${this.#characters.length} characters; expected at most ${MOST_LENGTH}`,
      );
    try {
      new RegExp(this.#source, "u"); // says better than we could what is wrong with a pattern that is none
    } catch (error) {
      throw new RequestError(
        `${this.#what}: ${JSON.stringify(this.#source)} is no regular expression: ${(error as Error).message}`,
      );
    }
    return this.#choice(0);
  }

  #refuse(what: string): never {
    throw new RequestError(
      `${this.#what}: ${what} in the pattern ${JSON.stringify(this.#source)} is not supported; expected characters, classes, groups, alternatives, counts, ^, $, (?=…) and (?!…)`,
    );
  }

  #peek(text: string): boolean {
    return Array.from(text).every((c, i) => this.#characters[this.#at + i] === c);
  }

  #skips(text: string): boolean {
    const isHere = this.#peek(text);
    if (isHere) this.#at += Array.from(text).length;
    return isHere;
  }

  #next(): string {
    return this.#characters[this.#at++]!; // the engine has seen that the pattern is whole
  }

  #choice(depth: number): Node {
    if (depth > MOST_NESTED) this.#refuse(`nesting deeper than ${MOST_NESTED}`);
    const parts = [this.#sequence(depth)];
    while (this.#skips("|")) parts.push(this.#sequence(depth));
    return parts.length === 1 ? parts[0]! : { type: "choice", parts };
  }

  #sequence(depth: number): Node {
    const parts: Node[] = [];
    while (this.#at < this.#characters.length && !this.#peek("|") && !this.#peek(")")) parts.push(this.#repeat(depth));
    return parts.length === 1 ? parts[0]! : { type: "sequence", parts };
  }

  #repeat(depth: number): Node {
    let node = this.#atom(depth);
    const count = this.#count();
    if (count) {
      const [least, most] = count;
      this.#skips("?"); // lazy: another order of trying, the same texts
      if (least > MOST_COUNT || (most !== Infinity && most > MOST_COUNT)) this.#refuse(`a count above ${MOST_COUNT}`);
      node = { type: "repeat", part: node, least, most };
    }
    return node;
  }

  #count(): readonly [number, number] | undefined {
    if (this.#skips("*")) return [0, Infinity];
    if (this.#skips("+")) return [1, Infinity];
    if (this.#skips("?")) return [0, 1];
    if (!this.#skips("{")) return undefined;
    let text = "";
    while (!this.#skips("}")) text += this.#next();
    const [least, most = least] = text.split(",");
    return [Number(least), most === "" ? Infinity : Number(most)];
  }

  #atom(depth: number): Node {
    if (this.#skips("^")) return { type: "start" };
    if (this.#skips("$")) return { type: "end" };
    if (this.#skips("(")) return this.#group(depth);
    if (this.#skips("[")) return { type: "characters", set: this.#class() };
    if (this.#skips(".")) return { type: "characters", set: complement(ofText("\n\r\u2028\u2029")) };
    if (this.#skips("\\")) return { type: "characters", set: this.#escape(false) };
    return { type: "characters", set: ofText(this.#next()) };
  }

  #group(depth: number): Node {
    for (const look of ["?<=", "?<!"]) if (this.#peek(look)) this.#refuse(`(${look}…)`);
    const isNegated = this.#skips("?!");
    const isAhead = isNegated || this.#skips("?=");
    if (this.#skips("?<")) while (!this.#skips(">")) this.#at++;
    else if (this.#peek("?") && !this.#skips("?:")) this.#refuse("(?…) with flags");
    const node = this.#choice(depth + 1);
    this.#skips(")");
    return isAhead ? { type: "ahead", node, isNegated } : node;
  }

  /** A class in brackets; written in the same way, it is the same set. */
  #class(): CodePoints {
    const from = this.#at;
    const set = this.#members();
    const written = this.#characters.slice(from, this.#at).join("");
    const known = this.#classes.get(written) ?? set;
    this.#classes.set(written, known);
    return known;
  }

  #members(): CodePoints {
    const isNegated = this.#skips("^");
    const sets: CodePoints[] = [];
    while (!this.#skips("]")) {
      const low = this.#member();
      const from = low.length === 1 && low[0]![0] === low[0]![1] ? low[0]![0] : undefined;
      if (from !== undefined && this.#peek("-") && this.#characters[this.#at + 1] !== "]") {
        this.#at++;
        sets.push([[from, this.#member()[0]![0]]]);
      } else sets.push(low);
    }
    const set = union(...new Set(sets));
    return isNegated ? complement(set) : set;
  }

  #member(): CodePoints {
    return this.#skips("\\") ? this.#escape(true) : ofText(this.#next());
  }

  #escape(isInClass: boolean): CodePoints {
    const c = this.#next();
    const known = CLASSES[c.toLowerCase()];
    if (known && /[dws]/i.test(c)) return c === c.toLowerCase() ? known : complement(known);
    if (CONTROLS[c] !== undefined) return ofText(CONTROLS[c]);
    if (c === "b" && isInClass) return ofText("\b");
    if (/[bB1-9k]/.test(c)) this.#refuse(`\\${c}`);
    if (c === "c") return [[this.#next().charCodeAt(0) % 32, this.#characters[this.#at - 1]!.charCodeAt(0) % 32]];
    if (c === "x") return this.#one(this.#hex(2));
    if (c === "p" || c === "P") {
      let name = "";
      while (!this.#peek("}")) name += this.#next();
      return this.#property(`\\${c}${name}${this.#next()}`);
    }
    if (c !== "u") return ofText(c);
    if (this.#skips("{")) {
      let hex = "";
      while (!this.#skips("}")) hex += this.#next();
      return this.#one(Number.parseInt(hex, 16));
    }
    const unit = this.#hex(4);
    if (unit < 0xd800 || unit > 0xdbff || !this.#skips("\\u")) return this.#one(unit);
    return this.#one(0x10000 + ((unit - 0xd800) << 10) + (this.#hex(4) - 0xdc00));
  }

  #property(source: string): CodePoints {
    this.#properties.add(source);
    if (this.#properties.size > MOST_PROPERTIES)
      throw new RequestError(
        `${this.#what}: the pattern names more than ${MOST_PROPERTIES} properties as \\p{…}; expected at most ${MOST_PROPERTIES} different ones`,
      );
    return ofClass(source);
  }

  #hex(digits: number): number {
    let hex = "";
    for (let i = 0; i < digits; i++) hex += this.#next();
    return Number.parseInt(hex, 16);
  }

  #one(code: number): CodePoints {
    if (code >= 0xd800 && code <= 0xdfff) this.#refuse("half of a surrogate pair");
    return [[code, code]];
  }
}

/** Its methods as functions. */
function bound(regexes: Regexes) {
  return {
    and: (...parts: readonly Regex[]) => regexes.and(...parts),
    concat: (...parts: readonly Regex[]) => regexes.concat(...parts),
    not: (part: Regex) => regexes.not(part),
    union: (...parts: readonly Regex[]) => regexes.union(...parts),
    empty: regexes.empty,
    end: regexes.end,
  };
}

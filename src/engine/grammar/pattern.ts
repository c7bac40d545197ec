// JavaScript's regular expressions, with flag u, as terms. The subset: characters, classes, escapes (\d \w \s \p{…} \u…),
// groups, alternatives, counts, and ^ and $ at the ends. What looks around, looks back or knows words is refused.

import { RequestError } from "../../tensor/errors.ts";
import { ALL, type CodePoints, complement, ofClass, ofText, union } from "./code-points.ts";
import type { Regex, Regexes } from "./regex.ts";

type Node =
  | { readonly type: "characters"; readonly set: CodePoints }
  | { readonly type: "sequence"; readonly parts: readonly Node[] }
  | { readonly type: "choice"; readonly parts: readonly Node[] }
  | { readonly type: "repeat"; readonly part: Node; readonly least: number; readonly most: number }
  | { readonly type: "start" | "end" };

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
  const around = searches ? regexes.many(alphabet(ALL)) : regexes.end;
  const alternatives = node.type === "choice" ? node.parts : [node];
  return regexes.union(
    ...alternatives.map((alternative) => {
      const parts = alternative.type === "sequence" ? alternative.parts : [alternative];
      const from = parts[0]?.type === "start" ? 1 : 0;
      const to = parts.length > from && parts.at(-1)!.type === "end" ? parts.length - 1 : parts.length;
      const inner = parts.slice(from, to).map((part) => term(part, what, regexes, once));
      return regexes.concat(from > 0 ? regexes.end : around, ...inner, to < parts.length ? regexes.end : around);
    }),
  );
}

function term(node: Node, what: string, regexes: Regexes, alphabet: Alphabet): Regex {
  const inner = (part: Node) => term(part, what, regexes, alphabet);
  switch (node.type) {
    case "characters":
      return alphabet(node.set);
    case "sequence":
      return regexes.concat(...node.parts.map(inner));
    case "choice":
      return regexes.union(...node.parts.map(inner));
    case "repeat":
      return regexes.loop(inner(node.part), node.least, node.most);
    default:
      throw new RequestError(
        `${what}: ${node.type === "start" ? "^" : "$"} in the middle is not supported; expected it at an end of the pattern or of an alternative`,
      );
  }
}

const MOST_COUNT = 10_000;
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

/** Flag u allows no backslash that means nothing, but many patterns have some: `\-` outside of a class. */
const withoutNeedlessEscapes = (source: string): string =>
  source.replaceAll(/\\(.)/gsu, (written, c: string) =>
    /[\dA-Za-z^$\\.*+?()[\]{}|/]/.test(c) ? written : `\\u{${c.codePointAt(0)!.toString(16)}}`,
  );

class PatternParser {
  readonly #source: string;
  readonly #what: string;
  readonly #characters: readonly string[];
  readonly #properties = new Set<string>();
  readonly #classes = new Map<string, CodePoints>();
  #at = 0;

  constructor(source: string, what: string) {
    this.#source = withoutNeedlessEscapes(source);
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
      `${this.#what}: ${what} in the pattern ${JSON.stringify(this.#source)} is not supported; expected characters, classes, groups, alternatives, counts, and ^ or $ at the ends`,
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
    for (const look of ["?=", "?!", "?<=", "?<!"]) if (this.#peek(look)) this.#refuse(`(${look}…)`);
    if (this.#skips("?<")) while (!this.#skips(">")) this.#at++;
    else if (this.#peek("?") && !this.#skips("?:")) this.#refuse("(?…) with flags");
    const node = this.#choice(depth + 1);
    this.#skips(")");
    return node;
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

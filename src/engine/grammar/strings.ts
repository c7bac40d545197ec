// Strings as JSON writes them, and languages of strings as languages of what stands between the quotes.

import { ALL, type CodePoints, complement, intersection, ofText } from "./code-points.ts";
import type { Alphabet } from "./pattern.ts";
import type { Regex, Regexes } from "./regex.ts";

/** Bytes that stand in a JSON string for themselves; what a vocabulary's tokens are asked for, too. */
export const isPlainByte = (byte: number): boolean => byte >= 0x20 && byte !== 0x22 && byte !== 0x5c;

const ESCAPED: CodePoints = [[0, 0x1f], ...ofText('"\\')];
const PLAIN = complement(ESCAPED);
const SHORT: Readonly<Record<string, string>> = { "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t" };

/** Characters of text, as they are. */
export const rawAlphabet =
  (regexes: Regexes): Alphabet =>
  (set) =>
    regexes.character(set);

/** Characters inside a JSON string, each written in one way only: complements and intersections then mean the strings'. */
export const jsonAlphabet =
  (regexes: Regexes): Alphabet =>
  (set) => {
    const escapes = intersection(set, ESCAPED).flatMap(([low, high]) =>
      Array.from({ length: high - low + 1 }, (_, i) =>
        regexes.text(JSON.stringify(String.fromCharCode(low + i)).slice(1, -1)),
      ),
    );
    return regexes.union(regexes.character(intersection(set, PLAIN)), ...escapes);
  };

/** Any character inside a JSON string, written in any way that JSON has; no half of a surrogate pair. */
export function anyCharacter(regexes: Regexes): Regex {
  const hex = (from: string, count: number) => {
    const digits = regexes.union(
      ...Array.from(from, (c) => regexes.union(regexes.text(c), regexes.text(c.toLowerCase()))),
    );
    return regexes.loop(digits, count, count);
  };
  const all = "0123456789ABCDEF";
  const unit = regexes.union(
    regexes.concat(hex("0123456789ABCEF", 1), hex(all, 3)),
    regexes.concat(hex("D", 1), hex("01234567", 1), hex(all, 2)),
    regexes.concat(
      hex("D", 1),
      hex("89AB", 1),
      hex(all, 2),
      regexes.text("\\u"),
      hex("D", 1),
      hex("CDEF", 1),
      hex(all, 2),
    ),
  );
  const letters = Array.from(`"\\/${Object.values(SHORT).join("")}`, (c) => regexes.text(c));
  const written = regexes.concat(
    regexes.text("\\"),
    regexes.union(...letters, regexes.concat(regexes.text("u"), unit)),
  );
  return regexes.plain(regexes.union(regexes.character(PLAIN), written));
}

export const quoted = (regexes: Regexes, content: Regex): Regex =>
  regexes.concat(regexes.text('"'), content, regexes.text('"'));

/** Any string without escapes but those that it needs. */
export const anyWritten = (regexes: Regexes): Regex => regexes.many(regexes.plain(jsonAlphabet(regexes)(ALL)));

// Classes of bytes, a bit each, and which of them lead a term back to itself: where nothing else is below a node of the
// vocabulary's trie, all of its tokens may come, and none has to be looked at.

import { complement, utf8Ranges } from "./code-points.ts";
import type { Regex, Regexes } from "./regex.ts";

const between = (first: string, last: string) =>
  Array.from({ length: last.charCodeAt(0) - first.charCodeAt(0) + 1 }, (_, i) => first.charCodeAt(0) + i);

/** Bytes that languages seldom tell apart; what is in none of them is the last class. */
const CLASSES: readonly (readonly number[])[] = [
  ...[between("0", "9"), between("A", "F"), between("G", "Z"), between("a", "f"), between("g", "z")],
  ...Array.from(" \n\t_-.,:=\"'\\/{}[]()<>+", (c) => [c.charCodeAt(0)]),
  between("\0", "\x1f").filter((byte) => byte !== 9 && byte !== 10),
];
const REST = CLASSES.length;
/** Characters of several bytes. */
const BEYOND_ASCII = 1 << 29;
/** Bytes that are no characters; no term loops on them. */
export const MALFORMED = 1 << 30;

const ASCII = Uint8Array.from({ length: 128 }, (_, byte) => {
  const found = CLASSES.findIndex((bytes) => bytes.includes(byte));
  return found < 0 ? REST : found;
});

/** The class of a byte of a well-formed character. */
export const classOf = (byte: number): number => (byte < 128 ? 1 << ASCII[byte]! : BEYOND_ASCII);

/** The classes whose characters, each of them, lead from a term to itself. */
export function selfLoops(term: Regex, regexes: Regexes): number {
  let loops = (1 << (REST + 1)) - 1;
  for (let byte = 0; byte < 128; byte++) if (regexes.next(term, byte) !== term) loops &= ~classOf(byte);
  return loopsBeyondAscii(term, regexes) ? loops | BEYOND_ASCII : loops;
}

const LONG = Array.from(utf8Ranges(complement([[0, 127]])));

function loopsBeyondAscii(term: Regex, regexes: Regexes): boolean {
  for (const ranges of LONG) {
    let terms = new Set([term]);
    for (const [i, [low, high]] of ranges.entries()) {
      const behind = new Set<Regex>();
      for (const term of terms) for (let byte = low; byte <= high; byte++) behind.add(regexes.next(term, byte));
      for (const next of behind)
        if (i < ranges.length - 1 ? next === regexes.empty || next.isNullable : next !== term) return false;
      terms = behind;
    }
  }
  return true;
}

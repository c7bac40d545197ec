// Sets of Unicode characters, and how UTF-8 writes them.

/** Ranges of code points, both ends included, ascending and apart. */
export type CodePoints = readonly (readonly [number, number])[];

const LAST = 0x10ffff;

/** All characters: what UTF-8 can write, so no surrogates. */
export const ALL: CodePoints = [
  [0, 0xd7ff],
  [0xe000, LAST],
];

export function union(...sets: readonly CodePoints[]): CodePoints {
  const ranges = sets.flat().sort((a, b) => a[0] - b[0]);
  const joined: [number, number][] = [];
  for (const [low, high] of ranges) {
    const last = joined.at(-1);
    if (last && low <= last[1] + 1) last[1] = Math.max(last[1], high);
    else joined.push([low, high]);
  }
  return joined;
}

export function intersection(a: CodePoints, b: CodePoints): CodePoints {
  const common: [number, number][] = [];
  for (const [low, high] of a)
    for (const [from, to] of b) {
      const range: [number, number] = [Math.max(low, from), Math.min(high, to)];
      if (range[0] <= range[1]) common.push(range);
    }
  return common.sort((x, y) => x[0] - y[0]);
}

/** All characters but these. */
export function complement(set: CodePoints): CodePoints {
  const rest: [number, number][] = [];
  let next = 0;
  for (const [low, high] of set) {
    if (low > next) rest.push([next, low - 1]);
    next = high + 1;
  }
  if (next <= LAST) rest.push([next, LAST]);
  return intersection(rest, ALL);
}

/** The characters of a text, each by itself. */
export const ofText = (text: string): CodePoints =>
  union(Array.from(text, (c): [number, number] => [c.codePointAt(0)!, c.codePointAt(0)!]));

const classes = new Map<string, CodePoints>(); // Unicode has some hundred properties: they are all that can come

/** The characters that a JavaScript class such as `\p{L}` has: asked, once, of the engine that knows Unicode's tables. */
export function ofClass(source: string): CodePoints {
  const known = classes.get(source);
  if (known) return known;
  const runs = new RegExp(`[${source}]+`, "gu");
  const found: [number, number][] = [];
  for (const [first, last] of ALL)
    for (let low = first; low <= last; low += BLOCK) {
      const codes = Array.from({ length: Math.min(BLOCK, last + 1 - low) }, (_, i) => low + i);
      const units = low > 0xffff ? 2 : 1; // of UTF-16; the same for a whole block
      for (const { 0: run, index } of String.fromCodePoint(...codes).matchAll(runs))
        found.push([low + index / units, low + (index + run.length) / units - 1]);
    }
  const set = union(found);
  classes.set(source, set);
  return set;
}

const BLOCK = 0x1000;

/** Ranges of bytes, one behind the other: what UTF-8 makes of a range of characters. */
export type ByteRanges = readonly (readonly [number, number])[];

/** The bytes of a set: every character of it is in exactly one of these products of ranges. */
export function* utf8Ranges(set: CodePoints): Generator<ByteRanges> {
  for (const [low, high] of intersection(set, ALL)) yield* split(low, high);
}

// Cut until each end byte runs through all its values or the bytes before it are the same.
function* split(low: number, high: number): Generator<ByteRanges> {
  for (const last of [0x7f, 0x7ff, 0xffff])
    if (low <= last && last < high) {
      yield* split(low, last);
      yield* split(last + 1, high);
      return;
    }
  const length = low <= 0x7f ? 1 : low <= 0x7ff ? 2 : low <= 0xffff ? 3 : 4;
  for (let i = 1; i < length; i++) {
    const tail = (1 << (6 * i)) - 1;
    if ((low | tail) === (high | tail)) continue;
    const at = (low & tail) !== 0 ? (low | tail) + 1 : (high & tail) !== tail ? (high | tail) - tail : undefined;
    if (at === undefined) continue;
    yield* split(low, at - 1);
    yield* split(at, high);
    return;
  }
  const [from, to] = [low, high].map((c) => new TextEncoder().encode(String.fromCodePoint(c)));
  yield Array.from(from!, (byte, i) => [byte, to![i]!] as const);
}

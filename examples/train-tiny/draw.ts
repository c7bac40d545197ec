// Chance that is the same on every run: a stream for each purpose, and sides of a split by hash.

/** Draws from a seed of text. */
export class Draw {
  #state: number;

  constructor(seed: string) {
    this.#state = hash(seed);
  }

  /** In [0, 1): mulberry32. */
  number(): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let t = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  /** A whole number from `least` to `most`. */
  whole(least: number, most: number): number {
    return least + Math.floor(this.number() * (most - least + 1));
  }

  of<T>(list: readonly T[]): T {
    return list[Math.floor(this.number() * list.length)]!;
  }

  /** Several different ones. */
  several<T>(list: readonly T[], n: number): T[] {
    const found = new Set<T>();
    while (found.size < Math.min(n, list.length)) found.add(this.of(list));
    return [...found];
  }

  chance(p: number): boolean {
    return this.number() < p;
  }
}

export function hash(text: string): number {
  let h = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193);
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

/** Which side of the split a document is on, 98/1/1, by what it is and never by where it stands. */
export function sideOf(key: string): "train" | "val" | "test" {
  const percent = hash(`split ${key}`) % 100;
  return percent === 0 ? "val" : percent === 1 ? "test" : "train";
}

/** True for a tenth: facts and pairs of a fact and a template that are never learnt. */
export const isHeldOut = (key: string): boolean => hash(`held out ${key}`) % 10 === 0;

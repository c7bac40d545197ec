// Terms of the same form in different grammars have one number, so that what is known of one is known of all.

import type { Regex } from "./regex.ts";

/** Beyond, all are forgotten; some 150 bytes each. */
const MOST_SHAPES = 100_000;

export class Shapes {
  readonly #known = new Map<string, number>();
  #ofTerms = new WeakMap<Regex, number>();
  #count = 0;

  /** The number of a term's form. Those of before `MOST_SHAPES` others do not come again. */
  of(term: Regex): number {
    const known = this.#ofTerms.get(term);
    if (known !== undefined) return known;
    if (this.#known.size >= MOST_SHAPES) {
      this.#known.clear();
      this.#ofTerms = new WeakMap();
    }
    return this.#number(term);
  }

  // A concatenation is a chain of heads, as long as a text: gone through from its end, not in depth.
  #number(term: Regex): number {
    const chain: Regex[] = [];
    let last = term;
    for (; last.kind === "concat" && !this.#ofTerms.has(last); last = last.parts[1]!) chain.push(last);
    let number = this.#ofTerms.get(last) ?? this.#once(last, this.#parts(last));
    for (const link of chain.reverse()) number = this.#once(link, `${this.#number(link.parts[0]!)},${number}`);
    return number;
  }

  /** Of what stands in no order, in ours: a grammar has them in the order in which they came up. */
  #parts({ kind, parts }: Regex): string {
    const numbers = parts.map((part) => this.#number(part));
    return (kind === "union" || kind === "and" ? numbers.sort((a, b) => a - b) : numbers).join();
  }

  #once(term: Regex, parts: string): number {
    const { kind, set, least, most } = term;
    const key = `${kind} ${parts} ${set ? set.join() : `${least} ${most}`}`;
    const number = this.#known.get(key) ?? this.#count++;
    this.#known.set(key, number);
    this.#ofTerms.set(term, number);
    return number;
  }
}

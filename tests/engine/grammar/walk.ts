// Replies at random: any token that the mask allows, so that nothing but the mask makes them what they are.

import { type Constraint, Grammars } from "../../../src/engine/constraint.ts";
import { uniform } from "../../../src/engine/random.ts";
import { byteLevel } from "../../../src/prompt/small-vocabularies.ts";
import type { Tokenizer } from "../../../src/prompt/tokenizer.ts";
import { smallTokenizer } from "../../prompt/vocabularies.ts";

/** A token a byte; and one with words, halves of characters and pieces that end strings and begin others. */
export const tokenizers: Readonly<Record<string, Tokenizer>> = {
  "a byte a token": byteLevel({ vocabSize: 320 }),
  words: smallTokenizer(),
};
const grammars = new Map(Object.values(tokenizers).map((t) => [t, new Grammars(t, t.stop)]));

export const grammarsOf = (tokenizer: Tokenizer): Grammars => grammars.get(tokenizer)!;

/** What brings a reply to its end, when it has become long. */
const CLOSING = ['"', "}", "]", ")", ".", "0", "e", ""];

/** A reply that the constraint allows, the same for the same seed. */
export function walk(tokenizer: Tokenizer, constraint: Constraint, seed: number): string {
  const matcher = grammarsOf(tokenizer).begin(constraint);
  const said: number[] = [];
  for (let i = 0; i < 5000; i++) {
    const mask = matcher.mask()!;
    const allowed = mask.ids ?? Int32Array.from(Array(tokenizer.vocabSize).keys()).filter((id) => mask.has(id));
    const stops = allowed.filter((id) => tokenizer.stop.has(id));
    const isLate = said.length > 200;
    if (stops.length > 0 && (isLate || stops.length === allowed.length || uniform(seed, 2 * i) < 0.2))
      return tokenizer.decode(said);
    let token = allowed[Math.floor(uniform(seed, 2 * i + 1) * allowed.length)]!;
    if (isLate && i % 2 === 0)
      for (const text of CLOSING) {
        const closing = allowed.find((id) => tokenizer.decode([id]) === text);
        if (closing === undefined) continue;
        token = closing;
        break;
      }
    if (tokenizer.stop.has(token)) return tokenizer.decode(said);
    matcher.advance(token);
    said.push(token);
  }
  throw new Error(`a reply without end: ${tokenizer.decode(said).slice(-200)}`);
}

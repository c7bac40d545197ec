// What a value may be, one type at a time: forms, and what is true of them whatever schema they are from.

import { isEmptyRange, type NumberRange } from "./numbers.ts";

export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json };

/** Schemas that a value has to satisfy together, by their places in the document; none is "anything". */
export type Places = readonly string[];

/** A string's language: what its pattern or its format says, and where that stands. */
export interface Language {
  readonly pattern: string;
  readonly where: string;
}

export type Form =
  | { readonly type: "null" }
  | { readonly type: "boolean" }
  | ({ readonly type: "number" } & NumberRange)
  | { readonly type: "string"; readonly least: number; readonly most: number; readonly languages: readonly Language[] }
  | ArrayForm
  | ObjectForm
  | { readonly type: "value"; readonly value: Json };

export interface ArrayForm {
  readonly type: "array";
  readonly prefix: readonly Places[];
  /** Of what follows the prefix; false where nothing may. */
  readonly items: Places | false;
  readonly least: number;
  readonly most: number;
  /** Where it stands that no item may come twice. */
  readonly unique: string | undefined;
}

export interface ObjectForm {
  readonly type: "object";
  /** In the order in which they are written. */
  readonly properties: ReadonlyMap<string, Places | false>;
  readonly required: ReadonlySet<string>;
  /** Properties whose names match a pattern and are not listed. */
  readonly matching: readonly { readonly language: Language; readonly value: Places | false }[];
  /** Of all others; false where there may be none. */
  readonly others: Places | false;
  /** Whether a schema says what the others are; where none does, none are made up beside listed ones. */
  readonly saysOthers: boolean;
  readonly names: Places;
  readonly least: number;
  readonly most: number;
}

export const ANYTHING: readonly Form[] = [
  { type: "null" },
  { type: "boolean" },
  { type: "number", isInteger: false },
  { type: "string", least: 0, most: Infinity, languages: [] },
  { type: "array", prefix: [], items: [], least: 0, most: Infinity, unique: undefined },
  {
    ...{ type: "object", properties: new Map(), required: new Set<string>(), matching: [], others: [], names: [] },
    ...{ saysOthers: false, least: 0, most: Infinity },
  },
];

export const keyOf = (places: Places): string => [...new Set(places)].sort().join("\n");

/** What satisfies both. */
export function together(a: Places | false, b: Places | false): Places | false {
  return a === false || b === false ? false : [...new Set([...a, ...b])];
}

export const counts = (a: { least: number; most: number }, b: { least: number; most: number }) => ({
  least: Math.max(a.least, b.least),
  most: Math.min(a.most, b.most),
});

/** Whether it is plain that no value has it. */
export function isEmpty(form: Form): boolean {
  if (form.type === "number") return isEmptyRange(form);
  if (form.type !== "string" && form.type !== "array" && form.type !== "object") return false;
  if (form.least > form.most) return true;
  if (form.type === "array") return form.items === false && form.least > form.prefix.length;
  return form.type === "object" && [...form.required].some((name) => form.properties.get(name) === false);
}

export function isSame(a: Json, b: Json): boolean {
  if (Array.isArray(a) && Array.isArray(b)) return a.length === b.length && a.every((x, i) => isSame(x, b[i] as Json));
  if (!isObject(a) || !isObject(b)) return a === b;
  const names = Object.keys(a);
  return (
    names.length === Object.keys(b).length &&
    names.every((n) => Object.hasOwn(b, n) && isSame(a[n] as Json, b[n] as Json))
  );
}

/** The name that a schema has for its type. */
export function typeOf(value: Json): string {
  if (value === null) return "null";
  return Array.isArray(value) ? "array" : typeof value;
}

export const isObject = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** As errors show what a schema has. */
export const shown = (value: unknown): string => (JSON.stringify(value) ?? String(value)).slice(0, 80);

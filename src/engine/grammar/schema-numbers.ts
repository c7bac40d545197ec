// What a schema says of numbers: bounds, steps and formats, as one range.

import type { RequestError } from "../../tensor/errors.ts";
import { integers } from "./formats.ts";
import { shown } from "./forms.ts";
import { type Bound, commonStep, MOST_STEP, type NumberRange, type Step, stepOf, tighter } from "./numbers.ts";

/** An error about what stands at a keyword. */
export type Wrong = (keyword: string, what: string) => RequestError;

type Keywords = Readonly<Record<string, unknown>>;

/** The numbers that a schema allows. */
export function rangeOf(schema: Keywords, isInteger: boolean, wrong: Wrong): NumberRange {
  const [least, beyond] = integers.get(String(schema["format"])) ?? [];
  const limit = (value: number | undefined, isExclusive: boolean) =>
    value === undefined ? undefined : { value, isExclusive };
  const either = (side: "min" | "max", keyword: "minimum" | "maximum", limit: Bound | undefined) =>
    tighter(tighter(inclusive(schema, keyword, wrong), exclusive(schema, keyword, wrong), side), limit, side);
  return {
    ...stepped(isInteger || least !== undefined, givenStep(schema["multipleOf"], wrong), undefined, wrong),
    min: either("min", "minimum", limit(least, false)),
    max: either("max", "maximum", limit(beyond, true)),
  };
}

/** The numbers that are in both ranges. */
export function commonRange(a: NumberRange, b: NumberRange, wrong: Wrong): NumberRange {
  return {
    ...stepped(a.isInteger || b.isInteger, a.step, b.step, wrong),
    min: tighter(a.min, b.min, "min"),
    max: tighter(a.max, b.max, "max"),
  };
}

const exclusiveName = (keyword: string) => `exclusive${keyword[0]!.toUpperCase()}${keyword.slice(1)}`;

// Before draft 6 the exclusive ones were booleans beside the others.
const inclusive = (schema: Keywords, keyword: string, wrong: Wrong) =>
  bound(schema, keyword, schema[exclusiveName(keyword)] === true, wrong);

const exclusive = (schema: Keywords, keyword: string, wrong: Wrong) =>
  typeof schema[exclusiveName(keyword)] === "boolean" ? undefined : bound(schema, exclusiveName(keyword), true, wrong);

function bound(schema: Keywords, keyword: string, isExclusive: boolean, wrong: Wrong): Bound | undefined {
  const value = schema[keyword];
  if (value === undefined) return undefined;
  if (typeof value !== "number" || !Number.isFinite(value))
    throw wrong(keyword, `it is ${shown(value)}; expected a number`);
  if (isExclusive && Math.abs(value) > Number.MAX_SAFE_INTEGER)
    throw wrong(keyword, `it is ${value}; expected at most 2^53, beyond which neighbours are not told apart`);
  return { value, isExclusive };
}

function givenStep(value: unknown, wrong: Wrong): Step | undefined {
  if (value === undefined) return undefined;
  if (typeof value !== "number" || !(value > 0 && value < Infinity))
    throw wrong("multipleOf", `it is ${shown(value)}; expected a number above 0`);
  return stepOf(value) ?? tooFine(wrong);
}

function tooFine(wrong: Wrong): never {
  throw wrong(
    "multipleOf",
    `it has too many digits; expected at most ${MOST_STEP.toLocaleString("en")} times a power of ten`,
  );
}

const WHOLE: Step = { digits: 1, places: 0 };

/** Multiples of both steps, and whole numbers or not. */
function stepped(isInteger: boolean, a: Step | undefined, b: Step | undefined, wrong: Wrong) {
  let step = a && b ? (commonStep(a, b) ?? tooFine(wrong)) : (a ?? b);
  if (step && isInteger) step = commonStep(step, WHOLE) ?? tooFine(wrong);
  const isWhole = isInteger || step?.places === 0;
  return { isInteger: isWhole, step: step?.digits === 1 && step.places === 0 ? undefined : step };
}

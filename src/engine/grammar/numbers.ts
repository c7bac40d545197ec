// Numbers as JSON writes them, between bounds. They have as few digits as keep them exact, and none is -0 where 0 is the bound.

import type { Regex, Regexes } from "./regex.ts";

export interface Bound {
  readonly value: number;
  readonly isExclusive: boolean;
}

/** Numbers apart by a decimal fraction, 0 among them: `digits` / 10^`places`. */
export interface Step {
  readonly digits: number;
  readonly places: number;
}

export interface NumberRange {
  readonly isInteger: boolean;
  readonly min?: Bound | undefined;
  readonly max?: Bound | undefined;
  /** Only multiples of it. */
  readonly step?: Step | undefined;
}

const MOST_INTEGER_DIGITS = 19; // of 64 bits
const MOST_FRACTION_DIGITS = 17;
/** A double tells so many decimal digits apart: what has no more and is below a bound stays below it when it is read. */
const MOST_DIGITS = 15;

/** The largest step but for zeros behind it: so many remainders are states, and 1,000 take seconds. */
export const MOST_STEP = 400;
const MOST_PLACES = 12;

/** The step of a positive number; undefined where it has too many digits. */
export function stepOf(value: number): Step | undefined {
  const { whole, fraction } = decimal(value);
  return step(BigInt(whole + fraction), fraction.length);
}

/** Multiples of both; undefined where that has too many digits. */
export function commonStep(a: Step, b: Step): Step | undefined {
  const places = Math.max(a.places, b.places);
  const [x, y] = [scaled(a, places), scaled(b, places)];
  return step((x / divisor(x, y)) * y, places);
}

function step(digits: bigint, places: number): Step | undefined {
  while (places > 0 && digits % 10n === 0n) {
    digits /= 10n;
    places--;
  }
  const significant = BigInt(String(digits).replace(/0+$/, ""));
  return significant > MOST_STEP || digits > Number.MAX_SAFE_INTEGER || places > MOST_PLACES
    ? undefined
    : { digits: Number(digits), places };
}

const scaled = ({ digits, places }: Step, to: number): bigint => BigInt(digits) * 10n ** BigInt(to - places);

const divisor = (a: bigint, b: bigint): bigint => (b === 0n ? a : divisor(b, a % b));

/** Whether no number is in it. */
export function isEmptyRange({ isInteger, min, max, step }: NumberRange): boolean {
  if (!min || !max) return false;
  if (step) {
    // the least multiple from the lower bound on, in units of the step
    const [low, high] = [min, max].map(({ value }) => inSteps(value, step));
    const first = low!.whole + (low!.isExact && !min.isExclusive ? 0n : 1n);
    const last = high!.whole - (high!.isExact && max.isExclusive ? 1n : 0n);
    return first > last;
  }
  if (isInteger) return lowest(min) > highest(max);
  return min.value > max.value || (min.value === max.value && (min.isExclusive || max.isExclusive));
}

/** How often a step goes into a number, rounded down. */
function inSteps(value: number, step: Step): { readonly whole: bigint; readonly isExact: boolean } {
  const { whole, fraction } = decimal(Math.abs(value));
  const places = Math.max(fraction.length, step.places);
  const digits = BigInt(whole + fraction.padEnd(places, "0")) * (value < 0 ? -1n : 1n);
  const unit = scaled(step, places);
  const isExact = digits % unit === 0n;
  return { whole: digits / unit - (isExact || digits > 0n ? 0n : 1n), isExact };
}

export const isInRange = (value: number, { isInteger, min, max, step }: NumberRange): boolean =>
  (!isInteger || Number.isInteger(value)) &&
  (!min || (min.isExclusive ? value > min.value : value >= min.value)) &&
  (!max || (max.isExclusive ? value < max.value : value <= max.value)) &&
  (!step || inSteps(value, step).isExact);

const lowest = ({ value, isExclusive }: Bound) =>
  isExclusive ? BigInt(Math.floor(value)) + 1n : BigInt(Math.ceil(value));
const highest = ({ value, isExclusive }: Bound) =>
  isExclusive ? BigInt(Math.ceil(value)) - 1n : BigInt(Math.floor(value));

/** With the whole number that it comes to; beyond 2^53, where that may be no double, as it is. */
const wholeBound = (bound: Bound, whole: bigint): Bound =>
  Math.abs(bound.value) <= Number.MAX_SAFE_INTEGER ? { value: Number(whole), isExclusive: false } : bound;

/** The tighter of two bounds. */
export function tighter(a: Bound | undefined, b: Bound | undefined, side: "min" | "max"): Bound | undefined {
  if (!a || !b) return a ?? b;
  if (a.value === b.value) return a.isExclusive ? a : b;
  return a.value > b.value === (side === "min") ? a : b;
}

/** The numbers of a range. */
export function numbers(range: NumberRange, regexes: Regexes): Regex {
  const written = new Digits(regexes);
  const { isInteger, min, max, step } = reachable(range);
  if (!range.min && !range.max && !step) return written.any(isInteger);
  const parts = [written.short({ isInteger, min, max })];
  if (step) parts.push(written.multiples(step));
  if (min) parts.push(written.atLeast(isInteger ? wholeBound(min, lowest(min)) : min));
  if (max) parts.push(written.atMost(isInteger ? wholeBound(max, highest(max)) : max));
  return regexes.and(...parts);
}

/** Without bounds that no number of `MOST_INTEGER_DIGITS` digits reaches, where the other bound lets there be such. */
function reachable(range: NumberRange): NumberRange {
  const most = 10 ** MOST_INTEGER_DIGITS;
  const { min, max } = range;
  const low = min?.value ?? -Infinity;
  const high = max?.value ?? Infinity;
  return {
    ...range,
    min: low <= -most && high > -most ? undefined : min,
    max: high >= most && low < most ? undefined : max,
  };
}

class Digits {
  readonly #regexes: Regexes;
  readonly #minus: Regex;
  readonly #digit: Regex;
  /** A whole number without sign and without leading zeros. */
  readonly #whole: Regex;
  /** Nothing, or a point and digits. */
  readonly #fraction: Regex;

  constructor(regexes: Regexes) {
    this.#regexes = regexes;
    this.#minus = regexes.text("-");
    this.#digit = regexes.range(0x30, 0x39);
    this.#whole = this.#wholes(Infinity);
    this.#fraction = this.#fractions(Infinity);
  }

  any(isInteger: boolean): Regex {
    const { concat, optional, loop, text, union } = bound(this.#regexes);
    const whole = concat(optional(this.#minus), this.#wholes(MOST_INTEGER_DIGITS));
    if (isInteger) return whole;
    const sign = optional(union(text("+"), text("-")));
    const exponent = concat(union(text("e"), text("E")), sign, loop(this.#digit, 1, 2)); // finite, whatever stands before
    return concat(whole, this.#fractions(MOST_FRACTION_DIGITS), optional(exponent));
  }

  /** Those with so few digits that no rounding takes one onto a bound that it has to stay away from. */
  short({ isInteger, min, max }: NumberRange): Regex {
    const { concat, optional } = bound(this.#regexes);
    const digits = ({ value }: Bound) => decimal(Math.abs(value)).whole.length;
    const bounds = [min, max].flatMap((b) => b ?? []);
    const whole = concat(optional(this.#minus), this.#wholes(Math.max(MOST_INTEGER_DIGITS, ...bounds.map(digits))));
    if (isInteger) return whole;
    const longest = Math.max(0, ...bounds.filter(({ isExclusive }) => isExclusive).map(digits));
    return concat(whole, this.#fractions(longest > 0 ? Math.max(0, MOST_DIGITS - longest) : MOST_FRACTION_DIGITS));
  }

  /** Multiples of a step, with as few digits behind the point as there can be, and no more digits than a double keeps apart. */
  multiples({ digits, places }: Step): Regex {
    const { concat, loop, optional, text, union } = bound(this.#regexes);
    const wholes = this.#wholes(Math.max(1, MOST_DIGITS - places));
    const minus = optional(this.#minus);
    const ways: Regex[] = [text("0")];
    for (let n = 0; n <= places; n++) {
      let of = digits / Number(divisor(BigInt(digits), 10n ** BigInt(places - n))); // of the first n places
      if (n > 0 && of % 10 === 0) continue; // the last would be 0
      let zeros = 0;
      for (; n === 0 && of % 10 === 0; of /= 10) zeros++;
      const written = concat(minus, wholes, n > 0 ? concat(text("."), loop(this.#digit, n, n)) : this.#regexes.end);
      const kept = concat(minus, this.#regexes.multiples(of), text("0".repeat(zeros)));
      ways.push(of === 1 && zeros === 0 ? written : this.#regexes.and(written, kept));
    }
    return union(...ways);
  }

  atLeast({ value, isExclusive }: Bound): Regex {
    const { concat, union } = bound(this.#regexes);
    const all = concat(this.#whole, this.#fraction);
    if (value > 0 || (value === 0 && isExclusive)) return this.#from(value, isExclusive);
    return value === 0 ? all : union(all, concat(this.#minus, this.#upTo(-value, isExclusive)));
  }

  atMost({ value, isExclusive }: Bound): Regex {
    const { concat, union } = bound(this.#regexes);
    const negative = (least: Regex) => concat(this.#minus, least);
    if (value < 0) return negative(this.#from(-value, isExclusive));
    if (value === 0 && isExclusive) return negative(this.#from(0, true));
    return union(this.#upTo(value, isExclusive), negative(concat(this.#whole, this.#fraction)));
  }

  #wholes(most: number): Regex {
    const { concat, loop, range, text, union } = bound(this.#regexes);
    return union(text("0"), concat(range(0x31, 0x39), loop(this.#digit, 0, most - 1)));
  }

  #fractions(most: number): Regex {
    const { concat, loop, optional, text } = bound(this.#regexes);
    return optional(most === 0 ? this.#regexes.empty : concat(text("."), loop(this.#digit, 1, most)));
  }

  /** Numbers without sign from a bound on. */
  #from(value: number, isExclusive: boolean): Regex {
    const { concat, loop, range, text, union } = bound(this.#regexes);
    const { whole, fraction } = decimal(value);
    const ways = [concat(range(0x31, 0x39), loop(this.#digit, whole.length, Infinity), this.#fraction)];
    for (let i = 0; i < whole.length; i++) {
      const rest = loop(this.#digit, whole.length - i - 1, whole.length - i - 1);
      ways.push(concat(text(whole.slice(0, i)), this.#above(whole[i]!), rest, this.#fraction));
    }
    ways.push(concat(text(whole), this.#fractionFrom(fraction, isExclusive)));
    return this.#regexes.and(union(...ways), concat(this.#whole, this.#fraction)); // without leading zeros
  }

  /** Numbers without sign up to a bound. */
  #upTo(value: number, isExclusive: boolean): Regex {
    const { concat, loop, text, union } = bound(this.#regexes);
    const { whole, fraction } = decimal(value);
    const ways = whole.length > 1 ? [concat(this.#wholes(whole.length - 1), this.#fraction)] : [];
    for (let i = 0; i < whole.length; i++) {
      const rest = loop(this.#digit, whole.length - i - 1, whole.length - i - 1);
      ways.push(concat(text(whole.slice(0, i)), this.#below(whole[i]!), rest, this.#fraction));
    }
    ways.push(concat(text(whole), this.#fractionUpTo(fraction, isExclusive)));
    return this.#regexes.and(union(...ways), concat(this.#whole, this.#fraction));
  }

  // A fraction is a point and digits, or nothing, which stands for zeros.
  #fractionFrom(least: string, isExclusive: boolean): Regex {
    const { concat, loop, many, optional, range, text, union } = bound(this.#regexes);
    const any = many(this.#digit);
    const nonZero = concat(many(text("0")), range(0x31, 0x39), any);
    if (least === "")
      return isExclusive ? concat(text("."), nonZero) : optional(concat(text("."), loop(this.#digit, 1, Infinity)));
    const ways = Array.from(least, (digit, i) => concat(text(least.slice(0, i)), this.#above(digit), any));
    return concat(text("."), union(...ways, concat(text(least), isExclusive ? nonZero : any)));
  }

  #fractionUpTo(most: string, isExclusive: boolean): Regex {
    const { concat, loop, many, optional, text, union } = bound(this.#regexes);
    const any = many(this.#digit);
    if (most === "")
      return isExclusive ? this.#regexes.empty : optional(concat(text("."), loop(text("0"), 1, Infinity)));
    const ways = Array.from(most, (digit, i) => concat(text(most.slice(0, i)), this.#below(digit), any));
    for (let i = 1; i < most.length; i++) ways.push(text(most.slice(0, i))); // the digits that are left out are zeros
    if (!isExclusive) ways.push(concat(text(most), many(text("0"))));
    return optional(concat(text("."), union(...ways)));
  }

  #above(digit: string): Regex {
    return this.#regexes.range(digit.charCodeAt(0) + 1, 0x39);
  }

  #below(digit: string): Regex {
    return this.#regexes.range(0x30, digit.charCodeAt(0) - 1);
  }
}

/** Digits of a number that is not negative, without exponent; a fraction does not end with 0. */
function decimal(value: number): { readonly whole: string; readonly fraction: string } {
  if (Number.isInteger(value)) return { whole: BigInt(value).toString(), fraction: "" }; // with all its digits
  const [mantissa, exponent = "0"] = String(value).split("e");
  const [left, right = ""] = mantissa!.split(".");
  const shift = Number(exponent);
  const digits = left! + right;
  const point = left!.length + shift;
  const whole = point <= 0 ? "0" : digits.slice(0, point).padEnd(point, "0");
  const fraction = point < 0 ? "0".repeat(-point) + digits : digits.slice(point);
  return { whole: whole.replace(/^0+(?=\d)/, ""), fraction: fraction.replace(/0+$/, "") };
}

/** Its methods as functions. */
function bound(regexes: Regexes) {
  return {
    concat: (...parts: readonly Regex[]) => regexes.concat(...parts),
    union: (...parts: readonly Regex[]) => regexes.union(...parts),
    loop: (part: Regex, least: number, most: number) => regexes.loop(part, least, most),
    many: (part: Regex) => regexes.many(part),
    optional: (part: Regex) => regexes.optional(part),
    range: (low: number, high: number) => regexes.range(low, high),
    text: (text: string) => regexes.text(text),
  };
}

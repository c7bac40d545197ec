// Numbers between bounds, as text: comparing numbers is the judge.

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { numbers } from "../../../src/engine/grammar/numbers.ts";
import { Regexes } from "../../../src/engine/grammar/regex.ts";
import { rangeOf } from "../../../src/engine/grammar/schema-numbers.ts";
import { RequestError } from "../../../src/tensor/errors.ts";

const value = fc.oneof(
  fc.integer({ min: -1200, max: 1200 }),
  fc.tuple(fc.integer({ min: -120_000, max: 120_000 }), fc.constantFrom(10, 100, 1000)).map(([n, by]) => n / by),
  fc.constantFrom(0, 1e-7, -1e-7, 1e21, 0.1, -0.5),
);
const bound = fc.option(
  fc.tuple(value, fc.boolean()).map(([value, isExclusive]) => ({ value, isExclusive: isExclusive && value < 2 ** 53 })),
  { nil: undefined },
);

/** As JSON writes it, without exponent. */
const written = (x: number) => (Number.isInteger(x) ? BigInt(x).toString() : x.toFixed(7).replace(/0+$/, ""));

describe("the numbers of a range", () => {
  it("are those between its bounds", () => {
    fc.assert(
      fc.property(
        bound,
        bound,
        fc.array(value, { minLength: 1, maxLength: 20 }),
        fc.boolean(),
        (min, max, list, isInteger) => {
          const regexes = new Regexes();
          const term = numbers({ isInteger, min, max }, regexes);
          const near = [min, max].flatMap((b) =>
            b ? [b.value, b.value - 0.01, b.value + 0.01, b.value - 1, b.value + 1] : [],
          );
          for (const x of [...list, ...near]) {
            const text = written(x);
            const fits =
              (!min || (min.isExclusive ? Number(text) > min.value : Number(text) >= min.value)) &&
              (!max || (max.isExclusive ? Number(text) < max.value : Number(text) <= max.value)) &&
              (!isInteger || Number.isInteger(Number(text)));
            if (regexes.has(term, text)) expect([text, fits]).toEqual([text, true]);
            // longer ones than are exact are left out
            else if (fits) expect(text.replace(/\D/g, "").length).toBeGreaterThan(min || max ? 7 : 15);
          }
        },
      ),
      { numRuns: 1000 },
    );
  });

  it("of a format of 64 bits end where it ends", () => {
    const regexes = new Regexes();
    const has = (format: string, text: string, more = {}) => {
      const wrong = (_: string, what: string) => new RequestError(what);
      return regexes.has(numbers(rangeOf({ format, ...more }, true, wrong), regexes), text);
    };
    expect(has("int64", "9223372036854775807")).toBe(true);
    expect(has("int64", "9223372036854775808")).toBe(false);
    expect(has("int64", "-9223372036854775808")).toBe(true);
    expect(has("int64", "-9223372036854775809")).toBe(false);
    expect(has("uint64", "18446744073709551615", { minimum: 1e19 })).toBe(true);
    expect(has("uint64", "18446744073709551616", { minimum: 1e19 })).toBe(false);
    expect(has("int8", "127") && has("int8", "-128")).toBe(true);
    expect(has("int8", "128") || has("int8", "-129")).toBe(false);
  });

  it("have no leading zeros, no bare points and no plus", () => {
    const regexes = new Regexes();
    for (const range of [{ isInteger: false }, { isInteger: false, min: { value: 0, isExclusive: false } }])
      for (const text of ["01", "-01", "+1", ".5", "1.", "--1", "", "-", "1e", "0x1"])
        expect(regexes.has(numbers(range, regexes), text)).toBe(false);
    expect(regexes.has(numbers({ isInteger: false }, regexes), "-1.5e-7")).toBe(true);
  });
});

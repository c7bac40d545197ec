// Numbers between bounds, as text: comparing numbers is the judge.

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { numbers } from "../../../src/engine/grammar/numbers.ts";
import { Regexes } from "../../../src/engine/grammar/regex.ts";

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

  it("have no leading zeros, no bare points and no plus", () => {
    const regexes = new Regexes();
    for (const range of [{ isInteger: false }, { isInteger: false, min: { value: 0, isExclusive: false } }])
      for (const text of ["01", "-01", "+1", ".5", "1.", "--1", "", "-", "1e", "0x1"])
        expect(regexes.has(numbers(range, regexes), text)).toBe(false);
    expect(regexes.has(numbers({ isInteger: false }, regexes), "-1.5e-7")).toBe(true);
  });
});

// Whatever a model prefers, what it writes under a schema's mask is JSON and is valid: ajv is the judge.

import { Ajv2020 } from "ajv/dist/2020.js";
import addFormats from "ajv-formats";
import fc from "fast-check";
import { describe, expect, it, vi } from "vitest";
import { automatonOf, Matcher } from "../../../src/engine/constraint.ts";
import { Masks } from "../../../src/engine/grammar/masks.ts";
import { Regexes } from "../../../src/engine/grammar/regex.ts";
import { TokenTrie } from "../../../src/engine/grammar/vocabulary.ts";
import { RequestError } from "../../../src/tensor/errors.ts";
import { grammarsOf, tokenizers, walk } from "./walk.ts";

// in doubles 0.29 is no multiple of 0.01; to nine places it is
const ajv = new Ajv2020({ strict: false, allErrors: true, logger: false, multipleOfPrecision: 9 });
addFormats.default(ajv);

const bytes = tokenizers["a byte a token"]!;

/** Walks with every vocabulary, and says what is wrong with what came out. */
function wrong(schema: object | boolean, seeds: number): string[] {
  const validate = ajv.compile(schema);
  return Object.values(tokenizers).flatMap((tokenizer) =>
    Array.from({ length: seeds }, (_, seed) => {
      const text = walk(tokenizer, { type: "json_schema", schema: schema as Record<string, unknown> }, seed);
      return validate(JSON.parse(text)) ? [] : [`${text}: ${ajv.errorsText(validate.errors)}`];
    }).flat(),
  );
}

const tree = {
  $defs: {
    node: {
      type: "object",
      properties: { v: { type: "integer" }, next: { anyOf: [{ $ref: "#/$defs/node" }, { type: "null" }] } },
      required: ["v", "next"],
      additionalProperties: false,
    },
  },
  $ref: "#/$defs/node",
};

const list = (items: object) => ({ type: "array", items, minItems: 8, maxItems: 8 });

const schemas: Record<string, object | boolean> = {
  anything: true,
  "no constraint": {},
  null: { type: "null" },
  "several types": { type: ["string", "integer", "null"] },
  "a string's length in characters": { type: "string", minLength: 2, maxLength: 5 },
  "an exact length": { type: "string", minLength: 3, maxLength: 3 },
  "a pattern found anywhere": { type: "string", pattern: "ab+c", maxLength: 12 },
  "a pattern that needs escapes": { type: "string", pattern: '^["\\\\\\n\\u0001]{1,4}$' },
  "a pattern of letters in all scripts": { type: "string", pattern: "^\\p{Lu}\\p{Ll}{1,3}$" },
  "two patterns at once": { allOf: [{ type: "string", pattern: "^a" }, { pattern: "z$" }, { maxLength: 5 }] },
  ...Object.fromEntries(
    [
      ...["date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "uri-reference"],
      ...["uri-template", "url", "json-pointer", "relative-json-pointer", "byte", "iso-time", "iso-date-time"],
    ].map((format) => [`the format ${format}`, { type: "string", format }]),
  ),
  "a format that nobody checks": { type: "string", format: "color", maxLength: 6 },
  "a number's format": { type: "array", items: { type: "number", format: "int32" }, minItems: 3, maxItems: 3 },
  "different items of a few": {
    type: "array",
    ...{ items: { enum: ["a", "b", 3, null, { c: 1 }] }, uniqueItems: true, minItems: 2 },
  },
  "different items of many": {
    type: "array",
    ...{ items: { enum: [..."abcdefghijkl"] }, uniqueItems: true, minItems: 3, maxItems: 7 },
  },
  "some of a hundred different items": {
    type: "array",
    ...{ items: { enum: Array.from({ length: 100 }, (_, i) => i) }, uniqueItems: true, minItems: 1 },
  },
  "many of a hundred different items": {
    type: "array",
    ...{ items: { enum: Array.from({ length: 100 }, (_, i) => i) }, uniqueItems: true, minItems: 40, maxItems: 60 },
  },
  "different numbers or booleans": {
    type: "array",
    items: { anyOf: [{ type: "integer", exclusiveMinimum: 0, maximum: 4 }, { type: "boolean" }, { const: 2 }] },
    ...{ uniqueItems: true, minItems: 4 },
  },
  "one item at most, which is different": { type: "array", items: { type: "string" }, uniqueItems: true, maxItems: 1 },
  "one item of a list, which is different": {
    type: "array",
    ...{ prefixItems: [{ type: "string" }], items: false, uniqueItems: true },
  },
  "no type of some": { not: { type: ["string", "object", "array"], description: "those" } },
  "a property that may not come": {
    type: "object",
    properties: { a: { not: {} }, b: { type: "null" }, c: { not: false, type: "boolean" } },
  },
  "alternatives with a discriminator": {
    oneOf: ["cat", "dog"].map((kind) => ({
      type: "object",
      ...{ properties: { kind: { const: kind }, [kind]: { type: "boolean" } }, required: ["kind", kind] },
    })),
    discriminator: { propertyName: "kind", mapping: { cat: "#/oneOf/0", dog: "#/oneOf/1" } },
  },
  "definitions that refer to each other": {
    $defs: {
      list: { anyOf: [{ type: "null" }, { type: "array", items: { $ref: "#/$defs/pair" }, maxItems: 3 }] },
      pair: {
        type: "object",
        ...{ properties: { left: { $ref: "#/$defs/list" }, right: { $ref: "#/$defs/pair" } }, required: ["left"] },
      },
    },
    $ref: "#/$defs/list",
  },
  // a fault: as far as neighbours are told apart, larger ones were refused
  "large values of 64 bits": {
    type: "array",
    prefixItems: [
      { type: "integer", format: "int64", enum: [2 ** 60, -(2 ** 60)] },
      { format: "int64", const: 2 ** 63 - 1024 },
      { type: "integer", format: "int64", minimum: 1e16 },
      { type: "integer", format: "uint64", minimum: 1e19 },
    ],
    ...{ items: false, minItems: 4 },
  },
  "multiples of a whole number": list({ type: "integer", multipleOf: 7 }),
  "multiples of a whole number in bounds": list({ type: "integer", multipleOf: 3, minimum: -20, maximum: 100 }),
  "multiples of a whole number of 64 bits": list({ type: "integer", multipleOf: 397, format: "int64" }),
  "multiples of tens": list({ type: "number", multipleOf: 1200 }),
  "multiples of a fraction": list({ type: "number", multipleOf: 0.01, minimum: -1e5, maximum: 1e5 }),
  "multiples of a fraction in bounds": list({ multipleOf: 0.25, type: "number", exclusiveMinimum: -3, maximum: 12.3 }),
  "multiples of two": list({ type: "number", multipleOf: 1.5, allOf: [{ multipleOf: 0.4 }] }),
  "multiples among given ones": { enum: [1.1, 2.2, 0.3, 5, -1.65], multipleOf: 0.55 },
  "bounds that doubles hardly reach": list({
    type: "number",
    ...{ minimum: -1.7976931348623157e308, maximum: 1.7976931348623157e308 },
  }),
  "an integer in bounds": { type: "integer", minimum: -12, maximum: 345 },
  "an integer between fractions": { type: "integer", minimum: 0.5, exclusiveMaximum: 3 },
  "a number in bounds": { type: "number", exclusiveMinimum: -0.25, maximum: 17.5 },
  "a number below a bound": { type: "number", exclusiveMaximum: 1e-3 },
  "a number above a bound": { type: "number", minimum: 12345.678 },
  "whole numbers by multipleOf": { type: "number", multipleOf: 1 },
  enum: { enum: ["red", 3, null, true, { a: [1, "x"] }] },
  "an enum that the type narrows": { type: "string", enum: ["a", 1, "b"] },
  const: { const: 'with "quotes" and \\' },
  "a list": { type: "array", items: { type: "boolean" }, minItems: 2, maxItems: 4 },
  "a list that may be empty": { type: "array", items: { type: "integer", maximum: 9, minimum: 0 }, maxItems: 2 },
  "a tuple": { type: "array", prefixItems: [{ type: "integer" }, { type: "boolean" }], items: false, minItems: 1 },
  "a tuple that goes on": {
    type: "array",
    prefixItems: [{ const: "x" }],
    items: { type: "null" },
    minItems: 2,
    maxItems: 5,
  },
  "an object": {
    type: "object",
    properties: { a: { type: "boolean" }, "b c": { type: "null" }, é: { const: 1 } },
    required: ["b c"],
  },
  "properties alone": { type: "object", properties: { a: { type: "boolean" } }, additionalProperties: false },
  "names that are required and not listed": {
    type: "object",
    required: ["x"],
    additionalProperties: { type: "boolean" },
  },
  "other properties of a kind": {
    type: "object",
    properties: { a: { type: "string" } },
    additionalProperties: { type: "integer" },
  },
  "names that match a pattern": {
    type: "object",
    patternProperties: { "^x-": { type: "boolean" } },
    additionalProperties: false,
  },
  "a pattern beside listed names": {
    type: "object",
    properties: { "x-a": { maxLength: 3 } },
    patternProperties: { "^x-": { type: "string" } },
    additionalProperties: { type: "null" },
  },
  "names of a language": {
    type: "object",
    propertyNames: { pattern: "^[a-c]{1,2}$" },
    additionalProperties: { type: "null" },
  },
  // a fault: it was asked of names that are not listed alone
  "names of a language, listed ones among them": {
    type: "object",
    properties: { abc: { const: 1 }, ab: { const: 2 } },
    propertyNames: { maxLength: 2 },
    allOf: [
      { propertyNames: { pattern: "^[a-c]" }, properties: { xy: {}, a: { const: 3 } }, additionalProperties: true },
    ],
  },
  "so many properties": {
    type: "object",
    properties: { a: { const: 1 }, b: { const: 2 }, c: { const: 3 } },
    minProperties: 2,
    maxProperties: 2,
    additionalProperties: false,
  },
  // a fault: the way on which none of the listed ones comes had it refused
  "two properties at least, others among them": {
    type: "object",
    properties: { a: { const: 1 }, b: { const: 2 } },
    ...{ additionalProperties: { type: "null" }, minProperties: 2 },
  },
  "at least one property": {
    type: "object",
    additionalProperties: { type: "null" },
    minProperties: 1,
    maxProperties: 3,
  },
  "one of several": {
    anyOf: [{ type: "integer" }, { type: "object", properties: { a: { type: "null" } }, required: ["a"] }],
  },
  "exactly one, told apart by a tag": {
    oneOf: [
      { type: "object", properties: { kind: { const: "circle" }, r: { type: "integer" } }, required: ["kind", "r"] },
      {
        type: "object",
        properties: { kind: { const: "square" }, side: { type: "integer" } },
        required: ["kind", "side"],
      },
    ],
  },
  "exactly one, told apart by type": { oneOf: [{ type: "string", maxLength: 2 }, { type: "null" }] },
  "all of several objects": {
    allOf: [
      { type: "object", properties: { a: { type: "integer" } }, required: ["a"] },
      { properties: { b: { type: "null" } }, required: ["b"] },
      { properties: { a: { minimum: 5, maximum: 7 } } },
    ],
  },
  "alternatives under a common part": {
    type: "object",
    properties: { t: { type: "string" } },
    required: ["t"],
    anyOf: [
      { properties: { t: { const: "x" } } },
      { properties: { t: { maxLength: 1 }, u: { type: "null" } }, required: ["u"] },
    ],
  },
  "a list that contains itself": tree,
  "the whole that contains itself": {
    type: "object",
    properties: { name: { type: "string", maxLength: 3 }, children: { type: "array", items: { $ref: "#" } } },
    required: ["name", "children"],
    additionalProperties: false,
  },
  "a reference with keywords beside it": { $defs: { s: { type: "string" } }, $ref: "#/$defs/s", maxLength: 2 },
  "definitions of older drafts": { definitions: { "a/b": { const: 7 } }, $ref: "#/definitions/a~1b" },
  "annotations and extensions": {
    $schema: "https://json-schema.org/draft/2020-12/schema",
    title: "x",
    description: "y",
    type: "integer",
    default: 3,
    examples: [4],
    "x-order": 1,
  },
};

describe("a reply under a schema", () => {
  it.each(Object.entries(schemas))("is valid: %s", (_, schema) => {
    expect(wrong(schema, 25)).toEqual([]);
  });

  const scalar = fc.oneof(
    fc.constant({ type: "boolean" }),
    fc.constant({ type: "null" }),
    fc
      .record({ minLength: fc.nat(3), maxLength: fc.integer({ min: 3, max: 8 }) })
      .map((o) => ({ type: "string", ...o })),
    fc
      .tuple(fc.integer({ min: -200, max: 200 }), fc.nat(300))
      .map(([minimum, n]) => ({ type: "integer", minimum, maximum: minimum + n })),
    fc
      .tuple(fc.double({ min: -50, max: 50, noNaN: true }), fc.double({ min: 0.1, max: 50, noNaN: true }))
      .map(([x, n]) => {
        const minimum = Math.round(x * 100) / 100;
        return { type: "number", minimum, exclusiveMaximum: Math.round((minimum + n) * 100) / 100 };
      }),
    fc
      .array(fc.oneof(fc.string(), fc.integer(), fc.boolean()), { minLength: 1, maxLength: 4 })
      .map((values) => ({ enum: values })),
  );
  const { schema: anySchema } = fc.letrec<{ schema: object }>((tie) => ({
    schema: fc.oneof(
      { maxDepth: 3, depthSize: "small" },
      scalar,
      fc
        .record({ items: tie("schema"), minItems: fc.nat(2), maxItems: fc.integer({ min: 2, max: 4 }) })
        .map((o) => ({ type: "array", ...o })),
      fc
        .tuple(
          fc.dictionary(fc.string({ maxLength: 6 }), tie("schema"), { maxKeys: 4 }),
          fc.boolean(),
          fc.infiniteStream(fc.boolean()),
        )
        .map(([properties, closed, required]) => ({
          type: "object",
          ...{ properties, required: Object.keys(properties).filter(() => required.next().value) },
          ...(closed && { additionalProperties: false }),
        })),
      fc.array(tie("schema"), { minLength: 1, maxLength: 3 }).map((anyOf) => ({ anyOf })),
    ),
  }));
  it("is valid whatever the schema", () => {
    fc.assert(
      fc.property(anySchema, (schema) => {
        expect(wrong(schema, 2)).toEqual([]);
      }),
      { numRuns: 150 },
    );
  });
});

describe("a schema", () => {
  const refused = (schema: unknown) => {
    try {
      grammarsOf(bytes).begin({ type: "json_schema", schema: schema as Record<string, unknown> });
    } catch (error) {
      expect(error).toBeInstanceOf(RequestError);
      return (error as RequestError).message;
    }
    throw new Error(`not refused: ${JSON.stringify(schema)}`);
  };

  it.each([
    ...["if", "then", "else", "contains", "minContains", "maxContains", "dependentRequired", "dependentSchemas"],
    ...["unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef", "dependencies", "maxlength"],
  ])("with %s is refused by name and place", (keyword) => {
    const message = refused({ type: "object", properties: { "a/b": { [keyword]: {} } } });
    expect(message).toContain(`at #/properties/a~1b, "${keyword}" is not supported`);
  });

  it.each([
    [{ type: "strin" }, "#/type"],
    [{ type: "array", uniqueItems: true }, "at #/uniqueItems"],
    [{ type: "array", items: { type: "string" }, uniqueItems: true }, "at #/uniqueItems"],
    [{ type: "array", items: { type: "integer", minimum: 0, maximum: 100 }, uniqueItems: true }, "at #/uniqueItems"],
    [
      { type: "array", items: { enum: Array.from({ length: 400 }, (_, i) => `${i}`) }, uniqueItems: true },
      "at #/uniqueItems, the items have more than 100 values",
    ],
    [{ uniqueItems: 1 }, "#/uniqueItems"],
    [{ not: { type: "integer" } }, "at #/not"],
    [{ not: { const: 3 } }, "at #/not"],
    [{ type: "object", discriminator: { propertyName: "kind" } }, "discriminator"],
    [{ oneOf: [{}], discriminator: {} }, "propertyName"],
    [{ type: "number", multipleOf: 0 }, "multipleOf"],
    [{ type: "number", multipleOf: "1" }, "multipleOf"],
    [{ type: "number", multipleOf: 0.12345 }, "too many digits"],
    [{ multipleOf: 0.97, allOf: [{ multipleOf: 8.9 }, { multipleOf: 13 }] }, "too many digits"],
    [{ type: "string", nullable: 1 }, "nullable"],
    [{ type: "string", format: "regex" }, "#/format"],
    [{ type: "string", format: 3 }, "#/format"],
    [{ type: "integer", format: ["int32"] }, "#/format"],
    [{ type: "string", minLength: -1 }, "#/minLength"],
    [{ type: "string", pattern: "(" }, "#/pattern"],
    [{ type: "string", pattern: "(?<=a)b" }, "(?<=…)"],
    [{ type: "string", pattern: "^(?:(?!ab).)*$" }, "looks beyond itself"],
    [{ type: "string", pattern: `${"(".repeat(45)}a$${")+".repeat(45)}` }, "looks beyond itself"],
    [{ type: "string", pattern: `${"(".repeat(45)}a$${"){1,2}".repeat(45)}` }, "looks beyond itself"],
    [{ type: "integer", multipleOf: 9973 }, "too many digits"],
    [{ type: "string", pattern: "(a)\\1" }, "\\1"],
    [{ type: "string", pattern: "\\bword\\b" }, "\\b"],
    [{ type: "number", minimum: "3" }, "#/minimum"],
    [{ type: "number", exclusiveMinimum: 1e300 }, "2^53"],
    [{ properties: [] }, "#/properties"],
    [{ required: "a" }, "#/required"],
    [{ enum: "a" }, "#/enum"],
    [{ anyOf: {} }, "#/anyOf"],
    [{ items: 3 }, "#/items"],
    [{ properties: { a: 3 } }, "#/properties/a"],
    [{ $ref: "https://example.org/schema" }, "$ref"],
    [{ $ref: "#/$defs/none" }, "#/$defs/none"],
    [{ $ref: "#" }, "refers to itself"],
    [{ $defs: { a: { anyOf: [{ $ref: "#/$defs/a" }, { type: "null" }] } }, $ref: "#/$defs/a" }, "refers to itself"],
    [{ oneOf: [{ type: "integer" }, { type: "number" }] }, "anyOf"],
    [
      {
        oneOf: [
          { type: "string", pattern: "^a" },
          { type: "string", pattern: "^b" },
        ],
      },
      "anyOf",
    ],
    [{ type: "object", patternProperties: { a: {}, b: {} } }, "patternProperties"],
    [{ type: "object", minProperties: 3 }, "minProperties"],
    [{ properties: { a: {}, b: {} }, additionalProperties: true, type: "object", minProperties: 4 }, "minProperties"],
    [{ oneOf: [{ const: 1 }, { const: 2 }, { const: 1 }] }, "alternative 0 and 2"],
    [{ oneOf: [{ const: { a: 1, b: 2 } }, { const: { b: 2, a: 1 } }] }, "anyOf"],
    [{ oneOf: [{ const: 3 }, { type: "integer", maximum: 3 }] }, "anyOf"],
    [{ oneOf: Array(3).fill({ properties: { t: { const: 1 } }, required: ["t"], type: "object" }) }, "0 and 1"],
    [{ oneOf: Array.from({ length: 1900 }, (_, i) => ({ type: "integer", minimum: i, maximum: i })) }, "to compare"],
    ["x", "the schema"],
    [null, "the schema"],
  ])("%j is refused", (schema, why) => {
    expect(refused(schema)).toContain(why);
  });

  it.each([
    false,
    { type: "integer", minimum: 3, maximum: 2 },
    { type: "string", minLength: 3, maxLength: 2 },
    { type: "string", pattern: "a^b" },
    { type: "string", pattern: "^(?!a)a" },
    { type: "integer", multipleOf: 7, minimum: 15, maximum: 20 },
    { type: "number", multipleOf: 0.25, exclusiveMinimum: -0.5, exclusiveMaximum: -0.25 },
    { const: 3, multipleOf: 2 },
    { enum: [] },
    { not: {} },
    { type: "null", not: { type: "null" } },
    { type: "array", items: { enum: [1, 1.0, 2] }, uniqueItems: true, minItems: 3 },
    { const: [1, 2, 1], uniqueItems: true },
    { type: "string", enum: [1] },
    { allOf: [{ type: "string" }, { type: "null" }] },
    { type: "string", pattern: "^a{3}$", maxLength: 2 },
    { type: "object", properties: { a: false }, required: ["a"] },
    { type: "object", required: ["abc"], propertyNames: { enum: ["x"] } },
    { allOf: [{ type: "object", required: ["abc"] }, { propertyNames: { maxLength: 2 } }] },
    { type: "array", items: false, minItems: 1 },
    { type: "object", properties: { next: { $ref: "#" } }, required: ["next"] },
    { type: "number", exclusiveMinimum: 1, exclusiveMaximum: 1.0000000000000002 },
  ])("%j that nothing satisfies is refused", (schema) => {
    expect(refused(schema)).toContain("no value satisfies");
  });

  const many = (n: number) => Array.from({ length: n }, (_, i) => i);
  // What becomes of each, and the most work for it: twice the derivatives that it took when this was written.
  it.each<[string, unknown, string | RegExp, number]>([
    ["very many values", { enum: many(100_000).map(String) }, "there are 100,000", 0],
    ["a very long text", { const: "x".repeat(1_000_000) }, "a text of 1,000,002 bytes", 0],
    [
      "very many properties",
      { properties: Object.fromEntries(many(50_000).map((i) => [`p${i}`, true])) },
      "there are 50,000",
      0,
    ],
    ["very many alternatives", { anyOf: many(50_000).map(() => true) }, "there are 50,000", 0],
    [
      "alternatives that multiply",
      { allOf: many(12).map((i) => ({ anyOf: [{ minLength: i }, { maxLength: i }] })) },
      "combinations of alternatives",
      0,
    ],
    ["a pattern of many groups", { pattern: `${"(".repeat(5000)}a${")".repeat(5000)}` }, "10001 characters", 0],
    // as much as the stack holds
    [
      "a pattern of many options",
      { pattern: "a?".repeat(5000), type: "string", maxLength: 3 },
      /^kept$|nests too deep/,
      22_000,
    ],
    ["a pattern of many anythings", { type: "string", pattern: ".*".repeat(2000) }, /^kept$/, 15_000],
    ["a pattern of many anythings and options", { type: "string", pattern: ".*a?".repeat(120) }, /^kept$/, 700_000],
    // the search for a common string had no end in sight, and held the engine for a minute
    [
      "many patterns at once",
      { allOf: many(26).map((i) => ({ type: "string", pattern: `a.*${"abcdefghijklmnopqrstuvwxyz"[i]}` })) },
      "take too long to go through",
      20_000_001,
    ],
    [
      "patterns whose common strings are hard to find",
      { allOf: ["a", "b", "c"].map((c, i) => ({ type: "string", pattern: `^[abc]*${c}[abc]{${14 + i}}$` })) },
      /^kept$/,
      55_000,
    ],
  ])("with %s is refused or kept, in bounded time and memory", (_, schema, outcome, mostDerived) => {
    const regexes = new Regexes();
    const keep = () => {
      const constraint = { type: "json_schema", schema: schema as Record<string, unknown> } as const;
      const automaton = automatonOf(constraint, regexes);
      const masks = new Masks(new TokenTrie(bytes), bytes.stop);
      const matcher = new Matcher({ automaton, regexes, masks }, bytes, bytes.stop);
      for (const text of ['"', "a", "b", "a", "b"]) {
        expect(matcher.mask()!.count).toBeGreaterThan(0);
        const token = bytes.encode(text)[0]!;
        if (matcher.mask()!.has(token)) matcher.advance(token);
      }
    };
    let found = "kept";
    try {
      keep();
    } catch (error) {
      expect(error).toBeInstanceOf(RequestError);
      found = (error as Error).message;
    }
    expect(found).toMatch(outcome);
    expect(regexes.derived).toBeLessThanOrEqual(mostDerived);
    expect(regexes.size).toBeLessThan(12_000);
  });

  const tagged = (i: number) => ({
    type: "object",
    ...{ properties: { kind: { const: `k${i}` }, a: { type: "null" } }, required: ["kind", "a"] },
  });
  // faults: forms were counted as combinations, and of each two it was found out whether they exclude each other
  it.each<[string, object]>([
    ["a list of values elsewhere", { $defs: { c: { enum: many(2000).map(String) } }, $ref: "#/$defs/c" }],
    ["values or null", { anyOf: [{ type: "string", enum: many(2000).map(String) }, { type: "null" }] }],
    ["values of two lists", { allOf: [{ enum: many(2000) }, { enum: many(2000).map((i) => i + 1000) }] }],
    ["one of many values", { oneOf: many(1900).map((i) => ({ const: i })) }],
    ["one of many objects with a tag", { oneOf: many(300).map(tagged) }],
    ["one of many objects", { type: "object", anyOf: many(600).map(tagged) }],
  ])("may be %s", (_, schema) => {
    const constraint = { type: "json_schema", schema: { ...schema } } as const;
    expect(() => automatonOf(constraint, new Regexes())).not.toThrow();
  });

  // Each made the names of properties anew that nothing says anything of: 1,900 of them held the engine for 2 s.
  it("of many alternatives is made of what they have in common once", () => {
    const made = vi.spyOn(Regexes.prototype, "character");
    const open = (i: number) => ({ properties: { [`p${i}`]: { type: "integer" } }, additionalProperties: true });
    for (const of of [tagged, open] as readonly ((i: number) => object)[]) {
      made.mockClear();
      automatonOf({ type: "json_schema", schema: { type: "object", anyOf: many(100).map(of) } }, new Regexes());
      expect(made.mock.calls.length).toBeLessThan(10);
    }
    made.mockRestore();
  });

  it("may say that a value is nullable, beside a type", () => {
    const walked = (schema: object) =>
      new Set(
        Array.from({ length: 40 }, (_, seed) => walk(bytes, { type: "json_schema", schema: { ...schema } }, seed)),
      );
    expect(walked({ type: "boolean", nullable: true })).toEqual(new Set(["true", "false", "null"]));
    expect(walked({ type: "boolean", nullable: false })).toEqual(new Set(["true", "false"]));
    expect(walked({ type: "string", nullable: true, enum: [null, "a"] })).toEqual(new Set(['"a"', "null"]));
    expect(walked({ nullable: true, allOf: [{ type: "boolean" }] })).toEqual(new Set(["true", "false"]));
  });

  // JSON.stringify writes 2^63 as 9223372036854776000, which others read as another number
  it("has values beyond 2^53 with all their digits", () => {
    for (const [schema, text] of [
      [{ const: 2 ** 63 }, "9223372036854775808"],
      [{ enum: [{ a: [-(2 ** 64), "x"] }] }, '{"a":[-18446744073709551616,"x"]}'],
      [{ const: 1e21 }, "1e+21"],
    ] as const)
      expect(walk(bytes, { type: "json_schema", schema }, 1)).toBe(text);
  });

  it("may have bounds as draft 4 says them", () => {
    const schema = { type: "integer", minimum: 0, exclusiveMinimum: true, maximum: 2, exclusiveMaximum: false };
    const seen = Array.from({ length: 20 }, (_, seed) => walk(bytes, { type: "json_schema", schema }, seed));
    expect(new Set(seen)).toEqual(new Set(["1", "2"]));
  });

  it("has the names of a discriminator where alternatives have none of their own", () => {
    const cat = {
      type: "object",
      properties: { kind: { type: "string" }, lives: { enum: [7, 9] } },
      required: ["lives"],
    };
    const dog = {
      type: "object",
      properties: { kind: { type: "string" }, tail: { type: "boolean" } },
      required: ["tail"],
    };
    const fox = { type: "object", properties: { kind: { const: "reynard" } }, required: ["kind"] };
    const walked = (keyword: "oneOf" | "anyOf", mapping?: object) =>
      new Set(
        Array.from({ length: 60 }, (_, seed) => {
          const [a, b, c] = ["Cat", "Dog", "Fox"].map((name) => ({ $ref: `#/$defs/${name}` }));
          const schema = {
            ...{ [keyword]: [a, b, c], discriminator: { propertyName: "kind", ...(mapping && { mapping }) } },
            $defs: { Cat: cat, Dog: dog, Fox: fox },
          };
          const { kind, ...rest } = JSON.parse(walk(bytes, { type: "json_schema", schema }, seed));
          return `${kind} ${Object.keys(rest)}`;
        }),
      );
    expect(walked("oneOf")).toEqual(new Set(["Cat lives", "Dog tail", "reynard "]));
    expect(walked("anyOf", { cat: "#/$defs/Cat", kitten: "Cat" })).toEqual(
      new Set(["cat lives", "kitten lives", "Dog tail", "reynard "]),
    );
  });

  it("writes its properties in its order", () => {
    const schema = { type: "object", properties: { b: { const: 1 }, a: { const: 2 } }, required: ["a", "b"] };
    for (let seed = 0; seed < 9; seed++)
      expect(walk(bytes, { type: "json_schema", schema }, seed).replaceAll(/\s/g, "")).toBe('{"b":1,"a":2}');
  });

  it("that lists properties has no others unless it says so", () => {
    const names = (more: object) =>
      Array.from({ length: 40 }, (_, seed) =>
        Object.keys(
          JSON.parse(
            walk(
              bytes,
              { type: "json_schema", schema: { type: "object", properties: { a: { const: 1 } }, ...more } },
              seed,
            ),
          ),
        ),
      ).flat();
    expect(new Set(names({}))).toEqual(new Set(["a"]));
    expect(new Set(names({ additionalProperties: { type: "null" } })).size).toBeGreaterThan(3);
  });

  it("ends however deep it could go", () => {
    const nested = { $defs: { a: { type: "array", items: { $ref: "#/$defs/a" }, minItems: 0 } }, $ref: "#/$defs/a" };
    const matcher = grammarsOf(bytes).begin({ type: "json_schema", schema: nested });
    let depth = 0;
    for (const open = 0x5b; matcher.mask()!.has(open); depth++) matcher.advance(open);
    expect(depth).toBe(60);
    for (; depth > 0; depth--) matcher.advance(0x5d);
    expect(matcher.mayEnd).toBe(true);
  });
});

// The schemas that clients make: what is written under them is what the client that made them takes.

import { isIPv4, isIPv6 } from "node:net";
import { describe, expect, it } from "vitest";
import { z } from "zod";
import { tokenizers, walk } from "./walk.ts";

function walks(schema: object, seeds: number): unknown[] {
  return Object.values(tokenizers).flatMap((tokenizer) =>
    Array.from({ length: seeds }, (_, seed) =>
      JSON.parse(walk(tokenizer, { type: "json_schema", schema: { ...schema } }, seed)),
    ),
  );
}

const node: z.ZodType = z.object({
  v: z.string().max(3),
  get kids() {
    return z.array(node).max(2);
  },
});

const types: Readonly<Record<string, z.ZodType>> = {
  ...Object.fromEntries(
    (
      [
        ...[
          "email",
          "guid",
          "uuid",
          "uuidv4",
          "uuidv6",
          "uuidv7",
          "url",
          "emoji",
          "nanoid",
          "cuid",
          "cuid2",
          "ulid",
          "xid",
        ],
        ...[
          "ksuid",
          "ipv4",
          "ipv6",
          "mac",
          "cidrv4",
          "cidrv6",
          "base64",
          "base64url",
          "e164",
          "jwt",
          "hostname",
          "hex",
        ],
      ] as "email"[]
    ).map((name) => [name, z[name]()]),
  ),
  "email as browsers have it": z.email({ pattern: z.regexes.html5Email }),
  "email as RFC 5322 has it": z.email({ pattern: z.regexes.rfc5322Email }),
  "email of any script": z.email({ pattern: z.regexes.unicodeEmail }),
  date: z.iso.date(),
  time: z.iso.time(),
  "time to the minute": z.iso.time({ precision: -1 }),
  datetime: z.iso.datetime(),
  "datetime with an offset": z.iso.datetime({ offset: true }),
  "datetime without a zone": z.iso.datetime({ local: true, precision: 3 }),
  duration: z.iso.duration(),
  ...Object.fromEntries(
    (["md5", "sha1", "sha256", "sha384", "sha512"] as const).flatMap((of) =>
      (["hex", "base64", "base64url"] as const).map((enc) => [`${of} in ${enc}`, z.hash(of, { enc })]),
    ),
  ),
  lowercase: z.string().lowercase().max(9),
  uppercase: z.string().uppercase().max(9),
  includes: z.string().includes("a.b").max(9),
  startsWith: z.string().startsWith("x").max(9),
  endsWith: z.string().endsWith("y").max(9),
  "several of one string": z
    .email()
    .regex(/^[a-z]/)
    .max(40),
  "a password": z.string().regex(/^(?=.*\d)(?=.*[a-z])[!-~]{8,20}$/),
  "not some words": z.string().regex(/^(?!admin$|root$)[a-z]{4,5}$/),
  "a template": z.templateLiteral(["a", z.number(), "-", z.uuid(), z.enum(["x", "y"])]),
  int: z.int(),
  int32: z.int32(),
  uint32: z.uint32(),
  float32: z.float32(),
  float64: z.float64(),
  positive: z.number().positive(),
  nonnegative: z.number().nonnegative(),
  negative: z.number().negative(),
  "multipleOf a whole number": z.number().multipleOf(5),
  "multipleOf in bounds": z.int().multipleOf(3).min(1).max(100),
  "multipleOf a fraction": z.number().multipleOf(0.01),
  enum: z.enum(["a", "b"]),
  literal: z.literal(["a", 1, null, true]),
  "an object": z.object({
    a: z.string().optional(),
    b: z.boolean().nullable(),
    c: z.int().nullish(),
    d: z.null().default(null),
  }),
  "a strict object": z.strictObject({ a: z.boolean() }),
  "a loose object": z.looseObject({ a: z.boolean() }),
  "an object with others": z.object({ a: z.string() }).catchall(z.number()),
  record: z.record(z.string(), z.boolean()),
  "record of some names": z.record(z.enum(["a", "b"]), z.number()),
  "record of a format": z.record(z.uuid(), z.boolean()),
  tuple: z.tuple([z.string(), z.number()]),
  "tuple with a rest": z.tuple([z.string()], z.boolean()),
  array: z.array(z.boolean()).min(1).max(3),
  union: z.union([z.string(), z.number(), z.array(z.null())]),
  discriminatedUnion: z.discriminatedUnion("k", [
    z.object({ k: z.literal("a"), x: z.boolean() }),
    z.object({ k: z.literal("b"), y: z.int() }),
  ]),
  intersection: z.object({ a: z.boolean() }).and(z.object({ b: z.int() })),
  recursion: node,
  json: z.json(),
};

describe("a schema of zod's", () => {
  const drafts = ["draft-2020-12", "draft-7"] as const;
  // older ones cannot say all of the others
  const older = ["draft-4", "openapi-3.0"] as const;
  const said = ["positive", "negative", "enum", "an object", "array", "union", "discriminatedUnion", "json"];
  it.each(Object.entries(types))("%s is kept to, as zod sees it", (name, type) => {
    const known = new Set<string>();
    for (const target of said.includes(name) ? [...drafts, ...older] : drafts) {
      const schema = z.toJSONSchema(type, { target, io: "input" });
      delete schema["$schema"];
      const text = JSON.stringify(schema);
      if (known.has(text)) continue;
      known.add(text);
      for (const value of walks(schema, 3)) {
        const { error } = type.safeParse(value);
        if (error) expect([target, value, error.issues]).toBeUndefined();
      }
    }
  });
});

const address = (text: string) => isIPv4(text) || isIPv6(text);
const within = (text: string) => {
  const [ip, length, ...more] = text.split("/");
  return more.length === 0 && /^\d{1,3}$/.test(length!) && Number(length) <= (isIPv4(ip!) ? 32 : 128) && address(ip!);
};
const network = (text: string) => {
  const [ip, length] = text.split("/");
  const bits = ip!.split(".").map((octet) => Number(octet).toString(2).padStart(8, "0"));
  return within(text) && (isIPv6(ip!) || /^0*$/.test(bits.join("").slice(Number(length))));
};

describe("a format of pydantic's", () => {
  it.each<[string, (text: string) => boolean]>([
    ...[1, 3, 4, 5, 6, 7, 8].map((version): [string, (text: string) => boolean] => [
      `uuid${version}`,
      (text) => new RegExp(`^.{8}-.{4}-${version}.{3}-[89ab]`, "i").test(text) && z.guid().safeParse(text).success,
    ]),
    ["ipvanyaddress", address],
    ["ipv4interface", within],
    ["ipv6interface", within],
    ["ipvanyinterface", within],
    ["ipv4network", network],
    ["ipv6network", network],
    ["ipvanynetwork", network],
    ["base64", (text) => Buffer.from(text, "base64").toString("base64") === text],
    ["base64url", (text) => text.length % 4 === 0 && Buffer.from(text, "base64url").toString("base64url") === text],
    ["date", (text) => !text.startsWith("0000")],
  ])("%s is kept to", (format, isRight) => {
    for (const text of walks({ type: "string", format }, 10))
      if (!isRight(String(text))) expect(text).toBe(`a text of the format ${format}`);
  });
});

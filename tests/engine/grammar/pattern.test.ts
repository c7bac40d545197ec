// Regular expressions as grammars: JavaScript's own engine is the judge.

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ofClass } from "../../../src/engine/grammar/code-points.ts";
import { type Alphabet, pattern } from "../../../src/engine/grammar/pattern.ts";
import { type Regex, Regexes } from "../../../src/engine/grammar/regex.ts";
import { jsonAlphabet, rawAlphabet } from "../../../src/engine/grammar/strings.ts";
import { RequestError } from "../../../src/tensor/errors.ts";
import { grammarsOf, tokenizers, walk } from "./walk.ts";

const atom = fc.constantFrom(
  "a",
  "b",
  "é",
  "🦙",
  ".",
  "[ab]",
  "[^a]",
  "[a-cé-ü]",
  "\\d",
  "\\w",
  "\\s",
  "\\W",
  "\\u{1f999}",
  "\\n",
);
const sources = (atom: fc.Arbitrary<string>) =>
  fc.letrec<{ source: string }>((tie) => ({
    source: fc.oneof(
      { maxDepth: 4 },
      atom,
      fc.tuple(tie("source"), tie("source")).map(([a, b]) => `${a}${b}`),
      fc.tuple(tie("source"), tie("source")).map(([a, b]) => `(?:${a}|${b})`),
      fc
        .tuple(tie("source"), fc.constantFrom("*", "+", "?", "{2}", "{1,3}", "{2,}", "*?"))
        .map(([a, q]) => `(${a})${q}`),
    ),
  })).source;
const source = sources(atom);
/** With ends, and what looks ahead, wherever they may stand. */
const looking = sources(
  fc.oneof(
    { weight: 6, arbitrary: atom },
    { weight: 1, arbitrary: fc.constantFrom("^", "$") },
    { weight: 1, arbitrary: source.map((s) => `(?=${s})`) },
    { weight: 1, arbitrary: source.map((s) => `(?!${s})`) },
    { weight: 1, arbitrary: source.map((s) => `(?!${s}$)`) },
  ),
);
const text = fc.string({
  unit: fc.constantFrom("a", "b", "c", "é", "🦙", "1", " ", "\n", "_", '"', "\\"),
  maxLength: 8,
});

/** V8 looks for what is negated between the halves of a surrogate pair, too; the standard does not. */
const plain = text.map((text) => text.replaceAll("🦙", "ü"));

/** Without counts that have no end: texts of random characters would have none either. */
const ending = (source: string) =>
  source.replaceAll(/\*\??/g, "{0,2}").replaceAll("+", "{1,2}").replaceAll("{2,}", "{2,3}");

describe("a pattern", () => {
  it("matches the whole texts that JavaScript's does", () => {
    fc.assert(
      fc.property(source, fc.array(text, { minLength: 1, maxLength: 12 }), (source, texts) => {
        const regexes = new Regexes();
        const term = pattern(source, "p", regexes, { alphabet: rawAlphabet(regexes), searches: false });
        for (const text of texts) expect(regexes.has(term, text)).toBe(new RegExp(`^(?:${source})$`, "u").test(text));
      }),
      { numRuns: 300 },
    );
  });

  it("is found where JavaScript finds it, in a JSON string too", () => {
    const anchored = fc
      .tuple(fc.boolean(), source, fc.boolean())
      .map(([a, p, b]) => `${a ? "^" : ""}${p}${b ? "$" : ""}`);
    fc.assert(
      fc.property(anchored, fc.array(text, { minLength: 1, maxLength: 12 }), (source, texts) => {
        const regexes = new Regexes();
        const raw = pattern(source, "p", regexes, { alphabet: rawAlphabet(regexes), searches: true });
        const json = pattern(source, "p", regexes, { alphabet: jsonAlphabet(regexes), searches: true });
        for (const text of texts) {
          const isFound = new RegExp(source, "u").test(text);
          expect(regexes.has(raw, text)).toBe(isFound);
          expect(regexes.has(json, JSON.stringify(text).slice(1, -1))).toBe(isFound);
        }
      }),
      { numRuns: 200 },
    );
  });

  it("that looks ahead is found where JavaScript finds it", () => {
    let understood = 0;
    const run = (searches: boolean) =>
      fc.property(looking, fc.array(plain, { minLength: 1, maxLength: 12 }), (source, texts) => {
        const regexes = new Regexes();
        const read = (alphabet: Alphabet) => pattern(source, "p", regexes, { alphabet, searches });
        let terms: Regex[];
        try {
          terms = [read(rawAlphabet(regexes)), read(jsonAlphabet(regexes))];
        } catch (error) {
          if (String(error).includes("what repeats and looks beyond itself")) return;
          throw error;
        }
        understood++;
        for (const text of texts) {
          const isFound = new RegExp(searches ? source : `^(?:${source})$`, "u").test(text);
          expect([text, regexes.has(terms[0]!, text)]).toEqual([text, isFound]);
          expect([text, regexes.has(terms[1]!, JSON.stringify(text).slice(1, -1))]).toEqual([text, isFound]);
        }
      });
    fc.assert(run(true), { numRuns: 60 });
    fc.assert(run(false), { numRuns: 60 });
    expect(understood).toBeGreaterThan(60);
  });

  it.each([
    ["^(?=.*\\d)(?=.*[a-z]).{8,}$", ["abcdefg1", "a1bbbbbbbb"], ["abcdefgh", "a1"]],
    ["^(?!^[-+.]*$)[+-]?0*\\d*\\.?\\d*$", ["1", "-0.5", "."].slice(0, 2), ["", "+", "."]], // pydantic's decimals
    ["^(?:(?!-)[a-z-]{1,3}\\.)+(?!com$)[a-z]+$", ["a.b.co", "a-.coma"], ["-a.b", "a.-b.c", "a.com"]],
    ["(?:^|,)a(?:$|,)", ["a", "b,a", "a,b", "b,a,b"], ["ba", "a b"]],
    ["a(^b)|(a$)b|c", ["c"], ["ab"]],
    ["^[a]{2}]{}$", ["aa]{}"], ["aa"]],
    // flag u has none of these
    ["^[\\w-.]+$", ["a-b.c", "-"], ["a b", "/", ""]],
    ["^[.-\\d]$", [".", "-", "7"], ["/", "a"]],
    ["^[\\d-a-z]$", ["7", "-", "a", "z"], ["b"]],
    ["^[^\\s-x]$", ["a", "w"], [" ", "-", "x"]],
    ["^[*--\\w]$", ["*", "+", "-", "a"], [".", "/"]],
  ])("%s is understood as JavaScript does", (source, right, wrong) => {
    const regexes = new Regexes();
    const term = pattern(source, "p", regexes, { alphabet: rawAlphabet(regexes), searches: true });
    for (const text of right) expect([text, regexes.has(term, text)]).toEqual([text, true]);
    for (const text of wrong) expect([text, regexes.has(term, text)]).toEqual([text, false]);
  });

  it("holds replies to it", () => {
    fc.assert(
      fc.property(source.map(ending), fc.nat(), (source, seed) => {
        for (const tokenizer of Object.values(tokenizers))
          expect(walk(tokenizer, { type: "regex", pattern: source }, seed)).toMatch(new RegExp(`^(?:${source})$`, "u"));
      }),
      { numRuns: 30 },
    );
  });

  it.each([
    "^ab$",
    "^(?:a|b)+$",
    "a|^b$|c",
    "(?<name>x)y",
    "[\\]^-]+",
    "\\x41\\t\\/\\.",
    "\\p{Script=Greek}{2}",
    "[\\p{L}\\d]",
    "\\cA",
    "\\ud83e\\udd99",
  ])("%s is understood", (source) => {
    for (let seed = 0; seed < 10; seed++)
      expect(walk(tokenizers["words"]!, { type: "regex", pattern: source }, seed)).toMatch(
        new RegExp(`^(?:${source})$`, "u"),
      );
  });

  it.each([
    "(?=a)",
    "(?!a)a",
    "(?:(?!end).)*",
    "(?<=a)b",
    "(?<!a)b",
    "(a)\\1",
    "(?<n>a)\\k<n>",
    "\\b",
    "\\B",
    "a(^b)",
    "(a$)b",
    "a{20000}",
    "(?i:a)",
    "\\ud83e",
    "(",
    "[b-a]",
    "a**",
  ])("%s is refused", (pattern) => {
    expect(() => grammarsOf(tokenizers["words"]!).begin({ type: "regex", pattern })).toThrow(RequestError);
  });

  it("may have backslashes that mean nothing", () => {
    for (let seed = 0; seed < 10; seed++)
      expect(walk(tokenizers["words"]!, { type: "regex", pattern: '\\d\\-[a\\-c]\\"\\@' }, seed)).toMatch(
        /^\d-[ac-]"@$/,
      );
  });

  it("that would need too many states is refused, once they have come", () => {
    const regexes = new Regexes();
    const term = pattern("(?:[ab]*a[ab]{30})", "p", regexes, { alphabet: rawAlphabet(regexes), searches: false });
    const run = () => {
      let states = [term];
      for (let i = 0; i < 20; i++) states = states.flatMap((s) => [regexes.next(s, 0x61), regexes.next(s, 0x62)]);
    };
    expect(run).toThrow("more than 100,000 states");
  });
});

describe("Unicode's properties", () => {
  it("have the characters that JavaScript says, and are looked up once", () => {
    for (const class_ of ["\\p{L}", "\\P{Lu}", "\\p{Script=Greek}", "\\p{Any}"]) {
      const set = ofClass(class_);
      const has = (c: number) => set.some(([low, high]) => low <= c && c <= high);
      for (const c of [
        0,
        0xd7ff,
        0xe000,
        0xffff,
        0x10000,
        0x10ffff,
        ...fc.sample(fc.integer({ max: 0x10ffff, min: 0 })),
      ])
        if (c < 0xd800 || c > 0xdfff)
          expect([c, has(c)]).toEqual([c, new RegExp(class_, "u").test(String.fromCodePoint(c))]);
      expect(ofClass(class_)).toBe(set);
    }
  });

  const read = (source: string) => {
    const regexes = new Regexes();
    return pattern(source, "p", regexes, { alphabet: rawAlphabet(regexes), searches: false });
  };

  it("may come as often as a pattern is long, but only some of them in one", () => {
    expect(read("\\p{L}".repeat(2000)).kind).toBe("concat");
    const many = ["L", "Lu", "Ll", "Lt", "Lm", "Lo", "M", "Mn", "Mc", "Me", "N", "Nd", "Nl", "No", "P", "Pc", "Pd"];
    expect(() => read(many.map((name) => `\\p{${name}}`).join(""))).toThrow("more than 16 properties");
  });

  it("are refused in ever new classes", () => {
    const classes = Array.from({ length: 900 }, (_, i) => `[\\p{L}${String.fromCodePoint(0x20ac + i)}]`);
    expect(() => read(classes.join(""))).toThrow("too many large classes");
  });
});

describe("terms", () => {
  it("know what nothing is in", () => {
    const regexes = new Regexes();
    const { text } = { text: (s: string) => regexes.text(s) };
    const even = regexes.many(text("aa"));
    const odd = regexes.concat(text("a"), even);
    expect(regexes.isAlive(regexes.and(even, odd))).toBe(false);
    expect(regexes.isAlive(regexes.and(regexes.many(text("a")), regexes.not(even)))).toBe(true);
    expect(
      regexes.isAlive(regexes.and(regexes.loop(text("a"), 500, 500), regexes.many(regexes.range(0x61, 0x7a)))),
    ).toBe(true);
    expect(
      regexes.next(regexes.and(regexes.many(regexes.range(0x61, 0x62)), regexes.union(text("ab"), text("ca"))), 0x63),
    ).toBe(regexes.empty);
  });
});

// x{a,b}x{c,d} is x{a+c,b+d}, and one term, so that many in a row have few states.
describe("loops of the same in a row", () => {
  const counts: [number, number][] = [
    [0, 2],
    [2, 2],
    [2, 3],
    [3, 5],
    [0, Infinity],
    [2, Infinity],
  ];
  const quantifier = ([least, most]: [number, number]) => `{${least},${most === Infinity ? "" : most}}`;
  const texts = Array.from({ length: 12 }, (_, n) =>
    [..."abc"].flatMap((c) => [c.repeat(n), `a${c.repeat(n)}b`]),
  ).flat();
  it.each(["a", "[ab]", "a|bb", "a?", "(?:a?|b*)", "ab?", ".*"])("of %s are one", (source) => {
    for (const first of counts)
      for (const second of counts) {
        const regexes = new Regexes();
        const read = (source: string) =>
          pattern(source, "here", regexes, { alphabet: rawAlphabet(regexes), searches: false });
        const part = read(source);
        const row = regexes.concat(regexes.loop(part, ...first), regexes.loop(part, ...second));
        expect(row).toBe(regexes.loop(part, first[0] + second[0], first[1] + second[1]));
        expect(regexes.concat(regexes.loop(part, ...first), regexes.loop(part, ...second), read("c"))).toBe(
          regexes.concat(row, read("c")),
        );
        const judge = new RegExp(`^(?:${source})${quantifier(first)}(?:${source})${quantifier(second)}$`, "v");
        for (const text of texts) expect(regexes.has(row, text), `${text} in ${judge}`).toBe(judge.test(text));
      }
  });
});

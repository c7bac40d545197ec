import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  GPT2_PATTERN,
  LLAMA3_PATTERN,
  LLAMA4_PATTERN,
  preTokenizer,
  sliceEnds,
} from "../../src/prompt/pre-tokenizer.ts";
import { CheckpointError } from "../../src/tensor/errors.ts";
import { corpus } from "./corpus.ts";

const utf8 = new TextEncoder();

function pieces(text: string, pattern = LLAMA4_PATTERN): string[] {
  const bytes = utf8.encode(text);
  const ends = new Int32Array(bytes.length);
  const n = preTokenizer(pattern).split(bytes, 0, bytes.length, ends);
  return [...ends.subarray(0, n)].map((end, i) =>
    new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes.subarray(i === 0 ? 0 : ends[i - 1]!, end)),
  );
}

// Spec §9.2 in JavaScript: \s is Unicode White_Space, (?i:…) is written out with the long s that Unicode folds to s.
const SPECIFIED = (() => {
  const space = "\\t-\\r \\u0085\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
  const end = "(?:'[sS\\u017f]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?";
  const lead = "[^\\r\\n\\p{L}\\p{N}]?";
  const upper = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]";
  const lower = "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]";
  const rest = `\\p{N}{1,3}| ?[^${space}\\p{L}\\p{N}]+[\\r\\n/]*|[${space}]*[\\r\\n]+|[${space}]+(?![^${space}])|[${space}]+`;
  return new RegExp(`${lead}${upper}*${lower}+${end}|${lead}${upper}+${lower}*${end}|${rest}`, "gu");
})();

// Few characters, so that every class meets every other: one or two of each class, ASCII and not.
const ANY = fc.constantFrom(
  ..."aAzſʰªー中\u0301\u0489ǅÉé1٣½𝟙 \t\r\n\u0085\ufeff\u00a0\u3000'/!🙂'sStTrReEvVmMlLdD<|>".match(/./gsu)!,
  "\u001c",
  "\u200d",
);

describe("Llama 4's pre-tokeniser, written by hand", () => {
  test("equals the regular expression on random texts of every class of characters", () => {
    fc.assert(
      fc.property(fc.array(ANY, { maxLength: 24 }), (characters) => {
        const text = characters.join("");
        expect(pieces(text)).toEqual(text.match(SPECIFIED) ?? []);
      }),
      { numRuns: 20_000 },
    );
  });

  test("equals the regular expression on arbitrary Unicode", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary", maxLength: 64 }), (text) => {
        expect(pieces(text)).toEqual(text.match(SPECIFIED) ?? []);
      }),
      { numRuns: 5_000 },
    );
  });

  test("equals the regular expression on text of many scripts", () => {
    const text = corpus(200_000, 7);
    expect(pieces(text)).toEqual(text.match(SPECIFIED));
  });
});

describe("patterns of other tokenizers", () => {
  test("Llama 3's and GPT-2's cut as they say", () => {
    expect(pieces("I'LL say  1234\n\n x", LLAMA3_PATTERN)).toEqual([
      "I",
      "'LL",
      " say",
      " ",
      " ",
      "123",
      "4",
      "\n\n",
      " x",
    ]);
    expect(pieces("I'll say  1234\n\n x", GPT2_PATTERN)).toEqual(["I", "'ll", " say", " ", " 1234", "\n\n", " x"]);
  });

  test("text between two matches is a piece of its own", () => {
    expect(pieces("ab12🙂cd", "[0-9]")).toEqual(["ab", "1", "2", "🙂cd"]);
  });

  test("a pattern that could run for ever, or not at all, is refused", () => {
    expect(() => preTokenizer("(a+)+$")).toThrow(CheckpointError);
    expect(() => preTokenizer("[")).toThrow(CheckpointError);
    expect(() => preTokenizer("a".repeat(5000))).toThrow(CheckpointError);
  });
});

describe("slices", () => {
  const slices = (text: string) => sliceEnds(utf8.encode(text));

  test("a run of 25,000 stays whole and a longer one is cut", () => {
    expect(slices("a".repeat(25_000))).toEqual([25_000]);
    expect(slices("a".repeat(60_000))).toEqual([25_000, 50_000, 60_000]);
    expect(slices(" ".repeat(25_001))).toEqual([25_000, 25_001]);
  });

  test("runs are counted in characters, and U+001C is a space as in Python", () => {
    expect(slices("日".repeat(25_001))).toEqual([75_000, 75_003]);
    expect(slices(`${"a".repeat(20_000)}\u001c${"a".repeat(20_000)}`)).toEqual([40_001]);
  });

  test("no slice has more than 400,000 characters, and counting starts anew there", () => {
    const text = "ab ".repeat(200_000);
    expect(slices(text)).toEqual([400_000, 600_000]);
  });

  test("no text has no slice", () => {
    expect(slices("")).toEqual([]);
  });
});

// An independent library reads what toHuggingFace writes and gives the same ids: @huggingface/tokenizers.
import { Tokenizer as Oracle } from "@huggingface/tokenizers";
import { describe, expect, test } from "vitest";
import { cut } from "../../src/prompt/small-vocabularies.ts";
import { fromTiktoken } from "../../src/prompt/tiktoken.ts";
import type { Tokenizer } from "../../src/prompt/tokenizer.ts";
import { fromHuggingFace, toHuggingFace, toHuggingFaceConfig } from "../../src/prompt/tokenizer-json.ts";
import { corpus } from "./corpus.ts";
import { metaTokenizer, unlessMissing } from "./meta-tokenizer.ts";
import { smallTokenizer } from "./vocabularies.ts";

// The long s after an apostrophe is left out: tiktoken and we fold it to s as Unicode does, this library does not.
const text = corpus(1_100_000, 11).replaceAll("'ſ", "");

/** How many of the paragraphs get other ids. */
function differences(tokenizer: Tokenizer, file: object = toHuggingFace(tokenizer), corpus = text): number {
  const oracle = new Oracle(JSON.parse(JSON.stringify(file)), toHuggingFaceConfig(tokenizer));
  let count = 0;
  // Paragraph by paragraph, because the library is not made for a megabyte at once.
  for (let at = 0; at < corpus.length; at += 5_000) {
    const part = corpus.slice(at, at + 5_000);
    const ours = tokenizer.encode(part, { allowSpecial: true }); // the library always recognises them
    const theirs: readonly number[] = oracle.encode(part, { add_special_tokens: false }).ids;
    const same = ours.length === theirs.length && ours.every((id, i) => id === theirs[i]);
    if (!same) count++;
  }
  return count;
}

describe("@huggingface/tokenizers gives the same ids for a megabyte of many scripts", () => {
  test("the corpus is a megabyte and more", () => {
    expect(Buffer.byteLength(text)).toBeGreaterThan(1_000_000);
  });

  test("with a small vocabulary", () => {
    expect(differences(smallTokenizer())).toBe(0);
  });

  test("with a vocabulary whose merges say more than its ids", () => {
    // Special tokens first, then bytes, then words that merge from the left only: as Hugging Face's trainer makes them.
    const tokenizer = fromHuggingFace(leftMerging());
    expect(tokenizer.parts.merges).toBeDefined();
    // Where ByteLevel cuts by itself, the library takes JavaScript's blanks; Hugging Face's own in Rust takes Unicode's, as we do.
    const noQuarrel = text.replaceAll(/[\u0085\ufeff]/g, "");
    expect(differences(tokenizer, leftMerging(), noQuarrel)).toBe(0);
    expect(differences(tokenizer)).toBe(0);
    expect(differences(cut(tokenizer, 500))).toBe(0);
  });

  test.skipIf(!metaTokenizer)(`with Meta's vocabulary cut to 8,192${unlessMissing}`, () => {
    expect(differences(cut(fromTiktoken(metaTokenizer!), 8_192))).toBe(0);
  });

  test.skipIf(!metaTokenizer)(`with Meta's vocabulary${unlessMissing}`, () => {
    expect(differences(fromTiktoken(metaTokenizer!))).toBe(0);
  });
});

function leftMerging() {
  const file = toHuggingFace(smallTokenizer());
  const names = Object.entries(file.model.vocab).sort(([, a], [, b]) => a - b);
  const specials = file.added_tokens.slice(0, 9).map((token, id) => ({ ...token, id }));
  const words = new Set(names.map(([name]) => name));
  const merges = names.flatMap(([name]) => {
    const [left, right] = [name.slice(0, -1), name.slice(-1)];
    return words.has(left) && words.has(right) ? [[left, right]] : [];
  });
  const vocab = Object.fromEntries(names.map(([name], i) => [name, specials.length + i]));
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true };
  return {
    ...file,
    added_tokens: specials,
    pre_tokenizer: byteLevel,
    post_processor: null,
    model: { ...file.model, ignore_merges: false, vocab, merges },
  };
}

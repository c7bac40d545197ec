import { Tokenizer as Oracle } from "@huggingface/tokenizers";
import { describe, expect, it } from "vitest";
import { BytePairs } from "../../src/prompt/byte-pairs.ts";
import { fromHuggingFace, toHuggingFace, toHuggingFaceConfig } from "../../src/prompt/tokenizer-json.ts";
import { trainTokenizer } from "../../src/train/tokenizer.ts";
import { corpus, random } from "../prompt/corpus.ts";

const lines = corpus(200_000, 3).split("\n");

/** The merges of a vocabulary by the shortest correct loop: every pair is counted anew for each merge. */
function mergesByCounting(words: readonly string[], merges: number): string[][] {
  let pieces = words.map((word) => [...word]);
  const made: string[][] = [];
  const known = new Set<string>();
  while (made.length < merges) {
    const counts = new Map<string, number>();
    for (const piece of pieces)
      for (let i = 0; i + 1 < piece.length; i++) {
        const key = `${piece[i]} ${piece[i + 1]}`;
        if (!known.has(`${piece[i]}${piece[i + 1]}`)) counts.set(key, (counts.get(key) ?? 0) + 1);
      }
    const most = Math.max(...counts.values());
    const rank = (part: string) => (part.length === 1 ? part.charCodeAt(0) : 256 + [...known].indexOf(part));
    const best = [...counts.keys()]
      .filter((key) => counts.get(key) === most)
      .map((key) => key.split(" "))
      .sort((a, b) => rank(a[0]!) - rank(b[0]!) || rank(a[1]!) - rank(b[1]!))[0]!;
    made.push(best);
    known.add(best.join(""));
    pieces = pieces.map((piece) => {
      const out: string[] = [];
      for (let i = 0; i < piece.length; i++)
        if (piece[i] === best[0] && piece[i + 1] === best[1]) out.push(piece[i]! + piece[++i]!);
        else out.push(piece[i]!);
      return out;
    });
  }
  return made;
}

describe("a trained vocabulary", () => {
  it("has the merges that counting every pair anew for each of them gives", async () => {
    // Words apart by digits, which stand alone: three letters make long runs and many ties.
    const draw = random(5);
    const letter = () => "abc"[Math.floor(3 * draw())]!;
    const words = Array.from({ length: 400 }, () =>
      Array.from({ length: 1 + Math.floor(9 * draw()) }, letter).join(""),
    );
    const tokenizer = await trainTokenizer([words.join("7")], { vocabSize: 256 + 32 + 60 });
    const list = tokenizer.mergeList();
    const got = Array.from({ length: list.length / 3 }, (_, i) =>
      [list[3 * i]!, list[3 * i + 1]!].map((id) => tokenizer.decode([id])),
    );
    expect(got).toEqual(mergesByCounting(words, 60));
  });

  it("is read by @huggingface/tokenizers, which gives the same ids for text that it was not trained on", async () => {
    const tokenizer = await trainTokenizer(lines.slice(0, -400), { vocabSize: 1500 });
    expect(tokenizer.vocabSize).toBe(1500);
    const file = JSON.parse(JSON.stringify(toHuggingFace(tokenizer)));
    const oracle = new Oracle(file, toHuggingFaceConfig(tokenizer));
    const ours = fromHuggingFace(file);
    // The library does not fold the long s after an apostrophe, as Unicode and we do.
    for (const line of [...lines.slice(-400), "日本語 और हिन्दी, 👩‍👩‍👧 naïve 12345"].map((text) =>
      text.replaceAll("'ſ", ""),
    )) {
      const ids = tokenizer.encode(line, { allowSpecial: true }); // the library always recognises them
      expect(oracle.encode(line, { add_special_tokens: false }).ids).toEqual([...ids]);
      expect([...ours.encode(line, { allowSpecial: true })]).toEqual([...ids]);
      expect(tokenizer.decode(ids)).toBe(line);
    }
  });

  it("encodes a piece as it was while learning", async () => {
    const tokenizer = await trainTokenizer(["banana bandana cabana banana ".repeat(3)], { vocabSize: 300 });
    const pairs = new BytePairs(tokenizer.parts.vocabulary, { merges: tokenizer.mergeList(), wholePieces: false });
    const bytes = new TextEncoder().encode(" banana");
    const out = new Int32Array(bytes.length);
    expect(pairs.encode(bytes, 0, bytes.length, out, 0)).toBe(1);
  });

  it("does not depend on the order of the texts, and holds Llama 4's special tokens behind the others", async () => {
    const [a, b] = await Promise.all(
      [lines, [...lines].reverse()].map((texts) => trainTokenizer(texts, { vocabSize: 700 })),
    );
    expect(toHuggingFace(a!)).toEqual(toHuggingFace(b!));
    expect(a!.specialId("<|begin_of_text|>")).toBe(700 - 32);
    for (const name of ["<|eot|>", "<|image_start|>", "<|image|>", "<|patch|>", "<|image_end|>"])
      expect(a!.specialId(name)).toBeGreaterThan(700 - 32);
  });

  it("has fewer tokens than asked for where no pair is left that occurs twice", async () => {
    const tokenizer = await trainTokenizer(["ab ab"], { vocabSize: 1000 });
    expect(tokenizer.vocabSize).toBe(256 + 1 + 32);
  });

  it("can be given up, says how far it is, and refuses sizes that make no vocabulary", async () => {
    const aborted = AbortSignal.abort(new Error("enough"));
    const many = Array.from({ length: 2000 }, () => lines.slice(0, 200).join("\n"));
    await expect(trainTokenizer(many, { vocabSize: 4096, signal: aborted })).rejects.toThrow("enough");
    const seen: number[] = [];
    await trainTokenizer(lines, { vocabSize: 3000, onProgress: (done) => seen.push(done) });
    expect(seen).toEqual([...seen].sort((x, y) => x - y));
    await expect(trainTokenizer(lines, { vocabSize: 280 })).rejects.toThrow(/expected from 288/);
  });
});

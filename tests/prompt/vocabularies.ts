// Small vocabularies made here, so that the tests need no file of Meta's.
import { LLAMA4_SPECIAL_TOKENS } from "../../src/prompt/special-tokens.ts";
import { fromTiktoken } from "../../src/prompt/tiktoken.ts";
import type { Tokenizer } from "../../src/prompt/tokenizer.ts";
import { WORDS } from "./corpus.ts";

/** In the form of tokenizer.model: all bytes (not in their order, as in Meta's), then the prefixes of words. */
export function smallRanks(): string {
  const tokens: Buffer[] = Array.from({ length: 256 }, (_, i) => Buffer.of((i * 77 + 192) % 256));
  const seen = new Set(tokens.map((t) => t.toString("latin1")));
  const add = (token: Buffer) => {
    const key = token.toString("latin1");
    if (!seen.has(key)) tokens.push(token);
    seen.add(key);
  };
  const words = WORDS.filter((word) => !word.startsWith("<|"));
  for (const word of [
    "aaaaaaaa",
    "        ",
    "\n\n\n",
    "\r\n\r\n",
    "'s",
    "'re",
    ...words,
    ...words.map((w) => ` ${w}`),
  ]) {
    const bytes = Buffer.from(word);
    for (let length = 2; length <= bytes.length; length++) add(bytes.subarray(0, length));
    for (let length = 2; length < bytes.length; length += 2) add(bytes.subarray(bytes.length - length));
  }
  return tokens.map((token, rank) => `${token.toString("base64")} ${rank}\n`).join("");
}

export const smallTokenizer = (): Tokenizer =>
  fromTiktoken(smallRanks(), { specials: LLAMA4_SPECIAL_TOKENS.slice(0, 128) });

// Meta's tokenizer.model: a line `<base64 of the token's bytes> <rank>` each, ranks from 0 on; specials follow in code.
import { CheckpointError } from "../tensor/errors.ts";
import { VocabularyWriter } from "./byte-pairs.ts";
import { LLAMA4_PATTERN } from "./pre-tokenizer.ts";
import { LLAMA4_SPECIAL_TOKENS } from "./special-tokens.ts";
import { Tokenizer, type TokenizerOptions } from "./tokenizer.ts";

export interface TiktokenOptions extends TokenizerOptions {
  /** The special tokens, whose ids follow the last rank; the file does not name them. Default: Llama 4's. */
  readonly specials?: readonly string[];
  readonly pattern?: string;
}

/** Opens Meta's `tokenizer.model`. */
export function fromTiktoken(file: string | Uint8Array, options: TiktokenOptions = {}): Tokenizer {
  const { specials = LLAMA4_SPECIAL_TOKENS, pattern = LLAMA4_PATTERN, ...rest } = options;
  const writer = new VocabularyWriter();
  const ranks = readRanks(typeof file === "string" ? new TextEncoder().encode(file) : file, writer);
  const special = new Map<string, number>();
  for (const text of specials) {
    special.set(text, ranks + special.size);
    writer.reserve(text);
  }
  return new Tokenizer({ vocabulary: writer.finish(), special, wholePieces: true, pattern }, rest);
}

const NEWLINE = 0x0a;
const RETURN = 0x0d;
const SPACE = 0x20;
const EQUALS = 0x3d;

function readRanks(file: Uint8Array, writer: VocabularyWriter): number {
  let rank = 0;
  for (let at = 0, line = 1; at < file.length; line++) {
    let end = file.indexOf(NEWLINE, at);
    if (end < 0) end = file.length;
    const last = end > at && file[end - 1] === RETURN ? end - 1 : end;
    if (last > at) {
      const space = readBase64(file, at, last, writer);
      if (space < 0 || readNumber(file, space + 1, last) !== rank)
        throw new CheckpointError(
          `tokenizer.model: line ${line} is ${JSON.stringify(new TextDecoder().decode(file.subarray(at, Math.min(last, at + 60))))}; expected a token in base64, a space and the rank ${rank}`,
        );
      writer.endToken();
      rank++;
    }
    at = end + 1;
  }
  return rank;
}

const BASE64 = new Int8Array(256).fill(-1);
for (const [value, digit] of [..."ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"].entries())
  BASE64[digit.charCodeAt(0)] = value;

// Writes the bytes and returns where the space after them is, or -1. By hand: no string per token is made.
function readBase64(file: Uint8Array, start: number, end: number, writer: VocabularyWriter): number {
  let at = start;
  for (; at + 4 <= end && file[at] !== SPACE; at += 4) {
    const a = BASE64[file[at]!]!;
    const b = BASE64[file[at + 1]!]!;
    if (a < 0 || b < 0) return -1;
    writer.byte((a << 2) | (b >> 4));
    if (file[at + 2] === EQUALS) {
      if (file[at + 3] !== EQUALS || (b & 15) !== 0) return -1;
      at += 4;
      break;
    }
    const c = BASE64[file[at + 2]!]!;
    if (c < 0) return -1;
    writer.byte(((b & 15) << 4) | (c >> 2));
    if (file[at + 3] === EQUALS) {
      if ((c & 3) !== 0) return -1;
      at += 4;
      break;
    }
    const d = BASE64[file[at + 3]!]!;
    if (d < 0) return -1;
    writer.byte(((c & 3) << 6) | d);
  }
  return at > start && at < end && file[at] === SPACE ? at : -1;
}

function readNumber(file: Uint8Array, start: number, end: number): number {
  if (start === end || end - start > 9) return -1;
  let value = 0;
  for (let at = start; at < end; at++) {
    const digit = file[at]! - 0x30;
    if (digit < 0 || digit > 9) return -1;
    value = 10 * value + digit;
  }
  return value;
}

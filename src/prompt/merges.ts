// Merges as files name them: two tokens each, in GPT-2's alphabet.
import { CheckpointError } from "../tensor/errors.ts";
import { byteOf } from "./byte-alphabet.ts";
import type { MergeReader } from "./byte-pairs.ts";
import { shown } from "./shown.ts";

/** Reads merges written "left right" or as two strings. */
export function namedMerges(list: readonly unknown[]): MergeReader {
  return (tokens) => {
    const merges = new Int32Array(3 * list.length);
    let bytes = new Uint8Array(1 << 10); // both tokens, one behind the other
    for (let rank = 0; rank < list.length; rank++) {
      const merge = list[rank];
      const [text, right] = Array.isArray(merge) && merge.length === 2 ? (merge as unknown[]) : [merge, ""];
      if (typeof text !== "string" || typeof right !== "string") throw unusable(rank, merge);
      if (text.length + right.length > bytes.length) bytes = new Uint8Array(2 * (text.length + right.length));
      // A space is not in the alphabet, so it can stand between the two.
      const space = right === "" ? text.indexOf(" ") : text.length;
      const cut = write(text, 0, space, bytes, 0);
      const end =
        right === "" ? write(text, space + 1, text.length, bytes, cut) : write(right, 0, right.length, bytes, cut);
      const ids =
        end > cut && cut > 0
          ? [tokens.find(bytes, 0, cut), tokens.find(bytes, cut, end), tokens.find(bytes, 0, end)]
          : [-1];
      if (ids.includes(-1)) throw unusable(rank, merge);
      merges.set(ids, 3 * rank);
    }
    return merges;
  };
}

// The bytes of text[start .. end] into `bytes` from `at` on; returns where they end, -1 where one is not of the alphabet.
function write(text: string, start: number, end: number, bytes: Uint8Array, at: number): number {
  if (at < 0) return -1;
  for (let i = start; i < end; i++) {
    const byte = byteOf(text.charCodeAt(i));
    if (byte < 0) return -1;
    bytes[at++] = byte;
  }
  return at;
}

const unusable = (rank: number, merge: unknown) =>
  new CheckpointError(
    `tokenizer: merge ${rank} is ${shown(merge)}; expected two tokens of the vocabulary that join to a third`,
  );

// Vocabularies for small models of Llama 4's kind: bytes alone, and the first tokens of a larger one.
import { RequestError } from "../tensor/errors.ts";
import { type MergeList, VocabularyWriter } from "./byte-pairs.ts";
import { LLAMA4_PATTERN } from "./pre-tokenizer.ts";
import { fittingSpecials, LLAMA4_SPECIAL_TOKENS } from "./special-tokens.ts";
import { Tokenizer } from "./tokenizer.ts";

/** A token for every byte, then as many of Llama 4's special tokens as fit, then more reserved ones. */
export function byteLevel({ vocabSize }: { vocabSize: number }): Tokenizer {
  if (!Number.isInteger(vocabSize) || vocabSize < 256)
    throw new RequestError(`a byte-level vocabulary of ${vocabSize}; expected 256 or more, a token for every byte`);
  const writer = new VocabularyWriter();
  for (let byte = 0; byte < 256; byte++) {
    writer.byte(byte);
    writer.endToken();
  }
  const names = fittingSpecials(LLAMA4_SPECIAL_TOKENS, vocabSize - 256);
  // Every row of the embedding has a token: Llama 4's own list ends at 903.
  for (let i = 904; names.length < vocabSize - 256; i++) names.push(`<|reserved_special_token_${i}|>`);
  const special = addSpecials(writer, 256, names);
  return new Tokenizer({ vocabulary: writer.finish(), special, wholePieces: true, pattern: LLAMA4_PATTERN });
}

/**
 * The first tokens of a vocabulary in order of rank, then its special tokens: all of them, or in a vocabulary of less
 * than twice as many, half of it (the named ones first).
 */
export function cut(tokenizer: Tokenizer, vocabSize: number): Tokenizer {
  const { merges, wholePieces, pattern } = tokenizer.parts;
  const names = [...tokenizer.special].sort(([, a], [, b]) => a - b).map(([text]) => text);
  const room = Math.min(names.length, Math.floor(vocabSize / 2), vocabSize - 256);
  const kept = vocabSize - room; // ordinary tokens
  const byRank = idsByRank(tokenizer);
  if (!Number.isInteger(vocabSize) || vocabSize < 256 || kept > byRank.length)
    throw new RequestError(
      `a vocabulary cut to ${vocabSize}; expected from 256 to ${byRank.length + names.length}, as many as the tokenizer has`,
    );
  const writer = new VocabularyWriter();
  const newIds = new Map<number, number>();
  for (const id of byRank.slice(0, kept)) {
    newIds.set(id, newIds.size);
    writer.bytes(tokenizer.tokenBytes(id));
    writer.endToken();
  }
  const special = addSpecials(writer, kept, fittingSpecials(names, room));
  return new Tokenizer({
    vocabulary: writer.finish(),
    special,
    merges: merges && renumber(merges, newIds),
    wholePieces,
    pattern,
  });
}

function addSpecials(writer: VocabularyWriter, from: number, names: readonly string[]): Map<string, number> {
  for (const text of names) writer.reserve(text);
  return new Map(names.map((text, i) => [text, from + i]));
}

// The single bytes come first: without them nothing can be encoded.
function idsByRank(tokenizer: Tokenizer): number[] {
  const { vocabulary, merges } = tokenizer.parts;
  const lengthOf = (id: number) => vocabulary.offsets[id + 1]! - vocabulary.offsets[id]!;
  const ids = Array.from({ length: tokenizer.vocabSize }, (_, id) => id).filter((id) => !vocabulary.reserved.has(id));
  const rank = new Map<number, number>();
  if (merges) for (let i = merges.length - 3; i >= 0; i -= 3) rank.set(merges[i + 2]!, i);
  const rankOf = (id: number) => (lengthOf(id) === 1 ? -1 : merges ? (rank.get(id) ?? Infinity) : id);
  return ids.sort((a, b) => rankOf(a) - rankOf(b) || a - b);
}

function renumber(merges: MergeList, newIds: ReadonlyMap<number, number>): MergeList {
  const kept: number[] = [];
  for (let i = 0; i < merges.length; i += 3) {
    const [left, right, merged] = [newIds.get(merges[i]!), newIds.get(merges[i + 1]!), newIds.get(merges[i + 2]!)];
    if (left !== undefined && right !== undefined && merged !== undefined) kept.push(left, right, merged);
  }
  return Int32Array.from(kept);
}

// GPT-2's alphabet writes every byte as one printable character, so that tokens fit in JSON and GGUF strings:
// 33-126, 161-172 and 174-255 stand for themselves, the other 68 bytes in order for U+0100 and up (gguf.md §2).
import type { VocabularyWriter } from "./byte-pairs.ts";

const isPrintable = (byte: number): boolean => (byte >= 33 && byte <= 126) || (byte >= 161 && byte !== 173);

const CHARACTERS: readonly string[] = (() => {
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(isPrintable(byte) ? byte : next++));
})();

const BYTES = new Int16Array(0x200).fill(-1); // the byte of each code unit, -1 for those not in the alphabet
for (const [byte, character] of CHARACTERS.entries()) BYTES[character.charCodeAt(0)] = byte;

/** The byte that a character of the alphabet stands for, -1 for any other character. */
export const byteOf = (codeUnit: number): number => BYTES[codeUnit] ?? -1;

/** Bytes in the alphabet. */
export function toAlphabet(bytes: Uint8Array): string {
  let text = "";
  for (const byte of bytes) text += CHARACTERS[byte]!;
  return text;
}

/** Writes the bytes that a token in the alphabet stands for; false where a character is not of the alphabet. */
export function writeAlphabet(token: string, writer: VocabularyWriter): boolean {
  for (let i = 0; i < token.length; i++) {
    const byte = byteOf(token.charCodeAt(i));
    if (byte < 0) return false;
    writer.byte(byte);
  }
  return true;
}

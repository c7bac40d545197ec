// Files of documents: JSON lines with their images' tiles beside them, or a plain text.

import { isUtf8 } from "node:buffer";
import { existsSync, readFileSync, statSync } from "node:fs";
import { basename } from "node:path";
import { type FileSource, memorySource, openFile } from "../checkpoint/source.ts";
import { RequestError } from "../tensor/errors.ts";
import { Documents } from "../train/documents.ts";

/** Where the tiles of a file of documents are, if it has any. */
export const tilesOf = (path: string) => path.replace(/\.jsonl$/, ".tiles");

/** The documents of a .jsonl file, or of a plain text; what was opened for them is added to `files`, to be closed. */
export async function openDocuments(path: string, files: FileSource[]): Promise<Documents> {
  const open = async (name: string) => {
    const file = await openFile(name);
    files.push(file);
    return file;
  };
  if (!path.endsWith(".jsonl")) return Documents.open(asDocuments(path));
  const tiles = existsSync(tilesOf(path)) ? await open(tilesOf(path)) : undefined;
  return Documents.open(await open(path), tiles);
}

/** A plain text: its paragraphs, some together, as documents. */
function asDocuments(path: string) {
  const found = statSync(path, { throwIfNoEntry: false });
  if (!found?.isFile())
    throw new RequestError(`${path}: ${found ? "no file" : "no such file"}; expected documents (.jsonl) or a text`);
  const bytes = readFileSync(path);
  if (!isUtf8(bytes)) throw new RequestError(`${path}: no UTF-8 text; expected documents (.jsonl) or a text`);
  const documents: string[] = [];
  for (const paragraph of bytes.toString("utf8").split(/\n\s*\n/)) {
    if (paragraph.trim() === "") continue;
    const before = documents.at(-1);
    if (before !== undefined && before.length < 4000) documents[documents.length - 1] = `${before}\n\n${paragraph}`;
    else documents.push(paragraph);
  }
  const lines = documents.map((text) => `${JSON.stringify({ text })}\n`).join("");
  return memorySource(new TextEncoder().encode(lines), basename(path));
}

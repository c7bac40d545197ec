// Meta's tokenizer.model is never part of this repository; the tests that need it find it here or say why they do not run.
import { existsSync, readFileSync } from "node:fs";

const places = [
  process.env["LLAMA4_TOKENIZER"],
  new URL("../../../shared/data/llama4/tokenizer.model", import.meta.url).pathname,
];

const path = places.find((place) => place !== undefined && existsSync(place));

export const metaTokenizer: Uint8Array | undefined = path === undefined ? undefined : readFileSync(path);

/** Ends the name of a test that needs the file. */
export const unlessMissing = metaTokenizer
  ? ""
  : " (skipped: no tokenizer.model at LLAMA4_TOKENIZER or in ../shared/data)";

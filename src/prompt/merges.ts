// Merges as files name them, two tokens by their text each.
import { CheckpointError } from "../tensor/errors.ts";
import type { MergeList } from "./byte-pairs.ts";

/** The ids of named merges. */
export function mergesByName(
  pairs: readonly (readonly [string, string])[],
  ids: ReadonlyMap<string, number>,
): MergeList {
  const merges = new Int32Array(3 * pairs.length);
  for (const [rank, [left, right]] of pairs.entries()) {
    for (const [i, token] of [left, right, left + right].entries()) {
      const id = ids.get(token);
      if (id === undefined)
        throw new CheckpointError(
          `tokenizer: merge ${rank} needs the token ${JSON.stringify(token.slice(0, 40))}, which is not in the vocabulary; expected it there`,
        );
      merges[3 * rank + i] = id;
    }
  }
  return merges;
}

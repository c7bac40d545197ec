// The native addon where the tests run.

import { describe } from "vitest";
import { type Isa, loadAddon } from "../src/backends/native/addon.ts";

// Without a compiler there is no addon; the build has said so, and the program runs on the reference.
function availableIsas(): { isas: readonly Isa[]; why: string } {
  try {
    return { isas: loadAddon().isas(), why: "" };
  } catch (error) {
    return { isas: [], why: `: not built, ${error}` };
  }
}

const { isas, why } = availableIsas();

export const haveAddon = isas.length > 0;

/** The same tests on each instruction set that this machine has. Without the addon they are skipped, and the title says why. */
export function onEachIsa(title: (isa: Isa) => string, tests: (isa: Isa) => void): void {
  for (const isa of haveAddon ? isas : (["baseline"] as const))
    describe.skipIf(!haveAddon)(`${title(isa)}${why}`, () => tests(isa));
}

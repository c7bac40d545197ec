// A token more for each of some sequences is the same step again and again: recorded once, it runs in one go.

import type { Llama4Config } from "../model/config.ts";
import type { Parameters } from "../model/parameters.ts";
import { ropeFrequencies } from "../model/rope.ts";
import { forward, forwardAgain, type Step } from "../model/transformer.ts";
import type { Recording, Routes } from "../tensor/backend.ts";
import { CapacityError } from "../tensor/errors.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** Steps of more rows take so long that what surrounds their operations does not count. */
const MOST_ROWS = 32;
/** Each keeps the memory of a step. */
const MOST_RECORDINGS = 8;
/** Shapes that are remembered without a recording. */
const MOST_SEEN = 1024;

type Plain = Omit<Step, "images" | "routed" | "choose">;

interface Recorded {
  readonly recording: Recording;
  readonly routes: readonly { readonly layer: number; readonly routes: Routes }[];
}

export class RecordedSteps {
  readonly #p: Parameters;
  readonly #c: Llama4Config;
  readonly #frequencies: Float64Array;
  /** By the step's shape, the longest unused first. */
  readonly #recorded = new Map<string, Recorded>();
  /** Shapes that have come once, and those that cannot be recorded. */
  readonly #seen = new Map<string, "once" | "unfit">();

  constructor(p: Parameters, c: Llama4Config) {
    this.#p = p;
    this.#c = c;
    this.#frequencies = ropeFrequencies(c);
  }

  /**
   * The logits `[wanted, V]` of a step, until the next one, to be changed at will; `routed` hears the experts of each layer that
   * has some. Those of a step that is not recorded may be put into `into`, where that has room.
   */
  async run(
    step: Plain,
    routed: (layer: number, routes: Routes) => void,
    into?: Float32Array,
  ): Promise<Float32Array | Float64Array> {
    const key = `${step.tokens.length}:${step.wanted.join()}`;
    const before = this.#recorded.get(key);
    if (!before) {
      const { backend } = this.#p.tokEmbeddings;
      return backend.scope(async () => {
        const recorded = await this.#mayRecord(key, step, routed);
        const computed = recorded ?? (await forward(this.#p, this.#c, { ...step, routed: listener(routed) }));
        return backend.read(computed, into);
      });
    }
    this.#remember(key, before);
    const logits = forwardAgain(before.recording, this.#c, this.#frequencies, step);
    for (const { layer, routes } of before.routes) routed(layer, routes);
    return logits;
  }

  close(): void {
    for (const { recording } of this.#recorded.values()) recording.close();
    this.#recorded.clear();
  }

  /** The step's logits, where it has come before and is recorded now. */
  async #mayRecord(
    key: string,
    step: Plain,
    routed: (layer: number, routes: Routes) => void,
  ): Promise<Tensor | undefined> {
    const { backend } = this.#p.tokEmbeddings;
    if (!backend.record || step.tokens.length > MOST_ROWS || this.#seen.get(key) === "unfit") return undefined;
    if (!this.#seen.has(key)) {
      if (this.#seen.size === MOST_SEEN) this.#seen.clear();
      this.#seen.set(key, "once"); // it may not come again
      return undefined;
    }
    const routes: Recorded["routes"][number][] = [];
    const hear = listener((layer, of) => routes.push({ layer, routes: of }));
    try {
      const { result, recording } = await backend.record(() => forward(this.#p, this.#c, { ...step, routed: hear }));
      if (recording) this.#remember(key, { recording, routes });
      else this.#seen.set(key, "unfit");
      for (const of of routes) routed(of.layer, of.routes);
      return result;
    } catch (error) {
      if (!(error instanceof CapacityError)) throw error;
      this.#seen.set(key, "unfit"); // without memory of its own the step still runs
      return undefined;
    }
  }

  #remember(key: string, recorded: Recorded): void {
    this.#recorded.delete(key);
    this.#recorded.set(key, recorded);
    if (this.#recorded.size <= MOST_RECORDINGS) return;
    const [oldest, dropped] = this.#recorded.entries().next().value!;
    this.#recorded.delete(oldest);
    dropped.recording.close();
  }
}

const listener = (routed: (layer: number, routes: Routes) => void) => (layer: number, routes: Routes) => {
  routed(layer, routes);
  return undefined;
};

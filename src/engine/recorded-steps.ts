// A token more for each of some sequences is the same step again and again: recorded once, it runs in one go.

import type { Llama4Config } from "../model/config.ts";
import type { Parameters } from "../model/parameters.ts";
import { forward, forwardAgain, type Step } from "../model/transformer.ts";
import type { Recording, Routes } from "../tensor/backend.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** Steps of more rows take so long that what surrounds their operations does not count. */
const MOST_ROWS = 32;
/** Each keeps the memory of a step. */
const MOST_RECORDINGS = 8;

type Plain = Omit<Step, "images" | "routed" | "choose">;

interface Recorded {
  readonly recording: Recording;
  readonly routes: readonly { readonly layer: number; readonly routes: Routes }[];
}

export class RecordedSteps {
  readonly #p: Parameters;
  readonly #c: Llama4Config;
  /** By the step's shape, the longest unused first. */
  readonly #recorded = new Map<string, Recorded | "seen once" | "cannot be recorded">();

  constructor(p: Parameters, c: Llama4Config) {
    this.#p = p;
    this.#c = c;
  }

  /** The logits `[wanted, V]` of a step, until the next one; `routed` hears the experts of each layer that has some. */
  async run(step: Plain, routed: (layer: number, routes: Routes) => void): Promise<Tensor> {
    const key = `${step.tokens.length}:${step.wanted.join()}`;
    const before = this.#recorded.get(key);
    if (typeof before === "object") {
      this.#remember(key, before);
      const logits = forwardAgain(before.recording, this.#c, step);
      for (const { layer, routes } of before.routes) routed(layer, routes);
      return logits;
    }
    const heard: { readonly layer: number; readonly routes: Routes }[] = [];
    const whole = {
      ...step,
      routed: (layer: number, routes: Routes) => {
        heard.push({ layer, routes });
        routed(layer, routes);
        return undefined;
      },
    };
    const { backend } = this.#p.tokEmbeddings;
    const once = () => forward(this.#p, this.#c, whole);
    if (!backend.record || step.tokens.length > MOST_ROWS || before === "cannot be recorded") return once();
    if (before === undefined) {
      this.#remember(key, "seen once"); // it may not come again
      return once();
    }
    const { result, recording } = await backend.record(once);
    this.#remember(key, recording ? { recording, routes: heard } : "cannot be recorded");
    return result;
  }

  close(): void {
    for (const recorded of this.#recorded.values()) if (typeof recorded === "object") recorded.recording.close();
    this.#recorded.clear();
  }

  #remember(key: string, recorded: Recorded | "seen once" | "cannot be recorded"): void {
    this.#recorded.delete(key);
    this.#recorded.set(key, recorded);
    if (this.#recorded.size <= MOST_RECORDINGS) return;
    const [oldest, dropped] = this.#recorded.entries().next().value!;
    this.#recorded.delete(oldest);
    if (typeof dropped === "object") dropped.recording.close();
  }
}

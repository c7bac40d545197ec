// One request from its arrival to its last byte: what ends it, and what it gives back then.

import type { Held } from "./body.ts";
import { Refusal } from "./errors.ts";

/** Ends when it is told to, when the client leaves, when its time is over or when the server stops, whichever is first. */
export class Exchange {
  readonly start = performance.now();
  readonly held: Held;
  readonly #cancel = new AbortController();
  readonly #onEnd: (() => void)[] = [];

  constructor(left: AbortSignal, mostMs: number, held: Held) {
    this.held = held;
    const leave = () => this.#cancel.abort(new Refusal(499, "The client has left.")); // its own reason may be no Error
    const late = () =>
      this.#cancel.abort(new Refusal(504, `The request took longer than ${mostMs / 1000} seconds, and was given up.`));
    left.addEventListener("abort", leave);
    const timer = setTimeout(late, mostMs);
    this.onEnd(() => {
      clearTimeout(timer);
      left.removeEventListener("abort", leave);
      held.release();
    });
    if (left.aborted) leave();
  }

  /** Aborted when the work for it is to stop. */
  get signal(): AbortSignal {
    return this.#cancel.signal;
  }

  /** Tells the client that the server stops, if it is not told anything else yet. */
  stop(): void {
    this.#cancel.abort(new Refusal(503, "The server is stopping; ask again later."));
  }

  /** Is called at the end; at once where that has been. */
  onEnd(f: () => void): void {
    if (this.#isOver) f();
    else this.#onEnd.push(f);
  }

  #isOver = false;

  end(reason?: unknown): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#cancel.abort(reason);
    for (const f of this.#onEnd.splice(0)) f();
  }
}

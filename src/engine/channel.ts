// A queue between one that makes values and one that awaits them.

/** Values in order; iterated once. The first next() calls `onStart`, leaving the loop early `onLeave`. */
export class Channel<T> implements AsyncIterableIterator<T> {
  readonly #values: T[] = [];
  readonly #onLeave: () => void;
  #onStart: (() => void) | undefined;
  #ending: { readonly error?: unknown } | undefined;
  #wake: (() => void) | undefined;

  constructor(onLeave: () => void = () => {}, onStart?: () => void) {
    this.#onLeave = onLeave;
    this.#onStart = onStart;
  }

  push(value: T): void {
    if (this.#ending) return;
    this.#values.push(value);
    this.#wake?.();
  }

  /** No value follows. */
  end(): void {
    this.#ending ??= {};
    this.#wake?.();
  }

  /** The one who awaits gets this error, at once: what waits in the queue is dropped. */
  fail(error: unknown): void {
    if (this.#ending) return;
    this.#ending = { error };
    this.#values.length = 0;
    this.#wake?.();
  }

  async next(): Promise<IteratorResult<T, undefined>> {
    this.#start();
    for (;;) {
      if (this.#values.length > 0) return { done: false, value: this.#values.shift()! };
      if (this.#ending) {
        if (!("error" in this.#ending)) return { done: true, value: undefined };
        const { error } = this.#ending;
        this.#ending = {};
        throw error;
      }
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  #start(): void {
    const start = this.#onStart;
    this.#onStart = undefined;
    try {
      if (!this.#ending) start?.();
    } catch (error) {
      this.fail(error);
    }
  }

  async return(): Promise<IteratorResult<T, undefined>> {
    this.end();
    this.#values.length = 0;
    this.#onLeave();
    return { done: true, value: undefined };
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}

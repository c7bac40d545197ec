/** Keeps what was used last, as long as all of it takes no more than some bytes. */
export class RecentlyUsed<V> {
  readonly #mostBytes: number;
  /** The longest unused first. */
  readonly #kept = new Map<string, { readonly value: V; readonly byteLength: number }>();
  #bytes = 0;

  constructor(mostBytes: number) {
    this.#mostBytes = mostBytes;
  }

  /** What is kept: how many, their bytes, and how many bytes there may be. */
  get occupation(): { readonly kept: number; readonly bytes: number; readonly mostBytes: number } {
    return { kept: this.#kept.size, bytes: this.#bytes, mostBytes: this.#mostBytes };
  }

  get(key: string): V | undefined {
    const found = this.#kept.get(key);
    if (!found) return undefined;
    this.#kept.delete(key); // and back to the end of the row
    this.#kept.set(key, found);
    return found.value;
  }

  set(key: string, value: V, byteLength: number): void {
    if (byteLength > this.#mostBytes) return; // it would push out all others, and then itself
    this.#delete(key);
    this.#kept.set(key, { value, byteLength });
    this.#bytes += byteLength;
    for (const oldest of this.#kept.keys()) {
      if (this.#bytes <= this.#mostBytes) break;
      this.#delete(oldest);
    }
  }

  #delete(key: string): void {
    this.#bytes -= this.#kept.get(key)?.byteLength ?? 0;
    this.#kept.delete(key);
  }
}

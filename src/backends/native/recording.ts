// A step that ran once and runs again in one call of the addon.

import type { LayerCache, Recording, Segment } from "../../tensor/backend.ts";
import type { Addon, EngineHandle, RecordingHandle } from "./addon.ts";
import { type NativePool, placesOf } from "./kv-pool.ts";

/** What a step that is being recorded depends on beside weights. */
export interface Inputs {
  /** The tokens of its first lookup. */
  tokens?: Int32Array;
  /** The numbers of the tensors that `from` made, in their order. */
  readonly numbers: Float32Array[];
  /** By chunk, 0 for none. */
  readonly caches: Map<number, LayerCache>;
  /** Arrays outside of the backend's memory that its calls read and write: to be kept as long as they may run. */
  readonly arrays: Int32Array[];
}

export class NativeRecording implements Recording {
  readonly #addon: Addon;
  readonly #engine: EngineHandle;
  readonly #inputs: Inputs;
  /** In the order of their chunks. */
  readonly #caches: readonly (readonly [chunk: number, LayerCache])[];
  readonly #result: Float32Array;
  readonly #release: () => void;
  #handle: RecordingHandle | undefined;

  constructor(
    { addon, engine }: { readonly addon: Addon; readonly engine: EngineHandle },
    handle: RecordingHandle,
    {
      inputs,
      result,
      release,
    }: { readonly inputs: Inputs; readonly result: Float32Array; readonly release: () => void },
  ) {
    this.#addon = addon;
    this.#engine = engine;
    this.#handle = handle;
    this.#inputs = inputs;
    this.#caches = [...inputs.caches].sort(([a], [b]) => a - b);
    this.#result = result;
    this.#release = release;
  }

  run(tokens: Int32Array, numbers: readonly Float64Array[], segments: readonly Segment[]): Float32Array {
    if (!this.#handle) throw new Error("a recording was run after it was closed");
    const own = this.#inputs;
    if (tokens.length !== own.tokens?.length)
      throw new RangeError(
        `a recording of ${own.tokens?.length} tokens was run with ${tokens.length}; expected as many`,
      );
    if (numbers.length !== own.numbers.length || numbers.some(({ length }, i) => length !== own.numbers[i]!.length)) {
      const lengths = (of: readonly ArrayLike<number>[]) => of.map(({ length }) => length).join();
      throw new RangeError(
        `a recording was run with other numbers than it was made with: lists of ${lengths(numbers)}; expected ${lengths(own.numbers)}`,
      );
    }
    own.tokens.set(tokens);
    for (const [i, list] of numbers.entries()) own.numbers[i]!.set(list);
    const kinds: (number | Int32Array)[] = [];
    for (const [chunk, cache] of this.#caches) {
      if ((cache.pool as NativePool).keys.byteLength === 0)
        throw new Error("a recording was run after its cache was closed");
      const { flat, tables } = placesOf(segments, chunk, cache);
      kinds.push(chunk, flat, tables);
    }
    this.#addon.replay(this.#engine, this.#handle, ...kinds);
    return this.#result;
  }

  close(): void {
    if (this.#handle) this.#release();
    this.#handle = undefined;
  }
}

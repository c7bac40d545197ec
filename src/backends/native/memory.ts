// Buffers for activations, used again and again: a decode step takes from the pool what the step before gave back.

import { AsyncLocalStorage } from "node:async_hooks";
import { CapacityError } from "../../tensor/errors.ts";
import type { Addon } from "./addon.ts";

/** Where a tensor's bytes are. */
export interface Place {
  readonly buffer: ArrayBuffer;
  readonly at: number;
  /** Rows in groups of 16, as the integer kernels take them (native/packed.h). */
  readonly packed?: boolean;
  /** Absent for weights, which live as long as the backend. */
  readonly lease?: Lease;
}

/** A buffer on loan: of its scope, or, outside every scope, of whoever still holds the tensor. */
export interface Lease {
  readonly buffer: ArrayBuffer;
  scope: Scope | undefined;
  ended: boolean;
}

type Scope = Set<Lease>;

export class Memory {
  readonly #addon: Addon;
  #free = new Map<number, ArrayBuffer[]>(); // byteLength -> buffers of that size
  readonly #kept = new Set<ArrayBuffer>(); // weights and caches
  readonly #scopes = new AsyncLocalStorage<Scope>();
  // A lease outside every scope comes back when the garbage collector has found its last tensor gone.
  readonly #forgotten = new FinalizationRegistry((buffer: ArrayBuffer) => this.#giveBack(buffer));
  #closed = false;
  #bytes = 0;

  constructor(addon: Addon) {
    this.#addon = addon;
  }

  /** What was asked of the system and not given back: used, or waiting to be used again. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Bytes that live until `drop` or `close`. */
  keep(bytes: number): ArrayBuffer {
    const buffer = this.#allocate(bytes);
    this.#kept.add(buffer);
    return buffer;
  }

  drop(buffer: ArrayBuffer): void {
    if (this.#kept.delete(buffer)) this.#release(buffer);
  }

  /** At least `bytes`, with whatever they held before, until the current scope ends. */
  lend(bytes: number): Place {
    const size = sizeClass(bytes);
    const buffer = this.#free.get(size)?.pop() ?? this.#allocate(size);
    const scope = this.#scopes.getStore();
    const lease: Lease = { buffer, scope, ended: false };
    if (scope) scope.add(lease);
    else this.#forgotten.register(lease, buffer, lease);
    return { buffer, at: 0, lease };
  }

  /** Runs `body`; then ends its leases and `spent`, but for those that `survivors` names: they go to the scope around. */
  async scope<T>(body: () => Promise<T>, survivors: (result: T) => Iterable<Lease>, spent?: Lease): Promise<T> {
    const around = this.#scopes.getStore();
    const own: Scope = new Set();
    let kept: Set<Lease> = new Set();
    try {
      const result = await this.#scopes.run(own, body);
      kept = new Set(survivors(result));
      return result;
    } finally {
      for (const lease of own) if (!kept.has(lease)) this.#end(lease);
      for (const lease of kept) if (lease.scope === own) this.#move(lease, around);
      if (spent && !kept.has(spent)) this.#end(spent);
    }
  }

  /**
   * Runs `body`, whose result is in one lease, on buffers that nobody else uses, then or later, that of the result among them.
   * Returns what gives them back.
   */
  async apart(body: () => Promise<Lease | undefined>): Promise<() => void> {
    const shared = this.#free;
    const own = new Map<number, ArrayBuffer[]>();
    this.#free = own;
    const release = () => {
      for (const buffers of own.values()) for (const buffer of buffers) this.#giveBack(buffer);
      own.clear();
    };
    try {
      const lease = await this.scope(body, (result) => (result ? [result] : []));
      if (lease) this.#end(lease); // among its own buffers, where nobody takes it
      this.#free = shared;
      return release;
    } catch (error) {
      this.#free = shared;
      release();
      throw error;
    }
  }

  /** Ends a lease before its scope does. */
  end(lease: Lease): void {
    this.#end(lease);
  }

  close(): void {
    this.#closed = true;
    for (const buffers of this.#free.values()) for (const buffer of buffers) this.#release(buffer);
    for (const buffer of this.#kept) this.#release(buffer);
    this.#free.clear();
    this.#kept.clear();
  }

  #allocate(bytes: number): ArrayBuffer {
    try {
      const buffer = this.#addon.allocate(bytes);
      this.#bytes += bytes;
      return buffer;
    } catch (cause) {
      throw new CapacityError(`no memory for ${bytes} bytes; close other programs or take a smaller quantization`, {
        cause,
      });
    }
  }

  #release(buffer: ArrayBuffer): void {
    this.#bytes -= buffer.byteLength; // 0 once it is detached
    this.#addon.release(buffer);
  }

  #move(lease: Lease, to: Scope | undefined): void {
    lease.scope = to;
    if (to) to.add(lease);
    else this.#forgotten.register(lease, lease.buffer, lease);
  }

  #end(lease: Lease): void {
    if (lease.ended) return;
    lease.ended = true;
    if (lease.scope) lease.scope.delete(lease);
    else this.#forgotten.unregister(lease);
    this.#giveBack(lease.buffer);
  }

  #giveBack(buffer: ArrayBuffer): void {
    const free = this.#free.get(buffer.byteLength);
    if (this.#closed) this.#release(buffer);
    else if (free) free.push(buffer);
    else this.#free.set(buffer.byteLength, [buffer]);
  }
}

/** Four sizes to a doubling, so that at most a fifth of a buffer is unused; at least a page. */
function sizeClass(bytes: number): number {
  if (bytes <= 4096) return 4096;
  const step = 2 ** (Math.floor(Math.log2(bytes - 1)) - 2);
  return Math.ceil(bytes / step) * step;
}

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
  /** Where the buffer goes when the lease ends. */
  readonly home: FreeList;
  scope: Scope | undefined;
  ended: boolean;
}

/** byteLength -> buffers of that size. */
type FreeList = Map<number, ArrayBuffer[]>;

interface Scope {
  readonly leases: Set<Lease>;
  /** Of its leases, and of those of the scopes within. */
  readonly home: FreeList;
}

export class Memory {
  readonly #addon: Addon;
  readonly #free: FreeList = new Map();
  readonly #kept = new Set<ArrayBuffer>(); // weights and caches
  readonly #scopes = new AsyncLocalStorage<Scope>();
  // A lease outside every scope comes back when the garbage collector has found its last tensor gone.
  readonly #forgotten = new FinalizationRegistry((buffer: ArrayBuffer) => this.#giveBack(buffer, this.#free));
  #closed = false;
  #bytes = 0;
  #open = 0; // scopes

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
    const scope = this.#scopes.getStore();
    const home = scope?.home ?? this.#free;
    const buffer = home.get(size)?.pop() ?? this.#free.get(size)?.pop() ?? this.#allocate(size);
    const lease: Lease = { buffer, home, scope, ended: false };
    if (scope) scope.leases.add(lease);
    else this.#forgotten.register(lease, buffer, lease);
    return { buffer, at: 0, lease };
  }

  /** Runs `body`; then ends its leases and `spent`, but for those that `survivors` names: they go to the scope around. */
  async scope<T>(body: () => Promise<T>, survivors: (result: T) => Iterable<Lease>, spent?: Lease): Promise<T> {
    const around = this.#scopes.getStore();
    return this.#run({ leases: new Set(), home: around?.home ?? this.#free }, body, survivors, spent);
  }

  /**
   * Runs `body`, whose result is in one lease, on buffers that are nobody else's from then on, that of the result among them.
   * Returns what gives them back.
   */
  async apart(body: () => Promise<Lease | undefined>): Promise<() => void> {
    const home: FreeList = new Map();
    const release = () => {
      for (const buffers of home.values()) for (const buffer of buffers) this.#giveBack(buffer, this.#free);
      home.clear();
    };
    try {
      const lease = await this.#run({ leases: new Set(), home }, body, (result) => (result ? [result] : []));
      if (lease) this.#end(lease); // it goes home, where nobody takes it
      return release;
    } catch (error) {
      release();
      throw error;
    }
  }

  async #run<T>(
    own: Scope,
    body: () => Promise<T>,
    survivors: (result: T) => Iterable<Lease>,
    spent?: Lease,
  ): Promise<T> {
    const around = this.#scopes.getStore();
    let kept: Set<Lease> = new Set();
    this.#open++;
    try {
      const result = await this.#scopes.run(own, body);
      kept = new Set(survivors(result));
      return result;
    } finally {
      if (--this.#open === 0) this.#scopes.disable(); // while it is enabled, Node 20 tells it of every promise of the program
      for (const lease of own.leases) if (!kept.has(lease)) this.#end(lease);
      for (const lease of kept) if (lease.scope === own) this.#move(lease, around);
      if (spent && !kept.has(spent)) this.#end(spent);
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
    if (to) to.leases.add(lease);
    else this.#forgotten.register(lease, lease.buffer, lease);
  }

  #end(lease: Lease): void {
    if (lease.ended) return;
    lease.ended = true;
    if (lease.scope) lease.scope.leases.delete(lease);
    else this.#forgotten.unregister(lease);
    this.#giveBack(lease.buffer, lease.home);
  }

  #giveBack(buffer: ArrayBuffer, home: FreeList): void {
    const free = home.get(buffer.byteLength);
    if (this.#closed) this.#release(buffer);
    else if (free) free.push(buffer);
    else home.set(buffer.byteLength, [buffer]);
  }
}

/** Four sizes to a doubling, so that at most a fifth of a buffer is unused; at least a page. */
function sizeClass(bytes: number): number {
  if (bytes <= 4096) return 4096;
  const step = 2 ** (Math.floor(Math.log2(bytes - 1)) - 2);
  return Math.ceil(bytes / step) * step;
}

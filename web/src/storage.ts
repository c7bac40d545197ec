// Conversations in the browser's IndexedDB: they never leave the machine but as questions to the server.

import type { Conversation } from "./conversation.ts";

const NAME = "llama4";
const STORE = "conversations";

export class Storage {
  readonly #db: IDBDatabase;

  private constructor(db: IDBDatabase) {
    this.#db = db;
  }

  /** Rejects where the browser keeps nothing, as in some private windows. */
  static async open(): Promise<Storage> {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    return new Storage(await done(request));
  }

  all(): Promise<Conversation[]> {
    return done(this.#store("readonly").getAll());
  }

  async put(conversation: Conversation): Promise<void> {
    await done(this.#store("readwrite").put(conversation));
  }

  async delete(id: string): Promise<void> {
    await done(this.#store("readwrite").delete(id));
  }

  async clear(): Promise<void> {
    await done(this.#store("readwrite").clear());
  }

  #store(mode: IDBTransactionMode): IDBObjectStore {
    return this.#db.transaction(STORE, mode).objectStore(STORE);
  }
}

function done<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

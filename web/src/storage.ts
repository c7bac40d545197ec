// Conversations in the browser's IndexedDB: they never leave the machine but as questions to the server.

import type { Answer, Conversation } from "./conversation.ts";

// Databases of their own: another version of one would wait for every page that has it open.
const CONVERSATIONS = { name: "llama4", store: "conversations" };
const REPLIES = { name: "llama4.replies", store: "replies" };

export class Storage {
  readonly #conversations: IDBDatabase;
  readonly #replies: IDBDatabase;

  private constructor(conversations: IDBDatabase, replies: IDBDatabase) {
    this.#conversations = conversations;
    this.#replies = replies;
  }

  /** Rejects where the browser keeps nothing, as in some private windows. */
  static async open(): Promise<Storage> {
    const [conversations, replies] = await Promise.all([database(CONVERSATIONS), database(REPLIES)]);
    return new Storage(conversations, replies);
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
    await done(this.#replyStore("readwrite").clear());
  }

  /** Replies that were being written when a page was left. */
  replies(): Promise<Answer[]> {
    return done(this.#replyStore("readonly").getAll());
  }

  /** A reply that is being written, without its conversation, whose pictures would be written each time. */
  async putReply(answer: Answer): Promise<void> {
    const store = this.#replyStore("readwrite");
    const put = done(store.put(answer));
    store.transaction.commit(); // at once: the page may be about to go
    await put;
  }

  async deleteReply(id: string): Promise<void> {
    await done(this.#replyStore("readwrite").delete(id));
  }

  #store(mode: IDBTransactionMode): IDBObjectStore {
    return this.#conversations.transaction(CONVERSATIONS.store, mode).objectStore(CONVERSATIONS.store);
  }

  #replyStore(mode: IDBTransactionMode): IDBObjectStore {
    return this.#replies.transaction(REPLIES.store, mode).objectStore(REPLIES.store);
  }
}

function database({ name, store }: { readonly name: string; readonly store: string }): Promise<IDBDatabase> {
  const request = indexedDB.open(name, 1);
  request.onupgradeneeded = () => request.result.createObjectStore(store, { keyPath: "id" });
  return done(request);
}

function done<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

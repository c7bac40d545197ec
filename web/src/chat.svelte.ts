// The state of the page. Values are replaced, never changed in place, so that only what differs is drawn again.

import { type Delta, type Model, reply, ServerError, theModel } from "./api.ts";
import {
  type Answer,
  type Attachment,
  type Conversation,
  type Finish,
  leafBelow,
  type Message,
  newConversation,
  newId,
  pathOf,
  type Question,
  titleOf,
} from "./conversation.ts";
import { withTokens } from "./routes.ts";
import { loadSettings, type Settings, saveSettings } from "./settings.ts";
import { Storage } from "./storage.ts";

export class Chat {
  /** All that are kept, and one that has no question yet. */
  conversations = $state.raw<readonly Conversation[]>([newConversation()]);
  currentId = $state(addressed() ?? this.conversations[0]!.id);
  settings = $state.raw<Settings>(loadSettings());
  model = $state.raw<Model | undefined>();
  /** What is wrong with the server, as long as it is. */
  trouble = $state.raw<ServerError | undefined>();
  /** What went wrong with a reply, by conversation. */
  failures = $state.raw<ReadonlyMap<string, Error>>(new Map());
  /** Whether replies are asked for with their experts. */
  isMapOpen = $state(false);
  /** The reply that the map shows; null: the last one. */
  mapped = $state<string | null>(null);
  /** Said to screen readers. */
  announcement = $state("");
  isReady = $state(false);
  /** Why nothing is kept. */
  unkept = $state<string | undefined>();
  readonly current = $derived(this.conversations.find(({ id }) => id === this.currentId) ?? newConversation());
  readonly path = $derived(pathOf(this.current));
  readonly kept = $derived(this.conversations.filter(({ messages }) => messages.length > 0));
  readonly isBusy = $derived.by(() => this.runs.has(this.currentId));
  private runs = $state.raw<ReadonlyMap<string, AbortController>>(new Map());
  private storage: Storage | undefined;
  /** How often in a row a reply was asked for again by itself, by question. */
  private retries = new Map<string, number>();
  private nextLook: ReturnType<typeof setTimeout> | undefined;
  private unsaved = new Map<string, { readonly at: number; readonly timer: ReturnType<typeof setTimeout> }>();

  async open(): Promise<void> {
    try {
      this.storage = await Storage.open();
      await this.load(this.storage);
    } catch {
      this.unkept = "This browser keeps no data for this page: conversations are lost when it is closed.";
    }
    this.follow();
    this.isReady = true;
    addEventListener("popstate", () => this.follow());
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "hidden") this.saveNow();
    });
    await this.findModel();
  }

  /** Asks the server what it has; while it does not answer, again every three seconds. */
  async findModel(): Promise<void> {
    clearTimeout(this.nextLook);
    try {
      this.model = await theModel(this.settings.key);
      this.trouble = undefined;
    } catch (error) {
      this.trouble = error instanceof ServerError ? error : new ServerError("failed", String(error));
      clearTimeout(this.nextLook); // somebody else may have looked meanwhile
      if (["gone", "busy"].includes(this.trouble.trouble)) this.nextLook = setTimeout(() => this.findModel(), 3000);
    }
  }

  /** A new conversation; one without a question is used again. */
  begin(how: Visit = "pushState"): void {
    const empty = this.conversations.find(({ messages }) => messages.length === 0) ?? newConversation();
    if (!this.conversations.includes(empty)) this.conversations = [empty, ...this.conversations];
    this.show(empty.id, how);
  }

  show(id: string, how: Visit = "pushState"): void {
    this.currentId = id;
    this.mapped = null;
    this.address(how);
  }

  rename(id: string, title: string): void {
    if (title.trim() !== "") this.change(id, (conversation) => ({ ...conversation, title: title.trim() }));
  }

  async delete(id: string): Promise<void> {
    this.stop(id);
    this.conversations = this.conversations.filter((conversation) => conversation.id !== id);
    clearTimeout(this.unsaved.get(id)?.timer);
    this.unsaved.delete(id);
    if (id === this.currentId) this.begin("replaceState");
    await this.storage?.delete(id);
  }

  async deleteAll(): Promise<void> {
    for (const id of this.runs.keys()) this.stop(id);
    this.conversations = [];
    for (const { timer } of this.unsaved.values()) clearTimeout(timer);
    this.unsaved.clear();
    this.begin("replaceState");
    await this.storage?.clear();
  }

  set(settings: Partial<Settings>): void {
    this.settings = { ...this.settings, ...settings };
    saveSettings(this.settings);
    if (settings.key !== undefined) void this.findModel();
  }

  /** Asks, at the end of the shown path or, where a question is edited, beside it. */
  async ask(text: string, attachments: readonly Attachment[], edited?: Question): Promise<void> {
    const { id, leaf, messages } = this.current;
    const parent = edited ? edited.parent : leaf;
    const question: Question = { id: newId(), parent, role: "user", text, attachments, at: Date.now() };
    const isFirst = messages.length === 0;
    this.change(id, (conversation) => ({
      ...conversation,
      ...(isFirst && { title: titleOf(question) }),
      messages: [...conversation.messages, question],
      leaf: question.id,
    }));
    this.address("replaceState");
    await this.answer(id, question.id);
  }

  /** Another reply to the question before this one. */
  regenerate(answer: Answer): Promise<void> {
    return this.answer(this.currentId, answer.parent);
  }

  /** Asks again what had no reply. */
  retry(): Promise<void> {
    const question = this.path.findLast(({ role }) => role === "user");
    return question ? this.answer(this.currentId, question.id) : Promise.resolve();
  }

  /** Whether a busy server, which says when to come back, is to be asked again by itself: a few times for a question. */
  mayRetry(error: ServerError): boolean {
    const question = this.path.findLast(({ role }) => role === "user");
    if (!question || error.trouble !== "busy" || error.retryAfterSeconds === undefined) return false;
    return (this.retries.get(question.id) ?? 0) < MOST_RETRIES;
  }

  /** Asks again by itself. */
  retryAlone(): Promise<void> {
    const question = this.path.findLast(({ role }) => role === "user");
    if (question) this.retries.set(question.id, (this.retries.get(question.id) ?? 0) + 1);
    return this.retry();
  }

  /** Shows the path through a message. */
  turnTo({ id }: Message): void {
    this.change(this.currentId, (conversation) => ({ ...conversation, leaf: leafBelow(conversation, id) }));
  }

  stop(id = this.currentId): void {
    this.runs.get(id)?.abort();
  }

  /** Shows the conversation that the address names; where it is not kept, a new one. */
  private follow(): void {
    const id = addressed();
    if (this.kept.some((conversation) => conversation.id === id)) this.show(id!, "replaceState");
    else this.begin("replaceState");
  }

  /** Gives the shown conversation its address: without a fragment while it has no question. */
  private address(how: Visit): void {
    const { id, messages } = this.current;
    const { pathname, search, href } = location;
    const url = new URL(messages.length === 0 ? `${pathname}${search}` : `#/c/${id}`, href).href;
    if (url !== href) history[how](null, "", url);
  }

  /** All conversations; of a reply that was being written when the page was left, what had come. */
  private async load(storage: Storage): Promise<void> {
    const [kept, replies] = await Promise.all([storage.all(), storage.replies()]);
    this.conversations = [...this.conversations, ...kept.map((conversation) => ended(conversation, replies))];
    for (const { id } of replies) {
      const at = this.conversations.find(({ messages }) => messages.some((message) => message.id === id));
      if (at) await storage.put(at);
      await storage.deleteReply(id);
    }
  }

  private async answer(id: string, parent: string): Promise<void> {
    const controller = new AbortController();
    const { signal } = controller;
    this.runs = new Map(this.runs).set(id, controller);
    this.setFailure(id, undefined);
    const answer: Answer = { id: newId(), parent, role: "assistant", text: "", at: Date.now() };
    const begun = (conversation: Conversation) => ({
      ...conversation,
      messages: [...conversation.messages, answer],
      changed: Date.now(),
      leaf: answer.id,
    });
    this.change(id, begun, 0);
    const writer = new Writer(answer, (changed) => this.replace(id, changed));
    const asked = pathOf({ ...this.conversations.find((c) => c.id === id)!, leaf: parent });
    const keeping = setInterval(() => this.keepReply(id), 1000);
    let finish: Finish = "stopped";
    try {
      const asking = { ...this.settings, routes: this.isMapOpen };
      for await (const delta of reply(asked, asking, this.settings.key, signal)) finish = writer.add(delta) ?? finish;
    } catch (error) {
      if (!signal.aborted) {
        finish = "failed";
        this.setFailure(id, error instanceof Error ? error : new Error(String(error)));
        if (error instanceof ServerError && ["gone", "key"].includes(error.trouble)) void this.findModel();
      }
    }
    clearInterval(keeping);
    const runs = new Map(this.runs);
    runs.delete(id);
    this.runs = runs;
    writer.end(finish);
    if (writer.isEmpty && finish === "failed") this.withdraw(id, answer);
    if (id === this.currentId) this.announcement = finish === "failed" ? "The reply failed." : `Reply: ${writer.text}`;
    await this.write(id);
    await this.storage?.deleteReply(answer.id).catch(() => {}); // the next page that opens tries again
  }

  /** Takes back a reply of which nothing came; an earlier one to the same question is shown again. */
  private withdraw(id: string, { id: answer, parent }: Answer): void {
    this.change(id, ({ messages, leaf, ...conversation }) => {
      const others = messages.filter((message) => message.id !== answer);
      return {
        ...conversation,
        messages: others,
        leaf: leaf === answer ? leafBelow({ messages: others }, parent) : leaf,
      };
    });
  }

  private replace(id: string, answer: Answer): void {
    const to = (conversation: Conversation) => ({
      ...conversation,
      messages: conversation.messages.map((message) => (message.id === answer.id ? answer : message)),
    });
    this.change(id, to, 20_000); // a conversation is kept whole: seldom while a reply is written, and at its end
  }

  private change(id: string, to: (conversation: Conversation) => Conversation, saveInMs = 1000): void {
    this.conversations = this.conversations.map((conversation) =>
      conversation.id === id ? to(conversation) : conversation,
    );
    this.save(id, saveInMs);
  }

  private setFailure(id: string, error: Error | undefined): void {
    const failures = new Map(this.failures);
    if (error) failures.set(id, error);
    else failures.delete(id);
    this.failures = failures;
  }

  private save(id: string, inMs: number): void {
    const at = performance.now() + inMs;
    const waiting = this.unsaved.get(id);
    if (waiting && waiting.at <= at) return;
    clearTimeout(waiting?.timer);
    this.unsaved.set(id, { at, timer: setTimeout(() => void this.write(id), inMs) });
  }

  /** Keeps what has come of the reply that is being written in a conversation. */
  private keepReply(id: string): void {
    const conversation = this.conversations.find((c) => c.id === id);
    const answer = conversation?.messages.findLast(isWritten);
    if (answer?.text) this.storage?.putReply(answer).catch(() => {}); // at its end it is saved all the same
  }

  private saveNow(): void {
    for (const id of this.runs.keys()) this.keepReply(id);
    for (const id of this.unsaved.keys()) void this.write(id);
  }

  private async write(id: string): Promise<void> {
    clearTimeout(this.unsaved.get(id)?.timer);
    this.unsaved.delete(id);
    const conversation = this.conversations.find((c) => c.id === id);
    if (!conversation || conversation.messages.length === 0) return;
    try {
      await this.storage?.put(conversation);
    } catch {
      this.unkept = "The browser has no room for this conversation: it is lost when the page is closed.";
    }
  }
}

const MOST_RETRIES = 5;

/** Whether the history gets another entry, or its last one another address. */
type Visit = "pushState" | "replaceState";

/** The conversation that the page's address names. */
const addressed = () => /^#\/c\/(.+)$/.exec(location.hash)?.[1];

/** Whether a message is a reply that has not ended. */
const isWritten = (message: Message): message is Answer => message.role === "assistant" && message.finish === undefined;

/** A reply that was being written when the page was left has stopped, with as much of it as was kept. */
const ended = (conversation: Conversation, replies: readonly Answer[]): Conversation => ({
  ...conversation,
  messages: conversation.messages.map((message) =>
    isWritten(message) ? { ...(replies.find(({ id }) => id === message.id) ?? message), finish: "stopped" } : message,
  ),
});

/** Gathers a reply and shows it once a frame. */
class Writer {
  #answer: Answer;
  readonly #show: (answer: Answer) => void;
  readonly #start = performance.now();
  #first: number | undefined;
  #frame: number | undefined;

  constructor(answer: Answer, show: (answer: Answer) => void) {
    this.#answer = answer;
    this.#show = show;
  }

  get text(): string {
    return this.#answer.text;
  }

  get isEmpty(): boolean {
    return this.#answer.text === "";
  }

  add({ text, usage, routed, finish }: Delta): Finish | undefined {
    const now = performance.now();
    this.#first ??= now;
    this.#answer = {
      ...this.#answer,
      text: this.#answer.text + text,
      firstMs: this.#first - this.#start,
      restMs: now - this.#first,
      ...(usage && { usage }),
      ...(routed && { routes: withTokens(this.#answer.routes, routed, text) }),
    };
    // a page in the background gets no frames
    this.#frame ??= document.hidden ? this.#soon() : requestAnimationFrame(() => this.#flush());
    return finish;
  }

  end(finish: Finish): void {
    this.#answer = { ...this.#answer, finish };
    this.#flush();
  }

  #soon(): number {
    return setTimeout(() => this.#flush(), 200) as unknown as number; // of a browser
  }

  #flush(): void {
    this.#frame = undefined;
    this.#show(this.#answer);
  }
}

// A conversation is a tree: an edited question or another reply stands beside the first, and nothing is lost.

/** What a person attached. Kept as it was chosen, but for its size. */
export interface Attachment {
  readonly kind: "image" | "video";
  readonly name: string;
  readonly blob: Blob;
}

/** The experts that a reply's tokens came by: T tokens, M layers with experts, K experts chosen in each. */
export interface Routes {
  /** `[M]` indices of the layers. */
  readonly layers: readonly number[];
  /** K */
  readonly perToken: number;
  /** `[T]`, as they were streamed: a token may end inside a character, and then is empty. */
  readonly texts: readonly string[];
  /** `[T · M · K]` best first. */
  readonly experts: readonly number[];
  /** `[T · M · K]` from 0 to 1. */
  readonly scores: readonly number[];
  /** `[T · M]` lead of the last chosen over the best of the others, in logits; null where all are chosen. */
  readonly margins: readonly (number | null)[];
}

export interface Usage {
  readonly promptTokens: number;
  readonly cachedTokens: number;
  readonly completionTokens: number;
}

export type Finish = "stop" | "length" | "stopped" | "failed";

export interface Question {
  readonly id: string;
  readonly parent: string | null;
  readonly role: "user";
  readonly text: string;
  readonly attachments: readonly Attachment[];
  readonly at: number;
}

export interface Answer {
  readonly id: string;
  readonly parent: string;
  readonly role: "assistant";
  readonly text: string;
  /** Absent while it is being written. */
  readonly finish?: Finish;
  readonly usage?: Usage;
  /** From the request to the first token, and from there to the last, in milliseconds. */
  readonly firstMs?: number;
  readonly restMs?: number;
  readonly routes?: Routes;
  readonly at: number;
}

export type Message = Question | Answer;

export interface Conversation {
  readonly id: string;
  readonly title: string;
  readonly begun: number;
  readonly changed: number;
  readonly messages: readonly Message[];
  /** The message at which the shown path ends. */
  readonly leaf: string | null;
}

/** A fresh name: 128 random bits. `crypto.randomUUID` is for secure pages only, not for plain http from another machine. */
export const newId = (): string =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export const newConversation = (now = Date.now()): Conversation => ({
  id: newId(),
  title: "New chat",
  begun: now,
  changed: now,
  messages: [],
  leaf: null,
});

/** From the first message to the one that is shown last. */
export function pathOf({ messages, leaf }: Pick<Conversation, "messages" | "leaf">): Message[] {
  const byId = new Map(messages.map((message) => [message.id, message]));
  const path: Message[] = [];
  for (let at = leaf; at !== null; ) {
    const message = byId.get(at);
    if (!message) break;
    path.unshift(message);
    at = message.parent;
  }
  return path;
}

export const MOST_ATTACHMENTS = 16; // what servers take in a request unless they are told otherwise

/** How many attachments of a path, and of a question that is still written, are too many to be sent. */
export function leftOut(path: readonly Message[], written = 0, most = MOST_ATTACHMENTS): number {
  const count = path.reduce((n, message) => n + (message.role === "user" ? message.attachments.length : 0), written);
  return Math.max(0, count - most);
}

/** What is sent of a path: the newest attachments, and in place of older ones how many there were. */
export function withNewest(path: readonly Message[], most = MOST_ATTACHMENTS): Message[] {
  let room = most;
  const newest = [...path].reverse().map((message) => {
    if (message.role === "assistant") return message;
    const attachments = message.attachments.slice(Math.max(0, message.attachments.length - room));
    room -= attachments.length;
    const left = message.attachments.length - attachments.length;
    if (left === 0) return message;
    const note = `(${left} earlier ${left === 1 ? "attachment" : "attachments"} left out)`;
    return { ...message, attachments, text: message.text === "" ? note : `${note}\n${message.text}` };
  });
  return newest.reverse();
}

/** The messages that stand in the same place, this one among them, oldest first. */
export const siblingsOf = ({ messages }: Pick<Conversation, "messages">, { parent, role }: Message): Message[] =>
  messages.filter((other) => other.parent === parent && other.role === role);

/** The end of the path through a message that was last added to. */
export function leafBelow({ messages }: Pick<Conversation, "messages">, id: string): string {
  for (let at = id; ; ) {
    const last = messages.findLast(({ parent }) => parent === at);
    if (!last) return at;
    at = last.id;
  }
}

/** What a conversation is called after its first question. */
export function titleOf({ text, attachments }: Pick<Question, "text" | "attachments">): string {
  const line = text.trim().split("\n")[0]!.trim();
  if (line === "") return attachments[0]?.name ?? "New chat";
  return line.length <= 60 ? line : `${line.slice(0, 58).trimEnd()}…`;
}

/** For the list: conversations by the day of their last change, newest first. */
export function byDay<C extends Pick<Conversation, "changed">>(
  list: readonly C[],
  now = Date.now(),
): { readonly day: string; readonly conversations: C[] }[] {
  const midnight = new Date(now).setHours(0, 0, 0, 0);
  const dayOf = ({ changed }: C) => {
    if (changed >= midnight) return "Today";
    if (changed >= midnight - 864e5) return "Yesterday";
    if (changed >= midnight - 6 * 864e5) return "This week";
    return new Date(changed).toLocaleDateString("en", { month: "long", year: "numeric" });
  };
  const days: { day: string; conversations: C[] }[] = [];
  for (const conversation of [...list].sort((a, b) => b.changed - a.changed)) {
    const day = dayOf(conversation);
    if (days.at(-1)?.day !== day) days.push({ day, conversations: [] });
    days.at(-1)!.conversations.push(conversation);
  }
  return days;
}

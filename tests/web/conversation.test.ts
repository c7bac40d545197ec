import { describe, expect, it, vi } from "vitest";
import {
  type Answer,
  byDay,
  type Conversation,
  leafBelow,
  leftOut,
  newConversation,
  pathOf,
  type Question,
  siblingsOf,
  titleOf,
  withNewest,
} from "../../web/src/conversation.ts";
import { fileName, toJson, toMarkdown } from "../../web/src/export.ts";

const question = (id: string, parent: string | null, text = id): Question => ({
  ...{ id, parent, role: "user", text, attachments: [], at: 0 },
});
const answer = (id: string, parent: string, text = id): Answer => ({
  ...{ id, parent, role: "assistant", text, finish: "stop", at: 0 },
});

// Q1 has two replies; the question behind the first was edited.
const tree: Conversation = {
  ...newConversation(0),
  title: "Cats & dogs?",
  messages: [
    ...[question("Q1", null), answer("A1", "Q1"), question("Q2", "A1"), answer("A2", "Q2")],
    ...[question("Q2b", "A1"), answer("A1b", "Q1")],
  ],
  leaf: "A2",
};
const ids = (messages: readonly { readonly id: string }[]) => messages.map(({ id }) => id);

describe("a conversation", () => {
  it("shows the path to its leaf", () => {
    expect(ids(pathOf(tree))).toEqual(["Q1", "A1", "Q2", "A2"]);
    expect(ids(pathOf({ ...tree, leaf: "A1b" }))).toEqual(["Q1", "A1b"]);
    expect(pathOf({ ...tree, leaf: null })).toEqual([]);
  });

  it("knows what stands in the same place", () => {
    expect(ids(siblingsOf(tree, tree.messages[1]!))).toEqual(["A1", "A1b"]);
    expect(ids(siblingsOf(tree, tree.messages[2]!))).toEqual(["Q2", "Q2b"]);
    expect(ids(siblingsOf(tree, tree.messages[0]!))).toEqual(["Q1"]);
  });

  it("goes on, from a message, to what was last added below it", () => {
    expect(leafBelow(tree, "Q2")).toBe("A2");
    expect(leafBelow(tree, "A1")).toBe("Q2b");
    expect(leafBelow(tree, "A1b")).toBe("A1b");
  });

  it("is called after its first question", () => {
    expect(titleOf({ text: "  What is this?\nAnd that?", attachments: [] })).toBe("What is this?");
    expect(titleOf({ text: "a".repeat(80), attachments: [] })).toBe(`${"a".repeat(58)}…`);
    expect(titleOf({ text: "", attachments: [{ kind: "image", name: "cat.png", blob: new Blob() }] })).toBe("cat.png");
  });

  it("is listed by the day of its last change, newest first", () => {
    const now = new Date(2026, 10, 29, 12).getTime();
    const at = (id: string, hoursAgo: number) => ({ id, changed: now - hoursAgo * 3.6e6 });
    const list = byDay(
      [at("old", 24 * 60), at("now", 0), at("last night", 13), at("morning", 11), at("week", 80)],
      now,
    );
    expect(list.map(({ day, conversations }) => [day, ids(conversations)])).toEqual([
      ["Today", ["now", "morning"]],
      ["Yesterday", ["last night"]],
      ["This week", ["week"]],
      ["September 2026", ["old"]],
    ]);
  });
});

describe("a conversation as a file", () => {
  it("is the shown path in Markdown", () => {
    expect(toMarkdown({ ...tree, leaf: "A1b" })).toBe("# Cats & dogs?\n\n## Question\n\nQ1\n\n## Reply\n\nA1b\n");
  });

  it("is everything in JSON", async () => {
    const { messages, ...rest } = JSON.parse(await toJson(tree));
    expect({ ...rest, messages }).toEqual(tree);
  });

  it("has a name that every file system takes", () => {
    expect(fileName("Cats & dogs?/..", "md")).toBe("Cats-dogs.md");
    expect(fileName("???", "json")).toBe("chat.json");
    expect(fileName("猫は何？", "md")).toBe("猫は何.md");
  });
});

describe("a page that is not secure", () => {
  it("has ids all the same, each another", () => {
    const { crypto } = globalThis;
    vi.stubGlobal("crypto", { getRandomValues: crypto.getRandomValues.bind(crypto) });
    const ids = Array.from({ length: 100 }, () => newConversation().id);
    expect(new Set(ids).size).toBe(100);
    expect(ids[0]).toMatch(/^[0-9a-f]{32}$/);
    vi.unstubAllGlobals();
  });
});

describe("what is sent of a path", () => {
  const file = (name: string) => ({ kind: "image" as const, name, blob: new Blob([]) });
  const seen = (id: string, count: number): Question => ({
    ...question(id, null),
    attachments: Array.from({ length: count }, (_, i) => file(`${id}${i}`)),
  });
  const namesOf = (path: ReturnType<typeof withNewest>) =>
    path.map((message) => (message.role === "user" ? message.attachments.map(({ name }) => name) : message.text));

  it("has all attachments where they are few", () => {
    const path = [seen("a", 2), answer("A", "a"), seen("b", 1)];
    expect(withNewest(path, 3)).toEqual(path);
  });

  it("has the newest, and says how many came before", () => {
    const sent = withNewest([seen("a", 2), answer("A", "a"), { ...seen("b", 3), text: "" }, seen("c", 1)], 3);
    expect(namesOf(sent)).toEqual([[], "A", ["b1", "b2"], ["c0"]]);
    expect(sent.map(({ text }) => text)).toEqual([
      "(2 earlier attachments left out)\na",
      "A",
      "(1 earlier attachment left out)",
      "c",
    ]);
  });

  it("is counted, with what is attached to the next question", () => {
    const path = [seen("a", 2), answer("A", "a"), seen("b", 1)];
    expect([leftOut(path, 0, 3), leftOut(path, 2, 3), leftOut([], 0, 3)]).toEqual([0, 2, 0]);
  });
});

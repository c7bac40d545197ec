import { expect, it } from "vitest";
import { RecentlyUsed } from "../../src/prompt/recently-used.ts";

it("keeps what was used last, and nothing that is larger than all of it", () => {
  const kept = new RecentlyUsed<string>(10);
  kept.set("a", "A", 4);
  kept.set("b", "B", 4);
  expect(kept.get("a")).toBe("A"); // so b is the oldest
  kept.set("c", "C", 4);
  expect(["a", "b", "c"].map((key) => kept.get(key))).toEqual(["A", undefined, "C"]);
  kept.set("d", "D", 11);
  expect(["a", "c", "d"].map((key) => kept.get(key))).toEqual(["A", "C", undefined]);
  kept.set("a", "again", 6); // in its place, so that both have room
  expect(["a", "c"].map((key) => kept.get(key))).toEqual(["again", "C"]);
});

import { describe, expect, it } from "vitest";
import { hide, says } from "../../src/eval/needle.ts";
import { random } from "../prompt/corpus.ts";

const lines = Array.from({ length: 10 }, (_, i) => ({ text: `line ${i}`, tokens: 3 + (i % 4) }));
const tokensOf = (text: string) => lines.find((line) => line.text === text)!.tokens;

describe("a needle", () => {
  it("stands at its depth among as many lines as fit, which go round", () => {
    for (const depth of [0, 0.25, 0.5, 1]) {
      const { prompt, answer } = hide(lines, 200, depth, random(7));
      const all = prompt.split("\n");
      const at = all.findIndex((line) => line.startsWith("The "));
      const others = all.filter((_, i) => i !== at).slice(0, -1);
      expect(at).toBe(Math.round(depth * others.length));
      expect(all[at]).toContain(` is ${answer}.`);
      const used = others.reduce((sum, line) => sum + tokensOf(line), 0);
      expect(used).toBeLessThanOrEqual(200);
      expect(used).toBeGreaterThan(200 - 6);
      for (const [i, line] of others.entries())
        expect(line).toBe(`line ${(Number(others[0]!.slice(5)) + i) % lines.length}`);
    }
  });

  it("stands alone where nothing else fits", () => {
    const { prompt, answer } = hide(lines, 0, 0.5, random(1));
    expect(prompt).toMatch(new RegExp(`^The (.+) is ${answer}\\.\\nWhat is the \\1\\?$`));
  });

  it("is found where its number is said as a word of its own", () => {
    expect(says("It is 123.", "123")).toBe(true);
    expect(says("1234", "123")).toBe(false);
  });
});

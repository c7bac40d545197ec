import { describe, expect, it } from "vitest";
import { commonestShare, finalAnswer, isRight, normalised, shareOf } from "../../src/eval/answers.ts";

describe("an answer", () => {
  it("is compared without case, punctuation, articles and spaces", () => {
    expect(normalised("  The  lion, and an OWL! ")).toBe("lion and owl");
    expect(normalised("Anaconda")).toBe("anaconda"); // no article of its own
    expect(isRight("A", ["A."])).toBe(true);
    expect(isRight("", ["A."])).toBe(false);
  });

  it("keeps the letters, marks and digits of every script", () => {
    expect(normalised("शेर।")).toBe("शेर");
    expect(normalised("Löwe 3")).toBe("löwe 3");
    expect(normalised("ﬁsh")).toBe("fish");
  });

  it("is right where it is one of those accepted, whole", () => {
    const accepted = ["A lion.", "This is a lion."];
    expect(["a Lion", "This is a lion"].every((said) => isRight(said, accepted))).toBe(true);
    expect(["lion and owl", "sea lion", ""].some((said) => isRight(said, accepted))).toBe(false);
  });

  it("ends with what stands behind its last colon, or with all of it", () => {
    expect(normalised(finalAnswer("At 3:15 a dog and a frog: no."))).toBe("no");
    expect(finalAnswer("8:30")).toBe("8:30");
    expect(finalAnswer("Answer: A")).toBe("A");
    expect(finalAnswer("A lion.")).toBe("A lion.");
    expect(finalAnswer("As follows:")).toBe("As follows:");
  });
});

describe("a share", () => {
  it("stands with the interval of Wilson", () => {
    const { share, low, high } = shareOf([...Array(8).fill(true), true, false]);
    expect(share).toBe(0.9);
    // both ends solve (p − x)² = z² x (1 − x) / n
    for (const end of [low, high]) expect((0.9 - end) ** 2).toBeCloseTo((1.96 ** 2 * end * (1 - end)) / 10, 12);
  });

  it("of nothing says nothing", () => {
    expect(shareOf([])).toEqual({ right: 0, of: 0, share: 0, low: 0, high: 1 });
  });

  it("of the commonest answer is what saying it always would reach", () => {
    expect(commonestShare([["Two."], ["two"], ["Three."], ["Two", "A pair."]])).toBe(0.75);
    expect(commonestShare([])).toBe(0);
  });
});

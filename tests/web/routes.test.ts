import { describe, expect, it } from "vitest";
import type { RoutedToken } from "../../web/src/api.ts";
import type { Routes } from "../../web/src/conversation.ts";
import {
  cellAt,
  clearMargin,
  colourOf,
  countExperts,
  shownToken,
  strengthOf,
  withTokens,
} from "../../web/src/routes.ts";

// two layers with experts, two chosen of four
const token = (a: number, b: number, margin: number | null): RoutedToken => ({
  layers: [1, 3],
  experts: [
    [a, b],
    [b, a],
  ],
  scores: [
    [0.9, 0.5],
    [0.8, 0.4],
  ],
  margins: [margin, 1],
});
const routes = [token(0, 1, 0.5), token(2, 3, null), token(0, 3, 4)].reduce<Routes | undefined>(
  (sofar, one, i) => withTokens(sofar, [one], `t${i}`),
  undefined,
)!;

describe("the routes of a reply", () => {
  it("are gathered token by token", () => {
    expect(routes.texts).toEqual(["t0", "t1", "t2"]);
    expect(cellAt(routes, 0, 0)).toEqual({ experts: [0, 1], scores: [0.9, 0.5], margin: 0.5 });
    expect(cellAt(routes, 1, 0)).toEqual({ experts: [2, 3], scores: [0.9, 0.5], margin: null });
    expect(cellAt(routes, 2, 1)).toEqual({ experts: [3, 0], scores: [0.8, 0.4], margin: 1 });
  });

  it("count the first choices, of a layer or of all", () => {
    expect(countExperts(routes, 4, 0)).toEqual([2, 0, 1, 0]);
    expect(countExperts(routes, 4, 1)).toEqual([0, 1, 0, 2]);
    expect(countExperts(routes, 4)).toEqual([2, 1, 1, 2]);
  });

  it("are strong where the choice was clear, and where there was none", () => {
    const clear = clearMargin(routes); // of 0.5, 1, 1, 1, 4
    expect(clear).toBe(1);
    expect(strengthOf(4, clear)).toBe(1);
    expect(strengthOf(0, clear)).toBeCloseTo(0.2);
    expect(strengthOf(null, clear)).toBe(1);
  });

  it("have a colour for each expert, of 8, 16 and 128", () => {
    for (const E of [8, 16, 128]) {
      const colours = Array.from({ length: E }, (_, expert) => colourOf(expert, E, false));
      expect(new Set(colours).size).toBe(E);
    }
  });
});

it("a token can be read", () => {
  expect(shownToken(" the\n")).toBe("\u00a0the↵");
  expect([shownToken(""), shownToken("", true)]).toEqual(["·", "end"]);
});

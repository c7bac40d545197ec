import { describe, expect, it } from "vitest";
import { planFrames, timestamp } from "../../src/prompt/video.ts";

const full = { tileSize: 336, tokensPerTile: 144, videoTokens: 8000 };
const wide = { width: 1280, height: 720 };

describe("planFrames", () => {
  it("takes two frames a second while they fit, and buys tiles with what is left", () => {
    const { times, step, maxTiles } = planFrames({ ...wide, duration: 4, rate: 30 }, full);
    expect(times).toEqual([0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75]);
    expect(step).toBe(0.5);
    expect(maxTiles).toBe(5); // 1,000 tokens a frame; six tiles and the global one take 1,017 and its time 12
  });

  it("spreads the frames that it can pay for over a long video", () => {
    const { times, maxTiles } = planFrames({ ...wide, duration: 36_000, rate: 24 }, full);
    expect(times).toHaveLength(50);
    expect([times[0], times.at(-1)]).toEqual([360, 35_640]);
    expect(maxTiles).toBe(1);
  });

  it("takes no more frames than there are, and one of a video of no length", () => {
    expect(planFrames({ ...wide, duration: 10, rate: 0.3 }, full).times).toHaveLength(3);
    expect(planFrames({ ...wide, duration: 0.01, rate: 30 }, full)).toMatchObject({ times: [0.005], maxTiles: 16 });
  });

  it("keeps the budget, whatever it is, and to the tiles that were asked for", () => {
    for (const videoTokens of [159, 400, 1000, 5000, 20_000])
      for (const duration of [0.2, 3, 70, 4000]) {
        const { times, maxTiles } = planFrames({ ...wide, duration }, { ...full, videoTokens });
        expect(times.length * (maxTiles === 1 ? 159 : 159 + 145)).toBeLessThanOrEqual(videoTokens);
        expect(planFrames({ ...wide, duration }, { ...full, videoTokens, maxTiles: 1 }).maxTiles).toBe(1);
      }
  });

  it("has an end to its frames, however large the budget and long the video", () => {
    expect(planFrames({ ...wide, duration: 1e9 }, { ...full, videoTokens: 1e15 }).times).toHaveLength(65_536);
  });

  it("refuses a budget of less than a frame", () => {
    expect(() => planFrames({ ...wide, duration: 5 }, { ...full, videoTokens: 100 })).toThrow(
      "videoTokens is 100; expected at least 159, which is one frame",
    );
  });
});

it("timestamps count tenths of seconds, and hours where there are some", () => {
  expect([0, 7.46, 59.96, 3723].map(timestamp)).toEqual(["[0:00.0]", "[0:07.5]", "[1:00.0]", "[1:02:03.0]"]);
});

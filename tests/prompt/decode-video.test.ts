import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import sharp from "sharp";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Media } from "../../src/prompt/chat-format.ts";
import { openVideo, ppmFrames } from "../../src/prompt/decode-video.ts";
import type { MediaOptions } from "../../src/prompt/media.ts";
import { planFrames } from "../../src/prompt/video.ts";
import { RequestError } from "../../src/tensor/errors.ts";

const folder = mkdtempSync(join(tmpdir(), "llama4-video-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const at = (name: string) => join(folder, name);
const budget = { tileSize: 336, tokensPerTile: 144, videoTokens: 8000 };

/** The grey level in the middle of each frame, and when it is shown. */
async function look(media: Media, videoTokens = 8000, signal?: AbortSignal) {
  const video = await openVideo(media, {}, signal);
  try {
    const frames: { seconds: number; grey: number; size: string }[] = [];
    for await (const { seconds, pixels } of video.frames(planFrames(video.length, { ...budget, videoTokens }))) {
      const middle = ((pixels.height >> 1) * pixels.width + (pixels.width >> 1)) * 3;
      frames.push({ seconds, grey: pixels.data[middle]!, size: `${pixels.width}x${pixels.height}` });
    }
    return frames;
  } finally {
    await video.close();
  }
}

async function refusal(media: Media, signal?: AbortSignal): Promise<string> {
  const error = await look(media, 8000, signal).then(
    () => undefined,
    (error: unknown) => error,
  );
  expect(error).toBeInstanceOf(RequestError);
  return (error as Error).message;
}

it("an animated GIF or WebP is a video, its frames at their times", async () => {
  const frames = Buffer.concat([0, 80, 160, 240].map((grey) => Buffer.alloc(16 * 8 * 3, grey)));
  const source = sharp(frames, { raw: { width: 16, height: 32, channels: 3, pageHeight: 8 } });
  for (const [type, file] of [
    [
      "gif",
      await source
        .clone()
        .gif({ delay: [500, 500, 1000, 500] })
        .toBuffer(),
    ],
    [
      "webp",
      await source
        .clone()
        .webp({ lossless: true, delay: [500, 500, 1000, 500] })
        .toBuffer(),
    ],
  ] as const) {
    writeFileSync(at(`moving.${type}`), file);
    for (const media of [{ data: file }, { path: at(`moving.${type}`) }]) {
      const seen = await look(media);
      expect(seen).toHaveLength(4); // 1.6 a second
      expect(seen.map(({ seconds }) => seconds)).toEqual([0.3125, 0.9375, 1.5625, 2.1875]);
      expect(seen.map(({ grey }) => Math.round(grey / 80))).toEqual([0, 1, 2, 3]);
    }
  }
});

it("a GIF without delays shows each frame for a tenth of a second, and one that is too large is not read", async () => {
  const frames = Buffer.concat([0, 80, 160, 240].map((grey) => Buffer.alloc(16 * 8 * 3, grey)));
  const raw = { width: 16, height: 32, channels: 3, pageHeight: 8 } as const;
  const file = await sharp(frames, { raw }).gif({ delay: 0 }).toBuffer();
  const { length } = await openVideo({ data: file }, {});
  expect(length).toMatchObject({ duration: 0.4, rate: 10 });
  writeFileSync(at("large.gif"), "GIF89a");
  truncateSync(at("large.gif"), 2 ** 31); // a hole: nothing of it may be read
  await expect(openVideo({ path: at("large.gif") }, {})).rejects.toThrow(
    "large.gif: image: the file has 2,147,483,648",
  );
});

/** A GIF whose frames are a pixel each, on a canvas of `side` × `side`. */
function pixels(frames: number, side: number): Buffer {
  const size = [side & 255, side >> 8];
  const head = Buffer.from([...Buffer.from("GIF89a"), ...size, ...size, 0x80, 0, 0, 0, 0, 0, 255, 255, 255]);
  const frame = Buffer.from([0x2c, 0, 0, 0, 0, 1, 0, 1, 0, 0, 2, 2, 0x44, 1, 0]);
  return Buffer.concat([head, ...Array<Buffer>(frames).fill(frame), Buffer.from(";")]);
}

// Of 300,000 frames the one that was wanted was beyond what sharp counts to: an error of the server's.
it.each([
  [100_001, 1],
  [501, 2000],
])("an animation of %i frames of %i pixels a side is refused", async (frames, side) => {
  await expect(openVideo({ data: pixels(frames, side) }, {})).rejects.toThrow(
    /^video: the animation has .* frames of .*; expected at most 100,000 frames, and 2,000,000,000 pixels in all$/,
  );
  expect((await openVideo({ data: pixels(499, side) }, {})).length.width).toBe(side);
});

it("PPM images come apart in chunks of any size", async () => {
  const image = (width: number, height: number, byte: number) =>
    Buffer.concat([Buffer.from(`P6\n${width} ${height}\n255\n`), Buffer.alloc(width * height * 3, byte)]);
  const bytes = Buffer.concat([image(1, 1, 1), image(13, 7, 2), image(2, 2, 3)]);
  for (const size of [1, 2, 11, 30, 1000]) {
    const chunks = Array.from({ length: Math.ceil(bytes.length / size) }, (_, i) =>
      bytes.subarray(i * size, (i + 1) * size),
    );
    const sizes: number[][] = [];
    for await (const { width, height, data } of ppmFrames(
      (async function* () {
        yield* chunks;
      })(),
    ))
      sizes.push([width, height, data.length, data[0]!]);
    expect(sizes).toEqual([
      [1, 1, 3, 1],
      [13, 7, 273, 2],
      [2, 2, 12, 3],
    ]);
  }
});

it("without ffmpeg, the error says how to install it", async () => {
  writeFileSync(at("some.mp4"), "no video");
  const path = process.env["PATH"];
  process.env["PATH"] = folder;
  try {
    expect(await refusal({ path: at("some.mp4") })).toContain(
      "not on PATH; install them (Debian: apt-get install ffmpeg",
    );
  } finally {
    process.env["PATH"] = path;
  }
});

const hasFfmpeg = (process.env["PATH"] ?? "").split(delimiter).some((place) => existsSync(join(place, "ffmpeg")));

// apt-get install ffmpeg, as .ci/run does, makes these run.
describe.skipIf(!hasFfmpeg)("openVideo (skipped where ffmpeg is not installed)", () => {
  const ffmpeg = (...args: string[]) => execFileSync("ffmpeg", ["-v", "error", "-y", ...args], { stdio: "pipe" });

  beforeAll(() => {
    // grows brighter, by 20 levels a second
    const brighter = "nullsrc=size=64x48:rate=10:duration=8,geq=lum=16+20*T:cb=128:cr=128,format=yuv420p";
    ffmpeg("-f", "lavfi", "-i", brighter, "-c:v", "mpeg4", "-q:v", "2", "-g", "10", at("brighter.mp4"));
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", at("sound.wav"));
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", "-c:a", "aac", at("sound.mp4"));
    ffmpeg("-i", at("brighter.mp4"), "-c:v", "mpeg2video", "-r", "25", "-q:v", "2", at("brighter.ts"));
  });

  it("takes frames at the planned times: file, bytes, MP4 and MPEG-TS", async () => {
    const expected = (seconds: number) => ((20 * Math.floor(seconds * 10)) / 10) * (255 / 219);
    for (const media of [
      { path: at("brighter.mp4") },
      { data: new Uint8Array(readFileSync(at("brighter.mp4"))) },
      { path: at("brighter.ts") },
    ]) {
      const frames = await look(media);
      expect(frames).toHaveLength(16);
      expect(frames[0]!.seconds).toBeCloseTo(0.25);
      expect(frames[0]!.size).toBe("64x48");
      for (const { seconds, grey } of frames) expect(Math.abs(grey - expected(seconds))).toBeLessThan(8); // two frames
    }
  });

  it("shows at each time what is on the screen then, of slides too, and of a single frame", async () => {
    for (const [rate, tokens] of [
      [1, 8000],
      [0.1, 8000], // ten seconds a slide: it jumps
    ] as const) {
      const slides = `nullsrc=size=64x48:rate=${rate}:duration=${3 / rate},geq=lum=16+80*N:cb=128:cr=128,format=yuv420p`;
      ffmpeg("-f", "lavfi", "-i", slides, "-c:v", "mpeg4", "-q:v", "2", at(`slides${rate}.mp4`));
      const frames = await look({ path: at(`slides${rate}.mp4`) }, tokens);
      expect(frames.map(({ seconds }) => seconds * rate)).toEqual([0.5, 1.5, 2.5]);
      expect(frames.map(({ grey }) => Math.round(grey / (80 * (255 / 219))))).toEqual([0, 1, 2]);
    }
    for (const name of ["one.mp4", "one.webm", "one.ts"]) {
      const codec = name.endsWith("webm") ? "vp8" : "mpeg2video";
      ffmpeg("-f", "lavfi", "-i", "color=white:size=32x32:rate=10", "-frames:v", "1", "-c:v", codec, at(name));
      expect((await look({ path: at(name) })).map(({ grey }) => grey > 240)).toEqual([true]);
    }
  });

  it("has the limits of images", async () => {
    const open = (limits: MediaOptions) => openVideo({ path: at("brighter.mp4") }, limits);
    await expect(open({ maxPixels: 100 })).rejects.toThrow("it has 64 × 48 pixels; expected at most 100 (`maxPixels`)");
    await expect(open({ maxSide: 63 })).rejects.toThrow("expected at most 63 along a side (`maxSide`)");
  });

  it("jumps where frames lie far apart", async () => {
    ffmpeg("-stream_loop", "9", "-i", at("brighter.mp4"), "-c", "copy", at("long.mp4")); // 80 seconds
    const frames = await look({ path: at("long.mp4") }, 700);
    expect(frames.map(({ seconds }) => Math.round(seconds))).toEqual([10, 30, 50, 70]);
    for (const { seconds, grey } of frames) expect(Math.abs(grey - (seconds % 8) * 20 * (255 / 219))).toBeLessThan(12);
  });

  it("looks into ten hours without decoding them", async () => {
    ffmpeg(
      "-f",
      "lavfi",
      "-i",
      "color=gray:size=32x32:rate=1/60:duration=36000",
      "-c:v",
      "mpeg4",
      "-g",
      "1",
      at("hours.mp4"),
    );
    const frames = await look({ path: at("hours.mp4") }, 800);
    expect(frames).toHaveLength(5);
    expect(frames.at(-1)!.seconds).toBe(32_400);
  });

  // Samples from 18 s on were white: ffmpeg drops what began before the place that it jumps to.
  it("never shows the future where frames lie unevenly", async () => {
    const slides = "nullsrc=size=64x48:rate=10:duration=120,geq=lum=if(gte(T\\,119.9)\\,235\\,16):cb=128:cr=128";
    const few = `${slides},format=yuv420p,select=eq(n\\,0)+eq(n\\,50)+gte(n\\,1199)`;
    const input = ["-f", "lavfi", "-i", few, "-vsync", "vfr"];
    ffmpeg(...input, "-c:v", "mpeg4", at("uneven.mp4"));
    ffmpeg("-i", at("uneven.mp4"), "-c", "copy", at("uneven.mkv"));
    ffmpeg(...input, "-c:v", "mpeg2video", "-r", "25", at("even.ts"));
    for (const name of ["uneven.mp4", "uneven.mkv", "even.ts"]) {
      const video = await openVideo({ path: at(name) }, {});
      for (const times of [[18, 60, 118], [119.5]]) {
        const seen: number[] = [];
        for await (const { pixels } of video.frames({ times, step: 40, maxTiles: 1 })) seen.push(pixels.data[0]!);
        expect([name, seen]).toEqual([name, times.map(() => 0)]);
      }
      for await (const { pixels } of video.frames({ times: [119.96], step: 40, maxTiles: 1 }))
        expect([name, pixels.data[0]! > 240]).toEqual([name, true]);
    }
  });

  it("plans by the pictures where the sound is longer, and by the last packet where nothing says how long it is", async () => {
    const input = ["-i", at("brighter.mp4")];
    const sound = ["-f", "lavfi", "-i", "sine=duration=60"];
    for (const name of ["sound-on.mp4", "sound-on.mkv", "sound-on.ts"]) {
      const pictures = ["-i", at(name.endsWith("ts") ? "brighter.ts" : "brighter.mp4")];
      ffmpeg(...pictures, ...sound, "-c:v", "copy", "-c:a", "mp2", at(name));
      const { duration } = (await openVideo({ path: at(name) }, {})).length;
      expect(Math.abs(duration - 8)).toBeLessThan(0.1); // pictures begin a little after the sound
      expect(await look({ path: at(name) })).toHaveLength(Math.ceil(2 * duration));
    }
    const live = execFileSync("ffmpeg", ["-v", "error", ...input, "-c:v", "libvpx", "-f", "webm", "-"]); // as a browser records
    const frames = await look({ data: new Uint8Array(live) });
    expect(frames.map(({ seconds }) => seconds)).toEqual(Array.from({ length: 16 }, (_, i) => (i + 0.5) / 2));
  });

  it("refuses a file that breaks off, and says how much of it is there", async () => {
    ffmpeg("-i", at("brighter.mp4"), "-c", "copy", "-movflags", "faststart", at("start.mp4"));
    ffmpeg("-i", at("brighter.mp4"), "-c", "copy", at("start.mkv"));
    for (const name of ["start.mp4", "start.mkv"]) {
      truncateSync(at(name), statSync(at(name)).size >> 1);
      expect(await refusal({ path: at(name) })).toMatch(
        /video: \d+ frames are there, up to \d\.\d s of 8\.0 s, and the file seems to be cut off; expected a whole file/,
      );
    }
  });

  it("stretches pixels that are not square", async () => {
    for (const [aspect, shape] of [
      ["4/3", "85x48"],
      ["1/2", "64x96"],
    ] as const) {
      ffmpeg("-i", at("brighter.mp4"), "-vf", `setsar=${aspect}`, "-c:v", "mpeg4", at("stretched.mp4"));
      expect((await look({ path: at("stretched.mp4") }, 200))[0]!.size).toBe(shape);
      const { width, height } = (await openVideo({ path: at("stretched.mp4") }, {})).length;
      expect(`${width}x${height}`).toBe(shape);
    }
  });

  it("turns what a telephone recorded upright", async () => {
    const input = ["-i", at("brighter.mp4"), "-c", "copy"];
    try {
      ffmpeg("-display_rotation", "90", ...input, at("turned.mp4"));
    } catch {
      ffmpeg(...input, "-metadata:s:v", "rotate=90", at("turned.mp4")); // before version 6
    }
    expect((await look({ path: at("turned.mp4") }, 200))[0]!.size).toBe("48x64");
    expect((await openVideo({ path: at("turned.mp4") }, {})).length).toMatchObject({ width: 48, height: 64 });
  });

  it("ends ffmpeg at once when it is cancelled", async () => {
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=1280x720:rate=30:duration=8", "-c:v", "mpeg4", at("busy.mp4"));
    const cancel = new AbortController();
    const video = await openVideo({ path: at("busy.mp4") }, {}, cancel.signal);
    const reading = (async () => {
      for await (const _ of video.frames(planFrames(video.length, budget))) cancel.abort(new Error("enough"));
    })();
    await expect(reading).rejects.toThrow("enough");
    expect(spawnSync("pgrep", ["-f", at("busy.mp4")], { encoding: "utf8" }).stdout).toBe("");
  });

  it("refuses what has no video in it, is broken, or names other files", async () => {
    expect(await refusal({ path: at("sound.mp4") })).toBe(
      `${at("sound.mp4")}: video: the file has no video stream; expected one`,
    );
    writeFileSync(at("broken.mp4"), readFileSync(at("brighter.mp4")));
    truncateSync(at("broken.mp4"), statSync(at("broken.mp4")).size >> 1);
    expect(await refusal({ path: at("broken.mp4") })).toMatch(/ffprobe cannot read it \(.*\); expected a whole file/);
    writeFileSync(at("text.mp4"), "Hello, world!");
    expect(await refusal({ path: at("text.mp4") })).toContain("ffprobe cannot read it");
    writeFileSync(
      at("list.m3u8"),
      `#EXTM3U\n#EXT-X-TARGETDURATION:8\n#EXTINF:8,\n${at("brighter.ts")}\n#EXT-X-ENDLIST\n`,
    );
    expect(await refusal({ path: at("list.m3u8") })).toContain("ffprobe cannot read it");
    expect(await refusal({ path: at("none.mp4") })).toContain("there is no");
  });
});

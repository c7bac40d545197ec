import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import sharp from "sharp";
import { afterAll, describe, expect, it, vi } from "vitest";
import { animationTimes, type DecodeOptions, decodeImage, formatOf, openImage } from "../../src/prompt/decode-image.ts";
import { RequestError } from "../../src/tensor/errors.ts";

const folder = mkdtempSync(join(tmpdir(), "llama4-image-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const at = (name: string) => join(folder, name);

const W = 40;
const H = 24;
/** Red grows to the right, green downwards; the upper left quarter is blue as well. */
const rgb = Uint8Array.from({ length: W * H * 3 }, (_, i) => {
  const x = Math.floor(i / 3) % W;
  const y = Math.floor(i / 3 / W);
  return [x * 6, y * 10, x < W / 2 && y < H / 2 ? 200 : 0][i % 3]!;
});
const source = () => sharp(rgb, { raw: { width: W, height: H, channels: 3 } });

async function refusal(file: Uint8Array, options?: DecodeOptions): Promise<string> {
  const error = await decodeImage(file, options).then(
    () => undefined,
    (error: unknown) => error,
  );
  expect(error).toBeInstanceOf(RequestError);
  return (error as Error).message;
}

/** The mean difference of two images' bytes. */
function difference(a: Uint8Array, b: Uint8Array): number {
  expect(a.length).toBe(b.length);
  return a.reduce((sum, v, i) => sum + Math.abs(v - b[i]!), 0) / a.length;
}

describe("decodeImage", () => {
  it("gives a lossless file's pixels: PNG, WebP, TIFF", async () => {
    for (const file of [source().png(), source().webp({ lossless: true }), source().tiff({ compression: "lzw" })]) {
      const { data, width, height } = await decodeImage(await file.toBuffer());
      expect([width, height]).toEqual([W, H]);
      expect(difference(data, rgb)).toBe(0);
    }
  });

  // Newer releases of Node hold to the standard here, and then every PNG was refused.
  it("knows formats by their bytes, whatever the platform's decoder of latin1 makes of them", async () => {
    const standard = class {
      decode = (bytes: Uint8Array) =>
        String.fromCharCode(...bytes.map((byte) => byte)).replace(/[\x80-\x9f]/g, (c) =>
          c === "\x89" ? "\u2030" : "\u20ac",
        );
    };
    const files = await Promise.all([source().png().toBuffer(), source().jpeg().toBuffer()]);
    vi.stubGlobal("TextDecoder", standard); // "latin1" is windows-1252: byte 0x89 is U+2030
    try {
      expect(files.map(formatOf)).toEqual(["PNG", "JPEG"]);
    } finally {
      vi.unstubAllGlobals();
    }
  });

  it("reads JPEG, AVIF and palettes as closely as they keep", async () => {
    const files = [
      source().jpeg({ quality: 95, chromaSubsampling: "4:4:4" }),
      source().avif({ quality: 90, chromaSubsampling: "4:4:4" }),
      source().png({ palette: true }),
    ];
    for (const file of files) expect(difference((await decodeImage(await file.toBuffer())).data, rgb)).toBeLessThan(6);
  });

  it("reads grey and 16 bits as three channels of 8", async () => {
    const grey = (await decodeImage(await source().greyscale().png().toBuffer())).data;
    for (let i = 0; i < grey.length; i += 3) expect(grey[i + 1] === grey[i] && grey[i + 2] === grey[i]).toBe(true);
    const deep = await source().toColourspace("rgb16").png().toBuffer();
    expect((await sharp(deep).metadata()).depth).toBe("ushort");
    expect(difference((await decodeImage(deep)).data, rgb)).toBeLessThan(1);
  });

  it("reads CMYK", async () => {
    const cmyk = await source().toColourspace("cmyk").jpeg({ quality: 95 }).toBuffer();
    expect((await sharp(cmyk).metadata()).space).toBe("cmyk");
    const { data } = await decodeImage(cmyk);
    expect(data).toHaveLength(rgb.length);
    expect(difference(data, rgb)).toBeLessThan(40); // inks show fewer colours
  });

  it("shows what is transparent over white", async () => {
    const clear = {
      create: { width: 3, height: 2, channels: 4 as const, background: { r: 255, g: 0, b: 0, alpha: 0 } },
    };
    const half = { create: { ...clear.create, background: { r: 255, g: 0, b: 0, alpha: 0.5 } } };
    expect(new Set((await decodeImage(await sharp(clear).png().toBuffer())).data)).toEqual(new Set([255]));
    const [red, green] = (await decodeImage(await sharp(half).png().toBuffer())).data;
    expect(red).toBe(255);
    expect(Math.abs(green! - 127)).toBeLessThanOrEqual(1);
  });

  it("turns a photograph as its EXIF orientation says, unless told not to", async () => {
    const turned = await source().withMetadata({ orientation: 6 }).png().toBuffer(); // shown a quarter to the right
    const upright = await decodeImage(turned);
    expect([upright.width, upright.height]).toEqual([H, W]);
    expect(await openImage({ data: turned })).toMatchObject({ width: H, height: W });
    expect(await openImage({ data: turned }, { orient: false })).toMatchObject({ width: W, height: H });
    expect([...upright.data.subarray(0, 3)]).toEqual([0, (H - 1) * 10, 0]); // the lower left corner is on top
    const asStored = await decodeImage(turned, { orient: false });
    expect(difference(asStored.data, rgb)).toBe(0);
  });

  it("takes the first frame of a GIF, or the page that is asked for", async () => {
    const frames = Buffer.concat([rgb, rgb.map((v) => 255 - v)]);
    const gif = await sharp(frames, { raw: { width: W, height: 2 * H, channels: 3, pageHeight: H } })
      .gif({ delay: [100, 400] })
      .toBuffer();
    const first = await decodeImage(gif);
    expect([first.width, first.height]).toEqual([W, H]);
    expect(difference(first.data, rgb)).toBeLessThan(8);
    expect(
      difference(
        (await decodeImage(gif, { page: 1 })).data,
        rgb.map((v) => 255 - v),
      ),
    ).toBeLessThan(8);
    expect(await animationTimes(gif)).toEqual({ starts: [0, 0.1], duration: 0.5 });
  });
});

describe("openImage", () => {
  it("reads bytes and files, and says which file is wrong", async () => {
    const png = await sharp({ create: { width: 3, height: 2, channels: 3, background: "#ff0000" } })
      .png()
      .toBuffer();
    writeFileSync(at("red.png"), png);
    for (const media of [{ path: at("red.png") }, { data: png }]) {
      const image = await openImage(media);
      expect(image).toMatchObject({ width: 3, height: 2, bytes: png });
      expect(await image.pixels()).toEqual(await decodeImage(png));
    }
    writeFileSync(at("text.png"), "Hello");
    await expect(openImage({ path: at("text.png") })).rejects.toThrow(/text\.png: image: the file is no image/);
    await expect(openImage({ path: at("none.png") })).rejects.toThrow(/there is no .*none\.png/);
    await expect(openImage({ path: folder })).rejects.toThrow(/is a folder; expected a file/);
    await expect(openImage({ path: at("red.png") }, { maxBytes: 10 })).rejects.toThrow(/at most 10/);
  });
});

describe("decodeImage refuses", () => {
  const blank = (width: number, height: number) =>
    sharp({ create: { width, height, channels: 3, background: "#123456" } })
      .png({ compressionLevel: 9 })
      .toBuffer();

  it("a small file of very many pixels, before it is decoded", async () => {
    const bomb = await blank(10_000, 10_000);
    expect(bomb.length).toBeLessThan(1e6);
    const before = process.memoryUsage().rss;
    expect(await refusal(bomb)).toContain("at most 50,000,000");
    expect(process.memoryUsage().rss - before).toBeLessThan(100e6);
    expect(await refusal(await blank(20, 20), { maxPixels: 399 })).toContain("at most 399");
  });

  it("one that is too long or too large a file", async () => {
    expect(await refusal(await blank(1, 65_535))).toContain("1 × 65,535 pixels; expected at most 32,767 along a side");
    expect((await decodeImage(await blank(1, 65_535), { maxSide: 65_535 })).height).toBe(65_535);
    expect(await refusal(await blank(20, 20), { maxBytes: 10 })).toContain("expected at most 10 (`maxBytes`)");
  });

  it("a file that ends too early", async () => {
    const jpeg = await source().resize(600, 400).jpeg().toBuffer();
    const half = jpeg.subarray(0, jpeg.length >> 1);
    const bytes = half.length.toLocaleString("en");
    expect(await refusal(half)).toBe(
      `image: this JPEG of ${bytes} bytes cannot be decoded, as it is cut off, damaged or of a rare kind; expected a whole PNG, JPEG, WebP, GIF, AVIF or TIFF`,
    );
    const png = await source().png().toBuffer();
    expect(await refusal(png.subarray(0, png.length >> 1))).toMatch(
      /^image: this PNG of [\d,]+ bytes cannot be decoded/,
    );
  });

  it("an image without pixels", async () => {
    const png = await source().png().toBuffer();
    png.writeUInt32BE(0, 16); // its width
    expect(await refusal(png)).toMatch(/^image: this PNG of [\d,]+ bytes cannot be decoded/);
  });

  it("an SVG, which may ask for other files", async () => {
    const svg = '<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>';
    expect(await refusal(Buffer.from(svg))).toContain("an SVG drawing; expected PNG, JPEG");
  });

  it("what is no image", async () => {
    expect(await refusal(new Uint8Array())).toContain("the file is empty");
    expect(await refusal(Buffer.from("Hello, world!"))).toContain('it begins with "Hello, world!"');
    expect(await refusal(Buffer.from("%PDF-1.4"))).toContain("a PDF document");
  });
});

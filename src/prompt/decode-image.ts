// Image files to RGB pixels. Only decoding is sharp's: how an image is resized is part of the model (resize.ts).

import { readFile, stat } from "node:fs/promises";
import type Sharp from "sharp";
import { RequestError } from "../tensor/errors.ts";
import type { Media } from "./chat-format.ts";
import type { ImageLimits, OpenImage } from "./media.ts";
import type { Pixels } from "./resize.ts";
import { shown } from "./shown.ts";

export interface DecodeOptions extends ImageLimits {
  /** Turns photographs as their EXIF orientation says. Default: yes. */
  readonly orient?: boolean | undefined;
  /** Which frame of an animation; default the first. */
  readonly page?: number | undefined;
}

const FORMATS = "PNG, JPEG, WebP, GIF, AVIF or TIFF";

/** An image part: its file's header is read. */
export async function openImage(media: Media, options: DecodeOptions = {}): Promise<OpenImage> {
  if (media.data !== undefined) return openBytes(bytesOf(media.data), options);
  const { path } = media;
  const { size } = await existing("image", path);
  return named(path, async () => {
    checkBytes(size, options);
    const image = await openBytes(await readFile(path), options);
    return { ...image, pixels: () => named(path, image.pixels) };
  });
}

/** The image in a file. */
export async function decodeImage(file: Uint8Array, options: DecodeOptions = {}): Promise<Pixels> {
  return (await openBytes(file, options)).pixels();
}

/** Its pixels are sRGB bytes, what is transparent over white, embedded colour profiles left aside as in training. */
async function openBytes(bytes: Uint8Array, options: DecodeOptions): Promise<OpenImage> {
  const { orient = true, page = 0 } = options;
  formatOf(bytes);
  checkBytes(bytes.byteLength, options);
  const sharp = await loadSharp();
  const open = () =>
    sharp(bytes, {
      ...{ page, pages: 1, ignoreIcc: true, failOn: "error" },
      limitInputPixels: false, // ours, below, says more
      sequentialRead: true,
      autoOrient: orient,
    });
  const { width = 0, height = 0, pageHeight = height, orientation = 1 } = await readable(bytes, open().metadata());
  checkSize("image", width, pageHeight, options);
  const isOnItsSide = orient && orientation > 4; // of EXIF's eight, 5 to 8 are quarter turns
  return {
    ...(isOnItsSide ? { width: pageHeight, height: width } : { width, height: pageHeight }),
    bytes,
    async pixels() {
      const pipeline = open().flatten({ background: "#ffffff" }).toColourspace("srgb").raw({ depth: "uchar" });
      const { data, info } = await readable(bytes, pipeline.toBuffer({ resolveWithObject: true }));
      if (info.channels !== 3) throw new Error(`image: decoded to ${info.channels} channels; expected 3`);
      return { data, width: info.width, height: info.height };
    },
  };
}

/** Refuses a file of too many bytes. */
export function checkBytes(bytes: number, { maxBytes = 100e6 }: ImageLimits): void {
  if (bytes > maxBytes)
    throw new RequestError(
      `image: the file has ${bytes.toLocaleString("en")} bytes; expected at most ${maxBytes.toLocaleString("en")} (\`maxBytes\`)`,
    );
}

/** Refuses an image, or a video's frames, of no pixels or of too many. */
export function checkSize(
  what: "image" | "video",
  width: number,
  height: number,
  { maxPixels = 50e6, maxSide = 32_767 }: ImageLimits,
): void {
  const size = `${width.toLocaleString("en")} × ${height.toLocaleString("en")} pixels`;
  if (width * height < 1) throw new RequestError(`${what}: it has ${size}; expected some`);
  if (width * height > maxPixels)
    throw new RequestError(
      `${what}: it has ${size}; expected at most ${maxPixels.toLocaleString("en")} (\`maxPixels\`)`,
    );
  if (Math.max(width, height) > maxSide)
    throw new RequestError(
      `${what}: it has ${size}; expected at most ${maxSide.toLocaleString("en")} along a side (\`maxSide\`)`,
    );
}

/** What is wrong with a file says which file it is. */
export async function named<T>(path: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw error instanceof RequestError ? new RequestError(`${path}: ${error.message}`, { cause: error }) : error;
  }
}

/** The bytes of a part, which came from outside. */
export function bytesOf(data: Uint8Array): Uint8Array {
  if (data instanceof Uint8Array) return data;
  throw new RequestError(`data is ${typeof data}; expected the file's bytes in a Uint8Array`);
}

/** What the file system says of a part's file. */
export async function existing(what: string, path: string) {
  if (typeof path !== "string") throw new RequestError(`${what}: neither data nor a path; expected one of them`);
  const found = await stat(path).catch((error: unknown) => {
    throw new RequestError(`${what}: there is no ${path} that can be read; check the path`, { cause: error });
  });
  if (!found.isFile())
    throw new RequestError(`${what}: ${path} is ${found.isDirectory() ? "a folder" : "no file"}; expected a file`);
  return found;
}

/** When each frame of an animated GIF or WebP is shown, in seconds, and until when the last one is. */
export async function animationTimes(file: Uint8Array): Promise<{ starts: number[]; duration: number }> {
  formatOf(file);
  const sharp = await loadSharp();
  const { pages = 1, delay = [] } = await readable(
    file,
    sharp(file, { pages: -1, limitInputPixels: false }).metadata(), // each frame has its own limit when it is decoded
  );
  const starts: number[] = [];
  let duration = 0;
  for (let page = 0; page < pages; page++) {
    starts.push(duration);
    const ms = delay[page] ?? 0;
    duration += (ms <= 10 ? 100 : ms) / 1000; // no delay, or next to none, is a tenth of a second, as in browsers
  }
  return { starts, duration };
}

/** Told by the file's first bytes, or refused, so that no decoder but those of these formats ever sees it. */
export function formatOf(file: Uint8Array): string {
  const head = String.fromCharCode(...file.subarray(0, 512)); // a byte a character; TextDecoder's "latin1" is windows-1252
  if (head.startsWith("\x89PNG\r\n\x1a\n")) return "PNG";
  if (head.startsWith("\xff\xd8\xff")) return "JPEG";
  if (head.startsWith("RIFF") && head.slice(8, 12) === "WEBP") return "WebP";
  if (/^GIF8[79]a/.test(head)) return "GIF";
  if (head.startsWith("II*\0") || head.startsWith("MM\0*")) return "TIFF";
  if (/^....ftyp(avif|avis|mif1.*avif)/s.test(head.slice(0, 64))) return "AVIF";
  const found =
    head.length === 0
      ? "empty"
      : /^....ftyp(hei[cxms]|hev|mif1)/s.test(head)
        ? "HEIC"
        : /<svg|<!DOCTYPE svg/i.test(head)
          ? "an SVG drawing"
          : /^%PDF/.test(head)
            ? "a PDF document"
            : `no image that is known (it begins with ${shown(printable(head.slice(0, 16)))})`;
  throw new RequestError(`image: the file is ${found}; expected ${FORMATS}`);
}

const printable = (text: string) => text.replaceAll(/[^\x20-\x7e]/g, ".");

/** What a decoder says of a file is the error's cause: its libraries' names and pieces of C tell nobody what to do. */
async function readable<T>(file: Uint8Array, work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    throw new RequestError(
      `image: this ${formatOf(file)} of ${file.byteLength.toLocaleString("en")} bytes cannot be decoded, as it is cut off, damaged or of a rare kind; expected a whole ${FORMATS}`,
      { cause: error },
    );
  }
}

async function loadSharp(): Promise<typeof Sharp> {
  try {
    const { default: sharp } = await import("sharp"); // not before an image comes: text needs none of it
    sharp.cache(false);
    return sharp;
  } catch (error) {
    throw new Error(
      `images need the package sharp, which did not load (${error instanceof Error ? error.message : error}); run npm ci`,
      { cause: error },
    );
  }
}

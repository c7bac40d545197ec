// Files become attachments: pictures in a format and a size that the server takes.

import type { Attachment } from "./conversation.ts";

/** A longer side is scaled down to this: the model sees at most 16 tiles of 336 pixels. */
const LONGEST_SIDE = 2048;
const KEPT_BYTES = 4e6;
const VIDEO_BYTES = 40e6;
const asTheyAre = new Set(["image/png", "image/jpeg", "image/webp", "image/gif"]);

/** Why a file was not taken. */
export class MediaError extends Error {}

/** A picture or a video. Throws MediaError where it is neither, or too large. */
export async function attachmentOf(file: File): Promise<Attachment> {
  const name = file.name === "" ? "pasted" : file.name;
  if (file.type.startsWith("video/")) {
    if (file.size > VIDEO_BYTES)
      throw new MediaError(`${name} has ${megabytes(file.size)}; a video may have ${megabytes(VIDEO_BYTES)}.`);
    return { kind: "video", name, blob: file };
  }
  if (!file.type.startsWith("image/"))
    throw new MediaError(
      `${name} is ${file.type === "" ? "of no known type" : file.type}; pictures and videos can be shown to the model.`,
    );
  return { kind: "image", name, blob: await acceptable(file, name) };
}

/** The picture as it is, or drawn again: smaller, or as PNG where the server does not know its format. */
async function acceptable(file: File, name: string): Promise<Blob> {
  const picture = await decoded(file, name);
  const longest = Math.max(picture.naturalWidth, picture.naturalHeight);
  if (asTheyAre.has(file.type) && file.size <= KEPT_BYTES && longest <= LONGEST_SIDE) return file;
  const scale = Math.min(1, LONGEST_SIDE / longest);
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(picture.naturalWidth * scale));
  canvas.height = Math.max(1, Math.round(picture.naturalHeight * scale));
  canvas.getContext("2d")!.drawImage(picture, 0, 0, canvas.width, canvas.height);
  const isPhoto = file.type === "image/jpeg" || file.size > KEPT_BYTES;
  return new Promise((resolve, reject) => {
    const take = (blob: Blob | null) =>
      blob ? resolve(blob) : reject(new MediaError(`${name} could not be drawn at its size.`));
    canvas.toBlob(take, isPhoto ? "image/jpeg" : "image/png", 0.92);
  });
}

async function decoded(file: File, name: string): Promise<HTMLImageElement> {
  const url = URL.createObjectURL(file);
  const picture = new Image();
  picture.src = url;
  try {
    await picture.decode();
  } catch {
    throw new MediaError(`${name} cannot be read as a picture.`);
  } finally {
    URL.revokeObjectURL(url);
  }
  return picture;
}

/** `data:<type>;base64,…`, as the API takes files. */
export function dataUrl(blob: Blob): Promise<string> {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result as string); // readAsDataURL gives text
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

const megabytes = (bytes: number) => `${(bytes / 1e6).toFixed(0)} MB`;

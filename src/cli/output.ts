// Where a command writes: what is there already stays, unless --force is given and it is what the command itself makes.

import { existsSync, readdirSync, statSync } from "node:fs";
import { rename, rm } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { RequestError } from "../tensor/errors.ts";

/** Without --force a command leaves alone what is there; with it, it replaces a checkpoint and nothing else. */
export function refuseToOverwrite(out: string, force: true | undefined, isOurs = isCheckpoint): void {
  if (!existsSync(out)) return;
  if (!force) throw new RequestError(`${out} exists already; choose another place, or replace it with --force`);
  if (!isOurs(out))
    throw new RequestError(
      `${out} is not what this command writes, and --force replaces nothing else; choose another place, or remove it yourself`,
    );
}

/** A command that writes one file makes no folders: a missing one is more likely a slip of the fingers. */
export function refuseMissingFolder(out: string): void {
  const folder = dirname(resolve(out));
  if (!statSync(folder, { throwIfNoEntry: false })?.isDirectory())
    throw new RequestError(`${out}: ${folder} is no folder; make it first, or choose another place`);
}

export const isFile = (path: string) => statSync(path).isFile();

/** A .gguf file, a folder with config.json and weights beside it, or an empty folder. */
function isCheckpoint(path: string): boolean {
  if (isFile(path)) return path.endsWith(".gguf");
  if (!statSync(path).isDirectory()) return false;
  const names = readdirSync(path);
  return names.length === 0 || (names.includes("config.json") && names.some((name) => name.endsWith(".safetensors")));
}

/** Has `write` make a new folder beside `out`, which then takes the place of what is there. */
export async function replacing<T>(out: string, write: (path: string) => Promise<T>): Promise<T> {
  if (!existsSync(out)) return write(out);
  const place = resolve(out);
  const fresh = `${place}.${process.pid}.new`;
  const old = `${place}.${process.pid}.old`;
  const done = await write(fresh);
  try {
    await rename(place, old);
    await rename(fresh, place).catch(async (error: unknown) => {
      await rename(old, place);
      throw error;
    });
  } catch (error) {
    await rm(fresh, { recursive: true, force: true });
    throw error;
  }
  await rm(old, { recursive: true });
  return done;
}

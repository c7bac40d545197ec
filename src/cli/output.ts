// Where a command writes: what is there already stays, unless --force is given and it is what the command itself makes.

import { existsSync, readdirSync, realpathSync, statSync } from "node:fs";
import { rename, rm } from "node:fs/promises";
import { dirname, relative, resolve, sep } from "node:path";
import { RequestError } from "../tensor/errors.ts";

/** Without --force a command leaves alone what is there; with it, it replaces a checkpoint and nothing else. */
export function refuseToOverwrite(out: string, force: true | undefined, isOurs = isCheckpoint): void {
  if (out === "") throw new RequestError("the name of the output is empty; expected a path");
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

// What init and convert put into a folder.
const written =
  /^(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|preprocessor_config|processor_config)\.json$|^chat_template\.\w+$|^model(-\d+-of-\d+)?\.safetensors(\.index\.json)?$/;

/** A .gguf file, or a folder that holds nothing but what these commands write. */
function isCheckpoint(path: string): boolean {
  if (isFile(path)) return path.endsWith(".gguf");
  return statSync(path).isDirectory() && readdirSync(path).every((name) => written.test(name));
}

/** Refuses an output that is the input, or lies inside it: the only copy would be gone before the new one is known good. */
export function refuseOntoItself(input: string, out: string): void {
  if (!existsSync(input)) return; // opening it says so
  const parts = relative(realpathSync(input), existsSync(out) ? realpathSync(out) : resolve(out)).split(sep);
  if (parts[0] !== "..")
    throw new RequestError(`${out} is the input ${input}, or inside it; choose another place for the output`);
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

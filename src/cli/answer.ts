// How a command speaks: its answer on stdout, everything else on stderr, and how it ended as its exit status.

import { createRequire } from "node:module";
import type { SingleBar } from "cli-progress";
import { CommanderError } from "commander";
import { RequestError } from "../tensor/errors.ts";
import type { EngineThread } from "../thread.ts";

/** What a command hands back: an object for programs, a text for people; without a text it has shown that already. */
export interface Answer {
  readonly json: object;
  readonly text?: string;
}

/** What a command is told beside its options. */
export interface Session {
  readonly json: boolean;
  /** Aborted by Ctrl-C, SIGTERM and SIGHUP. */
  readonly signal: AbortSignal;
  /** Says how long the command may take to end after the signal; without it, two seconds. */
  allowToEnd(ms: number): void;
  /** The engine's, begun before the command line was read. */
  readonly thread: EngineThread | undefined;
}

/** Turns a command's work into what commander calls. */
export type Run = <A extends unknown[]>(
  work: (session: Session, ...args: A) => Promise<Answer | undefined>,
) => (...args: A) => Promise<void>;

export const status = { done: 0, failed: 1, wrongUsage: 2, interrupted: 130 } as const;

/** Thrown where Ctrl-C or another signal ended a command. */
export class Interrupted extends Error {
  override readonly name = "Interrupted";
  readonly code: number;

  constructor(message: string, code: number = status.interrupted) {
    super(message);
    this.code = code;
  }
}

export function print({ json, text }: Answer, asJson: boolean): void {
  if (asJson) process.stdout.write(`${JSON.stringify(json)}\n`);
  else if (text !== undefined) process.stdout.write(`${text}\n`);
}

/** Says what went wrong, and returns the exit status. */
export function fail(error: unknown, asJson: boolean): number {
  const { name, message, code } = described(error);
  if (asJson) process.stdout.write(`${JSON.stringify({ error: { name, message } })}\n`);
  else if (!(error instanceof CommanderError)) process.stderr.write(`${name}: ${message}\n`); // commander has said it
  if (process.env["LLAMA4_STACK"] && error instanceof Error) process.stderr.write(`${error.stack}\n`);
  return code;
}

// By name, because an error that comes out of the engine's thread is no longer an instance of our class.
export function described(error: unknown): { name: string; message: string; code: number } {
  if (error instanceof CommanderError)
    return { name: "RequestError", message: error.message.replace(/^error: /, ""), code: status.wrongUsage };
  if (!(error instanceof Error)) return { name: "Error", message: String(error), code: status.failed };
  const { name, message } = error;
  if (error instanceof Interrupted) return { name, message, code: error.code };
  if (name === "Interrupted" || name === "AbortError")
    return { name: "Interrupted", message, code: status.interrupted };
  return {
    name,
    message: fileMessage(error) ?? withFlags(message),
    code: name === "RequestError" ? status.wrongUsage : status.failed,
  };
}

/** The library's options under their names here. */
export function withFlags(message: string): string {
  return message
    .replace(/`(context|mmproj)`/g, "--$1")
    .replace(/`?\b(maxPixels|maxTiles|videoTokens)\b`?/g, (_, option: keyof typeof flags) => flags[option])
    .replace(/ \(`(?:maxSide|maxBytes)`\)/, ""); // no option sets these here
}

const flags = { maxPixels: "--max-pixels", maxTiles: "--max-tiles", videoTokens: "--video-tokens" } as const;

const fileMessages: Readonly<Record<string, string>> = {
  ENOENT: "there is no such file or folder; check the path",
  ENOTDIR: "a part of the path is a file; expected a folder",
  EACCES: "permission denied; choose another place or change its permissions",
  EROFS: "the file system is read-only; choose another place",
  ENOSPC: "the disk is full; free some space or choose another place",
  EISDIR: "is a folder; expected a file",
};

function fileMessage(error: NodeJS.ErrnoException): string | undefined {
  const known = error.code === undefined ? undefined : fileMessages[error.code];
  return known && `${error.path ?? error.syscall ?? "a file"}: ${known}`;
}

/** A bar on stderr, where that is a terminal; it counts bytes, or what is named. */
export function progress(what: string, unit?: string): { update(done: number, total: number): void; stop(): void } {
  let bar: SingleBar | undefined;
  return {
    update(done, total) {
      if (!process.stderr.isTTY) return;
      bar ??= started(what, total, unit === undefined ? bytes(total) : `${total.toLocaleString("en")} ${unit}`);
      bar.update(done);
    },
    stop: () => bar?.stop(),
  };
}

function started(what: string, total: number, size: string): SingleBar {
  const require = createRequire(import.meta.url); // loaded for those who see it
  const { SingleBar }: typeof import("cli-progress") = require("cli-progress");
  const bar = new SingleBar({
    stream: process.stderr,
    format: `${what} {bar} {percentage} % of {size}, {eta_formatted} left`,
    clearOnComplete: true,
    hideCursor: true,
  });
  bar.start(total, 0, { size });
  return bar;
}

const units = ["B", "kB", "MB", "GB", "TB"] as const;

/** "65.4 GB", decimal. */
export function bytes(count: number): string {
  const power = count < 1000 ? 0 : Math.min(units.length - 1, Math.floor(Math.log10(count) / 3));
  return `${power === 0 ? count : (count / 1000 ** power).toFixed(1)} ${units[power]}`;
}

/** Rows in aligned columns: the first to the left, numbers to the right. */
export function table(rows: readonly (readonly (string | number)[])[]): string {
  const cells = rows.map((row) => row.map((cell) => (typeof cell === "number" ? cell.toLocaleString("en") : cell)));
  const widths = cells.reduce<number[]>((w, row) => row.map((cell, i) => Math.max(w[i] ?? 0, cell.length)), []);
  const pad = (cell: string, i: number) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!));
  return cells.map((row) => `  ${row.map(pad).join("  ").trimEnd()}`).join("\n");
}

/** A RequestError unless the value is one of those allowed. */
export function oneOf<T extends string>(what: string, value: string, allowed: readonly T[]): T {
  const found = allowed.find((name) => name === value.toLowerCase());
  if (found === undefined) throw new RequestError(`${what} is "${value}"; expected one of ${allowed.join(", ")}`);
  return found;
}

// The built command line as a child process.

import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";

export const main = fileURLToPath(new URL("../../dist/cli/main.js", import.meta.url));

export interface Ended {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

export function llama4(args: readonly string[], input = "", env: NodeJS.ProcessEnv = {}): Promise<Ended> {
  const options = { maxBuffer: 2 ** 26, env: { ...process.env, ...env } };
  return new Promise((resolve) => {
    const child = execFile(process.execPath, [main, ...args], options, (error, stdout, stderr) => {
      resolve({ status: typeof error?.code === "number" ? error.code : error ? -1 : 0, stdout, stderr });
    });
    child.stdin?.on("error", () => {}); // a command that reads no input may be gone already
    child.stdin?.end(input);
  });
}

/** What `--json` printed: exactly one line with one object. */
export function objectOf({ stdout, stderr }: Ended): Record<string, unknown> {
  const lines = stdout.split("\n");
  if (lines.length !== 2 || lines[1] !== "") throw new Error(`stdout is not one line: ${stdout}\nstderr: ${stderr}`);
  return JSON.parse(lines[0]!);
}

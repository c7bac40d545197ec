// A few seconds of the soak: what it looks for is not there.

import { execFile } from "node:child_process";
import { join } from "node:path";
import { afterAll, expect, it } from "vitest";
import { initTiny, temporaryPlace } from "../cli/models.ts";

const place = temporaryPlace();
afterAll(() => place.remove());

it("a crowd that misbehaves gets what it should, and the server ends in good order", async () => {
  const model = await initTiny(place.at("tiny"));
  const root = join(import.meta.dirname, "../..");
  const args = ["--import", "./scripts/ts.mjs", "bench/soak.ts", model, "--clients", "24", "--seconds", "5"];
  const { status, stdout } = await new Promise<{ status: number; stdout: string }>((resolve) => {
    execFile(process.execPath, args, { cwd: root }, (error, stdout) =>
      resolve({ status: typeof error?.code === "number" ? error.code : error ? -1 : 0, stdout }),
    );
  });
  expect(stdout).not.toContain("FAULT");
  expect(status).toBe(0);
  for (const name of ["whole", "stream", "cancelled", "malformed"])
    expect(stdout).toMatch(new RegExp(`^${name} +[1-9]\\d* as expected`, "m"));
});

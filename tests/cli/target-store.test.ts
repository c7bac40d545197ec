// A teacher's answers on disk: there after a kill, cut where a write was cut, refused for another teacher.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { type StoreOptions, TargetFile } from "../../src/cli/target-store.ts";
import { softRowBytes } from "../../src/train/soft-targets.ts";
import { integers } from "../backends/drawn.ts";

const place = mkdtempSync(join(tmpdir(), "llama4-targets-"));
afterAll(() => rmSync(place, { recursive: true }));
const at = (name: string) => join(place, name);
const options: StoreOptions = { vocabSize: 300, k: 4, teacher: new Uint8Array(32).fill(7) };
const row = softRowBytes(4, 300);
const key = (i: number) => i.toString(16).padStart(32, "0");
const payload = (i: number) => Uint8Array.from(integers(row * (1 + (i % 5)), 256, i));

async function filled(path: string, from: number, to: number): Promise<void> {
  const file = await TargetFile.open(path, options);
  for (let i = from; i < to; i++) await file.put(key(i), payload(i));
  await file.close();
}

async function heldBy(path: string): Promise<number> {
  const file = await TargetFile.open(path, options);
  const { count } = file;
  for (let i = 0; i < count; i++) expect(new Uint8Array((await file.get(key(i)))!)).toEqual(payload(i));
  expect(await file.get(key(count))).toBe(undefined);
  await file.close();
  return count;
}

describe("a file of a teacher's answers", () => {
  it("holds what was put, and goes on", async () => {
    await filled(at("a"), 0, 10);
    await filled(at("a"), 10, 25);
    expect(await heldBy(at("a"))).toBe(25);
  });

  it("cut at any byte holds the whole answers before, and goes on from there", async () => {
    await filled(at("b"), 0, 6);
    const whole = readFileSync(at("b"));
    let held = 0;
    for (let bytes = 0; bytes <= whole.length; bytes += 11) {
      writeFileSync(at("cut"), whole.subarray(0, bytes));
      const now = await heldBy(at("cut"));
      expect(now).toBeGreaterThanOrEqual(held);
      held = now;
      if (bytes % 55 !== 0) continue;
      await filled(at("cut"), now, 8);
      expect(await heldBy(at("cut"))).toBe(8);
    }
    expect(held).toBeGreaterThanOrEqual(4);
  });

  it("with a damaged answer holds those before it, and says so", async () => {
    await filled(at("c"), 0, 6);
    const bytes = readFileSync(at("c"));
    bytes[bytes.length - 20]! ^= 1;
    writeFileSync(at("c"), bytes);
    const said: string[] = [];
    const file = await TargetFile.open(at("c"), { ...options, onWarning: (message) => said.push(message) });
    await file.close();
    expect(said).toEqual([expect.stringMatching(/^c: \d+ bytes at its end are no whole answer/)]);
    expect(await heldBy(at("c"))).toBe(5);
  });

  it.each([
    [{ teacher: new Uint8Array(32) }, /holds what another teacher said/],
    [{ k: 5 }, /holds the 4 likeliest tokens/],
    [{ vocabSize: 301 }, /is of a vocabulary of 300 tokens/],
  ])("of another kind is refused: %j", async (more, message) => {
    await filled(at("d"), 0, 1);
    await expect(TargetFile.open(at("d"), { ...options, ...more })).rejects.toThrow(message);
    for (const text of ["something else", "something else that is longer than a header of forty-eight bytes"]) {
      writeFileSync(at("e"), text);
      await expect(TargetFile.open(at("e"), options)).rejects.toThrow(/holds no answers of a teacher/);
      expect(readFileSync(at("e"), "utf8")).toBe(text);
    }
  });
});

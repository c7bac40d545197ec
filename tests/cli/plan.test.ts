import { describe, expect, it } from "vitest";
import { llama4, objectOf } from "./llama4.ts";

describe("llama4 plan", () => {
  it.each([
    ["scout", 108641793536, 17172894720],
    ["maverick", 401583781376, 17184691200],
    ["behemoth", 2005424804864, 287857316864],
  ])("counts the parameters of %s", async (name, total, active) => {
    const asArgument = objectOf(await llama4(["plan", name, "--ram", "64", "--json"]));
    expect(asArgument).toMatchObject({ model: name, parameters: { total, active }, hypothetical: name === "behemoth" });
    expect(objectOf(await llama4(["plan", "--model", name, "--ram", "64", "--json"]))).toEqual(asArgument);
  });

  it("says what fits in the memory that is asked about", async () => {
    const inMemory = async (ram: string, ...more: string[]) =>
      objectOf(await llama4(["plan", "scout", "--quant", "q4_k_m", "--ram", ram, "--json", ...more]))["fits"];
    expect(await inMemory("24")).toBe(false);
    expect(await inMemory("96")).toBe(true);
    expect(await inMemory("24", "--ranks", "4")).toBe(true);
  });

  it("counts what loading allocates beside what one sequence needs", async () => {
    const cache = async (...more: string[]) => {
      const args = ["plan", "scout", "--quant", "q4_k_m", "--json", ...more];
      const { context, kvBytes, cacheBytes, neededBytes, parts } = objectOf(await llama4(args)) as {
        [name: string]: number;
      } & { parts: Record<string, number> };
      const weights = Object.values(parts).reduce((sum, n) => sum + n);
      expect(neededBytes).toBe(weights + cacheBytes! + 300e6 + 256e6); // to work with, and for features of images
      return { context, kvGiB: kvBytes! / 2 ** 30, cacheGiB: cacheBytes! / 2 ** 30 };
    };
    const long = { context: 131072, kvGiB: 7.125, cacheGiB: 8.25 }; // the local layers hold two chunks
    expect(await cache("--ram", "96", "--context", "131072")).toEqual(long);
    const rounded = { context: 131072, kvGiB: (7.125 * 17) / 32, cacheGiB: (8.25 * 17) / 32 }; // 34 bytes for each 32
    expect(await cache("--ram", "96", "--context", "131072", "--kv-dtype", "q8_0")).toEqual(rounded);
    expect((await cache("--ram", "96")).context).toBe(32768);
    const { context } = await cache("--ram", "70"); // as loading, a shorter context where memory is short
    expect(context).toBeGreaterThan(0);
    expect(context).toBeLessThan(32768);
  });

  it("says when its speed rests on an assumption", async () => {
    const args = ["plan", "scout", "--quant", "q4_k_m", "--ram", "96"];
    expect((await llama4(args)).stdout).toContain("an assumed 40 GB/s");
    expect((await llama4([...args, "--bandwidth", "80"])).stdout).toContain("At 80 GB/s of memory reads: up");
  });

  it("shows a table to people", async () => {
    const { status, stdout } = await llama4(["plan", "scout", "--quant", "Q8_0", "--ram", "24"]);
    expect(status).toBe(0);
    expect(stdout).toContain("routed experts");
    expect(stdout).toContain("it does not fit");
  });

  it.each([
    [["plan"], "no model"],
    [["plan", "scout", "--quant", "q3"], 'quant is "q3"'],
    [["plan", "scout", "--ram", "-1"], "--ram is -1"],
    [["plan", "scout", "--context", "99999999"], "--context is 99999999"],
    [["plan", "scout", "--context", "many"], "whole number"],
    [["plan", "scout", "--quants"], "unknown option"],
    [["plan", "scout", "maverick"], "too many arguments"],
    [["plans"], "unknown command"],
  ])("answers %j with one error and status 2", async (args, message) => {
    const ended = await llama4([...args, "--json"]);
    expect(objectOf(ended)).toEqual({ error: { name: "RequestError", message: expect.stringContaining(message) } });
    expect(ended.status).toBe(2);
  });

  it("has examples in its help", async () => {
    const { status, stdout } = await llama4(["plan", "--help"]);
    expect(stdout).toContain("$ llama4 plan");
    expect(status).toBe(0);
  });
});

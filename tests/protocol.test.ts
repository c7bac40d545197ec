import { describe, expect, it } from "vitest";
import { flatten, revive } from "../src/protocol.ts";
import { CapacityError, CheckpointError, RequestError } from "../src/tensor/errors.ts";

describe("an error that crosses the thread's border", () => {
  it.each([
    new CheckpointError("a"),
    new RequestError("b"),
    new CapacityError("c"),
    new RangeError("d"),
    new DOMException("e", "AbortError"),
  ])("is of the same class with the same message: %s", (error) => {
    const revived = revive(structuredClone(flatten(error)));
    expect(revived.name).toBe(error.name);
    expect(revived.message).toBe(error.message);
    expect(revived.stack).toBe(error.stack);
    if (!(error instanceof DOMException)) expect(revived).toBeInstanceOf(error.constructor);
  });
});

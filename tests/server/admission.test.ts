import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Admission, TokenRate } from "../../src/server/admission.ts";

const never = new AbortController().signal;
const settled = () => new Promise((resolve) => setImmediate(resolve));

describe("admission", () => {
  it("lets in as many as are computed at once, and keeps the others waiting in their order", async () => {
    const admission = new Admission({ concurrent: 2, queue: 9, perClient: 9 });
    const entered: number[] = [];
    const leave: (() => void)[] = [];
    for (let i = 0; i < 4; i++)
      admission.enter("a", 1, never).then((done) => {
        entered.push(i);
        leave.push(done);
      });
    await settled();
    expect(entered).toEqual([0, 1]);
    leave[0]!();
    leave[0]!(); // twice is once
    await settled();
    expect(entered).toEqual([0, 1, 2]);
    expect([admission.running, admission.queued]).toEqual([2, 1]);
  });

  it("takes clients in turn: one that sends many does not hold up one that sends few", async () => {
    const admission = new Admission({ concurrent: 1, queue: 99, perClient: 99 });
    const order: string[] = [];
    const ask = (client: string) =>
      admission.enter(client, 1, never).then(async (done) => {
        order.push(client);
        await settled();
        done();
      });
    const all = [...Array.from({ length: 5 }, () => ask("greedy")), ask("modest"), ask("third")];
    await Promise.all(all);
    expect(order).toEqual(["greedy", "greedy", "modest", "third", "greedy", "greedy", "greedy"]);
  });

  it("tells what is too much to come back, later where more wait", async () => {
    let now = 0;
    const admission = new Admission({ concurrent: 1, queue: 1, perClient: 9 }, () => now);
    for (let i = 0; i < 50; i++) {
      const done = await admission.enter("a", 1, never);
      now += 10_000;
      done();
    }
    await admission.enter("a", 1, never);
    void admission.enter("b", 1, never);
    const refused = admission.enter("c", 1, never);
    await expect(refused).rejects.toMatchObject({ status: 429, retryAfterSeconds: 20 });
  });

  it("counts what one client has in progress, and forgets it afterwards", async () => {
    const admission = new Admission({ concurrent: 1, queue: 9, perClient: 2 });
    const done = await admission.enter("a", 1, never);
    const second = admission.enter("a", 1, never);
    await expect(admission.enter("a", 1, never)).rejects.toMatchObject({ status: 429 });
    done();
    (await second)();
    const third = await admission.enter("a", 1, never);
    third();
  });

  it("forgets a request that leaves the queue", async () => {
    const admission = new Admission({ concurrent: 1, queue: 1, perClient: 1 });
    const done = await admission.enter("a", 1, never);
    const cancel = new AbortController();
    const left = admission.enter("b", 1, cancel.signal);
    cancel.abort(new Error("left"));
    await expect(left).rejects.toThrow("left");
    expect(admission.queued).toBe(0);
    const next = admission.enter("b", 1, never);
    done();
    await next;
  });

  it("refuses more replies in one request than are computed at once", async () => {
    const admission = new Admission({ concurrent: 4, queue: 9, perClient: 9 });
    await expect(admission.enter("a", 5, never)).rejects.toMatchObject({ status: 400 });
  });

  it("never computes more than it may, and in the end everyone has had a turn", async () => {
    const request = fc.record({
      client: fc.constantFrom("a", "b", "c"),
      weight: fc.integer({ min: 1, max: 3 }),
      leaves: fc.boolean(),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(request, { maxLength: 20 }), async (requests) => {
        const admission = new Admission({ concurrent: 3, queue: 99, perClient: 99 });
        let running = 0;
        let most = 0;
        await Promise.all(
          requests.map(async ({ client, weight, leaves }, i) => {
            const cancel = new AbortController();
            if (leaves) setTimeout(() => cancel.abort(), i % 3);
            const done = await admission.enter(client, weight, cancel.signal).catch(() => undefined);
            if (!done) return;
            running += weight;
            most = Math.max(most, running);
            await settled();
            running -= weight;
            done();
          }),
        );
        expect(most).toBeLessThanOrEqual(3);
        expect([admission.running, admission.queued]).toEqual([0, 0]);
      }),
      { numRuns: 50 },
    );
  });
});

describe("tokens a minute", () => {
  it("are refused when they are used up, and come back with time", () => {
    let now = 0;
    const rate = new TokenRate(60, () => now);
    rate.check("a");
    rate.spend("a", 70);
    expect(() => rate.check("a")).toThrow(expect.objectContaining({ status: 429, retryAfterSeconds: 11 }));
    rate.check("b");
    now = 11_000;
    rate.check("a");
  });
});

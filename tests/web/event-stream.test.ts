import { expect, it } from "vitest";
import { refusal } from "../../web/src/api.ts";
import { eventData } from "../../web/src/event-stream.ts";

async function* chunks(bytes: Uint8Array, size: number) {
  for (let i = 0; i < bytes.length; i += size) yield bytes.subarray(i, i + size);
}

it("gives each event's data, wherever the stream is cut", async () => {
  const text = 'data: {"a": "é🦙"}\n\n: keep-alive\n\nevent: x\ndata:two\ndata: lines\r\n\r\ndata: [DONE]\n\n';
  for (let size = 1; size < 30; size++) {
    const data: string[] = [];
    for await (const one of eventData(chunks(new TextEncoder().encode(text), size))) data.push(one);
    expect(data).toEqual(['{"a": "é🦙"}', "two\nlines", "[DONE]"]);
  }
});

it("tells a person what can be done about a refusal", () => {
  const body = (code: string | null, message = "why") => ({ error: { message, code } });
  expect(refusal(401, body("invalid_api_key")).trouble).toBe("key");
  expect(refusal(400, body("context_length_exceeded")).trouble).toBe("full");
  expect(refusal(429, body("rate_limit_exceeded"), 7)).toMatchObject({ trouble: "busy", retryAfterSeconds: 7 });
  expect(refusal(503, body(null), 5)).toMatchObject({ trouble: "busy", retryAfterSeconds: 5 });
  expect(refusal(503, body(null)).trouble).toBe("failed"); // nobody has said that it helps to wait
  expect(refusal(429, body(null)).retryAfterSeconds).toBeUndefined();
  expect(refusal(400, body("invalid_value"))).toMatchObject({ trouble: "refused", message: "why" });
  expect(refusal(500, undefined)).toMatchObject({ trouble: "failed", message: "The server answered with status 500." });
});

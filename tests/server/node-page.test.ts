// The page's files: these and no others, under a strict policy.

import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gunzipSync } from "node:zlib";
import { afterAll, expect, it } from "vitest";
import { CONTENT_SECURITY_POLICY, pageFiles } from "../../src/server/node-page.ts";

const folder = mkdtempSync(join(tmpdir(), "llama4-page-"));
const outside = `${folder}-secret.txt`;
mkdirSync(join(folder, "web/assets"), { recursive: true });
writeFileSync(join(folder, "web/index.html"), "<!doctype html>");
writeFileSync(join(folder, "web/assets/a-1.js"), "let a = 1;");
writeFileSync(join(folder, "web/notes.secret"), "of no type that a page has");
writeFileSync(outside, "secret");
afterAll(() => {
  rmSync(folder, { recursive: true });
  rmSync(outside);
});

const page = pageFiles(join(folder, "web"));
const get = (path: string, init: RequestInit = {}) => page(new Request(`http://server${path}`, init));

it("answers for its files, with their types and how long they may be kept", async () => {
  const index = get("/")!;
  expect(await index.text()).toBe("<!doctype html>");
  expect(index.headers.get("content-type")).toBe("text/html; charset=utf-8");
  expect(index.headers.get("cache-control")).toBe("no-cache");
  const script = get("/assets/a-1.js?again")!;
  expect(await script.text()).toBe("let a = 1;");
  expect(script.headers.get("content-type")).toMatch(/^text\/javascript/);
  expect(script.headers.get("cache-control")).toContain("immutable");
});

it.each([
  ...["/nothing", "/assets", "/assets/", "/index.html/", "/notes.secret", "/v1/models", "//etc/passwd"],
  ...["/../x-secret.txt", "/..%2fx-secret.txt", "/assets/..%2f..%2f..%2fetc%2fpasswd", "/%00", "/__proto__"],
])("leaves %s to the handler", (path) => {
  expect(get(path)).toBeUndefined();
});

it("leaves what is no question for a file to the handler", async () => {
  expect(get("/", { method: "POST" })).toBeUndefined();
  const head = get("/", { method: "HEAD" })!;
  expect(head.status).toBe(200);
  expect(await head.text()).toBe("");
});

// A page whose name was made to mean this machine was answered, though it learnt nothing that is not public.
it("leaves who names another host to the handler, which refuses it", () => {
  const own = pageFiles(join(folder, "web"), { hosts: ["localhost", "[::1]"] });
  const at = (host: string) => own(new Request(`http://${host}/`))?.status;
  expect(["localhost:8080", "[::1]", "evil.example:8080", "localhost.evil.example"].map(at)).toEqual([
    ...[200, 200, undefined, undefined],
  ]);
});

it("zips for those who say that they can read it", async () => {
  const zipped = get("/assets/a-1.js", { headers: { "accept-encoding": "br, gzip" } })!;
  expect(zipped.headers.get("content-encoding")).toBe("gzip");
  expect(gunzipSync(await zipped.arrayBuffer()).toString()).toBe("let a = 1;");
  expect(get("/", { headers: { "accept-encoding": "gzip;q=0" } })!.headers.get("content-encoding")).toBeNull();
});

it("allows nothing of other hosts, nothing inline and no eval, on every file", () => {
  for (const path of ["/", "/assets/a-1.js"])
    expect(get(path)!.headers.get("content-security-policy")).toBe(CONTENT_SECURITY_POLICY);
  expect(CONTENT_SECURITY_POLICY).toContain("default-src 'none'");
  expect(CONTENT_SECURITY_POLICY).not.toMatch(/unsafe|https?:|\*|data:/);
});

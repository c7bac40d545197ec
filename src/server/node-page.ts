// The files of the chat page, from memory: they are few and small.

import { readdirSync, readFileSync } from "node:fs";
import { extname, join, relative, sep } from "node:path";
import { gzipSync } from "node:zlib";

const types: Readonly<Record<string, string>> = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".svg": "image/svg+xml",
  ".txt": "text/plain; charset=utf-8",
};

/**
 * Nothing of other hosts, no inline script or style, no eval; HTML enters the document through the two policies that are
 * named: DOMPurify's, and Svelte's for its own templates. `blob:` is what a person has attached.
 */
export const CONTENT_SECURITY_POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self' blob:",
  "media-src 'self' blob:",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
  "require-trusted-types-for 'script'",
  "trusted-types svelte-trusted-html dompurify",
].join("; ");

const headers = {
  "content-security-policy": CONTENT_SECURITY_POLICY,
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
  "permissions-policy": "camera=(), microphone=(), geolocation=()",
};

interface PageFile {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly headers: Readonly<Record<string, string>>;
  zipped?: Uint8Array<ArrayBuffer>;
}

export interface PageOptions {
  /** As the handler's: who names another host is left to it. Default: any. */
  readonly hosts?: readonly string[] | undefined;
}

/** Answers for the files below `folder`, and for nothing else. Throws where there is no such folder. */
export function pageFiles(folder: string, { hosts }: PageOptions = {}): (request: Request) => Response | undefined {
  const files = new Map<string, PageFile>();
  for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true })) {
    const type = types[extname(entry.name)];
    if (!entry.isFile() || type === undefined) continue;
    const path = join(entry.parentPath, entry.name);
    const name = `/${relative(folder, path).split(sep).join("/")}`;
    const isNamedByContent = name.startsWith("/assets/"); // by the build
    const cached = isNamedByContent ? "public, max-age=31536000, immutable" : "no-cache";
    const file = {
      bytes: new Uint8Array(readFileSync(path)),
      headers: { "content-type": type, "cache-control": cached },
    };
    files.set(name === "/index.html" ? "/" : name, file);
  }
  return ({ method, url, headers: asked }) => {
    if (method !== "GET" && method !== "HEAD") return undefined;
    const { hostname, pathname } = new URL(url);
    const file = files.get(pathname);
    if (!file || (hosts && !hosts.includes(hostname))) return undefined;
    const zips = /\bgzip\b(?!;q=0(\.0*)?(,|$))/.test(asked.get("accept-encoding") ?? "");
    if (zips) file.zipped ??= new Uint8Array(gzipSync(file.bytes));
    return new Response(method === "HEAD" ? null : zips ? file.zipped! : file.bytes, {
      headers: { ...headers, ...file.headers, vary: "accept-encoding", ...(zips && { "content-encoding": "gzip" }) },
    });
  };
}

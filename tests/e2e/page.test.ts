// The chat page in a real browser: Debian's chromium, on the built page. Screenshots are kept in screenshots/.

import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { AxeResults } from "axe-core";
import { type Browser, type BrowserContextOptions, chromium, type Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { createHandler, type HandlerOptions } from "../../src/server/handler.ts";
import { type Listening, listen } from "../../src/server/node.ts";
import { pageFiles } from "../../src/server/node-page.ts";
import { RequestError } from "../../src/tensor/errors.ts";
import { main } from "../cli/llama4.ts";
import { initTiny, temporaryPlace } from "../cli/models.ts";
import { type Script, Scripted } from "../server/scripted.ts";

const root = join(import.meta.dirname, "../..");
const built = join(root, "dist/web");
const executable = [process.env["CHROMIUM"], "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"]
  .filter((path) => path !== undefined)
  .find(existsSync);
const missing = [
  ...(executable === undefined ? ["no chromium was found: apt-get install chromium, or set CHROMIUM to its path"] : []),
  ...(existsSync(join(built, "index.html")) && existsSync(main) ? [] : ["nothing is built: npm run build"]),
];
if (missing.length > 0) console.warn(`tests/e2e/page.test.ts is skipped: ${missing.join("; ")}`);
const screenshots = join(root, "screenshots");
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

let browser: Browser;
const place = temporaryPlace();
const closing: (() => Promise<unknown>)[] = [];

beforeAll(async () => {
  if (missing.length > 0) return;
  mkdirSync(screenshots, { recursive: true });
  const quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"];
  browser = await chromium.launch({ executablePath: executable!, args: ["--no-sandbox", "--disable-gpu", ...quiet] });
});
afterAll(async () => {
  await browser?.close();
  for (const close of closing) await close();
  place.remove();
});

/** What a page has done that it must not. */
const wrongs: string[] = [];
const contexts: { close(): Promise<void> }[] = [];

afterEach(async () => {
  for (const context of contexts.splice(0)) await context.close();
  expect(wrongs.splice(0)).toEqual([]); // no other host, no violation of the policy, no error, whatever was tested
});

/** A page at a server. `tolerated`: what the console may say, because the test provokes it. */
async function visit(url: string, options: BrowserContextOptions = {}, tolerated = /^$/): Promise<Page> {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
  contexts.push(context);
  const page = await context.newPage();
  page.on("request", (request) => {
    if (!request.url().startsWith(url) && !/^(data|blob):/.test(request.url())) wrongs.push(`asked ${request.url()}`);
  });
  page.on("pageerror", (error) => wrongs.push(error.message));
  page.on("console", (message) => {
    const { type, text } = { type: message.type(), text: message.text() };
    const isWrong = ["error", "warning"].includes(type) || text.startsWith("[DOM]"); // what Chromium says of forms
    if (isWrong && !tolerated.test(text)) wrongs.push(`${type}: ${text}`);
  });
  await page.goto(url);
  return page;
}

const question = (page: Page) => page.getByRole("textbox", { name: /^Ask/ });
const replies = (page: Page) => page.getByRole("article", { name: "Reply" });

async function ask(page: Page, text: string): Promise<void> {
  await question(page).fill(text);
  await page.locator("button[aria-label=Send]:enabled").waitFor(); // once it knows the server
  await question(page).press("Enter");
}

/** Until the page takes questions again. */
const answered = (page: Page) => page.getByRole("button", { name: "Send" }).waitFor();

/** Drops pictures of one colour each, as a file manager does. */
async function drop(page: Page, ...colours: string[]): Promise<void> {
  const files = await page.evaluateHandle(async (colours) => {
    const transfer = new DataTransfer();
    for (const colour of colours) {
      const canvas = Object.assign(document.createElement("canvas"), { width: 40, height: 40 });
      const context = canvas.getContext("2d")!;
      context.fillStyle = colour;
      context.fillRect(0, 0, 40, 40);
      const blob = await new Promise<Blob | null>((resolve) => canvas.toBlob(resolve));
      transfer.items.add(new File([blob!], `${colour}.png`, { type: "image/png" }));
    }
    return transfer;
  }, colours);
  await page.dispatchEvent("main", "dragover", { dataTransfer: files });
  await page.dispatchEvent("main", "drop", { dataTransfer: files });
}

/** The bodies that were sent to the model. */
function bodies(page: Page): { messages: { content: unknown }[]; return_routed_experts?: boolean }[] {
  const list: ReturnType<typeof bodies> = [];
  page.on("request", (request) => {
    if (request.url().endsWith("/v1/chat/completions")) list.push(request.postDataJSON());
  });
  return list;
}

/** What keeps people out, as axe finds it. */
async function barriers(page: Page): Promise<string[]> {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(
    () => (globalThis as unknown as { axe: { run(): Promise<AxeResults> } }).axe.run(), // what was just loaded
  );
  return violations.flatMap(({ id, impact, nodes }) =>
    nodes.map(({ html }) => `${impact} ${id}: ${html.slice(0, 120)}`),
  );
}

const shot = (page: Page, name: string) => page.screenshot({ path: join(screenshots, `${name}.png`) });

/** A server on a port whose model says what it is told to. */
async function scripted(script: Script, options: Partial<HandlerOptions> = {}) {
  const model = new Scripted(script);
  const handler = createHandler(model, { name: "scripted", onError: () => {}, ...options });
  const server: Listening = await listen(handler, { host: "127.0.0.1", port: 0, page: pageFiles(built) });
  const close = () => {
    server.cut();
    return server.drain();
  };
  closing.push(close);
  return { model, server, close };
}

describe.skipIf(missing.length > 0)("the page at a model", () => {
  let url: string;
  beforeAll(async () => {
    const vision = ["--vision", "on", "--vision-layers", "2", "--vision-dim", "32", "--vision-heads", "2"];
    const path = await initTiny(place.at("model"), "--layers", "4", "--chunk", "64", ...vision);
    const args = [main, "serve", "--model", path, "--json", "--port", "0", "--context", "2048", "--name", "random"];
    const server: ChildProcess = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] });
    closing.push(() => {
      const ended = new Promise((resolve) => server.once("exit", resolve));
      server.kill();
      return ended;
    });
    url = await new Promise((resolve) =>
      createInterface({ input: server.stdout! }).once("line", (line) => resolve(JSON.parse(line).url)),
    );
  });

  it("says that nobody has trained it", async () => {
    const page = await visit(url);
    await page.getByText("Nobody has trained this model").waitFor();
    expect(await page.title()).toBe("llama4.ts");
  });

  it("streams a reply to what is typed, and keeps the conversation", async () => {
    const page = await visit(url);
    const asked = bodies(page);
    await ask(page, "What is the capital of France?");
    await answered(page);
    const text = await replies(page).locator(".prose").textContent();
    expect(text).not.toBe("");
    expect(asked[0]).toMatchObject({ messages: [{ role: "user", content: "What is the capital of France?" }] });
    expect(asked[0]!.return_routed_experts).toBeUndefined();
    await page.getByRole("button", { name: /^Context: [\d,]+ \/ 2,048 tokens/ }).click();
    await page
      .getByText(/local layers/)
      .first()
      .waitFor();
    await page.keyboard.press("Escape");

    await page.reload();
    const list = page.getByRole("navigation", { name: "Conversations" });
    await list.getByRole("button", { name: "What is the capital of France?", exact: true }).click();
    expect(await replies(page).locator(".prose").textContent()).toBe(text);

    await list.getByRole("button", { name: "Actions on What is the capital of France?" }).click();
    await page.getByRole("menuitem", { name: "Rename" }).click();
    await page.getByRole("textbox", { name: "New name" }).fill("Paris");
    await page.keyboard.press("Enter");
    await list.getByRole("button", { name: "Actions on Paris" }).click();
    const download = page.waitForEvent("download");
    await page.getByRole("menuitem", { name: "Export as Markdown" }).click();
    expect((await download).suggestedFilename()).toBe("Paris.md");
    expect(readFileSync(await (await download).path(), "utf8")).toMatch(
      /^# Paris\n\n## Question\n\nWhat is the capital/,
    );

    await list.getByRole("button", { name: "Actions on Paris" }).click();
    await page.getByRole("menuitem", { name: "Delete" }).click();
    await list.getByRole("button", { name: "Paris", exact: true }).waitFor({ state: "detached" });
    await page.reload();
    await page.getByRole("heading", { name: "Show me something, or ask." }).waitFor();
    expect(await list.getByRole("button", { name: "Paris", exact: true }).count()).toBe(0);
  });

  it("shows the model pictures that are dropped, several at once, and its own samples", async () => {
    const page = await visit(url);
    const asked = bodies(page);
    await page.getByRole("heading", { name: "Show me something, or ask." }).waitFor();
    await drop(page, "red", "green", "blue");
    await page.getByRole("button", { name: "Remove green.png" }).click();
    await ask(page, "Which is larger?");
    await answered(page);
    const png = { type: "image_url", image_url: { url: expect.stringMatching(/^data:image\/png;base64,/) } };
    expect(asked[0]!.messages[0]!.content).toEqual([png, png, { type: "text", text: "Which is larger?" }]);
    await page.getByRole("button", { name: "Enlarge red.png" }).click();
    await page.getByRole("dialog", { name: "red.png" }).waitFor();
    await page.keyboard.press("Escape");

    await page.getByRole("button", { name: "New chat" }).click();
    await page.getByRole("button", { name: "Are these the same?" }).click();
    await page.getByRole("article", { name: "Question" }).getByRole("img", { name: "a blue fish" }).waitFor();
    await answered(page);
    expect(asked[1]!.messages[0]!.content).toEqual([png, png, { type: "text", text: "Are these the same?" }]);
    await shot(page, "picture");
  });

  it("draws the map of experts, for replies that are written while it is open", async () => {
    const page = await visit(url);
    const asked = bodies(page);
    await ask(page, "Hello");
    await answered(page);
    await page.getByRole("button", { name: "Expert map", exact: true }).click();
    await page.getByRole("button", { name: "Write this reply again" }).click();
    await page.getByRole("img", { name: /tokens by 4 layers with 4 experts/ }).waitFor();
    await answered(page);
    expect(asked.map((body) => body.return_routed_experts)).toEqual([undefined, true]);
    const map = page.getByRole("img", { name: /tokens by 4 layers/ });
    await map.focus();
    await page.keyboard.press("ArrowDown");
    await page.keyboard.press("ArrowRight");
    await page.getByText(/expert [0-3] of 4, score 0\.\d\d/).waitFor();
    const { width } = (await map.boundingBox())!;
    await map.hover({ position: { x: width - 30, y: 30 } }); // the first row, once the map has come to rest
    await page.getByText(/token \d+ · layer 3, global/).waitFor();
    await shot(page, "map");
    expect(await barriers(page)).toEqual([]);
  });
});

const markdown = `Here is a **table**, and \`code\`:

| Layer | Sees |
| --- | ---: |
| 0 | 8,192 |
| 3 | everything |

\`\`\`ts
const answer: number = 42; // as ever
\`\`\`

3. one
4. two

- [ ] to be done
- [x] already done

<script>alert(1)</script> <img src=x onerror=alert(1)> [bad](javascript:alert(1))

![a picture](https://elsewhere.example/spy.png)
`;
const lines = markdown.match(/\s*\S+/g)!;

describe.skipIf(missing.length > 0)("the page", () => {
  it("renders Markdown, and nothing of it that would act", async () => {
    const { server } = await scripted({ lines });
    const page = await visit(server.url);
    await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
    await ask(page, "Go on");
    await answered(page);
    const reply = replies(page);
    expect(await reply.locator("td").allInnerTexts()).toEqual(["0", "8,192", "3", "everything"]);
    expect(await reply.locator(".hljs-keyword").textContent()).toBe("const");
    expect(await reply.locator("ol > li").allInnerTexts()).toEqual(["one", "two"]);
    expect(await reply.locator("ol").getAttribute("start")).toBe("3");
    const boxes = reply.getByRole("checkbox", { disabled: true });
    expect(await Promise.all((await boxes.all()).map((box) => box.isChecked()))).toEqual([false, true]);
    expect((await boxes.first().boundingBox())!.width).toBeLessThan(20);
    expect(await reply.locator(".table").getAttribute("tabindex")).toBe("0"); // what scrolls is reached by keyboard
    expect(await reply.locator("script, img, iframe, [onerror], [href^=javascript]").count()).toBe(0);
    await reply.getByText("<script>alert(1)</script>").waitFor();
    const link = reply.getByRole("link", { name: "a picture" });
    expect(await link.getAttribute("rel")).toContain("noreferrer");
    await reply.getByRole("button", { name: "Copy", exact: true }).first().click();
    expect(await page.evaluate(() => navigator.clipboard.readText())).toBe("const answer: number = 42; // as ever");
  });

  it("copies where the browser gives a page no clipboard, too", async () => {
    const { server } = await scripted({ lines });
    const page = await visit(server.url);
    await page.evaluate(() => Object.defineProperty(navigator, "clipboard", { value: undefined }));
    await ask(page, "Go on");
    await answered(page);
    await replies(page).getByRole("button", { name: "Copy", exact: true }).first().click();
    await page.getByRole("button", { name: "Copied" }).waitFor();
    await question(page).focus();
    await page.keyboard.press("Control+V");
    expect(await question(page).inputValue()).toBe("const answer: number = 42; // as ever");
  });

  it.each([0, 1500])("keeps a question, and what has come of its reply, when it is left %i ms later", async (ms) => {
    const { model, server } = await scripted({ lines: ["Half a", " reply", { wait: new Promise(() => {}) }] });
    const page = await visit(server.url);
    const reopen = async () => {
      await page.waitForTimeout(ms);
      await page.reload();
    };
    await ask(page, "Tell me a story");
    await replies(page).getByText("Half a reply").waitFor();
    await reopen();
    await page.getByRole("article", { name: "Question" }).getByText("Tell me a story").waitFor();
    await replies(page).getByText("Half a reply").waitFor();
    await replies(page).getByText("stopped").waitFor();

    model.script = { lines: ["Another", " half", { wait: new Promise(() => {}) }] };
    await page.getByRole("button", { name: "Write another reply" }).click();
    await replies(page).getByText("Another half").waitFor();
    await reopen();
    await replies(page).getByText("Another half").waitFor();
    await page.getByRole("button", { name: "The one before" }).click();
    await replies(page).getByText("Half a reply").waitFor();
  });

  it("stops a reply, writes another beside it, and a question that is edited", async () => {
    const { model, server } = await scripted({ lines: ["Half a", " reply", { wait: new Promise(() => {}) }] });
    const page = await visit(server.url);
    await page.getByRole("button", { name: "Settings" }).click();
    await page.getByRole("spinbutton", { name: "Temperature" }).fill("1.5");
    await page.getByRole("spinbutton", { name: "Seed" }).fill("7");
    await page.getByRole("textbox", { name: "System prompt" }).fill("Be brief.");
    await page.keyboard.press("Escape");
    await ask(page, "Tell me a story");
    await replies(page).getByText("Half a reply").waitFor();
    await page.getByRole("button", { name: "Stop" }).click();
    await replies(page).getByText("stopped").waitFor();
    expect(model.asked[0]).toMatchObject({ temperature: 1.5, seed: 7, messages: [{ content: "Be brief." }, {}] });
    while (model.left === 0) await new Promise((resolve) => setTimeout(resolve, 5)); // the server has stopped too

    model.script = { lines: ["Another reply"] };
    await page.getByRole("button", { name: "Write another reply" }).click();
    await replies(page).getByText("Another reply").waitFor();
    await answered(page);
    const places = (role: string) => page.locator(`.${role} .siblings`).textContent();
    expect(await places("assistant")).toMatch(/2\D*2/);
    await page.getByRole("button", { name: "The one before" }).click();
    await replies(page).getByText("Half a reply").waitFor();
    expect(await places("assistant")).toMatch(/1\D*2/);

    const first = page.getByRole("article", { name: "Question" });
    await first.hover();
    await first.getByRole("button", { name: "Edit" }).click();
    await page.getByRole("textbox", { name: "Edit the question" }).fill("Tell me a poem");
    await page.keyboard.press("Enter");
    await replies(page).getByText("Another reply").waitFor();
    await answered(page);
    expect(await places("user")).toMatch(/2\D*2/);
    expect(await page.locator(".user .bubble").textContent()).toBe("Tell me a poem");
  });

  it("shows the earlier reply again when another one fails", async () => {
    const { model, server } = await scripted({ lines: ["The first"] });
    const page = await visit(server.url, {}, /500/);
    await ask(page, "Hello");
    await replies(page).getByText("The first").waitFor();
    await answered(page);
    model.script = { lines: [new Error("broken")] };
    await page.getByRole("button", { name: "Write another reply" }).click();
    await page.getByText("Something went wrong").waitFor();
    await replies(page).getByText("The first").waitFor();
    model.script = { lines: ["The second"] };
    await page.getByRole("button", { name: "Try again" }).click();
    await replies(page).getByText("The second").waitFor();
  });

  it("takes pictures from the clipboard and videos from a folder, and says what it cannot take", async () => {
    const { server, model } = await scripted({ lines: ["I see"] });
    const page = await visit(server.url);
    const asked = bodies(page);
    await page.getByRole("heading", { name: "Show me something, or ask." }).waitFor();
    await question(page).evaluate((area) => {
      const clipboardData = new DataTransfer();
      const svg = '<svg xmlns="http://www.w3.org/2000/svg" width="30" height="20"><rect width="30" height="20"/></svg>';
      clipboardData.items.add(new File([svg], "drawn.svg", { type: "image/svg+xml" }));
      area.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }));
    });
    await page.getByRole("img", { name: "drawn.svg" }).waitFor();
    const files = page.locator("input[type=file]");
    await files.setInputFiles({ name: "notes.pdf", mimeType: "application/pdf", buffer: Buffer.from("%PDF") });
    await page.getByText("notes.pdf is application/pdf; pictures and videos can be shown").waitFor();
    await files.setInputFiles({ name: "clip.webm", mimeType: "video/webm", buffer: Buffer.from("video") });
    await page.getByRole("button", { name: "Remove clip.webm" }).waitFor();
    await ask(page, "");
    await replies(page).getByText("I see").waitFor();
    const url = (type: string) => ({ url: expect.stringContaining(`data:${type};base64,`) });
    expect(asked[0]!.messages[0]!.content).toEqual([
      { type: "image_url", image_url: url("image/png") }, // as the server decodes it
      { type: "video_url", video_url: url("video/webm") },
    ]);
    expect(model.asked[0]!.messages).toMatchObject([{ content: [{ type: "image" }, { type: "video" }] }]);
  });

  it("names every file that it cannot take", async () => {
    const { server } = await scripted({ lines: ["I see"] });
    const page = await visit(server.url);
    await page.getByRole("heading", { name: "Show me something, or ask." }).waitFor();
    const file = (name: string, mimeType: string, text: string) => ({ name, mimeType, buffer: Buffer.from(text) });
    const svg = '<svg xmlns="http://www.w3.org/2000/svg" width="30" height="20"/>';
    await page
      .locator("input[type=file]")
      .setInputFiles([
        file("a.txt", "text/plain", "text"),
        file("broken.png", "image/png", "no picture"),
        file("drawn.svg", "image/svg+xml", svg),
        file("notes.pdf", "application/pdf", "%PDF"),
      ]);
    await page.getByRole("button", { name: "Remove drawn.svg" }).waitFor();
    const complaint = page.locator(".complaint", { hasText: "notes.pdf" });
    expect((await complaint.textContent())!.split("\n").map((line) => line.split(" ")[0])).toEqual([
      ...["a.txt", "broken.png", "notes.pdf"],
    ]);
  });

  it("says which pictures are too many, in a question and in a conversation", async () => {
    const { server } = await scripted({ lines: ["I see"] });
    const page = await visit(server.url);
    const asked = bodies(page);
    await page.getByRole("heading", { name: "Show me something, or ask." }).waitFor();
    await drop(page, ...Array.from({ length: 18 }, (_, i) => `rgb(0, 0, ${i})`));
    await page.getByText("A question may have 16 pictures and videos: 2 more are left out.").waitFor();
    expect(await page.getByRole("button", { name: /^Remove/ }).count()).toBe(16);
    await ask(page, "Which is blue?");
    await answered(page);
    const told = page.getByText("The model is shown the newest 16 pictures and videos");
    expect(await told.count()).toBe(0);
    await drop(page, "red", "green");
    await told.getByText("the oldest 2 are left out").waitFor();
    await ask(page, "And these?");
    await replies(page).nth(1).waitFor();
    await answered(page);
    await told.getByText("the oldest 2 are left out").waitFor();
    expect(JSON.stringify(asked[1]).match(/"image_url":/g)).toHaveLength(16);
  });

  it("shows pictures of several sizes in a row of one height", async () => {
    const { server } = await scripted({ lines: ["I see"] });
    const page = await visit(server.url);
    await page.getByRole("heading", { name: "Show me something, or ask." }).waitFor();
    const drawn = (name: string, width: number, height: number) => ({
      ...{ name, mimeType: "image/svg+xml" },
      buffer: Buffer.from(`<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}"/>`),
    });
    const files = [drawn("small.svg", 50, 50), drawn("wide.svg", 900, 500), drawn("high.svg", 300, 900)];
    await page.locator("input[type=file]").setInputFiles(files);
    await page.getByRole("button", { name: "Remove high.svg" }).waitFor();
    await ask(page, "Which is larger?");
    await answered(page);
    const pictures = await page.getByRole("article", { name: "Question" }).getByRole("img").all();
    const boxes = await Promise.all(pictures.map((picture) => picture.boundingBox()));
    expect(new Set(boxes.map((box) => `${box!.y} ${box!.height}`)).size).toBe(1);
    await shot(page, "pictures");
  });

  it("shows the numbers that are sent in the settings", async () => {
    const { server, model } = await scripted({ lines: ["Hi"] });
    const page = await visit(server.url);
    await page.getByRole("button", { name: "Settings" }).click();
    const entered = async (name: string, text: string) => {
      const field = page.getByRole("spinbutton", { name });
      await field.fill(text);
      await field.blur();
      return field.inputValue();
    };
    expect(await entered("Temperature", "2")).toBe("2");
    expect(await entered("Temperature", "5")).toBe("2");
    expect(await entered("Longest reply", "-3")).toBe("1");
    expect(await entered("Seed", "1.5")).toBe("2");
    await page.keyboard.press("Escape");
    await ask(page, "Hello");
    await answered(page);
    expect(model.asked[0]).toMatchObject({ temperature: 2, seed: 2 });
  });

  it("keeps the end in sight when the expert map takes of its width", async () => {
    const { server } = await scripted({ lines: Array.from({ length: 400 }, (_, i) => `word${i} `) });
    const page = await visit(server.url);
    await ask(page, "Go on");
    await answered(page);
    await page.getByRole("button", { name: "Expert map", exact: true }).click();
    await page.getByRole("complementary", { name: "Expert map" }).waitFor();
    const below = () =>
      page.locator(".scroller").evaluate((at) => Math.round(at.scrollHeight - at.scrollTop - at.clientHeight));
    await expect.poll(below).toBeLessThan(2);
    await page.setViewportSize({ width: 1000, height: 500 });
    await expect.poll(below).toBeLessThan(2);
    expect(await page.getByRole("button", { name: "To the end" }).count()).toBe(0);
  });

  it("closes the expert map by Esc where it lies over the chat", async () => {
    const { server } = await scripted({ lines: ["Hi"] });
    const page = await visit(server.url, { viewport: { width: 375, height: 740 }, hasTouch: true });
    const button = page.getByRole("button", { name: "Expert map", exact: true });
    const map = page.getByRole("complementary", { name: "Expert map" });
    await button.click();
    await map.waitFor();
    await shot(page, "map-375");
    await page.keyboard.press("Escape");
    await map.waitFor({ state: "detached" });
    await button.click();
    await map.waitFor();
    await button.click(); // which is in sight still
    await map.waitFor({ state: "detached" });
  });

  it("has an address for each conversation", async () => {
    const { server } = await scripted({ lines: ["Hi"] });
    const page = await visit(server.url);
    const address = () => page.evaluate(() => location.href);
    const shown = (text: string) => page.getByRole("article", { name: "Question" }).getByText(text).waitFor();
    const start = page.getByRole("heading", { name: "Show me something, or ask." });
    await ask(page, "The first");
    await answered(page);
    const first = await address();
    expect(first.slice(server.url.length)).toMatch(/^\/?#\/c\/[0-9a-f]{32}$/);
    await page.reload();
    await shown("The first");
    await page.getByRole("button", { name: "New chat" }).click();
    await start.waitFor();
    expect(await address()).not.toContain("#");
    await ask(page, "The second");
    await answered(page);
    const second = await address();
    await page.goBack();
    await shown("The first");
    expect(await address()).toBe(first);
    await page.goForward();
    await shown("The second");
    expect(await address()).toBe(second);

    await page.getByRole("button", { name: "Actions on The second" }).click();
    await page.getByRole("menuitem", { name: "Delete" }).click();
    await start.waitFor();
    expect(await address()).not.toContain("#");
    await page.goto(second);
    await start.waitFor();
    expect(await address()).not.toContain("#");
  });

  it("takes no HTML that has not come through the two policies", async () => {
    const { server } = await scripted({ lines });
    const page = await visit(server.url, {}, /Trusted/);
    const [html, code] = await page.evaluate(() => {
      const attempt = (f: () => unknown) => {
        try {
          f();
          return "done";
        } catch (error) {
          return (error as Error).name;
        }
      };
      const raw = () => {
        document.body.innerHTML = "<b>x</b>";
      };
      return [attempt(raw), attempt(() => document.createElement("script").setAttribute("src", "//elsewhere.example"))];
    });
    expect([html, code]).toEqual(["TypeError", "TypeError"]);
  });

  it("asks for the key where the server wants one", async () => {
    const { server } = await scripted({ lines: ["Welcome"] }, { keys: ["secret-key"] });
    const page = await visit(server.url, {}, /401/);
    await page.getByText("This server wants an API key").waitFor();
    await shot(page, "key");
    await page.getByRole("textbox", { name: "API key" }).fill("secret-key");
    await page.getByRole("button", { name: "Use it" }).click();
    await page.getByRole("heading", { name: "Show me something, or ask." }).waitFor();
    await ask(page, "Hello");
    await replies(page).getByText("Welcome").waitFor();
  });

  it("waits as long as a busy server says, and asks again", async () => {
    let open = () => {};
    const wait = new Promise<void>((resolve) => {
      open = resolve;
    });
    const { server, model } = await scripted({ lines: ["a", { wait }, "b"] }, { limits: { concurrent: 1, queue: 0 } });
    const page = await visit(server.url, {}, /429/);
    const other = fetch(`${server.url}/v1/chat/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ messages: [{ role: "user", content: "first" }] }),
    });
    while (model.asked.length === 0) await new Promise((resolve) => setTimeout(resolve, 5));
    await ask(page, "Hello");
    await page.getByText("The server is busy", { exact: true }).waitFor();
    open();
    await (await other).json();
    await replies(page).getByText("ab").waitFor(); // by itself
  });

  it("says when the context is full, and offers a new conversation", async () => {
    const { server } = await scripted({ lines: [new RequestError("the prompt has 2,000 tokens")] });
    const page = await visit(server.url, {}, /400/);
    await ask(page, "Hello");
    await page.getByText("The context is full", { exact: true }).waitFor();
    await page.getByRole("button", { name: "New chat" }).last().click();
    await page.getByRole("heading", { name: "Show me something, or ask." }).waitFor();
  });

  it("keeps what was written when the server goes, and says so", async () => {
    const never = new Promise(() => {});
    const { server, close } = await scripted({ lines: ["Half a", " reply", { wait: never }] });
    const page = await visit(server.url, {}, /ERR_/);
    await ask(page, "Hello");
    await replies(page).getByText("Half a reply").waitFor();
    const closed = close();
    await page.getByText("The server does not answer", { exact: true }).first().waitFor();
    await closed;
    expect(await replies(page).locator(".prose").textContent()).toContain("Half a reply");
    await shot(page, "gone");
  });

  const looks = [
    { colorScheme: "light", viewport: { width: 1280, height: 800 } },
    { colorScheme: "dark", viewport: { width: 1280, height: 800 } },
    { colorScheme: "light", viewport: { width: 375, height: 740 }, hasTouch: true },
    { colorScheme: "dark", viewport: { width: 375, height: 740 }, hasTouch: true },
  ] as const;
  it.each(looks)("keeps nobody out, and fits: $colorScheme, $viewport.width wide", async (look) => {
    const { server } = await scripted({ lines });
    const name = (state: string) => `${state}-${look.colorScheme}-${look.viewport.width}`;
    const page = await visit(server.url, look);
    const check = async (state: string) => {
      await shot(page, name(state));
      expect(await barriers(page), state).toEqual([]);
      const wide = await page.evaluate(() => {
        const parts = document.querySelectorAll("html, main, main > header, .scroller, .foot, nav, dialog[open] .body");
        return [...parts].filter((part) => part.scrollWidth > part.clientWidth).map((part) => part.className);
      });
      expect(wide, `${state}: wider than its place`).toEqual([]);
    };
    await page.getByRole("heading", { name: "Show me something, or ask." }).waitFor();
    await check("welcome");
    await question(page).fill("Go on");
    await page.getByRole("button", { name: "Send" }).click();
    await answered(page);
    await check("reply");
    if (look.viewport.width < 500) await page.getByRole("button", { name: "Show the conversations" }).click();
    await check("conversations");
    await page.getByRole("button", { name: "Settings" }).click();
    await page.getByRole("dialog", { name: "Settings" }).waitFor();
    await check("settings");
    await page.getByRole("radio", { name: "Light" }).check({ force: true });
    const ground = () => page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);
    const light = await ground();
    await page.getByRole("radio", { name: "Dark" }).check({ force: true });
    expect(await ground()).not.toBe(light);
  });

  it("is used by keyboard alone", async () => {
    const { server } = await scripted({ lines: ["Hi"] });
    const page = await visit(server.url);
    await page.getByRole("heading", { name: "Show me something, or ask." }).waitFor();
    await question(page).blur();
    await page.keyboard.press("/");
    await page.keyboard.type("Hello");
    await page.keyboard.press("Enter");
    await replies(page).getByText("Hi", { exact: true }).waitFor();
    await page.keyboard.press("Control+Shift+KeyO");
    await page.getByRole("heading", { name: "Show me something, or ask." }).waitFor();
    expect(await question(page).evaluate((element) => element === document.activeElement)).toBe(true);
    await page.keyboard.press("Shift+Tab");
    expect(await page.evaluate(() => document.activeElement?.tagName)).toBe("BUTTON");
  });
});

// `llama4 chat` in a terminal of its own: util-linux' `script` gives it one.

import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { rmSync, writeFileSync } from "node:fs";
import sharp from "sharp";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { llama4, main } from "./llama4.ts";
import { initTiny, temporaryPlace } from "./models.ts";

function haveScript(): boolean {
  try {
    return execFileSync("script", ["--version"], { encoding: "utf8" }).includes("util-linux"); // others have other options
  } catch {
    return false;
  }
}

/** A command in a terminal: what it has shown so far, and keys that are typed once it has shown something. */
class Terminal {
  readonly #child: ChildProcess;
  readonly ended: Promise<number | null>;
  #shown = "";
  #seen = 0; // characters of it that were waited for

  constructor(args: readonly string[]) {
    const command = [process.execPath, main, ...args].map((word) => `'${word}'`).join(" ");
    this.#child = spawn("script", ["-qec", command, "/dev/null"], { env: { ...process.env, TERM: "dumb" } });
    this.#child.stdout!.setEncoding("utf8").on("data", (text: string) => {
      this.#shown += text;
    });
    this.ended = new Promise((resolve) => this.#child.on("close", resolve));
  }

  /** Waits until `text` is shown after what was waited for before; returns what stands before it. */
  async until(text: string): Promise<string> {
    let gone = false;
    void this.ended.then(() => {
      gone = true;
    });
    for (;;) {
      const at = this.#shown.indexOf(text, this.#seen);
      if (at >= 0) {
        const before = this.#shown.slice(this.#seen, at);
        this.#seen = at + text.length;
        return before;
      }
      if (gone) throw new Error(`ended before it showed ${JSON.stringify(text)}: ${JSON.stringify(this.#shown)}`);
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }

  /** Hangs up, which ends the command too. */
  close(): void {
    this.#child.kill("SIGKILL");
  }

  type(keys: string): void {
    this.#child.stdin!.write(keys);
  }
}

describe.skipIf(!haveScript())("llama4 chat in a terminal (skipped without util-linux' script)", () => {
  const place = temporaryPlace();
  let model = "";
  beforeAll(async () => {
    model = await initTiny(place.at("tiny"));
  });
  afterAll(() => place.remove());

  const terminals: Terminal[] = [];
  const opened = (args: readonly string[]) => {
    const terminal = new Terminal(args);
    terminals.push(terminal);
    return terminal;
  };
  afterEach(() => {
    for (const terminal of terminals.splice(0)) terminal.close(); // what a failed test still waits for
  });
  const certain = () => ["chat", "--model", model, "--temperature", "0"];

  it("answers what is typed, helps, and ends at /exit with status 0", async () => {
    const terminal = opened([...certain(), "--max-tokens", "4"]);
    await terminal.until("/help says what can be typed");
    await terminal.until("> ");
    terminal.type("/help\r");
    await terminal.until("forgets the conversation");
    await terminal.until("> ");
    terminal.type("Why?\r");
    await terminal.until("Why?");
    const reply = (await terminal.until("> ")).replaceAll("\r", "").trim();
    terminal.type("/exit\r");
    expect(await terminal.ended).toBe(0);
    const piped = await llama4([...certain(), "--max-tokens", "4"], "Why?\n");
    expect(reply).toContain(piped.stdout.trim());
  });

  // The file was read again at each turn: one that could not be read, or was gone, failed every turn to come.
  it("looks into an image once, and goes on without one that it cannot show", async () => {
    const image = place.at("grey.png");
    const broken = place.at("broken.png");
    const png = await sharp({ create: { width: 40, height: 30, channels: 3, background: "#777777" } })
      .png()
      .toBuffer();
    writeFileSync(image, png);
    writeFileSync(broken, png.subarray(0, 60));
    const seer = await initTiny(place.at("seer"), "--vision", "on", "--vision-layers", "1", "--vision-dim", "32");
    const terminal = opened(["chat", "--model", seer, "--max-tokens", "2", "--temperature", "0"]);
    await terminal.until("> ");
    terminal.type(`/image ${broken}\r`);
    await terminal.until("this PNG of 60 bytes cannot be decoded");
    terminal.type(`/image ${image}\r`);
    await terminal.until("40 × 30, 1 tile, 147 tokens");
    rmSync(image);
    for (const question of ["One?", "Two?"]) {
      terminal.type(`${question}\r`);
      await terminal.until(question);
      expect(await terminal.until("> ")).not.toContain("Error");
    }
    terminal.type("/exit\r");
    expect(await terminal.ended).toBe(0);

    const blind = opened(certain());
    await blind.until("> ");
    blind.type(`/image ${broken}\r`);
    await blind.until("an image for a model that reads text only");
  });

  it("stops an answer at Ctrl-C and goes on; ends at another with status 130", async () => {
    const terminal = opened([...certain(), "--context", "8192"]);
    await terminal.until("> ");
    terminal.type("Why?\r");
    await terminal.until("Why?");
    await new Promise((resolve) => setTimeout(resolve, 200)); // into the answer
    terminal.type("\x03");
    await terminal.until("> ");
    terminal.type("\x03");
    await terminal.until("Interrupted: stopped by Ctrl-C");
    expect(await terminal.ended).toBe(130);
  });
});

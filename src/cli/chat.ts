// `llama4 chat`: a conversation in the terminal. Turns share their beginning, so only what is new is computed.

import { createInterface } from "node:readline";
import type { Command } from "commander";
import type { Llama4, Message } from "../index.ts";
import { type Answer, Interrupted, type Run, type Session } from "./answer.ts";
import { collected } from "./generate.ts";
import { openModel } from "./model.ts";
import {
  define,
  type ImageOptions,
  type ModelOptions,
  refuseImages,
  type SamplingOptions,
  samplingOf,
  withImages,
  withModel,
  withSampling,
} from "./options.ts";

interface ChatOptions extends ModelOptions, ImageOptions, SamplingOptions {
  readonly system?: string;
}

export function chat(program: Command, run: Run): void {
  const command = define(program, "chat", "A conversation in the terminal.", [
    'chat --model ./scout --system "You answer in one sentence."',
    'echo "Why is the sky blue?" | llama4 chat --model scout.gguf --json',
  ]);
  withSampling(withImages(withModel(command)))
    .option("--system <text>", "what the assistant is told first")
    .action(run((session, options: ChatOptions) => talk(session, options)));
}

const help = `/reset  forgets the conversation
/exit   ends it (so does Ctrl-D)
Ctrl-C  stops the answer; once more, it ends the conversation`;

async function talk(session: Session, options: ChatOptions): Promise<Answer | undefined> {
  refuseImages(options);
  const sampling = samplingOf(options);
  await using model = await openModel(options, session);
  const conversation = new Conversation(model, session, { ...options, ...sampling });
  if (process.stdin.isTTY && !session.json) await inTerminal(conversation, session);
  else await fromPipe(conversation, session);
  return undefined; // every turn has been shown
}

/** Messages so far, and one turn after the other. */
class Conversation {
  readonly #model: Llama4;
  readonly #json: boolean;
  readonly #options: ChatOptions;
  #messages: Message[] = [];

  constructor(model: Llama4, { json }: Session, options: ChatOptions) {
    this.#model = model;
    this.#json = json;
    this.#options = options;
    this.reset();
  }

  reset(): void {
    const { system } = this.#options;
    this.#messages = system === undefined ? [] : [{ role: "system", content: system }];
  }

  /** Shows the reply; a turn that was stopped or failed leaves no message behind. */
  async turn(content: string, signal: AbortSignal, most?: number): Promise<void> {
    const { temperature, topP, topK, minP, seed, stop, maxTokens = most } = this.#options;
    const messages: Message[] = [...this.#messages, { role: "user", content }];
    const reply = this.#model.chat(messages, { temperature, topP, topK, minP, seed, stop, maxTokens, signal });
    const answer = await collected(this.#model, reply, (text) => {
      if (!this.#json) process.stdout.write(text);
    });
    process.stdout.write(this.#json ? `${JSON.stringify({ role: "assistant", ...answer })}\n` : "\n");
    this.#messages = [...messages, { role: "assistant", content: answer.text }];
  }
}

async function inTerminal(conversation: Conversation, { signal }: Session): Promise<void> {
  const lines = createInterface({ input: process.stdin, output: process.stdout, prompt: "> " });
  process.stderr.write("/help says what can be typed\n");
  let answering: AbortController | undefined;
  let interrupted = false;
  lines.on("SIGINT", () => {
    if (answering && !answering.signal.aborted) answering.abort(new Interrupted("stopped"));
    else {
      interrupted = true;
      lines.close();
    }
  });
  signal.addEventListener("abort", () => lines.close());
  lines.prompt();
  for await (const line of lines) {
    const text = line.trim();
    if (text === "/exit") break;
    if (text === "/help") console.log(help);
    else if (text === "/reset") conversation.reset();
    else if (text !== "") {
      answering = new AbortController();
      await conversation.turn(text, answering.signal).catch((error: unknown) => {
        process.stdout.write("\n");
        if (error instanceof Error && !(error instanceof Interrupted)) console.error(`${error.name}: ${error.message}`);
      });
      answering = undefined;
    }
    if (interrupted) break;
    lines.prompt();
  }
  lines.close();
  if (interrupted || signal.aborted) throw new Interrupted("stopped by Ctrl-C");
}

const greeting = "Hello!";
const greetingTokens = 128; // of the answer to it
const patienceMs = 2000;

/** A turn for each line. Without any, one answer to a greeting: what `npm start` shows where there is no terminal. */
async function fromPipe(conversation: Conversation, { json, signal }: Session): Promise<void> {
  const lines = createInterface({ input: process.stdin });
  signal.addEventListener("abort", () => lines.close());
  let turns = 0;
  const patience = json ? undefined : setTimeout(() => lines.close(), patienceMs); // a pipe that nobody writes to
  for await (const line of lines) {
    clearTimeout(patience);
    if (line.trim() === "") continue;
    if (line.trim() === "/exit") break;
    if (line.trim() === "/reset") conversation.reset();
    else {
      turns++;
      await conversation.turn(line, signal);
    }
  }
  clearTimeout(patience);
  signal.throwIfAborted();
  if (turns === 0) await conversation.turn(greeting, signal, greetingTokens);
  process.stdin.destroy(); // an open pipe would keep the process alive
}

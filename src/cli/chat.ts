// `llama4 chat`: a conversation in the terminal. Turns share their beginning, so only what is new is computed.

import { createInterface } from "node:readline";
import { type Command, Option } from "commander";
import type { ContentPart, Llama4, Message } from "../index.ts";
import { CapacityError, RequestError } from "../tensor/errors.ts";
import { type Answer, described, Interrupted, type Run, type Session } from "./answer.ts";
import { attached, checkSees, type ImageOptions, mediaOf, partsOf, withImages } from "./media.ts";
import { collected, openModel } from "./model.ts";
import {
  define,
  type ModelOptions,
  type SamplingOptions,
  type SpeculationOptions,
  samplingOf,
  speculationOf,
  withModel,
  withSampling,
  withSpeculation,
} from "./options.ts";

interface ChatOptions extends ModelOptions, ImageOptions, SamplingOptions, SpeculationOptions {
  readonly system?: string;
  readonly greet?: true;
}

export function chat(program: Command, run: Run): void {
  const command = define(program, "chat", "A conversation in the terminal.", [
    'llama4 chat --model ./scout --system "You answer in one sentence."',
    'echo "Why is the sky blue?" | llama4 chat --model scout.gguf --json',
  ]);
  withSpeculation(withSampling(withImages(withModel(command))))
    .addHelpText(
      "after",
      "\nWithout a terminal every line of the input is a turn; without any line a greeting is answered.",
    )
    .option("--system <text>", "what the assistant is told first")
    .addOption(new Option("--greet", "answers a greeting instead of reading input: for `npm start`").hideHelp())
    .action(run((session, options: ChatOptions) => talk(session, options)));
}

const help = `/image F  shows the model an image with the next message; /video F a video
/reset    forgets the conversation
/exit     ends it (so does Ctrl-D)
Ctrl-C    stops the answer; once more, it ends the conversation`;

async function talk(session: Session, options: ChatOptions): Promise<Answer | undefined> {
  const shown = partsOf(options);
  const sampling = samplingOf(options);
  await checkSees(options, shown);
  await using model = await openModel(options, session, { speculation: speculationOf(options) });
  if (!model.info.knowsChats)
    process.stderr.write(
      `${model.info.path} has seen no chat: it goes on with what you type, ${continuationTokens} tokens at a time (--max-tokens)\n`,
    );
  const conversation = new Conversation(model, session, { ...options, ...sampling });
  for (const part of shown) await conversation.attach(part);
  if (options.greet) await conversation.turn(greeting, session.signal, greetingTokens);
  else if (process.stdin.isTTY && !session.json) await inTerminal(conversation, session);
  else await fromPipe(conversation, session);
  return undefined; // every turn has been shown
}

/** Messages so far, and one turn after the other. */
class Conversation {
  readonly #model: Llama4;
  readonly #json: boolean;
  readonly #signal: AbortSignal;
  readonly #options: ChatOptions;
  #messages: Message[] = [];
  /** Images and videos that go with the next message. */
  #attached: ContentPart[] = [];

  constructor(model: Llama4, { json, signal }: Session, options: ChatOptions) {
    this.#model = model;
    this.#json = json;
    this.#signal = signal;
    this.#options = options;
    this.reset();
  }

  reset(): void {
    const { system } = this.#options;
    this.#messages = system === undefined ? [] : [{ role: "system", content: system }];
    this.#attached = [];
  }

  /** Throws RequestError for what cannot be shown to the model. */
  async attach(part: ContentPart): Promise<void> {
    this.#attached.push(await attached(part, this.#model, mediaOf(this.#options), this.#signal));
  }

  /** Shows the reply; a turn that was stopped or failed leaves no message behind, and one that was refused no image. */
  async turn(text: string, signal: AbortSignal, most?: number): Promise<void> {
    const usual = this.#model.info.knowsChats ? undefined : continuationTokens; // a text has no end as a reply has
    const { temperature, topP, topK, minP, seed, stop, maxTokens = most ?? usual } = this.#options;
    const content = this.#attached.length > 0 ? [...this.#attached, { type: "text", text } as const] : text;
    const messages: Message[] = [...this.#messages, { role: "user", content }];
    const sampling = { temperature, topP, topK, minP, seed, stop, maxTokens };
    const reply = this.#model.chat(messages, { ...sampling, media: mediaOf(this.#options), signal });
    const answer = await collected(this.#model, reply, (text) => {
      if (!this.#json) process.stdout.write(text);
    }).catch((error: unknown) => {
      const { name = "", message = "" } = error instanceof Error ? error : {};
      const isDropped = this.#attached.length > 0 && ["RequestError", "CapacityError"].includes(name);
      if (isDropped) this.#attached = []; // else it would fail every turn to come
      const dropped = isDropped ? " (what was attached is dropped)" : "";
      if (name === "CapacityError")
        throw new CapacityError(`${message}, or forget the conversation with /reset${dropped}`, { cause: error });
      throw isDropped ? new RequestError(`${message}${dropped}`, { cause: error }) : error;
    });
    process.stdout.write(this.#json ? `${JSON.stringify({ role: "assistant", ...answer })}\n` : "\n");
    this.#messages = [...messages, { role: "assistant", content: answer.text }];
    this.#attached = [];
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
    else if (command(text)) await conversation.attach(command(text)!).catch(complain);
    else if (text !== "") {
      answering = new AbortController();
      await conversation.turn(text, answering.signal).catch((error: unknown) => {
        process.stdout.write("\n");
        complain(error);
      });
      answering = undefined;
    }
    if (interrupted) break;
    lines.prompt();
  }
  lines.close();
  signal.throwIfAborted();
  if (interrupted) throw new Interrupted("stopped by Ctrl-C");
}

/** "/image cat.jpg", "/video clip.mp4". */
function command(text: string): ContentPart | undefined {
  const [, type, path] = /^\/(image|video)\s+(.+)$/.exec(text) ?? [];
  return path === undefined ? undefined : { type: type === "image" ? "image" : "video", path };
}

function complain(error: unknown): void {
  const { name, message } = described(error);
  if (name !== "Interrupted") console.error(`${name}: ${message}`);
}

const continuationTokens = 100;
const greeting = "Hello!";
const greetingTokens = 128; // of the answer to it

/** A turn for each line; where the input ends without any, one answer to a greeting. */
async function fromPipe(conversation: Conversation, { signal }: Session): Promise<void> {
  const lines = createInterface({ input: process.stdin });
  signal.addEventListener("abort", () => lines.close());
  let isEmpty = true;
  try {
    for await (const line of lines) {
      const text = line.trim();
      if (text === "") continue;
      isEmpty = false;
      if (text === "/exit") break;
      const part = command(text);
      if (text === "/reset") conversation.reset();
      else if (part) await conversation.attach(part);
      else await conversation.turn(line, signal);
    }
  } finally {
    process.stdin.destroy(); // an open pipe would keep the process alive
  }
  signal.throwIfAborted();
  if (isEmpty) await conversation.turn(greeting, signal, greetingTokens);
}

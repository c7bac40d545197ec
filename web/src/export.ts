// A conversation as a file: Markdown to read, JSON with everything.

import { type Attachment, type Conversation, type Message, pathOf } from "./conversation.ts";
import { dataUrl } from "./media.ts";

/** The shown path. Attachments stand by their names. */
export function toMarkdown(conversation: Conversation): string {
  const parts = pathOf(conversation).map((message) => {
    if (message.role === "assistant") return `## Reply\n\n${message.text.trim()}`;
    const files = message.attachments.map(({ kind, name }) => `*[${kind}: ${name}]*`);
    return ["## Question", ...files, message.text.trim()].filter((part) => part !== "").join("\n\n");
  });
  return `# ${conversation.title}\n\n${parts.join("\n\n")}\n`;
}

/** All branches; attachments as data URLs. */
export async function toJson({ messages, ...conversation }: Conversation): Promise<string> {
  const attachment = async ({ blob, ...rest }: Attachment) => ({ ...rest, url: await dataUrl(blob) });
  const written = async (message: Message) =>
    message.role === "assistant"
      ? message
      : { ...message, attachments: await Promise.all(message.attachments.map(attachment)) };
  return `${JSON.stringify({ ...conversation, messages: await Promise.all(messages.map(written)) }, null, 2)}\n`;
}

/** A name for the file, of letters and digits. */
export const fileName = (title: string, ending: string): string =>
  `${
    title
      .normalize("NFKD")
      .replace(/[^\p{L}\p{N}]+/gu, "-")
      .replace(/^-|-$/g, "")
      .slice(0, 60) || "chat"
  }.${ending}`;

/** Hands a file to the browser's downloads. */
export function download(name: string, text: string, type: string): void {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

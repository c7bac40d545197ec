// Asks a model one question and prints the answer as it comes.
//
//   node --import ./scripts/ts.mjs examples/chat.ts [MODEL] [QUESTION]

import { load } from "llama4";

const [path, question = "Why is the sky blue?"] = process.argv.slice(2);
const model = await load(path, {
  onProgress: (done, total) => process.stderr.write(`\r${Math.floor((100 * done) / total)} %`),
});
process.stderr.write("\n");
for await (const piece of model.chat([{ role: "user", content: question }], { maxTokens: 200 })) {
  process.stdout.write(piece.text);
}
process.stdout.write("\n");
await model.close();

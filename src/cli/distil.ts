// `llama4 distil`: a training run with a teacher.

import type { Command } from "commander";
import type { Run } from "./answer.ts";
import { define } from "./options.ts";
import { type TrainOptions, trained, withRun } from "./train.ts";

export function distil(program: Command, run: Run): void {
  const command = define(
    program,
    "distil",
    "A smaller model that learns from data and from a larger one of the family.",
    ["llama4 distil --config student.json", "llama4 distil --config student.json --resume"],
  ).requiredOption("--config <file>", 'a training config with "teacher": docs/training.md says what may stand in it');
  withRun(command).action(run((session, options: TrainOptions) => trained(session, options, "distil")));
}

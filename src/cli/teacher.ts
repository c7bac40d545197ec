// The teacher of a distillation: a checkpoint beside the student, and where what it says is kept.

import { openCheckpoint } from "../checkpoint/open.ts";
import type { Tokenizer } from "../prompt/tokenizer.ts";
import type { Backend } from "../tensor/backend.ts";
import { RequestError } from "../tensor/errors.ts";
import type { TeacherOptions } from "../train/config.ts";
import { StoredTeacher, type Teacher, TeacherModel } from "../train/distil.ts";
import { loadModel } from "./run-folder.ts";
import { fingerprint, TargetFile } from "./target-store.ts";

export interface OpenTeacher {
  readonly teacher: Teacher;
  readonly tokenizer: Tokenizer | undefined;
  /** Throws RequestError for a student's vocabulary that is another. */
  refuseOthers(student: Tokenizer): void;
  /** Tokens that it was asked about, and tokens whose answer was kept; undefined where none is kept. */
  counts(): StoredTeacher["counts"] | undefined;
  close(): Promise<void>;
}

export async function openTeacher(
  { model: path, topK, store }: TeacherOptions,
  at: (path: string) => string,
  backend: Backend,
): Promise<OpenTeacher> {
  const checkpoint = await openCheckpoint(at(path));
  try {
    const { model, weights, tokenizer } = await loadModel(checkpoint, backend);
    const { vocabSize } = model;
    const k = Math.min(topK, vocabSize);
    const alongside = new TeacherModel(backend, weights, model, k);
    const file =
      store === undefined
        ? undefined
        : await TargetFile.open(at(store), { vocabSize, k, teacher: await fingerprint(checkpoint), onWarning });
    const stored = file && new StoredTeacher(alongside, file, { k, vocabSize });
    return {
      teacher: stored ?? alongside,
      tokenizer,
      refuseOthers: (student) => refuseOthers(path, tokenizer, student),
      counts: () => stored?.counts,
      close: async () => file?.close(),
    };
  } finally {
    await checkpoint.close();
  }
}

const onWarning = (message: string) => process.stderr.write(`${message}\n`);

function refuseOthers(path: string, teacher: Tokenizer | undefined, student: Tokenizer): void {
  if (!teacher)
    throw new RequestError(`the teacher ${path} has no tokenizer; expected one with the student's vocabulary`);
  const [size, expected] = [teacher.vocabSize, student.vocabSize];
  if (size !== expected)
    throw new RequestError(
      `the teacher ${path} has ${size} tokens and the student ${expected}; expected the same vocabulary: leave out the config's tokenizer`,
    );
  for (let id = 0; id < size; id++)
    if (Buffer.compare(teacher.tokenBytes(id), student.tokenBytes(id)) !== 0)
      throw new RequestError(
        `token ${id} of the teacher ${path} is another than the student's; expected the same vocabulary: leave out the config's tokenizer`,
      );
}

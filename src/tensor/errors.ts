// Five classes, told apart by what the caller can do about the error.

/** The checkpoint cannot be used as it stands: get another file. */
export class CheckpointError extends Error {
  override readonly name = "CheckpointError";
}

/** The request is wrong: mend it and ask again. Becomes HTTP 400 and exit status 2. */
export class RequestError extends Error {
  override readonly name = "RequestError";
}

/** The machine has not enough room now: wait, or give more memory. */
export class CapacityError extends Error {
  override readonly name = "CapacityError";
}

/** The engine cannot start here, or its thread has ended: mend the installation, or load the model again. */
export class EngineError extends Error {
  override readonly name = "EngineError";
}

/** Training cannot go on: mend its data or its config, and resume from the last good checkpoint. */
export class TrainingError extends Error {
  override readonly name = "TrainingError";
}

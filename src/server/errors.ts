// What a client is told when the answer is no, in OpenAI's form and in Anthropic's. Nothing of the machine is in it.

/** An answer that says no. Its message is for the client. */
export class Refusal extends Error {
  override readonly name = "Refusal";
  readonly status: number;
  /** OpenAI's word for it, where there is one. */
  readonly code: string | null;
  /** The field of the request that is wrong. */
  readonly param: string | null;
  readonly retryAfterSeconds: number | undefined;

  constructor(
    status: number,
    message: string,
    {
      code = null,
      param = null,
      retryAfterSeconds,
    }: Partial<Pick<Refusal, "code" | "param" | "retryAfterSeconds">> = {},
  ) {
    super(message);
    this.status = status;
    this.code = code;
    this.param = param;
    this.retryAfterSeconds = retryAfterSeconds;
  }
}

/** What a client may know of an error; undefined where that is nothing but that there was one. */
export function refusalOf(error: unknown, context: number): Refusal | undefined {
  if (error instanceof Refusal) return error;
  // by name: an error that comes out of the engine's thread may be of another copy of its class
  if (!(error instanceof Error && ["RequestError", "CapacityError"].includes(error.name))) return undefined;
  const [long] = /^the prompt(?: has [\d,]+ tokens|'s [^;]*)/.exec(error.message) ?? [];
  if (long !== undefined)
    return new Refusal(
      400,
      `This model's maximum context length is ${context} tokens, and ${long}; expected a shorter prompt.`,
      { code: "context_length_exceeded", param: "messages" },
    );
  const [, about, what] = /^(json_schema|tool ".*?"): (.*)$/s.exec(error.message) ?? [];
  if (about === "json_schema")
    return new Refusal(400, `Invalid schema for response_format: ${what}`, { param: "response_format" });
  if (about !== undefined)
    return new Refusal(400, `Invalid schema for ${about}: ${what}`, {
      code: "invalid_function_parameters",
      param: "tools",
    });
  if (error.name === "RequestError") return new Refusal(400, error.message);
  return new Refusal(503, "The server has no room for this request now; try again later.", { retryAfterSeconds: 5 });
}

export const failed = (): Refusal => new Refusal(500, "The server failed on this request; its log says why.");

interface OpenAiError {
  readonly message: string;
  readonly type: string;
  readonly param: string | null;
  readonly code: string | null;
}

/** OpenAI's `{error}`. */
export function openAiError({ status, message, param, code }: Refusal): { readonly error: OpenAiError } {
  const type = status === 429 ? "rate_limit_error" : status >= 500 ? "server_error" : "invalid_request_error";
  return { error: { message, type, param, code: code ?? codes[status] ?? null } };
}

const codes: Readonly<Record<number, string>> = { 429: "rate_limit_exceeded", 404: "not_found", 504: "timeout" };

/** Anthropic's `{type: "error", error}`. */
export function anthropicError({ status, message }: Refusal, requestId: string): object {
  const type = anthropicTypes[status] ?? (status >= 500 ? "api_error" : "invalid_request_error");
  return { type: "error", error: { type, message }, request_id: requestId };
}

const anthropicTypes: Readonly<Record<number, string>> = {
  401: "authentication_error",
  403: "permission_error",
  404: "not_found_error",
  413: "request_too_large",
  429: "rate_limit_error",
  503: "overloaded_error",
  504: "timeout_error",
};

// What a client is told when the answer is no, in OpenAI's form and in Anthropic's.

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

  /** The same about a field, where it names none yet. */
  about(param: string): Refusal {
    const { status, message, code, retryAfterSeconds } = this;
    return this.param === null ? new Refusal(status, message, { code, param, retryAfterSeconds }) : this;
  }
}

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

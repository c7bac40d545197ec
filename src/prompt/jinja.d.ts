// What template.ts uses of @huggingface/jinja, whose own declarations do not resolve under NodeNext.
declare module "@huggingface/jinja" {
  export interface Program {
    readonly type: "Program";
  }
  export class Environment {
    set(name: string, value: unknown): unknown;
  }
  export class Interpreter {
    constructor(environment: Environment);
    run(program: Program): { readonly value: unknown };
    evaluate(statement: unknown, environment: Environment): { readonly value: unknown };
    /** Private in the package's own declarations; called for the body of a loop every time round, even if it is empty. */
    evaluateBlock(statements: readonly unknown[], environment: Environment): { readonly value: unknown };
  }
  export function tokenize(
    template: string,
    options: { lstrip_blocks: boolean; trim_blocks: boolean },
  ): readonly unknown[];
  export function parse(tokens: readonly unknown[]): Program;
}

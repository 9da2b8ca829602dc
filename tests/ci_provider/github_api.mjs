// GitHub's own OpenAPI description (of github.com, and of an Enterprise server), as a judge of what is said to GitHub and
// what it answers, and as the source of answers. Its packages lie where RB_NODE_MODULES says; see node_modules.py.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(process.env.RB_NODE_MODULES + "/");
const Ajv = require("ajv");
const addFormats = require("ajv-formats");

// `nullable` and `$ref` as OpenAPI 3.0 means them.
function asJsonSchema(schema) {
  if (Array.isArray(schema)) return schema.map(asJsonSchema);
  if (schema === null || typeof schema !== "object") return schema;
  const made = {};
  for (const [key, value] of Object.entries(schema)) {
    if (["example", "examples", "nullable", "discriminator", "xml", "externalDocs", "deprecated"].includes(key)) continue;
    if (key.startsWith("x-")) continue;
    if (key === "properties") {
      // Names, which may be words of the schema's language.
      made[key] = Object.fromEntries(Object.entries(value).map(([name, one]) => [name, asJsonSchema(one)]));
    } else {
      made[key] = key === "$ref" ? value.replace("#/components/schemas/", "#/$defs/") : asJsonSchema(value);
    }
  }
  if (schema.nullable === true) return { anyOf: [made, { type: "null" }] };
  return made;
}

const schemasOf = (api) => asJsonSchema({ properties: api.components.schemas }).properties;

export class Description {
  // `forge`: "github" or "enterprise".
  constructor(forge) {
    this.prefix = forge === "enterprise" ? "/api/v3" : "";
    const name = forge === "enterprise" ? "ghes-3.19" : "api.github.com";
    this.api = JSON.parse(readFileSync(`${process.env.RB_NODE_MODULES}/@octokit/openapi/generated/${name}.json`, "utf8"));
    this.ajv = new Ajv({ strict: false, allErrors: false, validateFormats: true });
    addFormats(this.ajv);
    this.ajv.addSchema({ $id: "github", $defs: schemasOf(this.api) });
    this.compiled = new Map();
  }

  resolve(it) {
    return it.$ref ? it.$ref.split("/").slice(1).reduce((at, key) => at[key], this.api) : it;
  }

  // What is wrong with the value, by a schema of the description.
  check(schema, value, where) {
    const key = JSON.stringify(schema);
    if (!this.compiled.has(key)) {
      const own = JSON.parse(JSON.stringify(asJsonSchema(schema)).replaceAll('"#/$defs/', '"github#/$defs/'));
      this.compiled.set(key, this.ajv.compile(own));
    }
    const validate = this.compiled.get(key);
    return validate(value) ? [] : [`${where}: ${this.ajv.errorsText(validate.errors)}`];
  }

  // [path pattern, operation] of the call; empty when GitHub has none such.
  operationOf(method, path) {
    if (!path.startsWith(this.prefix + "/")) return [];
    const parts = path.slice(this.prefix.length).split("/");
    for (const [pattern, item] of Object.entries(this.api.paths)) {
      const wanted = pattern.split("/");
      if (wanted.length !== parts.length || !(method in item)) continue;
      if (wanted.every((part, i) => part === parts[i] || (part.startsWith("{") && parts[i] !== ""))) return [pattern, item[method]];
    }
    return [];
  }

  problemsOfRequest(exchange) {
    const url = new URL(exchange.path, "https://api.github.com");
    const method = exchange.method.toLowerCase();
    const where = `${exchange.method} ${exchange.path}`;
    const [pattern, operation] = this.operationOf(method, url.pathname);
    if (!operation) return [`${where}: GitHub has no such call`];
    const wrong = [];
    const item = this.api.paths[pattern];
    const known = [...(item.parameters ?? []), ...(operation.parameters ?? [])].map((one) => this.resolve(one));
    for (const name of url.searchParams.keys()) {
      if (!known.some((one) => one.in === "query" && one.name === name)) wrong.push(`${where}: no parameter ${name}`);
    }
    if (exchange.request === null) return wrong;
    const body = operation.requestBody?.content?.["application/json"]?.schema;
    if (!body) return [...wrong, `${where}: it takes no body`];
    // GitHub refuses keys that it does not know, which its description does not say.
    for (const key of Object.keys(exchange.request)) {
      if (body.properties && !(key in body.properties)) wrong.push(`${where}: ${key} is no permitted key`);
    }
    return [...wrong, ...this.check(body, exchange.request, where + " request")];
  }

  problemsOf(exchange) {
    const wrong = this.problemsOfRequest(exchange);
    const url = new URL(exchange.path, "https://api.github.com");
    const [, operation] = this.operationOf(exchange.method.toLowerCase(), url.pathname);
    if (!operation) return wrong;
    const where = `${exchange.method} ${exchange.path} → ${exchange.status}`;
    const answer = operation.responses[exchange.status];
    if (!answer) return [...wrong, `${where}: GitHub does not answer so`];
    const schema = this.resolve(answer).content?.["application/json"]?.schema;
    if (schema && exchange.response !== null) wrong.push(...this.check(schema, exchange.response, where + " response"));
    return wrong;
  }

  // The description's own example of an answer; null where it has no body.
  exampleOf(method, path, status) {
    const [, operation] = this.operationOf(method.toLowerCase(), path);
    const content = this.resolve(operation.responses[status]).content?.["application/json"];
    const example = Object.values(content?.examples ?? {})[0];
    return example ? structuredClone(this.resolve(example).value) : null;
  }
}

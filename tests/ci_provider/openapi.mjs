// openapi.mjs EXCHANGES [--self-test]: every exchange against GitHub's own OpenAPI description. With --self-test each is
// damaged first, and has to be found.
import { readFileSync } from "node:fs";
import { Description } from "./github_api.mjs";

const selfTest = process.argv[3] === "--self-test";
const of = new Map();
const problemsOf = (exchange) => {
  if (!of.has(exchange.forge)) of.set(exchange.forge, new Description(exchange.forge));
  return of.get(exchange.forge).problemsOf(exchange);
};

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
  if (exchange.request) {
    made.push({ ...exchange, request: { ...exchange.request, ref: 7 } }, { ...exchange, request: { ...exchange.request, odd: 1 } });
  }
  if (exchange.response?.status) made.push({ ...exchange, response: { ...exchange.response, id: "seven" } });
  if (exchange.path.includes("?")) made.push({ ...exchange, path: exchange.path + "&creation=now" });
  return made;
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

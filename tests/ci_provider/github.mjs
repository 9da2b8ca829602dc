// github.mjs FOLDER COMMAND...: a GitHub on loopback that is GitHub's own OpenAPI description: a request that does not
// fit it is refused, and every answer is its example of that answer, with what is known of the run put in, and is held
// against its schema before it goes out. What did not fit stands in FOLDER/problems; FOLDER/calls names the calls.
// Runs are made, looked at and cancelled by COMMAND dispatch KEY COMMIT ENVIRONMENT | status KEY | cancel KEY. Writes
// FOLDER/port when it listens. FOLDER/token: who has to ask.
import { execFile } from "node:child_process";
import { appendFileSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";
import { promisify } from "node:util";
import { Description } from "./github_api.mjs";

const [folder, program, ...words] = process.argv.slice(2);
const description = new Description("github");
const token = readFileSync(join(folder, "token"), "utf8").trim();
const call = async (...args) => (await promisify(execFile)(program, [...words, ...args])).stdout.trim();
const actions = "/repos/team/bot/actions";
const runs = new Map();

class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

async function see(run) {
  const [word, ...text] = (await call("status", run.key)).split(" ");
  const ended = { succeeded: "success", failed: "failure", cancelled: "cancelled" }[word] ?? null;
  const status = ended ? "completed" : word === "running" ? "in_progress" : "queued";
  return { status, conclusion: ended, text: text.join(" ") };
}

// The example of a run or job, as this one.
async function shown(example, run) {
  const { status, conclusion } = await see(run);
  return { ...example, id: run.id, status, conclusion, html_url: `https://github.com/team/bot/actions/runs/${run.id}`,
           display_title: `deploy ${run.key}`, event: "workflow_dispatch", head_branch: "main",
           path: ".github/workflows/deploy.yml", created_at: run.created_at };
}

// [status, what the answer's example is to be made into].
async function answer(method, path, body) {
  if (method === "GET" && path === `${actions}/workflows/deploy.yml`) return [200, (it) => ({ ...it, state: "active" })];
  if (method === "POST" && path === `${actions}/workflows/deploy.yml/dispatches`) {
    const { commit, environment, rb_operation: key, ...more } = body.inputs ?? {};
    if (!/^[0-9a-f]{40}$/.test(commit ?? "") || !environment || !key || Object.keys(more).length > 0) {
      throw new Refused(422, "Unexpected inputs provided");
    }
    await call("dispatch", key, commit, environment);
    const run = { id: 30433642 + runs.size, key, created_at: new Date().toISOString().replace(/\.\d+/, "") };
    runs.set(String(run.id), run);
    if (!body.return_run_details) return [204];
    return [200, (it) => ({ ...it, workflow_run_id: run.id })];
  }
  if (method === "GET" && path === `${actions}/workflows/deploy.yml/runs`) {
    const listed = async (it) => Promise.all([...runs.values()].reverse().map((run) => shown(it.workflow_runs[0], run)));
    return [200, async (it) => ({ ...it, total_count: runs.size, workflow_runs: await listed(it) })];
  }
  const [, id, what] = path.match(`^${actions}/runs/(\\d+)(/jobs|/cancel)?$`) ?? [];
  const run = runs.get(id);
  if (!run) throw new Refused(404, "Not Found");
  if (method === "GET" && !what) return [200, (it) => shown(it, run)];
  if (method === "GET" && what === "/jobs") {
    const { status, conclusion, text } = await see(run);
    const name = `deploy ${text}`;
    // The description's example lacks what its own schema requires.
    const own = { run_id: run.id, status, conclusion, name, created_at: run.created_at };
    return [200, (it) => ({ total_count: 1, jobs: [{ ...it.jobs[0], ...own }] })];
  }
  if (method === "POST" && what === "/cancel") {
    if ((await see(run)).conclusion) return [409, () => ({ message: "Cannot cancel a workflow run that is completed." })];
    await call("cancel", run.key);
    return [202, () => ({})];
  }
  throw new Refused(404, "Not Found");
}

async function serve(request, text) {
  const exchange = { method: request.method, path: request.url, request: text ? JSON.parse(text) : null };
  const path = new URL(request.url, "http://x").pathname;
  appendFileSync(join(folder, "calls"), `${request.method} ${path}\n`);
  if (request.headers.authorization !== `Bearer ${token}`) throw new Refused(401, "Bad credentials");
  if (request.headers.accept !== "application/vnd.github+json") throw new Refused(415, "Unsupported 'Accept' header");
  const wrong = description.problemsOfRequest(exchange);
  if (wrong.length > 0) {
    appendFileSync(join(folder, "problems"), wrong.join("\n") + "\n");
    throw new Refused(422, wrong[0]);
  }
  const [status, make] = await answer(request.method, path, exchange.request);
  const body = make ? await make(description.exampleOf(request.method, path, status)) : null;
  const bad = description.problemsOf({ ...exchange, status, response: body });
  if (bad.length > 0) {
    appendFileSync(join(folder, "problems"), bad.join("\n") + "\n");
    throw new Refused(500, bad[0]);
  }
  return [status, body];
}

const server = createServer((request, response) => {
  let text = "";
  request.on("data", (data) => (text += data));
  request.on("end", async () => {
    let status, body;
    try {
      [status, body] = await serve(request, text);
    } catch (error) {
      [status, body] = [error.status ?? 500, { message: error.message }];
      appendFileSync(join(folder, "calls"), `  ${status} ${error.message}\n`);
    }
    response.writeHead(status, { "Content-Type": "application/json" });
    response.end(body === null ? "" : JSON.stringify(body));
  });
});
server.listen(0, "127.0.0.1", () => {
  writeFileSync(join(folder, "port.new"), String(server.address().port));
  renameSync(join(folder, "port.new"), join(folder, "port"));
});

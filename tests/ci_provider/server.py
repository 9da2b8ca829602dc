#!/usr/bin/env python3
"""A GitHub (or a GitHub Enterprise server, Gitea, or a webhook's receiver) of our own for tests:
`server.py github|enterprise|gitea|webhook FOLDER`. Writes FOLDER/port when it listens, and every exchange, as one JSON
object a line, to FOLDER/exchanges, for openapi.mjs to hold against GitHub's own description. FOLDER/mode says how it
behaves: see MODES."""
import datetime
import http.server
import json
import os
import re
import sys

FORGE, FOLDER = sys.argv[1:3]
TOKEN = "not-a-real-token"
MODES = ("plain", "no-run-details", "expired", "rate-limited", "disabled", "failing", "error-500")
BASE = {"github": "", "enterprise": "/api/v3", "gitea": "/api/v1", "webhook": ""}[FORGE]
IS_GITHUB = FORGE != "gitea"
runs = {}


def mode():
    try:
        with open(os.path.join(FOLDER, "mode"), encoding="utf-8") as f:
            return f.read().strip()
    except OSError:
        return "plain"


def now():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def user():
    base = "https://api.github.com/users/octocat"
    names = ("followers", "following", "gists", "starred", "subscriptions", "organizations", "repos", "events",
             "received_events")
    return {"login": "octocat", "id": 1, "node_id": "U", "avatar_url": "https://example.org/a", "gravatar_id": "", "url": base,
            "html_url": "https://example.org/octocat", "type": "User", "site_admin": False,
            **{f"{name}_url": base + "/" + name for name in names}}


def repository():
    base = "https://api.github.com/repos/team/bot"
    names = ("archive assignees blobs branches collaborators comments commits compare contents contributors deployments "
             "downloads events forks git_commits git_refs git_tags hooks issue_comment issue_events issues keys labels "
             "languages merges milestones notifications pulls releases stargazers statuses subscribers subscription tags "
             "teams trees").split()
    return {"id": 1, "node_id": "R", "name": "bot", "full_name": "team/bot", "owner": user(), "private": True,
            "html_url": "https://example.org/team/bot", "description": None, "fork": False, "url": base,
            **{f"{name}_url": base + "/" + name for name in names}}


def shown(run):
    base = f"https://api.github.com/repos/team/bot/actions/runs/{run['id']}"
    names = ("jobs", "logs", "check_suite", "artifacts", "cancel", "rerun", "workflow")
    return {"id": run["id"], "name": "deploy", "node_id": "W", "head_branch": "main", "head_sha": "a" * 40,
            "path": ".github/workflows/deploy.yml" if IS_GITHUB else "deploy.yml@refs/heads/main",
            "display_title": run["title"], "run_number": run["id"], "run_attempt": 1, "event": "workflow_dispatch",
            "status": run["status"], "conclusion": run["conclusion"], "workflow_id": 1, "check_suite_id": 1,
            "check_suite_node_id": "C", "url": base, "html_url": f"https://example.org/runs/{run['id']}",
            "pull_requests": [], "created_at": run["created_at"], "updated_at": run["created_at"], "actor": user(),
            "triggering_actor": user(), "run_started_at": run["created_at"], "previous_attempt_url": None,
            "head_commit": None, "repository": repository(), "head_repository": repository(),
            **{f"{name}_url": base + "/" + name for name in names}}


def job(run):
    return {"id": run["id"] * 10, "run_id": run["id"], "run_url": "https://example.org/r", "node_id": "J",
            "head_sha": "a" * 40, "url": "https://example.org/j", "html_url": None, "status": run["status"],
            "conclusion": run["conclusion"], "created_at": run["created_at"], "started_at": run["created_at"],
            "completed_at": None, "name": "deploy", "check_run_url": "https://example.org/c", "labels": [],
            "runner_id": None, "runner_name": None, "runner_group_id": None, "runner_group_name": None,
            "workflow_name": "deploy", "head_branch": "main", "steps": []}


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def answer(self, status, body=None, headers=()):
        data = b"" if body is None else json.dumps(body).encode()
        with open(os.path.join(FOLDER, "exchanges"), "a", encoding="utf-8") as f:
            f.write(json.dumps({"forge": FORGE, "method": self.command, "path": self.path, "request": self.sent, "status": status,
                                "response": body, "accept": self.headers.get("Accept")}) + "\n")
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self):
        self.handle_one()

    def do_GET(self):
        self.handle_one()

    def handle_one(self):
        size = int(self.headers.get("Content-Length") or 0)
        self.sent = json.loads(self.rfile.read(size)) if size else None
        wanted = ("Bearer " if IS_GITHUB else "token ") + TOKEN
        if mode() == "expired" or self.headers.get("Authorization") != wanted:
            return self.answer(401, {"message": "Bad credentials", "documentation_url": "https://docs.github.com/rest"})
        if mode() == "rate-limited":
            with open(os.path.join(FOLDER, "mode"), "w", encoding="utf-8") as f:
                f.write("plain")
            return self.answer(403, {"message": "API rate limit exceeded"}, [("Retry-After", "2")])
        if mode() == "error-500":
            return self.answer(500, {"message": "Server Error"})
        return self.route(self.path.split("?")[0])

    def webhook(self, path):
        if path == "/runs" and self.command == "POST":
            name = "run-" + self.headers["Idempotency-Key"]
            runs.setdefault(name, "running")
            return self.answer(200, {"run": name, "url": "https://example.org/" + name})
        found = re.fullmatch(r"/runs/([^/]+)(/cancel)?", path)
        if not found or found[1] not in runs:
            return self.answer(404, {})
        if runs[found[1]] == "running":
            if found[2]:
                runs[found[1]] = "cancelled"
            elif os.path.exists(os.path.join(FOLDER, "finish")):
                runs[found[1]] = "succeeded"
        return self.answer(200, None if found[2] else {"state": runs[found[1]], "text": "as asked"})

    def route(self, path):
        if FORGE == "webhook":
            return self.webhook(path)
        base = BASE + "/repos/team/bot/actions"
        if not path.startswith(base):
            return self.answer(404, {"message": "Not Found"})
        rest = path[len(base):]
        if rest == "/workflows/deploy.yml" and self.command == "GET":
            state = "disabled_manually" if mode() == "disabled" else "active"
            return self.answer(200, {"id": 1, "node_id": "W", "name": "deploy", "path": ".github/workflows/deploy.yml",
                                     "state": state, "created_at": now(), "updated_at": now(), "url": "https://example.org/w",
                                     "html_url": "https://example.org/w", "badge_url": "https://example.org/b"})
        if rest == "/workflows/deploy.yml/dispatches" and self.command == "POST":
            return self.dispatch()
        if rest in ("/workflows/deploy.yml/runs", "/runs") and self.command == "GET":
            return self.answer(200, {"total_count": len(runs), "workflow_runs": [shown(r) for r in runs.values()][::-1]})
        found = re.fullmatch(r"/runs/(\d+)(/jobs|/cancel)?", rest)
        if not found or int(found[1]) not in runs:
            return self.answer(404, {"message": "Not Found"})
        run = runs[int(found[1])]
        if found[2] == "/cancel":
            if run["conclusion"]:
                return self.answer(409, {"message": "Cannot cancel a workflow run that is completed."})
            run.update(status="completed", conclusion="cancelled")
            return self.answer(202, {})
        if found[2] == "/jobs":
            return self.answer(200, {"total_count": 1, "jobs": [job(run)]})
        # A run moves on each time it is looked at.
        if run["status"] == "queued":
            run["status"] = "in_progress"
        elif run["status"] == "in_progress" and os.path.exists(os.path.join(FOLDER, "finish")):
            run.update(status="completed", conclusion="failure" if mode() == "failing" else "success")
        return self.answer(200, shown(run))

    def dispatch(self):
        inputs = self.sent.get("inputs", {})
        if set(inputs) - {"commit", "environment", "rb_operation"} or not re.fullmatch("[0-9a-f]{40}", inputs["commit"]):
            return self.answer(422, {"message": "Unexpected inputs provided"})
        # An Enterprise server does not know what github.com has learned since.
        if set(self.sent) - {"ref", "inputs"} - ({"return_run_details"} if FORGE == "github" else set()):
            return self.answer(422, {"message": "Invalid request."})
        number = len(runs) + 1
        runs[number] = {"id": number, "title": "deploy " + inputs.get("rb_operation", ""), "status": "queued",
                        "conclusion": None, "created_at": now()}
        if FORGE == "github" and mode() == "plain" and self.sent.get("return_run_details"):
            base = f"https://api.github.com/repos/team/bot/actions/runs/{number}"
            return self.answer(200, {"workflow_run_id": number, "run_url": base,
                                     "html_url": f"https://example.org/runs/{number}"})
        return self.answer(204)


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
with open(os.path.join(FOLDER, "port.new"), "w", encoding="utf-8") as f:
    f.write(str(server.server_address[1]))
os.rename(os.path.join(FOLDER, "port.new"), os.path.join(FOLDER, "port"))
server.serve_forever()

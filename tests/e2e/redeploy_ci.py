#!/usr/bin/env python3
"""A small CI for tests: `redeploy_ci.py FOLDER dispatch|status|cancel KEY-OR-RUN [COMMIT ENVIRONMENT]`, as
`ci: {command: …}` and tests/ci_provider/github.mjs call it.

FOLDER/ci.json: {"modes": {environment: mode}, "trees": {environment: [...]}, "repository": …, "mark": …, "wrong": commit}.
A run deploys as people's CI does: rsync into each tree of the environment, then the service is killed and comes up again.
Modes: "deploy"; "fail": ends with an error before anything; "hang": never ends, having done nothing; "half": deploys to half
of the trees, then never ends; "wrong": deploys another commit, and says that all is well.
"""
import json
import os
import signal
import subprocess
import sys
import tempfile
import time


def write(path, text):
    with open(path + ".new", "w", encoding="utf-8") as f:
        f.write(text)
    os.rename(path + ".new", path)


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def kill_service(tree, mark):
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as f:
                ours = mark.encode() in f.read().split(b"\0")
            if ours and os.path.realpath(os.readlink(f"/proc/{pid}/cwd")) == os.path.realpath(tree):
                os.kill(int(pid), signal.SIGTERM)
        except OSError:
            pass


def work(config, run, commit, environment):
    say = lambda text: write(os.path.join(run, "status"), text)
    mode, trees = config["modes"][environment], config["trees"][environment]
    say("running deploying " + commit[:7])
    if mode == "fail":
        say("failed the tests of the workflow failed")
        return
    if mode == "half":
        trees = trees[:len(trees) // 2]
    if mode == "wrong":
        commit = config["wrong"]
    if mode != "hang":
        with tempfile.TemporaryDirectory() as folder:
            archive = subprocess.run(["git", "archive", commit], cwd=config["repository"], check=True, capture_output=True)
            subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
            for tree in trees:
                subprocess.run(["rsync", "-a", "--delete", "--exclude=data", "--exclude=logs", "--exclude=__pycache__",
                                "--exclude=.rb-staging", folder + "/", tree + "/"], check=True)
                kill_service(tree, config["mark"])
    write(os.path.join(run, "deployed"), "\n".join(trees))
    while mode in ("hang", "half"):
        time.sleep(0.1)
    say("succeeded deployed")


def main():
    folder, verb, name = sys.argv[1:4]
    run = os.path.join(folder, name)
    if verb == "dispatch":
        if not os.path.exists(run):
            os.mkdir(run)
            write(os.path.join(run, "status"), "queued")
            config = json.loads(read(os.path.join(folder, "ci.json")))
            pid = os.fork()
            if pid == 0:
                os.setsid()
                null = os.open("/dev/null", os.O_RDWR)
                for fd in (0, 1, 2):
                    os.dup2(null, fd)
                try:
                    work(config, run, *sys.argv[4:6])
                finally:
                    os._exit(0)
            write(os.path.join(run, "pid"), str(pid))
        print(name)
        print("https://ci.example.org/runs/" + name)
    elif verb == "status":
        print(read(os.path.join(run, "status")))
    elif verb == "cancel":
        if read(os.path.join(run, "status")).split()[0] in ("queued", "running"):
            try:
                os.killpg(int(read(os.path.join(run, "pid"))), signal.SIGKILL)
            except ProcessLookupError:
                pass
            write(os.path.join(run, "status"), "cancelled as asked")


if __name__ == "__main__":
    main()

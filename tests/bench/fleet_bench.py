"""tests/bench/run fleet: one real rb-controller, and thousands of agents over real mutual TLS from one process (the real
link, a fake tree). What it is compared with runs in the same minutes: a bare gRPC fan-out of the same size, and Ansible.
"""
import datetime
import json
import os
import re
import shutil
import sqlite3
import statistics
import subprocess
import tempfile
import threading
import time

SERVICE = "bench"
ROUNDS = 9
WATCHED_ROUNDS = 3
REST_SECONDS = int(os.environ.get("RB_BENCH_REST_SECONDS", "60"))
HISTORY = 10000
ANSIBLE_HOSTS = 50


def memory_kib(pid, key="VmRSS"):
    with open(f"/proc/{pid}/status", encoding="ascii") as f:
        return int(re.search(rf"^{key}:\s+(\d+)", f.read(), re.M).group(1))


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat", encoding="utf-8") as f:
        fields = f.read().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def quantile(values, q):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * q))]


class Bare:
    """A bare gRPC fan-out of the same size. It waits, without any traffic, until it is its turn."""

    def __init__(self, bench, *options):
        self.server = bench.part("bare-server", *options, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        port = int(self.server.stdout.readline().split()[1])
        self.agents = bench.part("bare-agents", "--address", f"127.0.0.1:{port}", *options, stdin=subprocess.PIPE)
        if self.server.stdout.readline().strip() != "connected":
            raise SystemExit("the bare agents do not connect")
        self.p99 = []

    def round(self):
        """p99 of command → answer, seconds."""
        self.server.stdin.write("\n")
        self.server.stdin.flush()
        self.p99.append(float(self.server.stdout.readline().split()[4]))


class Bench:
    def __init__(self, bin_dir, agents, say):
        self.bin, self.agents, self.say = bin_dir, agents, say
        self.folder = tempfile.mkdtemp(prefix="rb-bench-")
        self.processes = []
        self.figures = []

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def figure(self, name, value, goal=None, against=None, ratio=None, ok=None):
        """`ok`: whether the goal is met; left out: the value is under it."""
        met = True if goal is None else (value <= goal if ok is None else ok)
        self.figures.append({"name": name, "value": value, "against": against, "ratio": ratio, "goal": goal, "ok": met})
        self.say(f"{name}: {value}" + (f" against {against}, ratio {ratio}" if ratio else "") + ("" if met else " MISSED"))

    def start(self, *command, **kwargs):
        with open(self.path("log"), "ab") as log:
            process = subprocess.Popen(command, stderr=log, text=True, **kwargs)
        self.processes.append(process)
        return process

    def part(self, name, *options, **kwargs):
        return self.start(os.path.join(self.bin, "rb_bench_fleet"), name, "--dir", self.path("controller"),
                          "--identities", self.path("identities"), "--operator", self.path("admin"), "--agents",
                          str(self.agents), *options, **kwargs)

    def rbctl(self, *args):
        run = subprocess.run([os.path.join(self.bin, "rbctl"), *args], capture_output=True, text=True, timeout=600,
                             env={**os.environ, "RBCTL_IDENTITY": self.path("admin")})
        if run.returncode != 0:
            raise SystemExit(f"rbctl {' '.join(args[:3])}: {run.returncode}\n{run.stdout[-2000:]}\n{run.stderr[-2000:]}")
        return run.stdout

    def end(self, process):
        """A part ends when its standard input is closed."""
        if process.stdin:
            process.stdin.close()
        else:
            process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close(self):
        for process in reversed(self.processes):
            if process.poll() is None:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---

    def set_up(self):
        hosts = ", ".join(f"host-{i}" for i in range(self.agents))
        with open(self.path("fleet.yaml"), "w", encoding="ascii") as f:
            f.write(f"environments:\n  prod: {{order: 1}}\nservices:\n  {SERVICE}:\n    hosts: {{prod: [{hosts}]}}\n"
                    "    wave: {size: \"100%\", on_failure: revert}\n")
        os.mkdir(self.path("identities"))
        subprocess.run([os.path.join(self.bin, "rb-controller"), "init", "--dir", self.path("controller"),
                        "--advertise", "127.0.0.1", "--admin", "bench", "--out", self.path("admin")], check=True,
                       stdout=subprocess.DEVNULL)
        self.controller = self.start(os.path.join(self.bin, "rb-controller"), "serve", "--dir",
                                     self.path("controller"), "--fleet", self.path("fleet.yaml"), "--listen",
                                     "127.0.0.1:0", "--join-listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
        until = time.monotonic() + 60
        while not os.path.exists(self.path("controller", "ready")):
            if self.controller.poll() is not None or time.monotonic() > until:
                raise SystemExit("the controller does not start")
            time.sleep(0.05)
        with open(self.path("controller", "link.address"), encoding="ascii") as f:
            self.address = f.read().strip()
        began = time.monotonic()
        made = self.part("identities", "--address", self.address)
        if made.wait(600) != 0:
            raise SystemExit("no identities")
        self.say(f"{self.agents} identities: {time.monotonic() - began:.1f} s")

    def connect(self):
        self.empty_kib = memory_kib(self.controller.pid)
        began = time.monotonic()
        self.load = self.part("agents", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for line in self.load.stdout:
            if line.split() == ["open", str(self.agents)]:
                break
        else:
            raise SystemExit("the agents do not connect")
        self.say(f"connected in {time.monotonic() - began:.1f} s")
        # Nobody reads the rest otherwise.
        threading.Thread(target=self.load.stdout.read, daemon=True).start()

    def rest(self):
        time.sleep(10)
        before, began = cpu_seconds(self.controller.pid), time.monotonic()
        time.sleep(REST_SECONDS)
        share = (cpu_seconds(self.controller.pid) - before) / (time.monotonic() - began)
        self.figure("controller at rest, % of a core", round(100 * share, 2), 3)
        resting = (memory_kib(self.controller.pid) - self.empty_kib) / self.agents
        self.figure("controller memory for an agent at rest, KiB", round(resting, 1), 200)

    def begin_rollback(self, *options):
        """One of all hosts in one wave, as rbctl answers it."""
        return json.loads(self.rbctl("rollback", "prod", "--to", "v1", "--reason", "benchmark", "-o", "json", *options))

    def watched_rollback(self):
        """Seconds until rbctl, which watches all hosts, has said that it succeeded."""
        began = time.monotonic()
        run = self.begin_rollback()
        took = time.monotonic() - began
        self.succeeded(run["id"])
        self.say(f"rollback: {took:.2f} s as rbctl sees it")
        return took

    def rollback(self):
        """p99 of command → answer of each step, seconds, from the operation's history. Nobody watches: an operator does
        so on another machine than this.
        """
        run, began = self.begin_rollback("--no-wait"), time.monotonic()
        with sqlite3.connect(f"file:{self.path('controller', 'controller.db')}?mode=ro", uri=True) as database:
            while not database.execute("SELECT ended FROM operations WHERE id = ?", (run["id"],)).fetchone()[0]:
                if time.monotonic() - began > 600:
                    raise SystemExit("the rollback does not end")
                time.sleep(0.1)
        self.succeeded(run["id"])
        p99 = {step: quantile(seconds, 0.99) for step, seconds in self.times_of(run["id"]).items()}
        self.say("rollback: p99 " + ", ".join(f"{step} {seconds:.3f} s" for step, seconds in p99.items()))
        return p99

    def succeeded(self, operation):
        newest = json.loads(self.rbctl("history", "prod", "--limit", "1", "-o", "json"))["operations"][0]
        if newest["id"] != operation or newest["outcome"] != "succeeded" or newest["host_count"] != self.agents:
            raise SystemExit(f"the rollback did not succeed: {newest['summary']}")

    def times_of(self, operation):
        """Step → seconds from when it was decided until each host's answer was taken, as the controller has it."""
        events = self.part("timeline", "--address", self.address, "--operation", operation, stdout=subprocess.PIPE)
        out, _ = events.communicate(timeout=120)
        began, answers = {}, {}
        for line in out.splitlines():
            at, host, text = line.split("\t", 2)
            at = float(at)
            if host == "":
                for step, words in (("prepare", "preparing"), ("commit", "committing"), ("keep", "keeping")):
                    if text.startswith(words):
                        began[step] = at
                continue
            for step, words in (("prepare", "prepared in"), ("commit", "committed:"), ("verify", "healthy;"),
                                ("keep", "kept as")):
                if text.startswith(words):
                    answers.setdefault(step, {})[host] = at
        for step, hosts in answers.items():
            if len(hosts) != self.agents:
                raise SystemExit(f"{step}: {len(hosts)} answers of {self.agents}")
        return {step: [at - began[step] for at in answers[step].values()] for step in ("prepare", "commit", "keep")}

    def rollbacks(self):
        """In turns with the bare ones: this machine is not as fast in every minute."""
        bare, tuned = Bare(self), Bare(self, "--tuned")
        # The first ones fill the buffers.
        watched = [self.watched_rollback() for _ in range(WATCHED_ROUNDS + 1)][1:]
        ours = []
        for _ in range(ROUNDS + 1):
            for other in (bare, tuned):
                time.sleep(1)  # what the one before has left to be done
                other.round()
            time.sleep(1)
            ours.append(self.rollback())
        ours = ours[1:]
        bare_p99, tuned_p99 = (statistics.median(other.p99[1:]) for other in (bare, tuned))
        for name, other in (("bare", bare), ("bare with our transport", tuned)):
            self.say(f"{name}, p99: " + " ".join(f"{p99:.3f}" for p99 in other.p99))
            for process in (other.agents, other.server):
                process.kill()
                process.wait()
        for step in ("prepare", "commit", "keep"):
            mine = statistics.median(p99[step] for p99 in ours)
            ratio = round(mine / bare_p99, 2)
            self.figure(f"p99 of {step} command → acknowledged, s; ratio to bare", round(mine, 3), 1.5,
                        round(bare_p99, 3), ratio, ok=ratio <= 1.5)
            self.figure(f"for comparison: {step} over bare with our transport", round(mine, 3), None,
                        round(tuned_p99, 3), round(mine / tuned_p99, 2))
        self.figure("the whole rollback as rbctl sees it, s", round(statistics.median(watched), 2))
        after = (memory_kib(self.controller.pid) - self.empty_kib) / self.agents
        self.figure("controller memory for an agent after that, KiB", round(after, 1), 200)
        peak = (memory_kib(self.controller.pid, "VmHWM") - self.empty_kib) / self.agents
        self.figure("controller memory for an agent at its peak, KiB", round(peak, 1))

    def history(self):
        """10,000 operations like those that were, and the listing of them."""
        with sqlite3.connect(self.path("controller", "controller.db"), timeout=30) as database:
            row = database.execute("SELECT o.id, o.environment, o.service, snapshot, brief FROM operations o JOIN "
                                   "listing ON operation_id = o.id ORDER BY number DESC LIMIT 1").fetchone()
            # What stands in the snapshot does not matter for a list; it is only to be as long as a small one's.
            have = database.execute("SELECT count(*) FROM operations").fetchone()[0]
            for i in range(HISTORY - have):
                name = f"op-20200101T000000Z-{i:06x}"
                brief = row[4].replace(row[0].encode(), name.encode()) if len(name) == len(row[0]) else row[4]
                database.execute("INSERT INTO operations VALUES (?, ?, ?, 1, NULL, ?)",
                                 (name, row[1], row[2], row[3][:4000]))
                database.execute("INSERT INTO listing VALUES (last_insert_rowid(), ?, ?, ?, 1, ?)",
                                 (name, row[1], row[2], brief))
        run = self.part("list", "--address", self.address, "--rounds", "7", stdout=subprocess.PIPE)
        out, _ = run.communicate(timeout=120)
        times = {}
        for line in out.splitlines():
            _, count, seconds = line.split()
            times.setdefault(int(count), []).append(float(seconds))
        for count, seconds in sorted(times.items()):
            self.figure(f"list {count} operations of {HISTORY}, s", round(statistics.median(seconds), 4), 0.05)
        if sorted(times) != [50, HISTORY]:
            raise SystemExit(f"not all were listed: {sorted(times)}")
        took = []
        for _ in range(7):
            began = time.monotonic()
            out = self.rbctl("history", "--limit", str(HISTORY))
            took.append(time.monotonic() - began)
            if out.count("\n") != HISTORY + 1:
                raise SystemExit(f"rbctl history shows {out.count(chr(10))} lines")
        self.figure("the same as a table by rbctl, process and handshake included, s", round(statistics.median(took), 3))

    def ansible(self):
        """The same no-op on 50 hosts: what Ansible and rbctl need for it."""
        with open(self.path("inventory"), "w", encoding="ascii") as f:
            f.writelines(f"host-{i}\n" for i in range(ANSIBLE_HOSTS))
        command = ["ansible", "all", "-i", self.path("inventory"), "-c", "local", "-m", "ping", "-f",
                   str(ANSIBLE_HOSTS), "-o"]
        env = {**os.environ, "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3", "ANSIBLE_LOCALHOST_WARNING": "0",
               "ANSIBLE_HOME": self.path("ansible"), "ANSIBLE_LOCAL_TEMP": self.path("ansible")}
        hosts = [word for i in range(ANSIBLE_HOSTS) for word in ("--host", f"host-{i}")]
        ours, theirs = [], []
        for _ in range(3):
            began = time.monotonic()
            run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
            theirs.append(time.monotonic() - began)
            if run.returncode != 0 or run.stdout.count("SUCCESS") != ANSIBLE_HOSTS:
                raise SystemExit(f"ansible: {run.returncode}\n{run.stdout[-1000:]}\n{run.stderr[-1000:]}")
            began = time.monotonic()
            # Forced, since the rollbacks before have left it quarantined.
            out = self.rbctl("rollback", "prod", "--to", "v2", "--force", "--reason", "no-op", *hosts, "-o", "json")
            ours.append(time.monotonic() - began)
            if json.loads(out)["outcome"] != "already_there":
                raise SystemExit(f"that was not a no-op: {out[:500]}")
        mine, other = statistics.median(ours), statistics.median(theirs)
        self.figure(f"a no-op on {ANSIBLE_HOSTS} hosts, s, against Ansible (local connection)", round(mine, 3), None,
                    round(other, 3), round(mine / other, 3))


def run_fleet(bin_dir, agents, say):
    bench = Bench(bin_dir, agents, say)
    try:
        bench.set_up()
        bench.connect()
        bench.rest()
        bench.rollbacks()
        bench.history()
        bench.ansible()
        bench.end(bench.load)
    except BaseException:
        with open(bench.path("log"), encoding="utf-8", errors="replace") as f:
            say(f.read()[-3000:])
        raise
    finally:
        bench.close()
    return {"name": "fleet", "agents": agents, "at": datetime.datetime.now(datetime.timezone.utc).isoformat(),
            "figures": bench.figures}

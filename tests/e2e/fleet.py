"""A fleet for tests: the built programs as separate processes over mutual TLS on loopback, in one temporary folder.

    with Fleet({"prod": ["prod-1", "prod-2"]}) as fleet:
        fleet.rbctl("deploy", "prod", "--to", "v1.0.0", "--reason", "first")

Nothing depends on fixed ports, on another fleet, or on how long things take: conditions are polled, with a deadline.
On leaving, exactly the processes that were started here are ended, and the folder is removed.
"""
import collections
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.environ.get("RB_BIN_DIR", os.path.join(ROOT, "build", "dev", "bin"))
SERVICE = "sample-bot"
MARK = "RB_TEST_FLEET"
PYTHON = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable

Result = collections.namedtuple("Result", "code out err")


def free_ports(count):
    """Free, and outside of the range from which outgoing connections take theirs: a service that is stopped for a
    moment must find its port again."""
    held = []
    while len(held) < count:
        s = socket.socket()
        try:
            s.bind(("127.0.0.1", random.randrange(20000, 32000)))
            held.append(s)
        except OSError:
            s.close()
    ports = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return ports


def wait_for(condition, what, seconds=30):
    """Returns the first true value of condition()."""
    until = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > until:
            raise AssertionError(f"gave up after {seconds} s: {what}")
        time.sleep(0.02)


def start_time(pid):
    """Ticks since boot at which the process began; None when there is none, or its zombie alone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as f:
            fields = f.read().rsplit(") ", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def marked(mark):
    """Ids of the processes whose environment holds `mark`."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as f:
                if mark.encode() in f.read().split(b"\0") and start_time(pid) is not None:
                    found.append(int(pid))
        except OSError:
            pass
    return found


def in_own_mounts():
    """Goes on in a mount namespace of its own, whose mounts go with it whatever happens; ends the process as skipped
    (77) where that is not allowed."""
    if os.environ.get("RB_OWN_MOUNTS"):
        return
    probe = ["unshare", "--mount", "--propagation", "private"]
    if shutil.which("unshare") is None or subprocess.run([*probe, "true"], check=False).returncode != 0:
        print("skipped: mounting takes root", file=sys.stderr)
        sys.exit(77)
    os.execvpe("unshare", [*probe, sys.executable, *sys.argv], {**os.environ, "RB_OWN_MOUNTS": "1"})


class Fleet:
    def __init__(self, environments=None, fleet_extra="", retain=10, wave="100%", on_failure="revert",
                 verify_deadline="10s", bin_dir=BIN, service_lines="", gates=None, drills=None, agent_options=(),
                 targets="backup: 3m, redeploy: 10m, git: 2m", metrics="127.0.0.1:0", unit_probe="\n      - unit: {}",
                 disks=None, verify_watch="10s"):
        self.environments = environments or {"test": ["test-1", "test-2"], "prod": ["prod-1", "prod-2"]}
        self.hosts = [host for hosts in self.environments.values() for host in hosts]
        self.environment_of = {host: env for env, hosts in self.environments.items() for host in hosts}
        self.bin = bin_dir
        self.folder = tempfile.mkdtemp(prefix="rb-e2e-")
        self.mark = f"{MARK}={self.folder}"
        self.processes = {}
        self.fleet_extra, self.retain, self.wave, self.on_failure = fleet_extra, retain, wave, on_failure
        self.verify_deadline, self.verify_watch = verify_deadline, verify_watch
        self.service_lines = service_lines
        # More words for `rb-agent serve`.
        self.agent_options = agent_options
        self.targets, self.metrics, self.unit_probe = targets, metrics, unit_probe
        # Environment -> its gate, as YAML.
        self.gates = gates or {}
        # Environment -> what drills may do there, as YAML.
        self.drills = drills or {}
        # Host -> size of a filesystem of its own, for its tree and its agent's store. Takes a mount namespace of one's
        # own, see in_own_mounts.
        self.disks = disks or {}
        self.identity = self.path("admin")

    def __enter__(self):
        try:
            self._begin()
        except BaseException:
            self.print_logs()
            self.close()
            raise
        return self

    def __exit__(self, kind, value, trace):
        if kind is not None:
            self.print_logs()
        self.close()

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def tree(self, host):
        return self.path("hosts", host, SERVICE)

    # --- Setting up ---

    def _begin(self):
        os.mkdir(self.path("logs"))
        subprocess.run([os.path.join(ROOT, "deploy", "sample-service", "make-repository"), self.path("work")],
                       check=True)
        self.git("init", "-q", "--bare", "-b", "main", self.path("remote.git"), cwd=self.folder)
        ports = free_ports(2 + len(self.hosts))
        self.controller_port, self.join_port = ports[:2]
        self.port = dict(zip(self.hosts, ports[2:]))
        self.write_fleet()
        self.program("rb-controller", "init", "--dir", self.path("controller"), "--advertise", "127.0.0.1", "--admin",
                     "alice", "--out", self.identity)
        self.start_controller()
        for host, size in self.disks.items():
            os.makedirs(self.path("hosts", host))
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs",
                            self.path("hosts", host)], check=True)
        for host in self.hosts:
            self.write_agent(host)
            self.join(host)
            self.start_agent(host)
        self.wait_connected()

    def write_fleet(self):
        with open(self.path("fleet.yaml"), "w", encoding="utf-8") as f:
            f.write("environments:\n")
            for order, env in enumerate(self.environments, 1):
                gate = f", gate: {self.gates[env]}" if env in self.gates else ""
                drills = f", allow_drills: true, drills: {self.drills[env]}" if env in self.drills else ""
                f.write(f"  {env}: {{order: {order}{gate}{drills}}}\n")
            hosts = ", ".join(f"{env}: [{', '.join(names)}]" for env, names in self.environments.items())
            f.write(f"services:\n  {SERVICE}:\n    hosts: {{{hosts}}}\n"
                    f"    targets: {{{self.targets}}}\n"
                    f"    wave: {{size: \"{self.wave}\", on_failure: {self.on_failure}}}\n"
                    f"    retain: {{releases: {self.retain}}}\n"
                    f"    verify: {{deadline: {self.verify_deadline}, watch: {self.verify_watch}}}\n{self.fleet_extra}")

    def write_agent(self, host, config=None):
        os.makedirs(self.tree(host), exist_ok=True)
        os.makedirs(self.path("hosts", host, "state"), exist_ok=True)
        port = self.port[host]
        with open(self.path("hosts", host, "agent.yaml"), "w", encoding="utf-8") as f:
            f.write(config or f"""services:
  {SERVICE}:
    tree: {self.tree(host)}
    process:
      command: [{PYTHON}, run.py, config-prod.json]
      environment: {{SAMPLE_BOT_PORT: "{port}", {MARK}: "{self.folder}"}}
      log: {self.path("logs", host + "-service.log")}
    components: {{config: ["config-*.json"], data: ["data/**"]}}
    ignore: ["logs/**", "**/__pycache__/**"]
    sqlite: [data/bot.db]
    git: {{remote: "file://{self.path("remote.git")}", branch: main}}
    check_config: [{{json: "config-*.json"}}]
    probes:{self.unit_probe}
      - http: {{url: "http://127.0.0.1:{port}/api/health", json: {{status: healthy}}}}
      - log: {{expect: "Connected to chat", forbid: "ERROR|CRITICAL", within: 10s}}
      - version: {{url: "http://127.0.0.1:{port}/api/health", json: version}}
      - sqlite: {{path: data/bot.db}}
{self.service_lines.replace("@HOST@", host)}""")

    @contextlib.contextmanager
    def change_agent(self, host, old, new):
        """The host's agent with `new` for `old` in its file; on leaving, also by an exception, with the file as it was."""
        path = self.path("hosts", host, "agent.yaml")
        with open(path, encoding="utf-8") as f:
            text = f.read()
        assert old in text, f"{path} does not say {old}"
        try:
            self._restart_agent(host, text.replace(old, new))
            self.wait_connected()
            yield
        finally:
            self._restart_agent(host, text)
        self.wait_connected()

    def _restart_agent(self, host, config):
        self.kill(host)
        self.write_agent(host, config)
        self.start_agent(host)

    def join(self, host):
        token = self.token(host)
        self.program("rb-agent", "join", "--state", self.path("hosts", host, "state"), "--token-file", token)

    def token(self, name):
        """A file with a new one-time token."""
        path = self.path(f"token-{name}-{random.randrange(10 ** 9)}")
        with open(path, "w", encoding="utf-8") as f:
            os.chmod(path, 0o600)
            f.write(self.program("rb-controller", "token", name, "--dir", self.path("controller")).out)
        return path

    def git(self, *args, cwd=None):
        env = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null",
               "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@example.org", "GIT_COMMITTER_NAME": "t",
               "GIT_COMMITTER_EMAIL": "t@example.org"}
        return subprocess.run(["git", *args], cwd=cwd or self.path("work"), env=env, check=True, capture_output=True,
                              text=True).stdout.strip()

    def push(self, tag):
        self.git("push", "-q", "-f", self.path("remote.git"), f"{tag}^{{commit}}:refs/heads/main", tag)

    def commit_of(self, tag):
        return self.git("rev-parse", f"{tag}^{{commit}}")

    def operator(self, name, role="operator"):
        """The identity folder of a new operator."""
        folder = self.path(f"operator-{name}")
        self.program("rb-controller", "operator", "add", name, "--role", role, "--out", folder, "--dir",
                     self.path("controller"))
        return folder

    # --- Processes ---

    def program(self, name, *args, code=0, env=None, timeout=60):
        """Runs a program to its end, and expects that exit status (None: any)."""
        run = subprocess.run([os.path.join(self.bin, name), *args], capture_output=True, text=True, timeout=timeout,
                             stdin=subprocess.DEVNULL, env={**os.environ, MARK: self.folder, **(env or {})})
        if code is not None and run.returncode != code:
            raise AssertionError(f"{name} {' '.join(args)} ended with {run.returncode}, not {code}\n"
                                 f"{run.stdout}\n{run.stderr}")
        return Result(run.returncode, run.stdout, run.stderr)

    def rbctl(self, *args, code=0, identity=None, env=None, timeout=120):
        return self.program("rbctl", *args, code=code, timeout=timeout,
                            env={"RBCTL_IDENTITY": identity or self.identity, **(env or {})})

    def rbctl_json(self, *args, code=0, **kwargs):
        return json.loads(self.rbctl(*args, "-o", "json", code=code, **kwargs).out)

    def start_rbctl(self, *args, env=None):
        """In the background; not waited for."""
        return self._spawn("rbctl", ["rbctl", *args], {"RBCTL_IDENTITY": self.identity, **(env or {})})

    def _spawn(self, key, command, env=None):
        with open(self.path("logs", f"{key}.log"), "ab") as log:
            process = subprocess.Popen([os.path.join(self.bin, command[0]), *command[1:]], stdin=subprocess.DEVNULL,
                                       stdout=log, stderr=log, start_new_session=True,
                                       env={**os.environ, MARK: self.folder, **(env or {})})
        self.processes[key] = process
        return process

    def start_controller(self, failpoint=None):
        ready = self.path("controller", "ready")
        if os.path.exists(ready):
            os.remove(ready)
        self._spawn("controller", ["rb-controller", "serve", "--dir", self.path("controller"), "--fleet",
                                   self.path("fleet.yaml"), "--listen", f"127.0.0.1:{self.controller_port}",
                                   "--join-listen", f"127.0.0.1:{self.join_port}", "--metrics", self.metrics],
                    {"RB_FAILPOINT": failpoint} if failpoint else None)
        # One that is to be killed may be that before anybody has seen that it was ready.
        self._wait_ready("controller", ready, may_end=failpoint is not None)

    def start_agent(self, host, failpoint=None):
        ready = self.path("hosts", host, "state", "ready")
        if os.path.exists(ready):
            os.remove(ready)
        self._spawn(host, ["rb-agent", "serve", "--config", self.path("hosts", host, "agent.yaml"), "--state",
                           self.path("hosts", host, "state"), *self.agent_options],
                    {"RB_FAILPOINT": failpoint} if failpoint else None)
        self._wait_ready(host, ready, may_end=failpoint is not None)

    def _wait_ready(self, key, ready, may_end=False):
        process = self.processes[key]
        wait_for(lambda: os.path.exists(ready) or process.poll() is not None, f"{key} to be ready")
        if process.poll() is not None and not may_end:
            raise AssertionError(f"{key} ended with {process.returncode} before it was ready")

    def kill(self, key, sig=signal.SIGKILL):
        process = self.processes[key]
        if process.poll() is None:
            os.kill(process.pid, sig)
        process.wait(timeout=30)

    def ended(self, key):
        return self.processes[key].poll() is not None

    def service_pid(self, host):
        """The service's main process: the one whose folder is that host's tree."""
        for pid in marked(self.mark):
            try:
                if os.path.realpath(os.readlink(f"/proc/{pid}/cwd")) == os.path.realpath(self.tree(host)):
                    return pid
            except OSError:
                pass
        return None

    # --- Looking ---

    def agents(self):
        return self.rbctl_json("agents")["agents"]

    def are_connected(self, hosts=None):
        run = self.rbctl("agents", "-o", "json", code=None)
        if run.code != 0:
            return False
        names = {agent["name"] for agent in json.loads(run.out)["agents"] if agent.get("connected")}
        return names >= set(hosts or self.hosts)

    def wait_connected(self, hosts=None, seconds=30):
        wait_for(lambda: self.are_connected(hosts), f"{hosts or self.hosts} to connect", seconds)

    def health(self, host):
        """What the service says of itself; None when it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port[host]}/api/health", timeout=5) as answer:
                return json.load(answer)
        except (OSError, ValueError):
            return None

    def is_healthy(self, host, version=None):
        health = self.health(host)
        return bool(health) and health["status"] == "healthy" and version in (None, health["version"])

    def attributes(self, host, data=False):
        """path -> (mode, owner, group, mtime in ns, digest or link) of the tree, without what is ignored (and data)."""
        tree, result = self.tree(host), {}
        for folder, folders, names in os.walk(tree):
            folders[:] = [f for f in folders if f not in ("__pycache__", "logs") and (data or f != "data")]
            for name in folders + names:
                path = os.path.join(folder, name)
                s = os.lstat(path)
                content, mtime = "", s.st_mtime_ns
                if stat.S_ISREG(s.st_mode):
                    with open(path, "rb") as f:
                        content = hashlib.sha256(f.read()).hexdigest()
                elif stat.S_ISLNK(s.st_mode):
                    content = os.readlink(path)
                elif stat.S_ISDIR(s.st_mode):
                    mtime = None  # Python's own cache folders change it
                result[os.path.relpath(path, tree)] = (s.st_mode, s.st_uid, s.st_gid, mtime, content)
        return result

    def contents(self, host):
        """path -> digest of the files, without data."""
        return {path: value[4] for path, value in self.attributes(host).items() if stat.S_ISREG(value[0])}

    def contents_of(self, tag):
        """The same of a tag in git."""
        folder = self.path(f"export-{tag}")
        if not os.path.exists(folder):
            os.mkdir(folder)
            archive = subprocess.run(["git", "archive", tag], cwd=self.path("work"), check=True, capture_output=True)
            subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        result = {}
        for path, _, names in os.walk(folder):
            for name in names:
                with open(os.path.join(path, name), "rb") as f:
                    result[os.path.relpath(os.path.join(path, name), folder)] = hashlib.sha256(f.read()).hexdigest()
        return result

    def deploy(self, environment, tag, *args, code=0, push=True):
        if push:
            self.push(tag)
        return self.rbctl("deploy", environment, "--to", tag, "--reason", f"deploy {tag}", *args, code=code)

    def checkout(self, tag, changes=None):
        """A clone as a CI job has it, of a tag or of a new commit on top of it; and its commit."""
        folder = self.path(f"ci-{tag}-{len(os.listdir(self.folder))}")
        self.git("clone", "-q", self.path("work"), folder)
        self.git("checkout", "-q", tag, cwd=folder)
        for path, content in (changes or {}).items():
            with open(os.path.join(folder, path), "w", encoding="utf-8") as f:
                f.write(content)
        if changes:
            self.git("add", "-A", cwd=folder)
            self.git("commit", "-q", "-m", "by other means", cwd=folder)
        return folder, self.git("rev-parse", "HEAD", cwd=folder)

    def rsync(self, folder, host):
        """A deploy by other means, which spares what the service writes."""
        subprocess.run(["rsync", "-a", "--exclude", "data", "--exclude", "logs", folder + "/", self.tree(host) + "/"],
                       check=True)

    # --- Ending ---

    def print_logs(self):
        logs = self.path("logs")
        for name in sorted(os.listdir(logs)) if os.path.isdir(logs) else []:
            with open(os.path.join(logs, name), encoding="utf-8", errors="replace") as f:
                lines = f.read().splitlines()
            print(f"--- {name}: the last {min(len(lines), 40)} of {len(lines)} lines", file=sys.stderr)
            print("\n".join(lines[-40:]), file=sys.stderr)

    def close(self):
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
        for process in self.processes.values():
            process.wait(timeout=30)

        def swept():
            left = marked(self.mark)
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            return not left
        wait_for(swept, "the fleet's processes to end")
        for host in self.disks:
            subprocess.run(["umount", "-l", self.path("hosts", host)], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

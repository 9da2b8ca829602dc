"""A fleet of real servers for tests: hosts with systemd, the project's packages installed, agents joined.

    with HostFleet({"test": ["test-1", "test-2"], "prod": ["prod-1", "prod-2"]}, clones=["prod-2"]) as fleet:
        fleet.deploy("prod", "v1.0.0")

The packages are made of the build in RB_BUILD_DIR (default build/dev), so failpoints are there. rbctl runs in a network
namespace of its own, from what its package holds.
"""
import collections
import concurrent.futures
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from lab import HOSTS, Lab  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get("RB_BUILD_DIR", os.path.join(ROOT, "build", "dev"))
SERVICE = "sample-bot"
TREE = f"/opt/{SERVICE}"
HEALTH = "http://127.0.0.1:8001/api/health"
Result = collections.namedtuple("Result", "code out err")

UNIT = f"""[Unit]
Description=The sample bot
StartLimitBurst=1000
[Service]
User=rosey
WorkingDirectory={TREE}
Environment=PYTHONDONTWRITEBYTECODE=1
ExecStart=/usr/bin/python3 run.py config-prod.json
Restart=always
RestartSec=1
[Install]
WantedBy=multi-user.target
"""


def wait_for(condition, what, seconds=30):
    """Returns the first true value of condition()."""
    until = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > until:
            raise AssertionError(f"gave up after {seconds} s: {what}")
        time.sleep(0.05)


NEWER = "9.9.9"


def build_packages(folder):
    """The three packages of the build, and the daemons' once more as a version that is newer."""
    os.makedirs(folder, exist_ok=True)
    subprocess.run([os.path.join(ROOT, "deploy", "build-packages"), folder], env={**os.environ, "BUILD_DIR": BUILD},
                   check=True, stdout=subprocess.PIPE, timeout=300)
    for name, path in packages_in(folder).items():
        if name == "rbctl":
            continue
        with tempfile.TemporaryDirectory(dir=folder) as unpacked:
            subprocess.run(["dpkg-deb", "-R", path, unpacked], check=True)
            control = os.path.join(unpacked, "DEBIAN", "control")
            with open(control, encoding="utf-8") as file:
                text = file.read()
            with open(control, "w", encoding="utf-8") as file:
                file.write("\n".join(f"Version: {NEWER}" if line.startswith("Version:") else line
                                     for line in text.split("\n")))
            subprocess.run(["dpkg-deb", "-Zgzip", "-z1", "-b", unpacked, os.path.join(folder, f"newer-{name}.deb")],
                           check=True, stdout=subprocess.DEVNULL)


def packages_in(folder):
    return {name.split("_")[0]: os.path.join(folder, name)
            for name in os.listdir(folder) if name.endswith(".deb") and not name.startswith("newer-")}


class HostFleet:
    def __init__(self, environments=None, clones=(), agent_lines="", fleet_lines="", wave="100%",
                 on_failure="revert", verify_seconds=20, drills=""):
        self.environments = environments or {"prod": ["prod-1", "prod-2"]}
        self.hosts = [host for hosts in self.environments.values() for host in hosts]
        self.clones = set(clones)
        self.agent_lines, self.fleet_lines, self.wave, self.on_failure = agent_lines, fleet_lines, wave, on_failure
        self.verify_seconds = verify_seconds
        # What drills may do in every environment, as YAML.
        self.drills = f", allow_drills: true, drills: {drills}" if drills else ""
        # Not in /tmp: it may be a tmpfs, and folders are mounted into hosts from here.
        self.folder = tempfile.mkdtemp(prefix="rb-host-fleet-", dir="/var/tmp")
        self.lab = None

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def __enter__(self):
        try:
            self._begin()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, kind, value, trace):
        if self.lab is not None:
            if kind is not None:
                self.print_logs()
            self.lab.__exit__()
        shutil.rmtree(self.folder, ignore_errors=True)

    def print_logs(self):
        for host in ["controller", *self.hosts]:
            text = self.lab.run(host, "journalctl", "-n", "40", "--no-pager", "-o", "short-precise", "-u", "rb-*", "-u",
                                SERVICE, check=False)
            print(f"--- {host}\n{text}", file=sys.stderr)

    # --- Setting up ---

    def _begin(self):
        # RB_PACKAGES: built already, for several tests.
        folder = os.environ.get("RB_PACKAGES") or self.path("packages")
        if not os.path.isdir(folder):
            build_packages(folder)
        self.packages = packages_in(folder)
        subprocess.run(["dpkg-deb", "-x", self.packages["rbctl"], self.path("workstation")], check=True)
        self.git_command = [os.path.join(ROOT, "deploy", "sample-service", "make-repository"), self.path("work")]
        subprocess.run(self.git_command, check=True)
        self.git("init", "-q", "--bare", "-b", "main", self.path("sample-bot.git"), cwd=self.folder)
        self.push("v1.0.0")
        self.lab = Lab("controller", *self.hosts, bind=[
            f"{folder}:/srv/packages", f"{self.path('sample-bot.git')}:/srv/sample-bot.git"])
        self.lab.__enter__()
        for host in ["controller", *self.hosts]:
            self._make_dpkg_work(host)
        self._set_up_controller()
        with concurrent.futures.ThreadPoolExecutor(len(self.hosts)) as pool:
            list(pool.map(self._set_up_host, self.hosts))
        self.wait_connected()

    def _make_dpkg_work(self, host):
        """What is installed on this machine is there on the host as well, so let its dpkg know."""
        folder = os.path.join(self.lab.root(host), "var", "lib", "dpkg")
        for name in ("info", "updates", "triggers", "alternatives", "parts"):
            os.makedirs(os.path.join(folder, name), exist_ok=True)
        for name in ("status", "info/format"):
            shutil.copy(os.path.join("/var/lib/dpkg", name), os.path.join(folder, name))

    def install(self, host, *packages):
        """Names of packages of /srv/packages, or paths on the host."""
        names = [p if "/" in p else f"/srv/packages/{os.path.basename(self.packages[p])}" for p in packages]
        return self.lab.run(host, "dpkg", "-i", *names)

    def put(self, host, path, text, mode="644"):
        self.lab.run(host, "sh", "-c", 'umask 077; mkdir -p "$(dirname "$1")" && printf %s "$2" >"$1" && chmod $3 "$1"',
                     "sh", path, text, mode)

    def _set_up_controller(self):
        run = self.lab.run
        self.install("controller", "rb-controller")
        self.put("controller", "/etc/rb/fleet.yaml", self.fleet_file())
        address = self.lab("ip", "controller").strip()
        run("controller", "rb-controller", "init", "--advertise", address, "--admin", "alice", "--out", "/var/tmp/admin")
        run("controller", "systemctl", "start", "rb-controller")
        wait_for(lambda: run("controller", "sh", "-c", "cat /var/lib/rb-controller/ready", check=False),
                 "the controller to serve")
        shutil.copytree(os.path.join(self.lab.root("controller"), "var", "tmp", "admin"), self.path("admin"))

    def fleet_file(self):
        lines = ["environments:"]
        lines += [f"  {name}: {{order: {order}{self.drills}}}" for order, name in enumerate(self.environments, 1)]
        hosts = ", ".join(f"{name}: [{', '.join(hosts)}]" for name, hosts in self.environments.items())
        lines += ["services:", f"  {SERVICE}:", f"    hosts: {{{hosts}}}",
                  "    targets: {backup: 3m, redeploy: 10m, git: 2m}",
                  f"    wave: {{size: \"{self.wave}\", on_failure: {self.on_failure}}}", "    retain: {releases: 10}",
                  f"    verify: {{deadline: {self.verify_seconds}s, watch: 1s}}"]
        return "\n".join(lines) + f"\n{self.fleet_lines}"

    def agent_file(self):
        return f"""services:
  {SERVICE}:
    tree: {TREE}
    unit: {SERVICE}.service
    owner: rosey:rosey
    components: {{config: ["config-*.json"], data: ["data/**"]}}
    ignore: ["logs/**", "**/__pycache__/**"]
    sqlite: [data/bot.db]
    git: {{remote: "file:///srv/sample-bot.git", branch: main}}
    check_config: [{{json: "config-*.json"}}]
    probes:
      - unit: {{}}
      - http: {{url: "{HEALTH}", json: {{status: healthy}}}}
      - journal: {{expect: "Connected to chat", forbid: "ERROR|CRITICAL", within: 10s}}
      - version: {{url: "{HEALTH}", json: version}}
      - sqlite: {{path: data/bot.db}}
{self.agent_lines}"""

    def _set_up_host(self, host):
        run = self.lab.run
        run(host, "useradd", "--system", "--user-group", "--no-create-home", "--home-dir", TREE, "rosey")
        if host in self.clones:
            run(host, "sh", "-c", f"git clone -q -b main file:///srv/sample-bot.git {TREE} && chown -R rosey:rosey {TREE}")
            run(host, "runuser", "-u", "rosey", "--", "sh", "-c", f"echo mine >{TREE}/untracked.txt")
        else:
            run(host, "install", "-d", "-o", "rosey", "-g", "rosey", TREE)
        self.put(host, f"/etc/systemd/system/{SERVICE}.service", UNIT)
        run(host, "systemctl", "daemon-reload")
        run(host, "systemctl", "enable", "-q", SERVICE)
        self.install(host, "rb-agent")
        self.put(host, "/etc/rb/agent.yaml", self.agent_file(), "600")
        self.put(host, "/var/tmp/token", self.lab.run("controller", "rb-controller", "token", host), "600")
        run(host, "rb-agent", "join", "--token-file", "/var/tmp/token")
        run(host, "systemctl", "start", "rb-agent")

    def git(self, *args, cwd=None):
        environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
        return subprocess.run(["git", *args], cwd=cwd or self.path("work"), env=environment, check=True,
                              capture_output=True, text=True).stdout.strip()

    def push(self, tag):
        self.git("push", "-q", "-f", self.path("sample-bot.git"), f"{tag}^{{commit}}:refs/heads/main", tag)

    def commit_of(self, tag):
        return self.git("rev-parse", f"{tag}^{{commit}}")

    def drop_in(self, host, unit, text):
        """Settings of a unit until the next boot; "" takes them away."""
        path = f"/run/systemd/system/{unit}.service.d/test.conf"
        if text:
            self.put(host, path, text)
        else:
            self.lab.run(host, "rm", "-f", path)
        self.lab.run(host, "systemctl", "daemon-reload")

    # --- Asking for things ---

    def _rbctl(self, args):
        return [HOSTS, "client", "env", f"RBCTL_IDENTITY={self.path('admin')}",
                self.path("workstation", "usr", "bin", "rbctl"), *args]

    def rbctl(self, *args, code=0, timeout=120):
        """Runs it to its end, and expects that exit status (None: any)."""
        run = subprocess.run(self._rbctl(args), env=self.lab.environment, stdin=subprocess.DEVNULL, capture_output=True,
                             text=True, timeout=timeout)
        if code is not None and run.returncode != code:
            raise AssertionError(f"rbctl {' '.join(args)} ended with {run.returncode}, not {code}\n"
                                 f"{run.stdout}\n{run.stderr}")
        return Result(run.returncode, run.stdout, run.stderr)

    def rbctl_json(self, *args, code=0, timeout=120):
        return json.loads(self.rbctl(*args, "-o", "json", code=code, timeout=timeout).out)

    def start_rbctl(self, *args):
        """In the background."""
        return subprocess.Popen(self._rbctl(args), env=self.lab.environment, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def operations(self, environment):
        """Newest first."""
        return self.rbctl_json("history", environment)["operations"]

    def deploy(self, environment, tag, *args, code=0):
        self.push(tag)
        return self.rbctl("deploy", environment, "--to", tag, "--reason", f"deploy {tag}", *args, code=code)

    # --- Looking ---

    def connected(self):
        run = self.rbctl("agents", "-o", "json", code=None)
        return {agent["name"] for agent in json.loads(run.out)["agents"] if agent.get("connected")} if run.code == 0 \
            else set()

    def wait_connected(self, hosts=None, seconds=30):
        wait_for(lambda: self.connected() >= set(hosts or self.hosts), f"{hosts or self.hosts} to connect", seconds)

    def health(self, host):
        """What the service says of itself; None when it does not answer."""
        text = self.lab.run(host, "curl", "-s", "-m", "3", HEALTH, check=False)
        try:
            return json.loads(text)
        except ValueError:
            return None

    def is_healthy(self, host, version):
        health = self.health(host)
        return bool(health) and health["status"] == "healthy" and health["version"] == version

    def files(self, host):
        """path -> (mode, owner, digest) of the tree, without data, logs, and git's own folder."""
        script = (f"cd {TREE} && find . -path ./data -prune -o -path ./logs -prune -o -path ./.git -prune -o -type f "
                  "-printf '%m %u:%g ' -exec sha256sum {} \\;")
        result = {}
        for line in self.lab.run(host, "sh", "-c", script).splitlines():
            mode, owner, digest, name = line.split(None, 3)
            result[name[2:]] = (mode, owner, digest)
        return result

    def files_of(self, tag):
        """The same of a tag in git, as the service's user would have them."""
        result = {}
        for line in self.git("ls-tree", "-r", tag).splitlines():
            mode, _, blob, name = line.split(None, 3)
            content = subprocess.run(["git", "cat-file", "blob", blob], cwd=self.path("work"), check=True,
                                     capture_output=True).stdout
            digest = subprocess.run(["sha256sum"], input=content, check=True, capture_output=True).stdout.split()[0]
            result[name] = ("755" if mode == "100755" else "644", "rosey:rosey", digest.decode())
        return result

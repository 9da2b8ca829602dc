"""A lab of throw-away systemd hosts, as a context manager: tests/hosts/hosts with one lab's settings."""
import os
import shutil
import subprocess
import sys
import tempfile

HOSTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "hosts")
SKIPPED = 77  # what ctest takes for "not run here"


def skip_unless_possible():
    """Ends the process as skipped where no host can be booted: not root, or no cgroup tree to write to."""
    if os.geteuid() != 0:
        print("skipped: booting hosts takes root", file=sys.stderr)
        sys.exit(SKIPPED)
    for program in ("systemd-nspawn", "ip", "ssh-keygen", "nsenter", "dbus-daemon"):
        if shutil.which(program) is None:
            print(f"skipped: {program} is missing; run deploy/install-packages --test", file=sys.stderr)
            sys.exit(SKIPPED)


class Lab:
    """Hosts by name. Everything goes when the context ends, also after a failure."""

    def __init__(self, *names, bind=(), disk=None):
        self.names = names
        # Not in /tmp: it may be a tmpfs, and the trees of hosts belong on a real filesystem.
        self.folder = tempfile.mkdtemp(prefix="rb-hosts-", dir="/var/tmp")
        lab = "rb" + os.path.basename(self.folder)[-6:].replace("_", "x")
        self.environment = {**os.environ, "HOSTS_DIR": self.folder, "HOSTS_LAB": lab, "HOSTS_BIND": " ".join(bind)}
        if disk:
            self.environment["HOSTS_DISK"] = disk

    def __enter__(self):
        try:
            self("up", *self.names)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self("down", check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __call__(self, *command, check=True, timeout=120, **options):
        """Runs one verb of the script; gives its output."""
        done = subprocess.run([HOSTS, *command], env=self.environment, stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout, **options)
        if check and done.returncode != 0:
            raise AssertionError(f"hosts {' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def run(self, host, *command, check=True, timeout=120):
        return self("exec", host, *command, check=check, timeout=timeout)

    def root(self, host):
        """The host's root folder as seen from here, but for /usr and /etc, which are overlays."""
        return os.path.join(self.folder, "hosts", host, "root")

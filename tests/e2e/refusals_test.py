#!/usr/bin/env python3
"""What is refused, is refused before anything is touched: each test compares trees and processes before and after."""
import contextlib
import os
import signal
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from fleet import Fleet, wait_for  # noqa: E402

REFUSED, USAGE, UNREACHED = 5, 2, 4


class Refusals(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.fleet = cls.enterClassContext(Fleet({"test": ["test-1"], "prod": ["prod-1", "prod-2"]}))
        for tag in ("v1.0.0", "v1.1.0"):
            cls.fleet.deploy("test", tag)
            cls.fleet.deploy("prod", tag)

    def setUp(self):
        self.before = self.everything()

    def everything(self):
        return {host: (self.fleet.attributes(host), self.fleet.service_pid(host)) for host in self.fleet.hosts}

    def refused(self, *args, code=REFUSED, says=(), **kwargs):
        run = self.fleet.rbctl(*args, code=code, **kwargs)
        text = run.out + run.err
        for part in says:
            self.assertIn(part, text)
        self.assertEqual(self.before, self.everything())
        return text

    def test_unknown_environment(self):
        self.refused("rollback", "prd", "--reason", "x", says=["prd", "prod"])

    def test_unknown_host(self):
        self.refused("rollback", "prod", "--host", "prod-3", "--reason", "x", says=["prod-3"])

    def test_unknown_service(self):
        self.refused("rollback", "prod", "--service", "sample-bt", "--reason", "x", says=["sample-bt", "sample-bot"])

    def test_no_reason_for_prod(self):
        self.refused("rollback", "prod", "--to", "v1.0.0", says=["--reason"])

    def test_unknown_reference_lists_what_there_is(self):
        self.refused("rollback", "prod", "--to", "v9.9.9", "--reason", "x", says=["v9.9.9", "v1.0.0"])

    def test_ambiguous_reference_lists_what_it_may_mean(self):
        # A prefix that two commits share: found by making commits until there is one.
        fleet = self.fleet
        seen, count = {}, 0
        while True:
            count += 1
            commit = fleet.git("commit-tree", "v1.0.0^{tree}", "-p", "v1.0.0^{commit}", "-m", f"c{count}")
            if commit[:4] in seen:
                break
            seen[commit[:4]] = commit
            self.assertLess(count, 2000)
        for i, each in enumerate((commit, seen[commit[:4]])):
            fleet.git("push", "-q", fleet.path("remote.git"), f"{each}:refs/tags/twin-{i}")
        fleet.push("v1.1.0")
        fleet.rbctl("deploy", "test", "--to", "v1.1.0", code=None)  # fetches
        self.before = self.everything()
        self.refused("rollback", "test", "--to", commit[:4], says=[commit[:7], seen[commit[:4]][:7]])

    def test_a_host_that_is_offline(self):
        fleet = self.fleet
        fleet.kill("prod-2")
        try:
            wait_for(lambda: not next(a for a in fleet.agents() if a["name"] == "prod-2").get("connected"),
                     "prod-2 to be seen as offline")
            self.refused("rollback", "prod", "--to", "v1.0.0", "--reason", "x", says=["prod-2"])
        finally:
            fleet.start_agent("prod-2")
            fleet.wait_connected()

    def test_a_second_operation_on_the_same_service(self):
        fleet = self.fleet
        # The first one holds still in its commit: the service does not end when asked to, until it is let go on.
        pid = fleet.service_pid("test-1")
        os.kill(pid, signal.SIGSTOP)
        first = fleet.start_rbctl("rollback", "test", "--to", "v1.0.0")
        try:
            holder = wait_for(lambda: fleet.rbctl_json("status", "test")["hosts"][0].get("operation"), "the lock")
            run = fleet.rbctl("rollback", "test", "--to", "v1.0.0", code=REFUSED)
            self.assertIn(holder, run.out + run.err)
        finally:
            os.kill(pid, signal.SIGCONT)
            first.wait(timeout=60)
        self.assertEqual(first.returncode, 0)
        fleet.deploy("test", "v1.1.0", "--force")

    def test_the_controller_is_not_reached(self):
        fleet = self.fleet
        fleet.kill("controller")
        try:
            self.refused("rollback", "prod", "--to", "v1.0.0", "--reason", "x", code=UNREACHED)
        finally:
            fleet.start_controller()
            fleet.wait_connected()

    def test_usage(self):
        self.refused("rollback", code=USAGE)
        self.refused("rollbakc", "prod", code=USAGE)
        self.refused("rollback", "prod", "--two", "v1.0.0", code=USAGE)

    @contextlib.contextmanager
    def agent_that_sees(self, host, mounts):
        """The host's agent, started again in a mount namespace of its own after the shell has run `mounts` in it."""
        fleet = self.fleet
        if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
            self.skipTest("mounting takes root, and mount namespaces")
        fleet.kill(host)
        with open(fleet.path("logs", "mounted.log"), "ab") as log:
            agent = subprocess.Popen(
                ["unshare", "-m", "sh", "-ec", f"{mounts}\nexec \"$@\"", "sh", f"{fleet.bin}/rb-agent", "serve",
                 "--config", fleet.path("hosts", host, "agent.yaml"), "--state", fleet.path("hosts", host, "state")],
                stdout=log, stderr=log)
        try:
            fleet.wait_connected([host])
            yield
        finally:
            agent.kill()
            agent.wait()
            fleet.start_agent(host)
            fleet.wait_connected()

    def test_a_mount_inside_the_tree(self):
        inner = os.path.join(self.fleet.tree("test-1"), "lib")
        with self.agent_that_sees("test-1", f"mount -t tmpfs none '{inner}'"):
            self.refused("rollback", "test", "--to", "v1.0.0", says=["a mount lies inside the tree at lib", "test-1"])

    def test_no_space(self):
        # The same tree on a filesystem of 17 MiB: less stays free than has to.
        tree = self.fleet.tree("prod-2")
        copy = self.fleet.path("copy-of-tree")
        with self.agent_that_sees("prod-2", f"""
                cp -a '{tree}' '{copy}'
                mount -t tmpfs -o size=17m none '{tree}'
                cp -a '{copy}/.' '{tree}'
                mkdir -p '{tree}/logs'
                head -c 2000000 /dev/zero >'{tree}/logs/fill'"""):
            self.refused("rollback", "prod", "--to", "v1.0.0", "--reason", "x",
                         says=["not enough space beside", "prod-2", "are needed", "are free"])

    def test_a_service_whose_recovery_fails_is_said_so_and_nothing_is_begun_on_it(self):
        fleet = self.fleet
        tree = fleet.tree("test-1")
        staging = os.path.join(os.path.dirname(tree), ".rb-staging-sample-bot")
        self.assertTrue(os.path.isdir(staging))
        fleet.kill("test-1", signal.SIGTERM)
        os.chmod(staging, 0o777)  # not as the agent leaves it
        try:
            fleet.start_agent("test-1")  # it starts, and serves what else there is on the host
            fleet.wait_connected()
            says = "belongs to someone else or is open to others"
            wait_for(lambda: says in fleet.rbctl("status", "test", code=None).out, "the report")
            self.refused("rollback", "test", "--to", "v1.0.0", says=["test-1", says])
        finally:
            os.chmod(staging, 0o700)
            fleet.kill("test-1", signal.SIGTERM)
            fleet.start_agent("test-1")
            fleet.wait_connected()
        wait_for(lambda: fleet.is_healthy("test-1", "v1.1.0"), "the service")

    def test_bad_keys_are_named_with_line_and_nearest_spelling(self):
        fleet = self.fleet
        with open(fleet.path("fleet.yaml"), encoding="utf-8") as f:
            text = f.read()
        path = fleet.path("bad-fleet.yaml")
        with open(path, "w", encoding="utf-8") as f:
            f.write(text.replace("retain:", "retian:").replace("order: 2", "ordre: 2"))
        run = fleet.program("rb-controller", "check", "--fleet", path, code=None)
        self.assertNotEqual(run.code, 0)
        for part in (f"{path}:3:", "ordre", "order", "retian", "retain"):
            self.assertIn(part, run.out + run.err)
        with open(fleet.path("hosts", "test-1", "agent.yaml"), encoding="utf-8") as f:
            text = f.read()
        path = fleet.path("bad-agent.yaml")
        with open(path, "w", encoding="utf-8") as f:
            f.write(text.replace("probes:", "prboes:"))
        run = fleet.program("rb-agent", "check", "--config", path, code=None)
        self.assertNotEqual(run.code, 0)
        line = text.split("\n").index("    probes:") + 1
        for part in (f"{path}:{line}:", "prboes", "probes"):
            self.assertIn(part, run.out + run.err)
        self.assertEqual(self.before, self.everything())


if __name__ == "__main__":
    unittest.main(verbosity=2)

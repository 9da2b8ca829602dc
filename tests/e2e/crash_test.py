#!/usr/bin/env python3
"""kill -9 of each of the processes in the middle of a rollback. After a restart the operation ends, and every tree is
wholly the old or wholly the new release, and runs it."""
import os
import re
import signal
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from fleet import ROOT, Fleet, start_time, wait_for  # noqa: E402

FINAL = {"succeeded", "aborted", "reverted", "needs_attention"}
HOSTS = ["prod-1", "prod-2"]


def failpoints(folder):
    """Names of the failpoints of a program, as they stand in its sources."""
    names = set()
    for path, _, files in os.walk(os.path.join(ROOT, folder)):
        for name in files:
            if name.endswith((".h", ".cc")) and "_test" not in name:
                with open(os.path.join(path, name), encoding="utf-8") as f:
                    names.update(re.findall(r'RB_FAILPOINT\(\s*"([^"]+)"', f.read()))
    return sorted(names)


class Crash(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.fleet = cls.enterClassContext(Fleet({"prod": HOSTS}, verify_deadline="15s"))
        cls.fleet.deploy("prod", "v1.0.0")
        cls.fleet.deploy("prod", "v1.1.0")
        cls.now, cls.other = "v1.1.0", "v1.0.0"

    def begin(self, failpoint=""):
        """Begins a rollback to the other version; for what happens while something is taken back, a deploy that fails."""
        self.fleet.wait_connected()
        if ".revert." in failpoint or ".undo." in failpoint:
            self.fleet.push("v1.2.0")
            return self.fleet.start_rbctl("deploy", "prod", "--to", "v1.2.0", "--reason", "crash test", "--force")
        return self.fleet.start_rbctl("rollback", "prod", "--to", self.other, "--reason", "crash test",
                                      "--force")

    def last_operation(self):
        return self.fleet.rbctl_json("history", "prod")["operations"][0]

    def settle(self, before, wanted=None):
        """The operation that came after `before` ends; the trees are whole and run what they hold."""
        fleet = self.fleet
        fleet.wait_connected()

        def ended():
            operation = self.last_operation()
            return operation if operation["id"] != before and operation["state"] in FINAL else None
        operation = wait_for(ended, "the operation to end", 90)
        self.assertIn(operation["state"], wanted or {"succeeded", "aborted", "reverted"}, operation)
        expected = self.other if operation["state"] == "succeeded" else self.now
        for host in HOSTS:
            self.assertEqual(fleet.contents(host), fleet.contents_of(expected), f"{host} {operation}")
            wait_for(lambda host=host: fleet.is_healthy(host, expected), f"{host} to run {expected}", 20)
        if expected == self.other:
            type(self).now, type(self).other = self.other, self.now
        return operation

    def each_failpoint(self, folder, key, start):
        fleet = self.fleet
        names = failpoints(folder)
        self.assertGreaterEqual(len(names), 3, f"{folder} has hardly any failpoints: {names}")
        fired = []
        for name in names:
            with self.subTest(failpoint=name):
                before = self.last_operation()["id"]
                fleet.kill(key)
                start(name)
                fleet.wait_connected()
                rbctl = self.begin(name)
                # Either the process dies there, or the operation ends without ever coming by.
                wait_for(lambda: fleet.ended(key) or rbctl.poll() is not None, f"{name} to fire, or the end", 60)
                if fleet.ended(key):
                    fired.append(name)
                    self.assertEqual(fleet.processes[key].returncode, -signal.SIGKILL, name)
                else:
                    fleet.kill(key)
                start(None)
                rbctl.wait(timeout=90)
                operations = fleet.rbctl_json("history", "prod")["operations"]
                if operations[0]["id"] == before:
                    # Killed before the request was recorded: nothing may have changed.
                    for host in HOSTS:
                        self.assertEqual(fleet.contents(host), fleet.contents_of(self.now), f"{host}: {rbctl.args}")
                    continue
                self.settle(before)
        print(f"{folder}: {len(fired)} of {len(names)} failpoints fired: {' '.join(fired)}")
        self.assertGreaterEqual(len(fired), min(3, len(names)))

    def test_the_controller_at_each_failpoint(self):
        self.each_failpoint("controller", "controller", lambda name: self.fleet.start_controller(name))

    def test_an_agent_at_each_failpoint(self):
        self.each_failpoint("agent", "prod-1", lambda name: self.fleet.start_agent("prod-1", name))

    def test_rbctl(self):
        """The operation is the controller's: it goes on without whoever asked for it."""
        before = self.last_operation()["id"]
        rbctl = self.begin()
        wait_for(lambda: self.last_operation()["id"] != before, "the operation to begin")
        rbctl.kill()
        rbctl.wait()
        self.settle(before, {"succeeded"})

    def test_the_service(self):
        """It dies by itself while the rollback is under way."""
        before = self.last_operation()["id"]
        pids = {host: self.fleet.service_pid(host) for host in HOSTS}
        rbctl = self.begin()
        for pid in pids.values():
            if start_time(pid) is not None:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        self.assertEqual(rbctl.wait(timeout=90), 0)
        self.settle(before, {"succeeded"})

    def test_everything_at_once(self):
        """A power cut of all of it: the trees are whole afterwards, and the operation ends."""
        fleet = self.fleet
        before = self.last_operation()["id"]
        rbctl = self.begin()
        wait_for(lambda: self.last_operation()["id"] != before, "the operation to begin")
        for key in ("controller", *HOSTS):
            fleet.kill(key)
        rbctl.kill()
        rbctl.wait()
        fleet.start_controller()
        for host in HOSTS:
            fleet.start_agent(host)
        self.settle(before)


if __name__ == "__main__":
    unittest.main(verbosity=2)

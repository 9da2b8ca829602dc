#!/usr/bin/env python3
"""kill -9 of each of the processes in the middle of a rollback. After a restart the operation ends, and every tree is
wholly the old or wholly the new release, and runs it."""
import os
import signal
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from failpoints import failpoints  # noqa: E402
from fleet import SERVICE, Fleet, start_time, wait_for  # noqa: E402

FINAL = {"succeeded", "aborted", "reverted", "needs_attention"}
HOSTS = ["prod-1", "prod-2"]


def is_elsewhere(name):
    """Fired by another test: redeploy_test.py has a CI, notify_test.py somebody to tell, the others drills."""
    return (name in ("controller.driver.before-ask-ci", "controller.notify.after-send") or
            name.startswith(("agent.fault.", "controller.drills.")))


class Crash(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.databases = cls.enterClassContext(tempfile.TemporaryDirectory(prefix="rb-databases-"))
        hooks = f"""    database_hooks:
      - name: main
        dump: [/bin/cat, "{cls.databases}/@HOST@"]
        restore: [/bin/dd, "of={cls.databases}/@HOST@", status=none]
"""
        for host in HOSTS:
            cls.write_database(host, "one")
        cls.fleet = cls.enterClassContext(Fleet({"prod": HOSTS}, verify_deadline="15s", service_lines=hooks))
        cls.fleet.deploy("prod", "v1.0.0")
        cls.fleet.deploy("prod", "v1.1.0")
        cls.now, cls.other = "v1.1.0", "v1.0.0"

    @classmethod
    def write_database(cls, host, text):
        with open(os.path.join(cls.databases, host), "w", encoding="utf-8") as f:
            f.write(text)

    def database(self, host):
        with open(os.path.join(self.databases, host), encoding="utf-8") as f:
            return f.read()

    def begin(self, failpoint=""):
        """Begins what comes by that failpoint; most often a rollback to the other version."""
        fleet = self.fleet
        fleet.wait_connected()
        self.target = self.other
        if ".revert" in failpoint or ".undo." in failpoint or "send-revert" in failpoint:
            fleet.push("v1.2.0")  # cannot start
            return fleet.start_rbctl("deploy", "prod", "--to", "v1.2.0", "--reason", "crash test", "--force")
        if ".backup." in failpoint:
            self.target = self.now
            return fleet.start_rbctl("backup", "create", "prod", "--reason", "crash test")
        if ".restore." in failpoint:
            self.target = self.now
            return fleet.start_rbctl("rollback", "prod", "--host", "prod-1", "--to", self.with_data, "--with-data", "--yes",
                                     "--even-if-there", "--reason", "crash test", "--force")
        return fleet.start_rbctl("rollback", "prod", "--to", self.other, "--reason", "crash test", "--force")

    def prepare_for(self, failpoint):
        """What has to be there before; with no failpoint armed."""
        if ".restore." not in failpoint:
            return
        self.write_database("prod-1", "one")
        self.fleet.wait_connected()
        backup = self.fleet.rbctl_json("backup", "create", "prod", "--host", "prod-1", "--reason", "with its database")
        self.with_data = backup["hosts"][0]["to"]["release"]
        self.write_database("prod-1", "two")

    def prune(self, failpoint):
        """Old releases are thinned out by whoever types it, beside the agent."""
        fleet = self.fleet
        command = ("rb-agent", "local", "prune", SERVICE, "--keep", "1", "--config",
                   fleet.path("hosts", "prod-1", "agent.yaml"), "--state", fleet.path("hosts", "prod-1", "state"))
        fleet.program(*command, env={"RB_FAILPOINT": failpoint}, code=-signal.SIGKILL)
        fleet.program(*command)
        fleet.program("rb-agent", "local", "verify", *command[3:4], *command[6:])
        self.assertTrue(fleet.is_healthy("prod-1", self.now))

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
        expected = self.target if operation["state"] == "succeeded" else self.now
        for host in HOSTS:
            self.assertEqual(fleet.contents(host), fleet.contents_of(expected), f"{host} {operation}")
            wait_for(lambda host=host: fleet.is_healthy(host, expected), f"{host} to run {expected}", 20)
        if expected == self.other:
            type(self).now, type(self).other = self.other, self.now
        return operation

    def each_failpoint(self, folder, key, start):
        fleet = self.fleet
        names = failpoints(folder, lambda name: not is_elsewhere(name))
        self.assertGreaterEqual(len(names), 3, f"{folder} has hardly any failpoints: {names}")
        fired = []
        for name in names:
            with self.subTest(failpoint=name):
                if ".prune." in name:
                    self.prune(name)
                    fired.append(name)
                    continue
                self.prepare_for(name)
                before = self.last_operation()["id"]
                fleet.kill(key)
                start(name)
                # What the one before had not yet acknowledged is sent again at once: it may come by already there.
                wait_for(lambda: fleet.ended(key) or fleet.are_connected(), f"{name} to fire, or all to be connected")
                if fleet.ended(key):
                    self.assertEqual(fleet.processes[key].returncode, -signal.SIGKILL, name)
                    fired.append(name)
                    start(None)
                    self.begin(name).wait(timeout=90)
                    self.settle(before)
                    continue
                rbctl = self.begin(name)
                wait_for(lambda: fleet.ended(key), f"{name} to fire", 60)
                fired.append(name)
                self.assertEqual(fleet.processes[key].returncode, -signal.SIGKILL, name)
                start(None)
                rbctl.wait(timeout=90)
                operations = fleet.rbctl_json("history", "prod")["operations"]
                if operations[0]["id"] == before:
                    # Killed before the request was recorded: nothing may have changed.
                    for host in HOSTS:
                        self.assertEqual(fleet.contents(host), fleet.contents_of(self.now), f"{host}: {rbctl.args}")
                    continue
                operation = self.settle(before)
                if ".restore." in name:
                    wanted = "one" if operation["state"] == "succeeded" else "two"
                    self.assertEqual(self.database("prod-1"), wanted, operation)
        print(f"{folder}: {len(fired)} of {len(names)} failpoints fired: {' '.join(fired)}")
        self.assertEqual(fired, names)

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

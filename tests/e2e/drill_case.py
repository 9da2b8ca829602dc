"""What tests of drills have in common: each begins and ends on a whole, healthy fleet with nothing of a fault left."""
import json
import os
import unittest

from fleet import wait_for

DONE, REFUSED = 0, 5
ENDED = ("passed", "missed_target", "failed", "stopped")


class DrillTest(unittest.TestCase):
    """The class has a `fleet` on which v1.0.0 runs everywhere."""

    def setUp(self):
        self.before = {host: self.fleet.attributes(host, data=False) for host in self.fleet.hosts}
        self.is_whole()

    def tearDown(self):
        self.is_whole()
        for host in self.fleet.hosts:
            self.assertEqual(self.fleet.attributes(host), self.before[host], f"{host}: all is as it was")
            self.assertFalse(self.broken(host), f"{host}: nothing of a fault is left")

    def is_whole(self):
        def healthy():
            hosts = self.fleet.rbctl_json("status")["hosts"]
            return all(host.get("verdict") == "healthy" for host in hosts)
        wait_for(healthy, "every host to be healthy", 60)
        wait_for(lambda: all(self.fleet.is_healthy(host, "v1.0.0") for host in self.fleet.hosts), "v1.0.0 everywhere")

    def broken(self, host):
        found = []
        for folder, _, names in os.walk(self.fleet.tree(host)):
            for name in names:
                try:
                    with open(os.path.join(folder, name), "rb") as f:
                        if b"broken on purpose" in f.read():
                            found.append(name)
                except FileNotFoundError:
                    pass  # the service's own, gone meanwhile
        return found

    def drill(self, *args, code=DONE, **kwargs):
        run = self.fleet.rbctl_json("drill", "run", *args, code=None, **kwargs)
        self.assertEqual(run["exit_code"], code, json.dumps(run, indent=1))
        return run

    def begin(self, *args):
        drill = self.fleet.rbctl_json("drill", "run", *args, "--no-wait")["id"]
        # Whatever fails in this test, the next one begins without it.
        self.addCleanup(self.fleet.rbctl, "drill", "stop", drill, code=None)
        return drill

    def shown(self, drill):
        return self.fleet.rbctl_json("drill", "show", drill)

    def wait_for_state(self, drill, *states, seconds=20):
        try:
            return wait_for(lambda: (shown := self.shown(drill))["state"] in states and shown,
                            f"{drill} to be {states}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{json.dumps(self.shown(drill), indent=1)}") from None

    def assert_measured(self, run):
        self.assertEqual(run["state"], "passed", json.dumps(run, indent=1))
        self.assertEqual([phase["name"] for phase in run["phases"]], ["detect", "decide", "execute", "verify"])
        for phase in run["phases"]:
            self.assertTrue(phase["met"], phase)
            self.assertGreater(phase["took_seconds"], 0 if phase["name"] != "detect" else -1)


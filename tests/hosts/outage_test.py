#!/usr/bin/env python3
"""Power cuts of a real server at ten moments of a rollback: after each boot its service runs on a whole release."""
import os
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from host_fleet import SERVICE, HostFleet, wait_for  # noqa: E402
from lab import skip_unless_possible  # noqa: E402

HOSTS = ["prod-1", "prod-2"]
FINAL = {"succeeded", "aborted", "reverted", "needs_attention"}
# Before, in the middle of, and after everything that changes something. Where the agent stands when the power goes.
MOMENTS = ["agent.prepare.begin", "engine.prepare.after-intent", "agent.commit.before-stop", "agent.commit.after-stop",
           "engine.commit.after-begin", "engine.commit.after-first-rename", "engine.commit.before-done",
           "agent.commit.after-start", "agent.keep.begin", "engine.keep.before-discard"]
# After these the tree is half of each release: only the drop-in stands between it and the service.
TORN = {"engine.commit.after-begin", "engine.commit.after-first-rename", "engine.commit.before-done"}


class OutageTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.fleet = cls.enterClassContext(HostFleet({"prod": HOSTS}, clones=["prod-2"]))
        cls.lab = cls.fleet.lab
        for version in ("v1.0.0", "v1.1.0"):
            cls.fleet.deploy("prod", version)
        cls.now, cls.other = "v1.1.0", "v1.0.0"

    def sh(self, host, script, check=True):
        return self.lab.run(host, "sh", "-c", script, check=check)

    def rollback(self, *args):
        return ("rollback", "prod", "--to", self.other, "--force", "--reason", "a test", *args)

    def turn(self):
        self.now, self.other = self.other, self.now

    def release_of(self, host):
        """The one whose every file is there; None when the tree is a mixture."""
        there = self.fleet.files(host)
        there.pop("untracked.txt", None)
        return next((tag for tag in ("v1.0.0", "v1.1.0") if there == self.fleet.files_of(tag)), None)

    def newest(self):
        return self.fleet.operations("prod")[0]

    def settle(self):
        """Every host where the fleet says it is, and healthy: so that the next test begins on firm ground."""
        for host in HOSTS:
            self.sh(host, "systemctl start rb-agent")
        self.fleet.wait_connected()
        wait_for(lambda: self.newest()["state"] in FINAL, "the operation to end", 90)
        for host in HOSTS:
            if self.release_of(host) != self.now:
                self.fleet.rbctl("deploy", "prod", "--to", self.now, "--force", "--reason", "settle", code=None)
                break
        for host in HOSTS:
            wait_for(lambda at=host: self.fleet.is_healthy(at, self.now), f"{host} to be healthy on {self.now}")

    def test_1_power_cuts(self):
        for moment in MOMENTS:
            with self.subTest(moment):
                self.power_cut("prod-1", moment)
                self.settle()

    def power_cut(self, host, moment):
        # The agent stays where it ended until the power goes; the setting goes with it.
        self.fleet.drop_in(host, "rb-agent", f"[Service]\nEnvironment=RB_FAILPOINT={moment}\nRestart=no\n")
        self.sh(host, "systemctl restart rb-agent")
        self.fleet.wait_connected()
        rollback = self.fleet.start_rbctl(*self.rollback())
        self.addCleanup(rollback.kill)
        wait_for(lambda: self.sh(host, "systemctl show -P Result rb-agent").strip() == "signal", f"{moment} to come", 60)
        self.lab("crash", host)
        # Only the service comes back at first: whoever makes the tree whole, it is not the agent.
        wants = os.path.join(self.lab.folder, "hosts", host, "etc", "systemd", "system", "multi-user.target.wants",
                             "rb-agent.service")
        os.rename(wants, wants + ".away")
        self.lab("boot", host)
        self.lab("exec", host, "sh", "-c", "cd /etc/systemd/system/multi-user.target.wants && "
                 "mv rb-agent.service.away rb-agent.service")
        self.assertEqual(self.sh(host, "systemctl is-active rb-agent", check=False).strip(), "inactive")
        release = self.release_of(host)
        self.assertIsNotNone(release, f"{host} is a mixture after a power cut at {moment}: {self.fleet.files(host)}")
        wait_for(lambda: self.fleet.is_healthy(host, release), f"{host} to run {release} after {moment}")
        if moment in TORN:
            said = self.sh(host, f"journalctl -b -u {SERVICE} -o cat")
            self.assertRegex(said, r"completed the swap of operation .*(.|\n)*starts on port")
        self.sh(host, "systemctl start rb-agent")
        rollback.communicate(timeout=90)
        self.fleet.wait_connected()
        # Either all went back, or nothing has changed: never one host here and one there, without being told so.
        operation = self.newest()
        releases = {at: self.release_of(at) for at in HOSTS}
        print(f"power cut at {moment}: {release} after boot; the operation {operation['state']}, {releases}")
        self.assertIn(operation["state"], FINAL)
        if operation["state"] == "succeeded":
            self.assertEqual(set(releases.values()), {self.other})
            self.turn()
        elif operation["state"] in ("aborted", "reverted"):
            self.assertEqual(set(releases.values()), {self.now})


if __name__ == "__main__":
    skip_unless_possible()
    unittest.main(verbosity=2)

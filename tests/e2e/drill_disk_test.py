#!/usr/bin/env python3
"""The drill `disk-full` as it is by default, on a filesystem of the host's own: the disk is really full, a probe notices
it, the recovery succeeds or changes nothing, and the file that fills it is gone afterwards, whoever is killed meanwhile."""
import glob
import os
import signal
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from drill_case import ENDED, REFUSED, DrillTest  # noqa: E402
from failpoints import failpoints  # noqa: E402
from fleet import Fleet, in_own_mounts, wait_for  # noqa: E402

HOST = "prod-1"
# What a recovery takes stays free: 16 MiB that it wants to be left, 8 MiB to write in, and the size of the database.
DISK_MIB, RESERVE_MIB = 96, 24
# By default it notices less than 3 % of the disk; this one is small.
ON_HOST = ("      - disk: {free: 32MiB}\n"
           "    drills: {allow: [disk-full], longest: 60s}\n")
IN_FLEET = "{allow: [disk-full, host-power-cut], windows: [\"00:00-24:00\"], longest: 60s}"
BY_NAME = ("disk-full", "prod", "--reason", "rehearsal")


class DiskFull(DrillTest):
    @classmethod
    def setUpClass(cls):
        cls.fleet = cls.enterClassContext(Fleet({"prod": [HOST]}, service_lines=ON_HOST, drills={"prod": IN_FLEET},
                                                disks={HOST: f"{DISK_MIB}m"}, verify_watch="1s"))
        for version in ("v1.1.0", "v1.0.0"):
            cls.fleet.deploy("prod", version)
        cls.disk = cls.fleet.path("hosts", HOST)

    def setUp(self):
        super().setUp()
        self.free_before = self.free_mib()
        self.pid = self.fleet.service_pid(HOST)

    def tearDown(self):
        super().tearDown()
        self.assertGreater(self.free_mib(), self.free_before - 1, "the disk has its room back")

    def free_mib(self):
        space = os.statvfs(self.disk)
        return space.f_bavail * space.f_frsize / 2 ** 20

    def broken(self, host):
        return glob.glob(os.path.join(self.disk, ".rb-fault-*"))

    def test_noticed_by_a_probe_and_recovered_on_a_full_disk(self):
        drill = self.begin(*BY_NAME)
        wait_for(lambda: self.broken(HOST) and self.free_mib() < RESERVE_MIB + 0.5, "the disk to be full")
        (filler,) = self.broken(HOST)
        held = os.stat(filler)
        self.assertGreater(held.st_blocks * 512, self.free_before / 2 * 2 ** 20, "allocated, not sparse")
        self.assertEqual((held.st_uid, held.st_mode & 0o777), (0, 0o600))
        run = self.wait_for_state(drill, *ENDED)
        self.assert_measured(run)
        host = run["hosts"][0]
        self.assertRegex(host["detected_by"], r"^disk: .* of 96.* MiB free at ")
        self.assertEqual(host["put_back"], 1, "a full disk is for nobody else to empty")
        recovery = self.fleet.rbctl_json("show", run["recovery_operation"])
        self.assertEqual((recovery["kind"], recovery["outcome"]), ("rollback", "succeeded"))
        checks = {check["check"]: check for check in recovery["hosts"][0]["checklist"]}
        self.assertEqual((checks["disk"]["passed"], checks["disk"]["external"]), (False, True))
        self.assertIn("disk", recovery["summary"], "healthy, and yet it is said")
        self.assertEqual(run["summary"], "noticed, recovered and verified, each in time")
        self.assertRegex(host["fault"], r"^all but 24\.\d* MiB of the disk filled")

    def test_full_to_the_last_byte_changes_nothing_and_still_ends(self):
        drill = self.begin(*BY_NAME)
        wait_for(lambda: self.broken(HOST) and self.free_mib() < RESERVE_MIB + 0.5, "the disk to be full")
        # Somebody writes what was left, before anything can be recovered.
        rest = os.path.join(self.disk, "rest")
        self.addCleanup(lambda: os.path.exists(rest) and os.remove(rest))
        with open(rest, "wb", buffering=0) as file:
            try:
                while file.write(bytes(2 ** 16)):
                    pass
            except OSError:
                pass
        self.assertLess(self.free_mib(), 0.1)
        # Nothing can be written: the undo was on record before.
        run = self.wait_for_state(drill, *ENDED)
        self.assertEqual((run["state"], run["recovery_operation"]), ("passed", ""), run["summary"])
        self.assertEqual([phase["name"] for phase in run["phases"]], ["detect", "decide", "execute"])
        self.assertIn("not enough space", run["observed"])
        self.assertIn("Nothing was changed", run["observed"])
        self.assertIn("refused for want of room", run["summary"], "it does not say that it recovered")
        self.assertFalse(self.broken(HOST))
        os.remove(rest)
        self.assertEqual(self.fleet.service_pid(HOST), self.pid, "nobody touched the service")

    def test_killed_anywhere_nothing_is_left(self):
        fleet = self.fleet
        names = failpoints("agent", lambda name: name.startswith("agent.fault."))
        self.assertEqual(len(names), 4, names)
        for name in names:
            with self.subTest(failpoint=name):
                fleet.kill(HOST)
                fleet.start_agent(HOST, name)
                fleet.wait_connected()
                self.is_whole()
                drill = self.begin(*BY_NAME)
                wait_for(lambda: fleet.ended(HOST), f"{name} to fire", 30)
                self.assertEqual(fleet.processes[HOST].returncode, -signal.SIGKILL)
                self.assertEqual(bool(self.broken(HOST)), name == "agent.fault.after-inject")
                fleet.start_agent(HOST)
                shown = self.wait_for_state(drill, *ENDED, seconds=30)
                # Killed before it was on record, the drill asks again; after it, what is half in is ended at once.
                in_the_middle = name in ("agent.fault.after-record", "agent.fault.after-inject")
                self.assertEqual(shown["state"], "failed" if in_the_middle else "passed", shown["summary"])
                self.assertFalse(self.broken(HOST), name)
                self.assertGreater(self.free_mib(), self.free_before - 1, name)

    def test_the_agent_ends_it_alone_when_its_time_is_up(self):
        fleet = self.fleet
        with fleet.change_agent(HOST, "longest: 60s", "longest: 3s"):
            self.is_whole()
            drill = self.begin(*BY_NAME, "--by-hand")
            wait_for(lambda: self.broken(HOST), "the fault to be in")
            fleet.kill("controller")
            wait_for(lambda: not self.broken(HOST), "the agent to end it alone", 15)
            fleet.start_controller()
            fleet.wait_connected()
            fleet.rbctl("drill", "stop", drill, code=None)
            self.assertTrue(self.wait_for_state(drill, *ENDED)["hosts"][0]["ended_alone"])

    def test_what_is_not_allowed_is_refused(self):
        """By the fleet file, or by the host's own: both have to name it."""
        self.assertIn("agent.yaml", self.fleet.rbctl("drill", "run", "host-power-cut", *BY_NAME[1:], code=REFUSED).err)
        self.assertIn("allow", self.fleet.rbctl("drill", "run", "bad-code", *BY_NAME[1:], code=REFUSED).err)


if __name__ == "__main__":
    in_own_mounts()
    unittest.main(verbosity=2)

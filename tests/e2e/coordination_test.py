#!/usr/bin/env python3
"""Operations that wait for each other, for a second operator, for a window, or for whoever paused them."""
import contextlib
import os
import signal
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from fleet import Fleet, wait_for  # noqa: E402

DONE, REFUSED, REVERTED = 0, 5, 6
SHUT = "the next window opens"


def shut_window():
    """A window that is shut now, and for the hours of any test."""
    import datetime
    hour = (datetime.datetime.now(datetime.timezone.utc).hour + 12) % 24
    return f"{hour:02}:00-{hour:02}:01"


class Coordination(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.fleet = cls.enterClassContext(Fleet({"test": ["test-1"], "prod": ["prod-1", "prod-2"]}, wave="1",
                                                on_failure="revert-all",
                                                gates={"prod": "{passed_in: test, approval: true}"}))
        cls.ben = cls.fleet.operator("ben")
        # Never approved of before: alice asks, ben approves.
        for tag in ("v1.0.0", "v1.1.0"):
            cls.fleet.deploy("test", tag)
            operation = cls.begin("deploy", "prod", "--to", tag, "--reason", tag)
            cls.fleet.rbctl("approve", operation, identity=cls.ben)
            cls.fleet.rbctl("watch", operation)

    @classmethod
    def begin(cls, *args, **kwargs):
        return cls.fleet.rbctl_json(*args, "--no-wait", **kwargs)["id"]

    def shown(self, operation):
        return self.fleet.rbctl_json("show", operation, code=None)

    def wait_for_state(self, operation, state):
        wait_for(lambda: self.shown(operation)["state"] == state, f"{operation} to be {state}")

    def versions(self):
        return [(self.fleet.health(host) or {}).get("version") for host in self.fleet.hosts]

    def setUp(self):
        self.assertEqual(self.versions(), ["v1.1.0"] * 3)

    def put_back(self, operation):
        self.fleet.rbctl("undo", operation, "--reason", "put back", "--override-gate", "approval")
        self.assertEqual(self.versions(), ["v1.1.0"] * 3)

    def test_an_approval_is_another_operators_and_is_recorded(self):
        fleet = self.fleet
        operation = self.begin("rollback", "prod", "--to", "v1.0.0", "--reason", "x")
        self.wait_for_state(operation, "waiting")
        self.assertEqual(self.versions(), ["v1.1.0"] * 3, "nothing is changed before it is approved")
        run = fleet.rbctl("approve", operation, code=REFUSED)
        self.assertIn("another operator", run.err)
        # The wait is in the journal: the controller may die meanwhile.
        fleet.kill("controller")
        fleet.start_controller()
        fleet.wait_connected()
        self.assertEqual(self.shown(operation)["state"], "waiting")
        fleet.rbctl("approve", operation, "--reason", "I have looked", identity=self.ben)
        fleet.rbctl("watch", operation, code=DONE)
        self.assertEqual(self.shown(operation)["approved_by"], "ben")
        self.assertIn("approved by ben: I have looked", fleet.rbctl("show", operation).out)
        self.assertIn("has ended", fleet.rbctl("approve", operation, code=REFUSED, identity=self.ben).err)
        self.put_back(operation)

    def test_pause_holds_the_next_wave_back_until_resume(self):
        fleet = self.fleet
        operation = self.begin("rollback", "prod", "--to", "v1.0.0", "--reason", "x")
        self.wait_for_state(operation, "waiting")
        fleet.rbctl("pause", operation, "--reason", "to look")
        self.assertIn("paused already", fleet.rbctl("pause", operation, code=REFUSED).err)
        fleet.rbctl("approve", operation, identity=self.ben)
        shown = self.shown(operation)
        self.assertEqual((shown["state"], shown["paused"]), ("waiting", True), "approved, and still paused")
        self.assertIn("rbctl resume", shown["waits_for"])
        fleet.rbctl("resume", operation)
        fleet.rbctl("watch", operation, code=DONE)
        self.assertEqual(self.versions(), ["v1.1.0", "v1.0.0", "v1.0.0"])
        for verb in ("pause", "resume", "abort"):
            self.assertIn("has ended", fleet.rbctl(verb, operation, code=REFUSED).err)
        self.put_back(operation)

    def test_abort_of_what_waits_changes_nothing(self):
        operation = self.begin("rollback", "prod", "--to", "v1.0.0", "--reason", "x")
        self.wait_for_state(operation, "waiting")
        self.fleet.rbctl("abort", operation)
        self.fleet.rbctl("watch", operation, code=1)
        self.assertEqual(self.versions(), ["v1.1.0"] * 3)

    def test_through_test_to_prod_in_one(self):
        fleet = self.fleet
        fleet.rbctl("rollback", "prod", "--through", "prod,test", "--to", "v1.0.0", "--reason", "x", code=REFUSED)
        operation = self.begin("rollback", "prod", "--through", "test,prod", "--to", "v1.0.0", "--reason", "x")
        self.wait_for_state(operation, "waiting")
        self.assertEqual(self.versions(), ["v1.0.0", "v1.1.0", "v1.1.0"], "test is done, prod waits to be approved")
        for environment in ("test", "prod"):
            run = fleet.rbctl("rollback", environment, "--to", "v1.0.0", "--reason", "y", code=REFUSED)
            self.assertIn(operation, run.err, "both environments are locked by it")
        fleet.rbctl("approve", operation, identity=self.ben)
        fleet.rbctl("watch", operation, code=DONE)
        self.assertEqual(self.versions(), ["v1.0.0"] * 3)
        self.put_back(operation)

    def test_an_abort_half_way_through_takes_test_back_as_well(self):
        fleet = self.fleet
        operation = self.begin("rollback", "prod", "--through", "test,prod", "--to", "v1.0.0", "--reason", "x")
        self.wait_for_state(operation, "waiting")
        fleet.rbctl("abort", operation)
        fleet.rbctl("watch", operation, code=REVERTED)
        self.assertEqual(self.versions(), ["v1.1.0"] * 3, "test went back as well")

    def test_wait_stands_in_line(self):
        fleet = self.fleet
        holder = self.begin("rollback", "prod", "--to", "v1.0.0", "--reason", "holds")
        self.wait_for_state(holder, "waiting")
        run = fleet.rbctl("backup", "create", "prod", code=REFUSED)
        self.assertIn(holder, run.err)
        self.assertIn("--wait", run.err)
        fleet.rbctl("undo", holder, "--wait", "0s", "--reason", "x", code=2)
        waiting = fleet.start_rbctl("rollback", "prod", "--to", "v1.0.0", "--reason", "second", "--wait", "60s",
                                    "--override-gate", "approval")
        given_up = fleet.start_rbctl("rollback", "prod", "--to", "v1.0.0", "--reason", "given up", "--wait", "60s")
        wait_for(lambda: fleet.rbctl("status", "prod").code == 0, "an answer while two stand in line")
        given_up.send_signal(signal.SIGKILL)
        given_up.wait(timeout=30)
        fleet.rbctl("abort", holder)
        self.assertEqual(waiting.wait(timeout=60), DONE)
        reasons = [one["reason"] for one in fleet.rbctl_json("history", "prod")["operations"]]
        self.assertEqual(reasons[:2], ["second", "holds"], "who has given up is not served")
        self.put_back(fleet.rbctl_json("history", "prod")["operations"][0]["id"])

    def test_emergency_goes_past_the_gates_says_so_and_verifies_afterwards(self):
        fleet = self.fleet
        fleet.rbctl("rollback", "prod", "--emergency", "--to", "v1.0.0", code=REFUSED)  # no reason
        run = fleet.rbctl_json("rollback", "prod", "--emergency", "--to", "v1.0.0", "--reason", "3 am")
        self.assertTrue(run["emergency"])
        shown = fleet.rbctl("show", run["id"]).out
        self.assertIn("gate approval skipped (--emergency)", shown)

        def after():
            newest = fleet.rbctl_json("history", "prod", "--limit", "1")["operations"][0]
            return newest["kind"] == "verification" and newest["outcome"] == "succeeded" and newest
        verification = wait_for(after, "the verification afterwards", 60)
        self.assertEqual(verification["reason"], f"after the emergency {run['id']}")

        # Every probe was asked in the emergency as well, only without the time that some of them take.
        def probes(operation):
            return {host["host"]: sorted((probe["name"], probe["passed"]) for probe in host["probes"])
                    for host in self.shown(operation)["hosts"]}
        self.assertEqual(probes(run["id"]), probes(verification["id"]))
        self.assertTrue(all(passed for host in probes(run["id"]).values() for _, passed in host))
        self.assertGreaterEqual(len(probes(run["id"])["prod-1"]), 2)
        self.put_back(run["id"])

    def test_verify_runs_every_probe_and_changes_nothing(self):
        fleet = self.fleet
        before = {host: (fleet.attributes(host), fleet.service_pid(host)) for host in fleet.hosts}
        run = fleet.rbctl("verify", "prod")
        self.assertIn("every probe of prod has passed on 2 hosts", run.out)
        self.assertEqual(before, {host: (fleet.attributes(host), fleet.service_pid(host)) for host in fleet.hosts})


class Missed(unittest.TestCase):
    def test_a_host_that_was_offline_is_drifted_until_it_is_repaired(self):
        with Fleet({"prod": ["prod-1", "prod-2"]}) as fleet:
            fleet.deploy("prod", "v1.0.0")
            fleet.deploy("prod", "v1.1.0")
            fleet.kill("prod-2")
            wait_for(lambda: not next(a for a in fleet.agents() if a["name"] == "prod-2").get("connected"),
                     "prod-2 to be seen as offline")
            run = fleet.rbctl("rollback", "prod", "--to", "v1.0.0", "--reason", "x", code=REFUSED)
            self.assertIn("--skip-offline", run.err)
            run = fleet.rbctl("rollback", "prod", "--to", "v1.0.0", "--reason", "x", "--skip-offline")
            self.assertIn("MISSED by prod-2", run.out)
            self.assertIn("rbctl repair prod-2", run.out)
            self.assertEqual((fleet.health("prod-1")["version"], fleet.health("prod-2")["version"]), ("v1.0.0", "v1.1.0"))
            # Whoever comes later learns of it, too.
            fleet.kill("controller")
            fleet.start_controller()
            fleet.start_agent("prod-2")
            fleet.wait_connected()
            status = fleet.rbctl("status", "prod").out
            self.assertIn("prod-2: DRIFTED: missed", status)
            self.assertEqual(fleet.health("prod-2")["version"], "v1.1.0", "never on its own")
            self.assertIn("has missed nothing", fleet.rbctl("repair", "prod-1", "--reason", "x", code=REFUSED).err)
            fleet.rbctl("repair", "prod-2", "--reason", "back")
            self.assertEqual(fleet.health("prod-2")["version"], "v1.0.0")
            self.assertNotIn("DRIFTED", fleet.rbctl("status", "prod").out)


class Windows(unittest.TestCase):
    def test_a_shut_window_is_refused_and_overridden_with_a_reason(self):
        with contextlib.ExitStack() as stack:
            fleet = stack.enter_context(Fleet({"test": ["test-1"]}, gates={"test": f'{{windows: ["{shut_window()}"]}}'}))
            run = fleet.deploy("test", "v1.0.0", code=REFUSED)
            self.assertIn(SHUT, run.err)
            self.assertIn("--override-gate window", run.err)
            self.assertIsNone(fleet.health("test-1"))
            fleet.rbctl("deploy", "test", "--to", "v1.0.0", "--override-gate", "window", code=REFUSED)  # no reason
            run = fleet.deploy("test", "v1.0.0", "--override-gate", "window")
            operation = fleet.rbctl_json("history", "test")["operations"][0]
            self.assertEqual(operation["override_gates"], ["window"])
            self.assertIn("gate window skipped", fleet.rbctl("show", operation["id"]).out)


if __name__ == "__main__":
    unittest.main(verbosity=2)

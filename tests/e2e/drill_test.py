#!/usr/bin/env python3
"""Drills: something is broken on purpose, noticed, recovered, measured, and put back whoever is killed meanwhile."""
import json
import os
import re
import signal
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from drill_case import REFUSED, DrillTest  # noqa: E402
from fleet import Fleet, wait_for  # noqa: E402

ALLOWED = "[bad-code, bad-database, bad-config, agent-killed, host-power-cut]"
ON_HOST = f"    drills: {{allow: {ALLOWED}, longest: 60s}}\n"
IN_FLEET = ("{allow: [bad-code, bad-database, bad-config, agent-killed, controller-killed], "
            "windows: [\"00:00-24:00\"], longest: 60s}")


class Drills(DrillTest):
    @classmethod
    def setUpClass(cls):
        cls.fleet = cls.enterClassContext(Fleet(
            {"test": ["test-1", "test-2"], "prod": ["prod-1"]}, service_lines=ON_HOST, verify_watch="1s",
            drills={"test": IN_FLEET, "prod": IN_FLEET.replace("[\"00:00-24:00\"]", "[]")}))
        cls.ben = cls.fleet.operator("ben")
        for environment in ("test", "prod"):
            cls.fleet.deploy(environment, "v1.0.0")

    def test_bad_code_is_noticed_recovered_and_measured(self):
        run = self.drill("bad-code", "test")
        self.assert_measured(run)
        recovery = self.fleet.rbctl_json("show", run["recovery_operation"])
        self.assertEqual((recovery["kind"], recovery["outcome"]), ("rollback", "succeeded"), "the ordinary code path")
        self.assertEqual(self.fleet.rbctl_json("show", run["safety_operation"])["kind"], "backup")
        for host in run["hosts"]:
            self.assertIn("run.py", host["fault"])
            self.assertEqual(host["put_back"], 0, "the recovery has left nothing for the fault's end")
            self.assertTrue(host["detected_by"])
        # By git as well, and the report has both.
        self.assert_measured(self.drill("bad-code", "test", "--method", "git"))
        html = self.fleet.rbctl("drill", "report", "--format", "html").out
        self.assertGreaterEqual(html.count("<svg"), 4)
        self.assertIsNone(re.search(r"(src|href)=|https?://|<script", html), "it needs nothing from outside")
        self.check_report()
        self.assertEqual(self.fleet.rbctl_json("quarantine", "list")["quarantine"], [], "nothing was really bad")

    def check_report(self):
        """As JSON it has the figures of the text, drill by drill and counted."""
        text = self.fleet.rbctl("drill", "report", "test").out
        report = self.fleet.rbctl_json("drill", "report", "test")
        self.assertEqual(report, json.loads(self.fleet.rbctl("drill", "report", "test", "--format", "json").out))
        self.assertEqual(sorted(report), ["by_fault", "drills", "trained"])
        rows = {row.split()[0]: row.split() for row in text.splitlines() if row.startswith("drill-")}
        self.assertEqual(list(rows), [drill["id"] for drill in report["drills"]])
        for drill in report["drills"]:
            took = {phase["name"]: phase.get("took_seconds") for phase in drill["phases"]}
            if drill["state"] != "passed" or None in took.values():
                continue
            self.assertEqual(rows[drill["id"]][:4], [drill["id"], drill["fault"], "test/sample-bot", "passed"])
            cells = rows[drill["id"]][4:-1]
            for name in ("detect", "decide", "execute", "verify"):
                seconds, unit = (cells.pop(0), cells.pop(0)) if name in took else (cells.pop(0), None)
                if unit is not None:
                    self.assertAlmostEqual(float(seconds), took[name], delta=0.06, msg=(drill["id"], name))
        for counted in report["by_fault"]:
            line = f"{counted['where']} {counted['fault']} "
            (said,) = [row for row in text.splitlines() if row.startswith(line)]
            self.assertEqual(said[len(line):].strip(), f"{counted['passed']} of {counted['ended']}")
            ended = [drill for drill in report["drills"] if drill["fault"] == counted["fault"]]
            self.assertEqual(counted["ended"], len(ended))

    def test_bad_config(self):
        run = self.drill("bad-config", "test")
        self.assert_measured(run)
        self.assertIn("config-prod.json", run["hosts"][0]["fault"])

    def test_bad_database_is_noticed_by_its_own_probe_and_says_what_is_lost(self):
        run = self.drill("bad-database", "test")
        self.assert_measured(run)
        for host in run["hosts"]:
            self.assertRegex(host["detected_by"], "sqlite|log", "not by the unit's state")
        self.assertEqual(self.fleet.rbctl_json("show", run["recovery_operation"])["components"], ["data"])
        self.assertIn("data of the last", run["lost"])

    def test_refusals(self):
        fleet = self.fleet
        self.assertIn("allow", fleet.rbctl("drill", "run", "disk-full", "test", code=REFUSED).err)
        self.assertIn("needs a reason", fleet.rbctl("drill", "run", "bad-code", "prod", code=REFUSED).err)
        self.assertIn("did you mean", fleet.rbctl("drill", "run", "bad-code", "tset", code=REFUSED).err)
        # The server's own file decides in the end: nobody allows disk-full there, and host-power-cut only there.
        self.assertIn("host-power-cut", fleet.rbctl("drill", "run", "host-power-cut", "test", code=REFUSED).err)

    def test_prod_waits_for_a_second_operator_and_stop_puts_back(self):
        fleet = self.fleet
        drill = self.begin("bad-code", "prod", "--by-hand", "--reason", "quarterly")
        self.assertIn("drill approve", self.shown(drill)["waits_for"])
        self.assertIn("another operator", fleet.rbctl("drill", "approve", drill, code=REFUSED).err)
        fleet.rbctl("drill", "approve", drill, identity=self.ben)
        shown = self.wait_for_state(drill, "recovering")
        self.assertEqual(shown["fault"], "not told")
        self.assertIn("is unhealthy", shown["alert"])
        self.assertTrue(self.broken("prod-1"))
        busy = fleet.rbctl("drill", "run", "bad-code", "prod", "--reason", "x", code=REFUSED).err
        self.assertIn(drill, busy)
        fleet.rbctl("drill", "stop", drill, "--reason", "enough")
        shown = self.wait_for_state(drill, "stopped")
        self.assertEqual(shown["hosts"][0]["put_back"], 1)
        self.assertIn("stopped by alice: enough", shown["summary"])

    def test_by_hand_is_training(self):
        drill = self.begin("bad-code", "prod", "--by-hand", "--reason", "training of ben")
        self.fleet.rbctl("drill", "approve", drill, identity=self.ben)
        self.wait_for_state(drill, "recovering")
        run = self.fleet.rbctl("rollback", "prod", "--reason", "it does not start", identity=self.ben)
        self.assertIn("succeeded", run.out)
        shown = self.wait_for_state(drill, "passed", "missed_target", "failed")
        self.assertEqual((shown["state"], shown["recovered_by"], shown["fault"]), ("passed", "ben", "bad-code"))
        self.assertIn("ben", self.fleet.rbctl("drill", "report", "prod").out)
        trained = self.fleet.rbctl_json("drill", "report", "prod")["trained"]
        self.assertEqual([(one["who"], one["fault"], one["outcome"]) for one in trained],
                         [("ben", "bad-code", "passed")])

    def test_z_a_drill_quarantines_nothing(self):
        """Who recovers by going to another commit leaves one that was not bad, but broken on purpose."""
        fleet = self.fleet
        for version in ("v1.1.0", "v1.0.0"):
            fleet.deploy("prod", version)
        # The code stays as the commit has it: what is left is a commit by name, not a tree that was changed by hand.
        drill = self.begin("bad-database", "prod", "--by-hand", "--reason", "another commit")
        fleet.rbctl("drill", "approve", drill, identity=self.ben)
        self.wait_for_state(drill, "recovering")
        run = fleet.rbctl_json("rollback", "prod", "--to", "v1.1.0", "--with-data", "--force", "--reason", "it is broken",
                               identity=self.ben)
        self.assertEqual((run["outcome"], run["hosts"][0]["to"]["version"]), ("succeeded", "v1.1.0"))
        self.assertEqual(run["hosts"][0]["from"]["commit"], fleet.commit_of("v1.0.0"))
        self.wait_for_state(drill, "passed", "missed_target")
        self.assertEqual(self.quarantined(), [])
        # A real rollback goes back there without --force, and quarantines what it leaves.
        fleet.deploy("prod", "v1.0.0", "--plan")
        back = fleet.rbctl_json("rollback", "prod", "--to", "v1.0.0", "--reason", "for real")
        self.assertEqual((back["outcome"], back["hosts"][0]["to"]["version"]), ("succeeded", "v1.0.0"))
        self.assertEqual(self.quarantined(), [fleet.commit_of("v1.1.0")])

    def quarantined(self):
        return [one["commit"] for one in self.fleet.rbctl_json("quarantine", "list")["quarantine"]]

    def test_something_real_stops_it_at_once(self):
        drill = self.begin("bad-database", "test")
        self.wait_for_state(drill, "detecting", "recovering", "injecting")
        run = self.fleet.rbctl("deploy", "test", "--to", "v1.0.0", "--even-if-there", "--force", "--reason", "real",
                               timeout=90)
        self.assertIn("succeeded", run.out)
        shown = self.wait_for_state(drill, "stopped", "passed")
        if shown["state"] == "stopped":
            self.assertIn("something real", shown["summary"])

    def test_the_agent_kills_itself_in_the_swap_and_finishes_it(self):
        drill = self.begin("agent-killed", "test")
        wait_for(lambda: self.fleet.ended("test-1"), "the agent to kill itself", 60)
        self.fleet.start_agent("test-1")  # as its supervisor would
        shown = self.wait_for_state(drill, "passed", "missed_target", "failed")
        self.assertEqual(shown["state"], "passed", shown)
        self.assertTrue(shown["hosts"][0]["struck"])
        self.assertIn("at work again after", shown["observed"])

    def test_the_controller_kills_itself_in_the_recovery_and_takes_it_up_again(self):
        drill = self.begin("controller-killed", "test")
        wait_for(lambda: self.fleet.ended("controller"), "the controller to kill itself", 60)
        self.fleet.start_controller()
        self.fleet.wait_connected()
        shown = self.wait_for_state(drill, "passed", "missed_target", "failed")
        self.assertEqual(shown["state"], "passed", shown)

    def test_a_controller_that_is_back_before_its_agents_waits_for_them(self):
        fleet = self.fleet
        fleet.kill("controller")
        fleet.start_controller(failpoint="controller.drills.before-begin")
        fleet.wait_connected()
        drill = self.begin("bad-code", "test")
        wait_for(lambda: fleet.ended("controller"), "the controller to be killed", 60)
        fleet.kill("test-1")
        fleet.start_controller()
        wait_for(lambda: self.shown(drill)["state"] != "accepted", "the drill to be taken up", 60)
        fleet.start_agent("test-1")
        shown = self.wait_for_state(drill, "passed", "missed_target", "failed")
        self.assertEqual(shown["state"], "passed", shown)

    def test_agent_and_controller_killed_while_a_fault_is_in(self):
        fleet = self.fleet
        drill = self.begin("bad-code", "prod", "--by-hand", "--reason", "kill")
        fleet.rbctl("drill", "approve", drill, identity=self.ben)
        self.wait_for_state(drill, "recovering")
        for key in ("prod-1", "controller"):
            fleet.kill(key)
        self.assertTrue(self.broken("prod-1"))
        fleet.start_controller()
        fleet.start_agent("prod-1")
        fleet.wait_connected()
        self.assertEqual(self.shown(drill)["state"], "recovering", "it goes on where it was")
        fleet.rbctl("drill", "stop", drill)
        self.wait_for_state(drill, "stopped")

    def test_the_agent_ends_the_fault_alone_when_nobody_comes_back(self):
        fleet = self.fleet
        host = "prod-1"
        with fleet.change_agent(host, "longest: 60s", "longest: 5s"):
            self.is_whole()
            drill = self.begin("bad-code", "prod", "--by-hand", "--reason", "alone")
            fleet.rbctl("drill", "approve", drill, identity=self.ben)
            wait_for(lambda: self.broken(host), "the fault to be in")
            fleet.kill("controller")
            fleet.kill(host)
            self.assertTrue(self.broken(host))
            fleet.start_agent(host)
            wait_for(lambda: not self.broken(host) and fleet.is_healthy(host, "v1.0.0"), "the agent to end it alone", 30)
            fleet.start_controller()
            fleet.wait_connected()
            fleet.rbctl("drill", "stop", drill, code=None)
            shown = self.wait_for_state(drill, "stopped", "failed")
            self.assertTrue(shown["hosts"][0]["ended_alone"], shown)


class Gate(unittest.TestCase):
    def test_what_a_drill_has_recovered_in_test_may_go_to_prod(self):
        with Fleet({"test": ["test-1"], "prod": ["prod-1"]}, service_lines=ON_HOST, verify_watch="1s",
                   drills={"test": IN_FLEET}, gates={"prod": "{passed_in: test}"},
                   agent_options=("--external-settle", "1s"), unit_probe="") as fleet:
            for environment in ("test", "prod"):
                fleet.deploy(environment, "v1.0.0")
            # It comes to test by other means than rbctl, which does not open the gate. A plan has brought the host's mirror
            # up to date.
            fleet.deploy("test", "v1.1.0", "--plan")
            fleet.kill("test-1", signal.SIGTERM)
            ci, commit = fleet.checkout("v1.1.0")
            fleet.rsync(ci, "test-1")
            os.kill(fleet.service_pid("test-1"), signal.SIGKILL)
            fleet.start_agent("test-1")
            wait_for(lambda: fleet.is_healthy("test-1", "v1.1.0"), "what was deployed to run")

            def noticed():
                newest = fleet.rbctl_json("history", "test", "--limit", "1")["operations"][0]
                return newest["kind"] == "external" and newest["hosts"][0]["to"]["commit"] == commit
            wait_for(noticed, "the deploy to be noticed")
            self.assertIn("has not passed in test", fleet.deploy("prod", "v1.1.0", code=REFUSED).err)
            wait_for(lambda: fleet.rbctl_json("status", "test")["hosts"][0].get("verdict") == "healthy",
                     "its agent to find it healthy", 60)
            run = fleet.rbctl_json("drill", "run", "bad-code", "test")
            self.assertEqual(run["state"], "passed", json.dumps(run, indent=1))
            recovery = fleet.rbctl_json("show", run["recovery_operation"])
            self.assertEqual(recovery["hosts"][0]["to"]["commit"], commit)
            fleet.deploy("prod", "v1.1.0")
            newest = fleet.rbctl_json("history", "prod", "--limit", "1")["operations"][0]["id"]
            self.assertIn("gate passed_in is open", fleet.rbctl("why", newest).out)


if __name__ == "__main__":
    unittest.main(verbosity=2)

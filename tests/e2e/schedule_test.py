#!/usr/bin/env python3
"""Schedules: what was missed is made up once or reported, nothing runs twice across restarts, and what is overdue is
seen. Time is not waited for: what is on record is moved back while no controller runs."""
import datetime
import os
import sqlite3
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from fleet import Fleet, wait_for  # noqa: E402

DRILLS = "{allow: [bad-code], windows: [\"00:00-24:00\"], longest: 60s}"
NOW = datetime.datetime.now(datetime.timezone.utc)
# Half a day away: never while the test runs.
DAILY = f"\"{NOW.minute} {(NOW.hour + 12) % 24} * * *\""
SCHEDULES = f"""schedules:
  nightly: {{kind: backup, cron: {DAILY}, environments: [test, prod]}}
  proofs: {{kind: proof, cron: {DAILY}, environments: [prod]}}
  drills: {{kind: drill, fault: bad-code, cron: {DAILY}, environments: [test, prod]}}
  later: {{kind: backup, cron: {DAILY}, environments: [test], jitter: 1h}}
  reported: {{kind: backup, cron: {DAILY}, environments: [test], missed: report}}
  refused: {{kind: drill, fault: disk-full, cron: {DAILY}, environments: [test]}}
"""


class Schedules(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.fleet = cls.enterClassContext(Fleet(
            {"test": ["test-1"], "prod": ["prod-1"]}, fleet_extra=SCHEDULES,
            service_lines="    drills: {allow: [bad-code], longest: 60s}\n",
            drills={"test": DRILLS, "prod": DRILLS}))
        for environment in ("test", "prod"):
            cls.fleet.deploy(environment, "v1.0.0")

    def listed(self):
        return {one["name"]: one for one in self.fleet.rbctl_json("schedule", "list")["schedules"]}

    def move_back(self, **back):
        """As if the schedule had last run (or been written down) so much earlier. No controller runs."""
        with sqlite3.connect(self.fleet.path("controller", "controller.db")) as store:
            for name, delta in back.items():
                store.execute("DELETE FROM schedule_runs WHERE schedule = ? AND due_us < (SELECT max(due_us) FROM "
                              "schedule_runs WHERE schedule = ?)", (name, name))
                store.execute("UPDATE schedule_runs SET due_us = due_us - ? WHERE schedule = ?",
                              (int(delta.total_seconds() * 1e6), name))
        store.close()

    def restart(self, failpoint=None, **back):
        self.fleet.kill("controller")
        self.move_back(**back)
        self.fleet.start_controller(failpoint)

    def begun_by(self, schedule):
        history = self.fleet.rbctl_json("history", "--limit", "100")["operations"]
        return sorted(one["environment"] for one in history if one["requested_by"] == f"schedule {schedule}"
                      and one["kind"] == "backup" and one["reason"].startswith(f"schedule {schedule} ("))

    def test_missed_runs_are_made_up_once_or_reported_and_none_is_doubled(self):
        fleet = self.fleet
        for name, one in self.listed().items():
            self.assertFalse(one["overdue"], name)
            self.assertNotIn("last_began_at", one, f"{name}: what was due before it was written down is not made up")
            self.assertIn("next_at", one)
        self.assertEqual(fleet.rbctl_json("status")["overdue"], [])
        proved_before = max(one["last_proved_at"] for one in self.releases("prod"))
        three_days = datetime.timedelta(days=3)
        # Killed as the first operation has its lock, as a drill asks for its recovery's commit, and as that is verified.
        self.restart("controller.driver.after-lock", nightly=three_days, proofs=three_days, drills=three_days,
                     reported=three_days, refused=three_days)
        for failpoint in ("controller.driver.after-send-commit", "controller.driver.after-send-verify", None):
            wait_for(lambda: fleet.ended("controller"), "the controller to be killed", 60)
            self.restart(failpoint)

        def over():
            listed = self.listed()
            names = ("nightly", "proofs", "drills", "reported", "refused")
            return all(listed[name].get("last_outcome", "running") != "running" for name in names) and listed
        listed = wait_for(over, "every run to be over", 90)
        for name in ("nightly", "proofs", "drills"):
            self.assertEqual(listed[name]["last_outcome"], "done", listed[name])
            self.assertIn("3 missed", listed[name]["last_message"])
            self.assertFalse(listed[name]["overdue"])
        self.assertEqual(self.begun_by("nightly"), ["prod", "test"], "once, however many were missed")
        self.assertEqual(self.begun_by("proofs"), ["prod"])
        self.assertGreater(max(one["last_proved_at"] for one in self.releases("prod")), proved_before)
        drills = fleet.rbctl_json("drill", "list")["drills"]
        self.assertEqual([(one["environment"], one["state"], one["schedule"]) for one in drills],
                         [("prod", "passed", "drills"), ("test", "passed", "drills")])
        # What is only reported, and what was refused, is seen where people look.
        self.assertEqual((listed["reported"]["last_outcome"], listed["refused"]["last_outcome"]),
                         ("missed", "refused"))
        self.assertEqual(self.begun_by("reported"), [])
        self.assertEqual(fleet.rbctl_json("status")["overdue"], ["refused", "reported"])
        self.assertIn("OVERDUE: missed: 3 missed", fleet.rbctl("status", "test").out)
        self.assertNotIn("OVERDUE", fleet.rbctl("status", "prod").out)
        self.assertIn("does not allow disk-full", listed["refused"]["last_message"])
        # Nothing is left to be made up.
        self.restart()
        fleet.wait_connected()
        self.assertEqual({name: one.get("last_due_at") for name, one in self.listed().items()},
                         {name: one.get("last_due_at") for name, one in listed.items()})

        # On time: due a minute ago, which is nothing to speak of.
        fleet.fleet_extra += ("  hourly: {kind: backup, environments: [test], cron: \""
                              f"{(datetime.datetime.now(datetime.timezone.utc).minute - 1) % 60} * * * *\"}}\n")
        fleet.kill("controller")
        fleet.write_fleet()
        fleet.start_controller()
        self.restart(hourly=datetime.timedelta(minutes=30))
        hourly = wait_for(lambda: (one := self.listed()["hourly"]).get("last_outcome") == "done" and one,
                          "the hourly backup")
        self.assertNotIn("missed", hourly["last_message"])
        self.assertEqual(self.begun_by("hourly"), ["test"])

    def releases(self, environment):
        hosts = self.fleet.rbctl_json("backup", "list", environment)["hosts"]
        return [release for host in hosts for release in host["releases"] if release.get("last_proved_at")]

    def test_what_the_fleet_file_may_not_say(self):
        path = self.fleet.path("other.yaml")
        with open(self.fleet.path("fleet.yaml"), encoding="utf-8") as f:
            text = f.read()
        with open(path, "w", encoding="utf-8") as f:
            f.write(text + f"  old: {{kind: prune, cron: {DAILY}, environments: [test]}}\n"
                           "  odd: {kind: backup, cron: \"61 * * * *\", environments: [tset]}\n")
        run = self.fleet.program("rb-controller", "check", "--fleet", path, code=None)
        self.assertNotEqual(run.code, 0)
        for words in ("needs no schedule: each agent removes", "schedules.odd.cron", "there is no environment 'tset'"):
            self.assertIn(words, run.out + run.err)


if __name__ == "__main__":
    unittest.main(verbosity=2)

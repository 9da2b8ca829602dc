#!/usr/bin/env python3
"""Schedules: what was missed is made up once or reported, nothing runs twice across restarts, and what is overdue is
seen. Time is not waited for: what is on record is moved back while no controller runs."""
import datetime
import os
import sqlite3
import sys
import unittest
import urllib.request

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
  clean: {{kind: prune, cron: {DAILY}, environments: [test, prod]}}
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
        for environment in ("test", "prod"):
            fleet.deploy(environment, "v1.1.0")
        minute = (datetime.datetime.now(datetime.timezone.utc).minute - 1) % 60
        for name, rest in (("hourly", "kind: backup, environments: [test]"), ("again", "kind: proof, environments: [prod]")):
            fleet.fleet_extra += f"  {name}: {{{rest}, cron: \"{minute} * * * *\"}}\n"
        fleet.kill("controller")
        fleet.write_fleet()
        fleet.start_controller()
        self.restart(hourly=datetime.timedelta(minutes=30))
        hourly = wait_for(lambda: (one := self.listed()["hourly"]).get("last_outcome") == "done" and one,
                          "the hourly backup")
        self.assertNotIn("missed", hourly["last_message"])
        self.assertEqual(self.begun_by("hourly"), ["test"])

        # Fewer releases are to be kept from now on, and nothing but the schedule makes it so: an agent removes old ones
        # by itself when it has proved a new one. A proof of what has not changed is one all the same.
        had = wait_for(self.all_are_proved, "every good release to be proved")
        proved_before = max(one["last_proved_at"] for one in self.releases("prod"))
        fleet.kill("controller")
        fleet.retain = 1
        fleet.write_fleet()
        self.move_back(clean=three_days)
        fleet.start_controller()
        again = self.wait_for_run("clean", listed)
        self.restart(again=datetime.timedelta(minutes=30))
        self.wait_for_run("again", again)
        self.assertRegex(again["clean"]["last_message"], r"op-.*: removed [1-9][0-9]* releases on 1 hosts, freed [0-9.]+ .*; "
                         r"op-.*: removed [1-9][0-9]* releases on 1 hosts, freed .* \(3 missed before it\)")
        wait_for(lambda: max(one["last_proved_at"] for one in self.releases("prod")) > proved_before, "it to be proved anew")
        for environment, before in had.items():
            wait_for(lambda: before - self.names(environment), f"old releases of {environment} to be gone")
            runs = {host["runs"]["release"] for host in fleet.rbctl_json("status", environment)["hosts"]}
            self.assertLessEqual(runs, self.names(environment), "what runs stays")
            pruned = [one for one in fleet.rbctl_json("history", environment, "--limit", "100")["operations"]
                      if one["kind"] == "prune"]
            self.assertEqual([(one["outcome"], one["requested_by"]) for one in pruned], [("succeeded", "schedule clean")])
        self.assertIn('rb_schedule_last_outcome{kind="prune",outcome="done",schedule="clean"} 1\n',
                      self.metrics("controller", "metrics.address"))
        self.assertRegex(self.metrics("hosts", "test-1", "state", "metrics.address"),
                         r'rb_releases_pruned_total\{service="sample-bot"\} [1-9]')
        # By hand there is nothing left to do.
        self.assertIn("removed 0 releases on 1 hosts", fleet.rbctl("backup", "prune", "prod", "--reason", "x").out)

    def wait_for_run(self, name, before):
        """Until it has run once more, and well."""
        one = wait_for(lambda: (now := self.listed())[name].get("last_began_at", "") > before[name].get("last_began_at", "")
                       and now[name]["last_outcome"] != "running" and now, f"{name} to have run")
        self.assertEqual(one[name]["last_outcome"], "done", one[name])
        return one

    def all_are_proved(self):
        """Environment -> names of its releases; None while a good one is not proved."""
        had = {}
        for environment in ("test", "prod"):
            hosts = self.fleet.rbctl_json("backup", "list", environment)["hosts"]
            releases = [release for host in hosts for release in host["releases"]]
            if any(one["standing"] == "good" and not one.get("last_proved_at") for one in releases):
                return None
            had[environment] = {one["name"] for one in releases}
        return had

    def names(self, environment):
        hosts = self.fleet.rbctl_json("backup", "list", environment)["hosts"]
        return {release["name"] for host in hosts for release in host["releases"]}

    def metrics(self, *where):
        with open(self.fleet.path(*where), encoding="utf-8") as f:
            address = f.read().strip()
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            return answer.read().decode()

    def releases(self, environment):
        hosts = self.fleet.rbctl_json("backup", "list", environment)["hosts"]
        return [release for host in hosts for release in host["releases"] if release.get("last_proved_at")]

    def test_what_the_fleet_file_may_not_say(self):
        path = self.fleet.path("other.yaml")
        with open(self.fleet.path("fleet.yaml"), encoding="utf-8") as f:
            text = f.read()
        with open(path, "w", encoding="utf-8") as f:
            f.write(text + f"  old: {{kind: pruned, cron: {DAILY}, environments: [test]}}\n"
                           "  odd: {kind: backup, cron: \"61 * * * *\", environments: [tset]}\n")
        run = self.fleet.program("rb-controller", "check", "--fleet", path, code=None)
        self.assertNotEqual(run.code, 0)
        for words in ("'pruned' is not one of: backup, proof, drill, prune", "schedules.odd.cron", "there is no environment 'tset'"):
            self.assertIn(words, run.out + run.err)


if __name__ == "__main__":
    unittest.main(verbosity=2)

#!/usr/bin/env python3
"""The main road, with real processes: deploy, ship something broken, roll back in every way there is, undo."""
import json
import os
import re
import sqlite3
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from fleet import SERVICE, Fleet, wait_for  # noqa: E402


def hosts_of(operation):
    return {host["host"]: host for host in operation["hosts"]}


class MainRoad(unittest.TestCase):
    def setUp(self):
        self.fleet = self.enterContext(Fleet())

    def messages(self, host):
        with sqlite3.connect(os.path.join(self.fleet.tree(host), "data", "bot.db"), timeout=5) as db:
            return db.execute("SELECT min(id), min(at), count(*) FROM message").fetchone()

    def assert_runs(self, hosts, version):
        for host in hosts:
            self.assertTrue(self.fleet.is_healthy(host, version), f"{host}: {self.fleet.health(host)}")
            self.assertEqual(self.fleet.contents(host), self.fleet.contents_of(version), host)

    def wait_until_proved(self, environment, version, hosts):
        """A new release is proved in the background right after it was taken."""
        def proved():
            listed = self.fleet.rbctl_json("backup", "list", environment)
            found = set()
            for host in listed["hosts"]:
                for release in host.get("releases", []):
                    if release.get("version") == version and release.get("durability") == "proved":
                        found.add(host["host"])
            return found >= set(hosts)
        wait_for(proved, f"{version} to be proved on {hosts}", 30)

    def test_everything(self):
        fleet = self.fleet
        prod, test = ["prod-1", "prod-2"], ["test-1", "test-2"]
        for version in ("v1.0.0", "v1.1.0"):
            for environment, hosts in (("test", test), ("prod", prod)):
                fleet.deploy(environment, version)
                self.assert_runs(hosts, version)
        self.wait_until_proved("prod", "v1.0.0", prod)
        self.wait_until_proved("prod", "v1.1.0", prod)

        oldest = {host: self.messages(host)[:2] for host in prod}

        with self.subTest("a release that cannot start, shipped without automatic revert, stays and is down"):
            broken = fleet.deploy("prod", "v1.2.0", "--no-revert", code=3)
            self.assertIn("prod-1", broken.out + broken.err)
            self.assertIsNone(fleet.health("prod-1"))
            self.assertEqual(fleet.contents("prod-2"), fleet.contents_of("v1.2.0"))

        with self.subTest("test was not touched"):
            self.assert_runs(test, "v1.1.0")

        with self.subTest("a rollback to a prefix of the commit, and its report"):
            commit = fleet.commit_of("v1.1.0")
            report = fleet.rbctl_json("rollback", "prod", "--to", commit[:7], "--reason", "v1.2.0 does not start")
            self.assert_runs(prod, "v1.1.0")
            self.assertEqual(report["state"], "succeeded")
            self.assertEqual(sorted(hosts_of(report)), prod)
            for name, host in hosts_of(report).items():
                self.assertEqual(host["method"], "backup", name)
                self.assertEqual(host["to"]["commit"], commit, name)
                self.assertEqual(host["from"]["commit"], fleet.commit_of("v1.2.0"), name)
                self.assertEqual(host["verdict"], "healthy", name)
                self.assertTrue(host["target_met"], name)
                self.assertEqual(host["target_seconds"], 180)
                for part in ("prepared_seconds", "downtime_seconds", "recovery_seconds"):
                    self.assertGreater(host[part], 0, f"{name} {part}")
                self.assertGreaterEqual(host["recovery_seconds"], host["downtime_seconds"])
                self.assertLess(host["recovery_seconds"], 30)

        with self.subTest("data is as it was"):
            for host in prod:
                self.assertEqual(self.messages(host)[:2], oldest[host])

        with self.subTest("the reason is kept, and shown"):
            history = fleet.rbctl("history", "prod").out
            self.assertIn("v1.2.0 does not start", history)
            entry = fleet.rbctl_json("history", "prod")["operations"][0]
            self.assertEqual(entry["reason"], "v1.2.0 does not start")
            self.assertIn("v1.2.0 does not start", fleet.rbctl("show", entry["id"]).out)

        with self.subTest("undo goes back to what the rollback replaced, and undo of that as well"):
            undone = fleet.rbctl("undo", report["id"], "--reason", "look at it again", "--no-revert", code=None)
            self.assertIn(undone.code, (3, 5), undone)
            if undone.code == 5:  # it is bad now: refused unless forced
                undone = fleet.rbctl("undo", report["id"], "--reason", "look at it again", "--no-revert", "--force",
                                     code=3)
            self.assertEqual(fleet.contents("prod-1"), fleet.contents_of("v1.2.0"))
            self.assertIsNone(fleet.health("prod-1"))
            fleet.rbctl("rollback", "prod", "--reason", "last-good is the default")
            self.assert_runs(prod, "v1.1.0")

        with self.subTest("already there and healthy: nothing is done, and it says so"):
            pids = {host: fleet.service_pid(host) for host in prod}
            again = fleet.rbctl("rollback", "prod", "--to", "v1.1.0", "--reason", "again")
            self.assertRegex((again.out + again.err).lower(), "already")
            self.assertEqual(pids, {host: fleet.service_pid(host) for host in prod})

        with self.subTest("to a tag"):
            fleet.rbctl("rollback", "prod", "--to", "v1.0.0", "--reason", "further back")
            self.assert_runs(prod, "v1.0.0")

        with self.subTest("a bad one, only with --force"):
            # What was rolled back from is bad now: not offered without --force.
            refused = fleet.rbctl("rollback", "prod", "--to", "v1.1.0", "--reason", "forward", code=5)
            self.assertIn("bad", refused.out + refused.err)
            self.assert_runs(prod, "v1.0.0")
            fleet.rbctl("deploy", "prod", "--to", "v1.1.0", "--reason", "forward", "--force")
            self.assert_runs(prod, "v1.1.0")

        with self.subTest("to the name of a release, on one host"):
            listed = {host["host"]: host for host in fleet.rbctl_json("backup", "list", "prod")["hosts"]}
            name = next(r["name"] for r in listed["prod-1"]["releases"] if r.get("version") == "v1.0.0")
            self.assertRegex(name, rf"^{re.escape(SERVICE)}/\d{{4}}-")
            fleet.rbctl("rollback", "prod", "--host", "prod-1", "--to", name, "--reason", "by name")
            self.assert_runs(["prod-1"], "v1.0.0")
            self.assert_runs(["prod-2"], "v1.1.0")
            fleet.rbctl("rollback", "prod", "--host", "prod-1", "--to", "v1.1.0", "--reason", "and back", "--force")

    def test_owner_mode_and_times_come_back(self):
        fleet = self.fleet
        fleet.deploy("test", "v1.0.0")
        special = os.path.join(fleet.tree("test-1"), "config-prod.json")
        os.chmod(special, 0o640)
        if os.geteuid() == 0:
            os.chown(special, 12345, 23456)
        os.utime(special, ns=(1_600_000_000_123_456_789, 1_600_000_000_123_456_789))
        fleet.rbctl("backup", "create", "test", "--reason", "as it should be")
        wanted = fleet.attributes("test-1")
        listed = {host["host"]: host for host in fleet.rbctl_json("backup", "list", "test")["hosts"]}
        name = next(r["name"] for r in listed["test-1"]["releases"] if r["reason"] == "as it should be")
        fleet.deploy("test", "v1.1.0")
        self.assertNotEqual(fleet.attributes("test-1"), wanted)
        fleet.rbctl("rollback", "test", "--host", "test-1", "--to", name)
        self.assertEqual(fleet.attributes("test-1"), wanted)

    def test_previous_and_before(self):
        fleet = self.fleet
        fleet.deploy("test", "v1.0.0")
        time.sleep(1.1)  # names and times of releases are whole seconds
        between = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        time.sleep(1.1)
        fleet.deploy("test", "v1.1.0")
        fleet.rbctl("rollback", "test", "--to", "previous")
        self.assert_runs(["test-1", "test-2"], "v1.0.0")
        fleet.deploy("test", "v1.1.0", "--force")
        self.assert_runs(["test-1", "test-2"], "v1.1.0")
        fleet.rbctl("rollback", "test", "--to-before", between)
        self.assert_runs(["test-1", "test-2"], "v1.0.0")

    def test_a_bad_deploy_is_reverted_by_itself(self):
        fleet = self.fleet
        fleet.deploy("test", "v1.0.0")
        fleet.deploy("test", "v1.1.0")
        before = {host: fleet.attributes(host) for host in ("test-1", "test-2")}
        fleet.deploy("test", "v1.2.0", code=6)
        self.assert_runs(["test-1", "test-2"], "v1.1.0")
        self.assertEqual(before, {host: fleet.attributes(host) for host in ("test-1", "test-2")})

    def test_by_git_without_the_git_server(self):
        fleet = self.fleet
        fleet.deploy("test", "v1.0.0")
        fleet.deploy("test", "v1.1.0")
        os.rename(fleet.path("remote.git"), fleet.path("gone.git"))
        report = fleet.rbctl_json("rollback", "test", "--to", "v1.0.0", "--method", "git")
        self.assertEqual({host["method"] for host in report["hosts"]}, {"git"})
        self.assertEqual({host["target_seconds"] for host in report["hosts"]}, {120})
        self.assert_runs(["test-1", "test-2"], "v1.0.0")

    def test_an_agent_has_room_in_its_table_of_descriptors_before_a_large_swap_needs_it(self):
        of_agent = f"/proc/{self.fleet.processes['prod-1'].pid}"
        with open(f"{of_agent}/status", encoding="utf-8") as f:
            room = int(re.search(r"^FDSize:\s+(\d+)$", f.read(), re.MULTILINE)[1])
        with open(f"{of_agent}/limits", encoding="utf-8") as f:
            limit = int(re.search(r"^Max open files\s+(\d+) ", f.read(), re.MULTILINE)[1])
        self.assertGreaterEqual(room, min(limit // 2, 8192))

    def test_a_plan_changes_nothing(self):
        fleet = self.fleet
        fleet.deploy("test", "v1.0.0")
        fleet.deploy("test", "v1.1.0")
        before = {host: (fleet.attributes(host), fleet.service_pid(host)) for host in ("test-1", "test-2")}
        count = len(fleet.rbctl_json("history", "test")["operations"])
        plan = fleet.rbctl("plan", "test", "--to", "v1.0.0")
        self.assertIn("test-1", plan.out)
        self.assertIn("config-prod.json", plan.out)
        document = fleet.rbctl_json("plan", "test", "--to", "v1.0.0")
        self.assertEqual([host["host"] for host in document["hosts"]], ["test-1", "test-2"])
        json.dumps(document)
        self.assertEqual(before, {host: (fleet.attributes(host), fleet.service_pid(host)) for host in before})
        self.assertEqual(count, len(fleet.rbctl_json("history", "test")["operations"]))


    def test_data_goes_back_only_when_asked_and_the_plan_says_what_is_lost(self):
        fleet = self.fleet
        fleet.deploy("test", "v1.0.0")
        databases = {host: os.path.join(fleet.tree(host), "data", "bot.db") for host in ("test-1", "test-2")}

        def notes(host):
            with sqlite3.connect(databases[host], timeout=5) as db:
                return [row[0] for row in db.execute("SELECT text FROM note ORDER BY text")]

        def write(statement):
            for path in databases.values():
                db = sqlite3.connect(path, timeout=5)
                with db:
                    db.execute(statement)
                db.close()

        write("CREATE TABLE note(text)")
        write("INSERT INTO note VALUES ('before'), ('kept')")
        fleet.rbctl("backup", "create", "test")
        write("DELETE FROM note WHERE text = 'kept'")
        write("INSERT INTO note VALUES ('after 1'), ('after 2')")
        release = {host["host"]: host["releases"][0]["name"]
                   for host in fleet.rbctl_json("backup", "list", "test")["hosts"]}["test-1"]

        self.assertNotIn("rows now", fleet.rbctl("plan", "test", "--to", "v1.0.0").out)
        planned = fleet.rbctl("plan", "test", "--to", release, "--host", "test-1", "--with-data").out
        self.assertIn("data/bot.db note: 3 rows now, 2 then", planned)
        self.assertRegex(planned, "the data goes back [0-9.]+ s")
        self.assertEqual(notes("test-1"), ["after 1", "after 2", "before"])

        rolled = fleet.rbctl_json("rollback", "test", "--to", release, "--host", "test-1", "--with-data", "--reason", "x")
        self.assertEqual(notes("test-1"), ["before", "kept"])
        self.assertEqual(notes("test-2"), ["after 1", "after 2", "before"])
        # What a rollback of data replaced is data too.
        fleet.rbctl("undo", rolled["id"], "--reason", "the data was right")
        self.assertEqual(notes("test-1"), ["after 1", "after 2", "before"])
        self.assertTrue(fleet.is_healthy("test-1", "v1.0.0"))


class Retention(unittest.TestCase):
    def test_the_fleet_file_says_how_many_good_releases_stay(self):
        fleet = self.enterContext(Fleet({"test": ["test-1"]}, retain=1))
        fleet.deploy("test", "v1.0.0")
        fleet.deploy("test", "v1.1.0")

        def versions():
            host = fleet.rbctl_json("backup", "list", "test")["hosts"][0]
            return {release.get("version") for release in host.get("releases", [])}
        wait_for(lambda: "v1.0.0" not in versions(), "the older good release to be removed")
        self.assertIn("v1.1.0", versions())


if __name__ == "__main__":
    unittest.main(verbosity=2)

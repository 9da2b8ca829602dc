#!/usr/bin/env python3
"""What people get wrong, and what goes wrong around the controller: refused with what to type next, and nothing lost."""
import contextlib
import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from fleet import SERVICE, Fleet, wait_for  # noqa: E402

DONE, FAILED, USAGE, REFUSED = 0, 1, 2, 5
OWN_MOUNTS = "RB_TEST_OWN_MOUNTS"
DISK_MIB = 64


class SmallDiskFleet(Fleet):
    """The controller's folder is a disk of its own."""

    def write_fleet(self):
        folder = self.path("controller")
        if not os.path.exists(folder):
            os.mkdir(folder)
            if os.environ.get(OWN_MOUNTS):
                subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "rb-test", folder], check=True)
        super().write_fleet()

    def close(self):
        super().close()
        # Only this process's mounts: see the end of this file.
        if os.environ.get(OWN_MOUNTS) and os.path.ismount(self.path("controller")):
            subprocess.run(["umount", self.path("controller")], check=True)
            shutil.rmtree(self.folder, ignore_errors=True)


class BadInput(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.fleet = cls.enterClassContext(SmallDiskFleet({"test": ["test-1"], "prod": ["prod-1", "prod-2"]},
                                                         gates={"prod": "{approval: true}"}))
        for environment in ("test", "prod"):
            for version in ("v1.0.0", "v1.1.0"):
                cls.fleet.deploy(environment, version, *(["--override-gate", "approval"] if environment == "prod" else []))
        cls.bob = cls.fleet.operator("bob")

    def state(self, operation):
        return self.fleet.rbctl_json("show", operation)["state"]

    def begin_waiting(self, reason, to="v1.0.0"):
        """A rollback of prod that waits for an approval."""
        run = self.fleet.rbctl_json("rollback", "prod", "--to", to, "--reason", reason, "--force", "--no-wait")
        wait_for(lambda: self.state(run["id"]) == "waiting", "it to wait for an approval")
        return run["id"]

    def ended(self, operation):
        def outcome():
            shown = self.fleet.rbctl_json("show", operation)
            return shown if shown["outcome"] != "running" else None
        return wait_for(outcome, f"{operation} to end", 60)

    def versions(self, environment="prod"):
        return [self.fleet.health(host)["version"] for host in self.fleet.environments[environment]]

    def put_back(self):
        if self.versions() != ["v1.1.0"] * 2:
            self.fleet.rbctl("rollback", "prod", "--to", "v1.1.0", "--reason", "put back", "--force", "--override-gate",
                             "approval")

    def test_unknown_ids_say_what_to_type(self):
        for command in (["show"], ["watch"], ["abort"], ["pause"], ["resume"], ["approve"], ["why"],
                        ["undo", "--reason", "x"]):
            run = self.fleet.rbctl(command[0], "op-20260101T000000Z-000000", *command[1:], code=REFUSED)
            self.assertIn("op-20260101T000000Z-000000", run.err, command)
            self.assertIn("rbctl history", run.err, command)
        self.fleet.rbctl("show", "op-", code=REFUSED)  # the beginning of several
        self.fleet.rbctl("show", "%", code=REFUSED)
        self.fleet.rbctl("show", "", code=REFUSED)

    def test_what_has_ended_takes_no_more(self):
        operation = self.begin_waiting("to be aborted")
        self.fleet.rbctl("abort", operation, "--reason", "no")
        self.assertEqual(self.ended(operation)["outcome"], "aborted")
        for command in ("abort", "pause", "resume", "approve"):
            run = self.fleet.rbctl(command, operation, code=REFUSED)
            self.assertIn("has ended (aborted)", run.err, command)
        done = self.fleet.rbctl_json("history", "test", "--limit", "1")["operations"][0]
        self.assertIn("has ended (succeeded)", self.fleet.rbctl("resume", done["id"], code=REFUSED).err)
        self.assertEqual(self.versions(), ["v1.1.0"] * 2)

    def test_waves_and_environments_that_make_no_sense(self):
        with open(self.fleet.path("fleet.yaml"), encoding="utf-8") as f:
            good = f.read()
        path = self.fleet.path("other.yaml")
        for wave, of in (("0%", "size"), ("500%", "size"), ("0", "size"), ("-1", "size"), ("many", "size"),
                         ("500%", "canary")):
            with open(path, "w", encoding="utf-8") as f:
                f.write(good.replace('size: "100%"', f'{of}: "{wave}"'))
            run = self.fleet.program("rb-controller", "check", "--fleet", path, code=USAGE)
            self.assertIn(wave, run.err)
            self.assertRegex(run.err, r"other\.yaml:\d+")
            run = self.fleet.program("rb-controller", "serve", "--dir", self.fleet.path("controller"), "--fleet", path,
                                     code=FAILED)
            self.assertIn(wave, run.err)
        # An environment where nothing is: known, and empty.
        with open(path, "w", encoding="utf-8") as f:
            f.write(good.replace("  prod: {order", "  stage: {order: 9}\n  prod: {order"))
        self.fleet.program("rb-controller", "check", "--fleet", path)
        self.with_fleet_file(path)
        try:
            run = self.fleet.rbctl("rollback", "stage", "--reason", "x", code=REFUSED)
            self.assertIn("stage", run.err)
        finally:
            self.with_fleet_file(None)
        run = self.fleet.rbctl("rollback", "prdo", "--reason", "x", code=REFUSED)
        self.assertIn("did you mean prod", run.err)

    def with_fleet_file(self, path):
        """The controller is started anew with that file; None: with its own."""
        own = self.fleet.path("fleet.yaml")
        if path:
            shutil.copy(own, own + ".kept")
            shutil.copy(path, own)
        else:
            shutil.move(own + ".kept", own)
        self.fleet.kill("controller", signal.SIGTERM)
        self.fleet.start_controller()
        self.fleet.wait_connected()

    def test_a_host_dropped_from_the_file_stays_in_its_operation(self):
        operation = self.begin_waiting("prod-2 leaves the file meanwhile")
        path = self.fleet.path("other.yaml")
        with open(self.fleet.path("fleet.yaml"), encoding="utf-8") as f:
            text = f.read()
        with open(path, "w", encoding="utf-8") as f:
            f.write(text.replace("prod: [prod-1, prod-2]", "prod: [prod-1]"))
        self.with_fleet_file(path)
        try:
            self.fleet.rbctl("approve", operation, identity=self.bob)
            shown = self.ended(operation)
            self.assertEqual(shown["outcome"], "succeeded", shown["summary"])
            self.assertEqual({host["host"]: host["state"] for host in shown["hosts"]},
                             {"prod-1": "kept", "prod-2": "kept"})
            self.assertEqual(self.versions(), ["v1.0.0"] * 2)
            run = self.fleet.rbctl("rollback", "prod", "--host", "prod-2", "--reason", "x", code=REFUSED)
            self.assertIn("prod-2", run.err)
        finally:
            self.with_fleet_file(None)
        self.put_back()

    def test_a_second_controller_and_a_newer_database_are_refused(self):
        folder, link = self.fleet.path("controller"), self.fleet.path("the-same")
        os.symlink(folder, link)
        for path in (folder, link):
            run = self.fleet.program("rb-controller", "serve", "--dir", path, "--fleet", self.fleet.path("fleet.yaml"),
                                     "--listen", "127.0.0.1:0", "--join-listen", "127.0.0.1:0", "--metrics",
                                     "127.0.0.1:0", code=FAILED)
            self.assertIn("another rb-controller serves", run.err)
        self.assertEqual(self.fleet.rbctl("status").code, DONE, "the first one serves on")
        # A newer one's, in a copy.
        newer = self.fleet.path("newer")
        os.mkdir(newer)
        shutil.copytree(os.path.join(folder, "pki"), os.path.join(newer, "pki"))
        with contextlib.closing(sqlite3.connect(os.path.join(folder, "controller.db"))) as source, \
                contextlib.closing(sqlite3.connect(os.path.join(newer, "controller.db"))) as copy:
            source.backup(copy)
            copy.execute("PRAGMA user_version = 1000")

        def digests():
            found = {}
            for name in sorted(os.listdir(newer)):
                if name.startswith("controller.db"):
                    with open(os.path.join(newer, name), "rb") as f:
                        found[name] = hashlib.sha256(f.read()).hexdigest()
            return found
        before = digests()
        run = self.fleet.program("rb-controller", "serve", "--dir", newer, "--fleet", self.fleet.path("fleet.yaml"),
                                 "--listen", "127.0.0.1:0", "--join-listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0",
                                 code=FAILED)
        self.assertIn("newer version", run.err)
        self.assertIn("not touched", run.err)
        self.assertEqual(digests(), before)

    @unittest.skipUnless(os.environ.get(OWN_MOUNTS), "needs root: the controller's disk is a small one of its own")
    def test_on_a_full_disk_nothing_begins_what_runs_ends_and_nothing_is_lost(self):
        fleet = self.fleet
        operation = self.begin_waiting("the disk fills up meanwhile")
        known = len(fleet.rbctl_json("history")["operations"])
        ballast = fleet.path("controller", "ballast")
        with open(ballast, "wb", buffering=0) as f:
            with self.assertRaises(OSError):
                while True:
                    f.write(b"x" * 4096)
        run = fleet.rbctl("rollback", "test", "--to", "v1.0.0", "--reason", "no room", "--force", code=REFUSED)
        self.assertIn("full", run.err)
        self.assertIn("Nothing was changed", run.err)
        self.assertEqual(self.versions("test"), ["v1.1.0"])
        fleet.rbctl("approve", operation, identity=self.bob)
        shown = self.ended(operation)
        self.assertEqual(shown["outcome"], "succeeded", shown["summary"])
        self.assertEqual(self.versions(), ["v1.0.0"] * 2)
        self.assertEqual(fleet.rbctl("rollback", "test", "--to", "v1.0.0", "--reason", "still none", "--force",
                                     code=REFUSED).code, REFUSED)
        # A controller that is killed now comes back, and knows all of it.
        fleet.kill("controller")
        os.remove(ballast)
        fleet.start_controller()
        fleet.wait_connected()
        history = fleet.rbctl_json("history")["operations"]
        self.assertEqual(len(history), known)
        self.assertEqual(history[0]["id"], operation)
        self.assertEqual(fleet.rbctl_json("show", operation)["events"], shown["events"])
        with contextlib.closing(sqlite3.connect(fleet.path("controller", "controller.db"))) as database:
            self.assertEqual(database.execute("PRAGMA integrity_check").fetchone()[0], "ok")
        self.assertIn("intact", fleet.rbctl("audit", "verify").out)
        fleet.rbctl("rollback", "test", "--to", "v1.0.0", "--reason", "there is room again", "--force")
        fleet.rbctl("rollback", "test", "--to", "v1.1.0", "--reason", "put back", "--force")
        self.put_back()

    def test_a_plan_says_how_long_and_why_says_which_rules(self):
        fleet = self.fleet
        fleet.rbctl("rollback", "test", "--to", "v1.0.0", "--reason", "measured", "--force")
        plan = fleet.rbctl_json("plan", "test", "--to", "v1.1.0", "--force")
        method = plan["hosts"][0]["method"]
        self.assertGreater(plan["prediction"]["samples"], 0)
        self.assertEqual(plan["prediction"]["basis"], f"{method} in test")
        self.assertLessEqual(plan["prediction"]["p50_seconds"], plan["prediction"]["p95_seconds"])
        self.assertIn("Predicted recovery: p50", fleet.rbctl("plan", "test", "--to", "v1.1.0", "--force").out)
        run = fleet.rbctl_json("rollback", "test", "--to", "v1.1.0", "--reason", "back", "--force")
        rules = {reason["rule"] for reason in fleet.rbctl_json("why", run["id"])["reasons"]}
        self.assertLessEqual({"scope", "method", "wave", "verification"}, rules)
        waiting = self.begin_waiting("held by its gate")
        self.assertIn("gate approval", fleet.rbctl("why", waiting).out)
        fleet.rbctl("abort", waiting)
        self.assertEqual(self.ended(waiting)["outcome"], "aborted")
        self.assertIn("aborted by alice", fleet.rbctl("why", waiting).out)

    def test_watchers_come_and_go_and_who_comes_late_sees_all(self):
        fleet = self.fleet
        operation = self.begin_waiting("watched")
        early = [fleet.start_rbctl("watch", operation) for _ in range(3)]
        early[0].send_signal(signal.SIGKILL)
        early[0].wait(timeout=30)
        fleet.rbctl("approve", operation, identity=self.bob)
        for watcher in early[1:]:
            self.assertEqual(watcher.wait(timeout=60), DONE)
        events = self.ended(operation)["events"]
        late = fleet.rbctl("watch", operation).out
        places = []
        for event in events:
            self.assertIn(event["text"].split("\n")[0][:60], late)
            places.append(event["sequence"])
        self.assertEqual(places, list(range(1, len(events) + 1)))
        self.put_back()


if __name__ == "__main__":
    if os.geteuid() == 0 and not os.environ.get(OWN_MOUNTS):
        # A small disk is mounted for this process alone.
        os.execvpe("unshare", ["unshare", "--mount", sys.executable, *sys.argv], {**os.environ, OWN_MOUNTS: "1"})
    unittest.main(verbosity=2)

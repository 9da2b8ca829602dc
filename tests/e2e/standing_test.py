#!/usr/bin/env python3
"""What is bad stays away: quarantine over the whole fleet; deploys by other means, guarded and not; what was done by hand
while the controller was away; and refused requests on record."""
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from fleet import SERVICE, Fleet, wait_for  # noqa: E402

DONE, REFUSED, REVERTED = 0, 5, 6


class Standing(unittest.TestCase):
    def setUp(self):
        self.fleet = self.enterContext(Fleet({"test": ["test-1"], "prod": ["prod-1", "prod-2"]},
                                             agent_options=("--external-settle", "1s")))

    # --- helpers ---

    def agent(self, host, *args, code=0):
        return self.fleet.program("rb-agent", *args, "--config", self.fleet.path("hosts", host, "agent.yaml"), "--state",
                                  self.fleet.path("hosts", host, "state"), code=code)

    def guard(self, host, verb, *args, code=0):
        run = self.agent(host, "guard", verb, "--service", SERVICE, "-o", "json", *args, code=code)
        return json.loads(run.out)

    def quarantined(self, *args):
        return {entry["version"]: entry for entry in self.fleet.rbctl_json("quarantine", "list", *args)["quarantine"]}

    def history(self, kind, host=None):
        operations = self.fleet.rbctl_json("history", "--limit", "100")["operations"]
        return [one for one in operations if one["kind"] == kind and
                (host is None or [each["host"] for each in one["hosts"]] == [host])]

    def records(self, **wanted):
        records = self.fleet.rbctl_json("audit", "list", "--last", "1000")["records"]
        return [one for one in records if all(one[key] == value for key, value in wanted.items())]

    def release(self, host, name):
        hosts = self.fleet.rbctl_json("backup", "list", host.split("-")[0])["hosts"]
        releases = next(one for one in hosts if one["host"] == host)["releases"]
        return next((one for one in releases if one["name"] == name), None)

    # --- the story ---

    def test_standing(self):
        fleet = self.fleet
        for environment in ("test", "prod"):
            fleet.deploy(environment, "v1.0.0")
            fleet.deploy(environment, "v1.1.0")
        self.a_reverted_deploy_is_quarantined_over_the_fleet()
        self.refusals_by_state_are_on_record()
        self.an_undo_takes_the_quarantine_back()
        self.a_guarded_deploy_without_the_controller()
        self.by_hand_without_the_controller()
        self.an_unguarded_deploy_is_noticed()
        self.release_lets_it_be_deployed()

    def a_reverted_deploy_is_quarantined_over_the_fleet(self):
        fleet = self.fleet
        fleet.deploy("test", "v1.2.0", code=REVERTED)
        entry = self.quarantined()["v1.2.0"]
        self.assertEqual((entry["commit"], entry["service"]), (fleet.commit_of("v1.2.0"), SERVICE))
        self.assertIn("its deploy was reverted", entry["reason"])
        # It never ran in prod: there it is refused for what it did in test.
        for command in (("deploy", "prod", "--to", "v1.2.0"), ("deploy", "test", "--to", "v1.2.0")):
            refused = fleet.rbctl_json(*command, "--reason", "once more", code=REFUSED)
            self.assertEqual(refused["refusal"]["code"], "quarantined")
            self.assertIn(entry["operation_id"], refused["refusal"]["message"])
        plan = fleet.rbctl("deploy", "prod", "--to", "v1.2.0", "--force", "--reason", "I know", "--plan")
        self.assertIn("--force goes past that", plan.out)
        # The controller's death changes nothing of it.
        fleet.kill("controller")
        fleet.start_controller()
        fleet.wait_connected()
        self.assertEqual(self.quarantined()["v1.2.0"], entry)

    def refusals_by_state_are_on_record(self):
        fleet = self.fleet
        ended = self.history("deploy")[0]["id"]
        for verb, call in (("abort", "AbortOperation"), ("pause", "PauseOperation"), ("resume", "ResumeOperation"),
                           ("approve", "ApproveOperation")):
            fleet.rbctl(verb, ended, code=REFUSED)
            record = self.records(request=call)[0]
            self.assertFalse(record["allowed"], record)
            self.assertIn("has ended", record["refusal"])
        record = self.records(request="StartOperation", reason="once more")[0]
        self.assertFalse(record["allowed"])
        self.assertIn("quarantined", record["refusal"])
        why = fleet.rbctl_json("why", str(record["number"]))
        self.assertEqual((why["rule"], why["who"], why["outcome"]), ("quarantined", record["who"], "refused"))
        self.assertIn("Refused by the rule: state", fleet.rbctl("why", "refused").out)
        # A dashboard's requests are there, but not each of them.
        for _ in range(5):
            fleet.rbctl("status")
        self.assertEqual(len(self.records(request="GetStatus")), 1)
        self.assertTrue(fleet.rbctl_json("audit", "verify")["intact"])

    def an_undo_takes_the_quarantine_back(self):
        fleet = self.fleet
        operation = fleet.rbctl_json("rollback", "test", "--to", "v1.0.0", "--reason", "too hasty")["id"]
        self.assertIn("too hasty", self.quarantined()["v1.1.0"]["reason"])
        refused = fleet.rbctl_json("rollback", "test", "--to", "v1.1.0", "--reason", "x", code=REFUSED)
        self.assertEqual(refused["refusal"]["code"], "quarantined")
        fleet.rbctl("undo", operation, "--reason", "it was something else")
        self.assertIn("released from quarantine when the undo has succeeded", fleet.rbctl("history", "test").out +
                      fleet.rbctl("show", self.history("undo")[0]["id"]).out)
        self.assertNotIn("v1.1.0", self.quarantined())
        self.assertIn("was undone", self.quarantined("--all")["v1.1.0"]["release_reason"])
        self.assertTrue(fleet.is_healthy("test-1", "v1.1.0"))

    def a_guarded_deploy_without_the_controller(self):
        fleet, host = self.fleet, "prod-1"
        tree = fleet.tree(host)
        fleet.kill("controller")
        refused = self.guard(host, "before", "--commit", fleet.commit_of("v1.2.0"), code=REFUSED)
        self.assertIn("is quarantined", refused["quarantined"])
        self.guard(host, "before", "--commit", "v1.2.0", code=REFUSED)
        # What lives in the tree and is in no repository, as services leave it there.
        with open(os.path.join(tree, ".env"), "w", encoding="utf-8") as f:
            f.write("TOKEN=secret\n")
        os.chmod(os.path.join(tree, ".env"), 0o640)
        os.chown(os.path.join(tree, ".env"), 1234, 1235)
        os.makedirs(os.path.join(tree, "data", "uploads"), mode=0o750)
        with open(os.path.join(tree, "data", "uploads", "a.png"), "wb") as f:
            f.write(bytes(range(256)) * 100)
        with open(os.path.join(tree, "config-local.json"), "w", encoding="utf-8") as f:
            f.write('{"by": "hand"}')
        lost = [".env", "data/uploads/a.png", "data/uploads", "config-local.json", "data/bot.db"]

        def facts(path):
            info = os.lstat(os.path.join(tree, path))
            content = b""
            if stat.S_ISREG(info.st_mode) and not path.endswith(".db"):
                with open(os.path.join(tree, path), "rb") as f:
                    content = f.read()
            return info.st_mode, info.st_uid, info.st_gid, content
        before = {path: facts(path) for path in lost}
        ci, commit = fleet.checkout("v1.1.0", {"README.md": "deployed by rsync\n", "new.txt": "new\n",
                                               "config-extra.json": '{"from": "repository"}'})
        os.remove(os.path.join(ci, "lib", "quotes.py"))  # removed on purpose: not to come back
        taken = self.guard(host, "before", "--commit", commit, "--reason", "job 7")
        subprocess.run(["rsync", "-a", "--delete", "--exclude", ".git", ci + "/", tree + "/"], check=True)
        self.assertFalse(os.path.exists(os.path.join(tree, "data")), "the deploy has wiped the data")
        done = self.guard(host, "after", "--commit", commit)
        self.assertEqual(done["before"], taken["release"])
        self.assertEqual(done["commit"], commit)
        self.assertEqual({path: facts(path) for path in lost}, before)
        with open(os.path.join(tree, "README.md"), encoding="utf-8") as f:
            self.assertEqual(f.read(), "deployed by rsync\n", "what the deploy put there stays")
        self.assertTrue(os.path.exists(os.path.join(tree, "config-extra.json")))
        self.assertFalse(os.path.exists(os.path.join(tree, "lib", "quotes.py")), "what the repository had is gone")
        again = self.guard(host, "after", "--commit", commit)
        self.assertEqual(again["files_brought_back"], 0)
        fleet.start_controller()
        fleet.wait_connected()
        wait_for(lambda: self.history("external", host), "the deploy to be in the history")
        entry = self.history("external", host)[-1]
        self.assertEqual((entry["requested_by"], entry["outcome"], entry["reason"]),
                         (f"external:{host}:{os.environ.get('SUDO_USER') or 'root'}", "succeeded", "job 7"))
        self.assertEqual(entry["hosts"][0]["to"]["commit"], commit)
        wait_for(lambda: self.release(host, done["release"]), "the release to be listed")
        self.assertEqual(self.release(host, done["release"])["cause"], "external")

    def by_hand_without_the_controller(self):
        fleet, host = self.fleet, "prod-1"
        fleet.kill("controller")
        fleet.kill(host, signal.SIGTERM)
        run = self.agent(host, "local", "rollback", SERVICE, "--to", "v1.2.0", "--reason", "3 am", code=None)
        self.assertIn(run.code, (1, REFUSED), run)
        # Each command of it, on a host where something is that no release can keep.
        odd = os.path.join(fleet.tree(host), "chat.socket")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(odd)
        said = self.agent(host, "local", "backup", SERVICE, "--reason", "by hand").out
        taken = next(line for line in said.splitlines() if line.startswith(f"{SERVICE}/")).split()[0]
        self.assertIn(f"\n{taken}  ", self.agent(host, "local", "list", SERVICE).out)
        plan = self.agent(host, "local", "plan", SERVICE, "--to", "v1.1.0").out
        self.assertIn("not kept by a release: chat.socket\n", plan)
        self.assertRegex(self.agent(host, "local", "verify", SERVICE, "--to", taken).out, f"^{taken}: proved, ")
        self.assertIn("releases removed", self.agent(host, "local", "prune", SERVICE, "--keep", "100").out)
        self.assertIn("nothing to recover", self.agent(host, "local", "recover", SERVICE).out)
        os.remove(odd)
        self.agent(host, "local", "rollback", SERVICE, "--to", "v1.1.0", "--reason", "3 am")
        self.assertTrue(fleet.is_healthy(host, "v1.1.0"))
        fleet.start_agent(host)
        fleet.start_controller()
        fleet.wait_connected()
        wait_for(lambda: len(self.history("local", host)) == 2, "what was done by hand to be in the history")
        entries = {entry["reason"]: entry for entry in self.history("local", host)}
        self.assertEqual(sorted(entries), ["3 am", "by hand"])
        for entry in entries.values():
            self.assertEqual((entry["requested_by"].rsplit(":", 1)[0], entry["outcome"]), (f"local:{host}", "succeeded"))
        self.assertIn("reported by the host", fleet.rbctl("show", entries["3 am"]["id"]).out)
        # Once, whoever starts again.
        fleet.kill("controller")
        fleet.start_controller()
        fleet.wait_connected()
        self.assertEqual(len(self.history("local", host)), 2)
        self.assertEqual(os.listdir(fleet.path("hosts", host, "state", "owed")), [])

    def an_unguarded_deploy_is_noticed(self):
        fleet, host = self.fleet, "prod-2"
        ci, commit = fleet.checkout("v1.0.0")
        fleet.kill(host, signal.SIGTERM)  # what is found when it starts is found at once
        fleet.rsync(ci, host)
        extra = os.path.join(fleet.tree(host), "lib", "quotes.py")
        if os.path.exists(extra):
            os.remove(extra)
        fleet.start_agent(host)
        wait_for(lambda: self.history("external", host), "the deploy to be noticed")
        entry = self.history("external", host)[0]
        self.assertEqual(entry["hosts"][0]["to"]["commit"], commit, "from the tree's own .git/HEAD")
        # Lists are in brief; one operation is told whole.
        name = fleet.rbctl_json("show", entry["id"])["hosts"][0]["to"]["release"]
        wait_for(lambda: self.release(host, name), "the release to be listed")
        self.assertEqual(self.release(host, name)["commit"], commit)

        def runs():
            hosts = fleet.rbctl_json("status", "prod")["hosts"]
            return next(one for one in hosts if one["host"] == host)
        wait_for(lambda: runs()["runs"]["release"] == name and not runs()["drifted"], "the status to say so")

    def release_lets_it_be_deployed(self):
        fleet = self.fleet
        bad = fleet.commit_of("v1.2.0")
        viewer = fleet.operator("vera", "viewer")
        self.assertIn("v1.2.0", fleet.rbctl("quarantine", "list", identity=viewer).out)
        fleet.rbctl("quarantine", "release", bad[:9], "--reason", "mine", identity=viewer, code=REFUSED)
        fleet.rbctl("quarantine", "release", "ffffffff", "--reason", "x", code=REFUSED)
        fleet.rbctl("quarantine", "release", bad[:9], "--reason", "it was the disk")
        self.assertNotIn("v1.2.0", self.quarantined())
        self.assertEqual(self.quarantined("--all")["v1.2.0"]["released_by"], "alice")
        self.assertEqual(self.records(request="ReleaseQuarantine", who="alice", allowed=True)[0]["reason"],
                         "it was the disk")
        wait_for(lambda: fleet.rbctl("deploy", "test", "--to", "v1.2.0", "--plan", code=None).code == DONE,
                 "the agent to be told")
        wait_for(lambda: self.agent("test-1", "guard", "before", "--service", SERVICE, "--commit", bad,
                                    code=None).code == DONE, "guard to let it pass")


if __name__ == "__main__":
    unittest.main(verbosity=2)

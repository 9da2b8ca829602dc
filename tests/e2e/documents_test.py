#!/usr/bin/env python3
"""The checklist, what a host depends on, caches, doctor, and the documents: with real processes, on one fleet."""
import json
import os
import re
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from fleet import SERVICE, Fleet, wait_for  # noqa: E402

# Nobody listens on port 1: what the service depends on is down all the time.
LINES = """      - version: {file: VERSION}
      - command: {argv: [/bin/sh, -c, "echo pong"], expect: "^pong$"}
      - tcp: {address: "127.0.0.1:1"}
        external: true
    after_restore:
      clear: ["**/__pycache__"]
"""


class Documents(unittest.TestCase):
    def setUp(self):
        self.fleet = self.enterContext(Fleet({"test": ["test-1"], "prod": ["prod-1"]}, service_lines=LINES))

    def doctor(self, environment, code):
        found = self.fleet.rbctl_json("doctor", environment, code=code)["findings"]
        for finding in found:
            self.assertTrue(finding["seen"] and finding["mend"], finding)
        return {finding["code"]: finding for finding in found}

    def plant(self, host, path):
        full = os.path.join(self.fleet.tree(host), path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "w", encoding="utf-8") as f:
            f.write("stale")
        return full

    def block_after(self, text, title):
        """The first block of commands after a title."""
        return re.search(r"```sh\n(.*?)\n```", text[text.index(title):], re.S).group(1)

    def test_everything(self):
        fleet = self.fleet
        with self.subTest("doctor, before there is anything to go back to"):
            self.assertEqual(self.doctor("prod", 3)["no-backup"]["severity"], "error")

        for environment in ("prod", "test"):
            for version in ("v1.0.0", "v1.1.0"):
                fleet.deploy(environment, version)

        with self.subTest("doctor finds no error any more, once the releases are proved"):
            def well():
                return fleet.rbctl("doctor", "prod", code=None).code == 0
            wait_for(well, "doctor to find nothing that is in the way")
            found = self.doctor("prod", 0)
            self.assertEqual(found["external-down"]["severity"], "warning")
            self.assertNotIn("unhealthy", found)

        runbook = fleet.rbctl("runbook", "test").out
        with self.subTest("a runbook with the real hosts, folders and releases"):
            for wanted in ("test-1", fleet.tree("test-1"), fleet.commit_of("v1.0.0"), f"rb-agent local status {SERVICE}",
                           "mv -T", "PRAGMA integrity_check", "No rollback mends these"):
                self.assertIn(wanted, runbook)

        fleet.deploy("prod", "v1.2.0", "--no-revert", code=3)

        def seen_unhealthy():
            return fleet.rbctl_json("status", "prod")["hosts"][0]["verdict"] == "unhealthy"
        wait_for(seen_unhealthy, "the host to report that it is not healthy")

        stale = self.plant("prod-1", "lib/__pycache__/stale.pyc")
        kept = self.plant("prod-1", "data/__pycache__/kept.pyc")
        with self.subTest("what the service depends on is down: that is said, and takes nothing back"):
            report = fleet.rbctl_json("rollback", "prod", "--to", "v1.0.0", "--reason", "v1.2.0 does not start")
            self.assertTrue(fleet.is_healthy("prod-1", "v1.0.0"))
            self.assertIn("external tcp 127.0.0.1:1 is down", report["summary"])
            checks = {check["check"]: check for check in report["hosts"][0]["checklist"]}
            self.assertTrue(checks["tcp 127.0.0.1:1"]["external"])
            self.assertFalse(checks["tcp 127.0.0.1:1"]["passed"])
            for name in ("unit", "version VERSION", "time under target"):
                self.assertTrue(checks[name]["passed"], checks)
            self.assertIn("pong", checks["command /bin/sh -c echo pong"]["seen"])

        with self.subTest("caches were cleared, data was not"):
            self.assertFalse(os.path.exists(stale))
            self.assertTrue(os.path.exists(kept))

        with self.subTest("the checklist, and the documents of the operation"):
            self.assertRegex(fleet.rbctl("show", report["id"]).out, r"tcp 127.0.0.1:1 +down \(external\)")
            incident = fleet.rbctl("incident", report["id"]).out
            for wanted in ("## Timeline", "v1.2.0 does not start", "down (external)", "prod-1 was not healthy before this",
                           "- [ ] Find and mend the cause in v1.2.0"):
                self.assertIn(wanted, incident)
            evidence = incident[incident.index("### prod-1"):]
            said = re.search(r"since the operation began there, verbatim .*:\n\n((?:    .*\n)+)", evidence).group(1)
            lines = said.splitlines()
            self.assertLessEqual(len(lines), 20)
            self.assertTrue(any("Connected to chat" in line for line in lines), said)
            self.assertEqual(len([line for line in lines if "Connected to chat" in line]), 1, "of this run alone")
            self.assertEqual(lines, ["    " + line for line in report["hosts"][0]["log_lines"]])
            failed = next(one for one in fleet.rbctl_json("history", "prod")["operations"] if one["kind"] == "deploy")
            self.assertRegex(fleet.rbctl("incident", failed["id"]).out, r"verbatim(.|\n)*\n    .*Error")
            notes = fleet.rbctl_json("notes", report["id"])["markdown"]
            self.assertRegex(notes, r"## What worked\n\n- Recovered in \d")

        with self.subTest("doctor finds what is broken on the host, each with its mend"):
            os.chmod(fleet.path("hosts", "prod-1", "state"), 0o777)
            os.rename(fleet.path("remote.git"), fleet.path("gone.git"))
            with open(fleet.path("hosts", "prod-1", "agent.yaml"), "a", encoding="utf-8") as f:
                f.write("    tre: /x\n")
            os.rename(os.path.join(fleet.tree("prod-1"), "VERSION"), os.path.join(fleet.tree("prod-1"), "VERSION.old"))
            found = self.doctor("prod", 3)
            self.assertIn("chmod 0700", found["exposed-folder"]["mend"])
            self.assertIn("did you mean", found["agent-config"]["seen"])
            self.assertIn("VERSION", found["probe-cannot-pass"]["seen"])
            self.assertEqual(found["git-unreachable"]["severity"], "warning")
            os.rename(os.path.join(fleet.tree("prod-1"), "VERSION.old"), os.path.join(fleet.tree("prod-1"), "VERSION"))

        with self.subTest("what the runbook says to do by hand does it, with nothing of ours running"):
            fleet.kill("test-1")
            kept = self.plant("test-1", "data/kept.txt")
            before = os.stat(fleet.tree("test-1"))
            os.mkdir(fleet.path("bin"))
            with open(fleet.path("bin", "systemctl"), "w", encoding="utf-8") as f:
                f.write("#!/bin/sh\n")
            os.chmod(fleet.path("bin", "systemctl"), 0o755)
            done = subprocess.run(["bash", "-c", self.block_after(runbook, "**Code and config**")], timeout=60,
                                  capture_output=True, text=True, check=False,
                                  env={**os.environ, "PATH": fleet.path("bin") + ":" + os.environ["PATH"]})
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(fleet.contents("test-1"), fleet.contents_of("v1.0.0"))
            self.assertTrue(os.path.exists(kept))
            self.assertEqual(os.stat(fleet.tree("test-1")).st_mode, before.st_mode)
            self.assertEqual(self.doctor("test", 3)["agent-offline"]["severity"], "error")

        with self.subTest("doctor and documents say what they do not know"):
            self.assertIn("did you mean prod?", fleet.rbctl("doctor", "prd", code=5).err)
            refused = json.loads(fleet.rbctl("runbook", "nowhere", "-o", "json", code=5).out)
            self.assertEqual(refused["exit_code"], 5)


if __name__ == "__main__":
    unittest.main(verbosity=2)

#!/usr/bin/env python3
"""Method B on a fleet of four, with a CI that really deploys: it is believed when the agents see the target, healthy, and
never else; what it leaves behind when it fails, hangs, deploys something else or is aborted is brought back."""
import json
import os
import sys
import unittest

from fleet import Fleet, PYTHON, wait_for

DONE, REFUSED, REVERTED = 0, 5, 6
CI = os.path.join(os.path.dirname(os.path.abspath(__file__)), "redeploy_ci.py")
HOSTS = ["prod-1", "prod-2", "prod-3", "prod-4"]


class Redeploy(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        call = lambda verb, *args: "[" + ", ".join(f'"{a}"' for a in (PYTHON, CI, "@RUNS@", verb, *args)) + "]"
        extra = (f'    ci:\n      command:\n        dispatch: {call("dispatch", "{key}", "{commit}")}\n'
                 f'        status: {call("status", "{run}")}\n        cancel: {call("cancel", "{run}")}\n'
                 f"      poll: 200ms\n      deadline: 15s\n")

        class WithCi(Fleet):
            def write_fleet(self):
                self.fleet_extra = extra.replace("@RUNS@", self.path("ci"))
                super().write_fleet()
        # What CI changes must never be taken for a deploy by other means, however soon an agent looks.
        cls.fleet = cls.enterClassContext(WithCi({"prod": HOSTS}, verify_deadline="20s",
                                                 agent_options=("--external-settle", "0s")))
        os.mkdir(cls.fleet.path("ci"))
        for tag in ("v1.0.0", "v1.1.0"):
            cls.fleet.deploy("prod", tag)

    def setUp(self):
        self.assertEqual(self.versions(), ["v1.1.0"] * 4)

    def mode(self, mode):
        fleet = self.fleet
        with open(fleet.path("ci", "ci.json"), "w", encoding="utf-8") as f:
            json.dump({"mode": mode, "trees": [fleet.tree(host) for host in HOSTS], "repository": fleet.path("work"),
                       "mark": fleet.mark, "wrong": fleet.commit_of("v1.2.0")}, f)

    def versions(self):
        return [(self.fleet.health(host) or {}).get("version") for host in HOSTS]

    def rollback(self, code, *args):
        run = self.fleet.rbctl("rollback", "prod", "--to", "v1.0.0", "--method", "redeploy", "--reason", "x", *args,
                               code=code)
        newest = self.fleet.rbctl_json("history", "prod", "--limit", "1")["operations"][0]
        return run, self.fleet.rbctl_json("show", newest["id"], code=None), self.fleet.rbctl("show", newest["id"],
                                                                                           code=None).out

    def assert_back(self):
        """Every tree is wholly what it was, and its service healthy."""
        wait_for(lambda: self.versions() == ["v1.1.0"] * 4, "every service to be back", 60)
        for host in HOSTS:
            self.assertEqual(self.fleet.contents(host), self.fleet.contents_of("v1.1.0"), host)
        kinds = {one["kind"] for one in self.fleet.rbctl_json("history", "prod", "--limit", "100")["operations"]}
        self.assertLessEqual(kinds, {"deploy", "rollback", "undo"})

    def test_1_ci_deploys_and_the_agents_see_it(self):
        fleet = self.fleet
        self.mode("deploy")
        plan = fleet.rbctl("plan", "prod", "--to", "v1.0.0", "--method", "redeploy").out
        self.assertIn("redeploy", plan)
        run, shown, text = self.rollback(DONE)
        self.assertEqual(self.versions(), ["v1.0.0"] * 4)
        self.assertLess(shown["recovery_seconds"], 600)
        self.assertTrue(shown["target_met"])
        self.assertEqual(shown["target_seconds"], 600)
        self.assertEqual([host["method"] for host in shown["hosts"]], ["redeploy"] * 4)
        self.assertIn("CI has begun: run", text)
        self.assertIn("the target is on disk, and healthy", text)
        for host in HOSTS:
            self.assertEqual(fleet.contents(host), fleet.contents_of("v1.0.0"), host)
        # It is a release like any other, and what it replaced can be gone back to.
        status = fleet.rbctl_json("status", "prod")
        self.assertEqual({one["runs"]["version"] for one in status["hosts"]}, {"v1.0.0"})
        fleet.rbctl("undo", shown["id"], "--reason", "back")
        self.assert_back()

    def test_2_ci_fails(self):
        self.mode("fail")
        run, shown, text = self.rollback(REVERTED)
        self.assertIn("the tests of the workflow failed", text)
        self.assertIn("the target is not on the disk", text)
        self.assert_back()

    def test_3_ci_never_ends(self):
        self.mode("hang")
        run, shown, text = self.rollback(REVERTED)
        self.assertIn("CI is asked to cancel the run", text)
        self.assertIn("cancelled as asked", text)
        self.assert_back()

    def test_4_ci_says_success_and_has_deployed_something_else(self):
        self.mode("wrong")
        run, shown, text = self.rollback(REVERTED)
        self.assertIn("succeeded deployed", text)
        self.assertIn("the target is not on the disk", text)
        self.assert_back()

    def test_5_an_abort_cancels_the_run_and_takes_back_what_it_did(self):
        fleet = self.fleet
        self.mode("half")
        operation = fleet.rbctl_json("rollback", "prod", "--to", "v1.0.0", "--method", "redeploy", "--reason", "x",
                                     "--no-wait")["id"]
        run = fleet.path("ci", operation + "-1")
        wait_for(lambda: os.path.exists(os.path.join(run, "deployed")), "half of the hosts to be deployed to")
        fleet.rbctl("abort", operation)
        fleet.rbctl("watch", operation, code=REVERTED)
        with open(os.path.join(run, "status"), encoding="utf-8") as f:
            self.assertEqual(f.read(), "cancelled as asked")
        self.assert_back()

    def test_6_a_controller_that_is_killed_finds_its_run_again(self):
        fleet = self.fleet
        self.mode("deploy")
        runs = lambda: {name for name in os.listdir(fleet.path("ci")) if name.startswith("op-")}
        before = runs()
        fleet.kill("controller")
        fleet.start_controller(failpoint="controller.driver.before-ask-ci")
        fleet.wait_connected()
        fleet.start_rbctl("rollback", "prod", "--to", "v1.0.0", "--method", "redeploy", "--reason", "x", "--no-wait")
        wait_for(lambda: fleet.ended("controller"), "the controller to die right before it asks")
        self.assertEqual(runs(), before)
        fleet.start_controller()
        fleet.wait_connected()
        wait_for(lambda: runs() - before, "CI to be asked")
        fleet.kill("controller")
        fleet.start_controller()
        fleet.wait_connected()
        operation = fleet.rbctl_json("history", "prod", "--limit", "1")["operations"][0]["id"]
        fleet.rbctl("watch", operation, code=DONE)
        self.assertEqual(runs() - before, {operation + "-1"}, "one run, however often the controller dies")
        self.assertEqual(self.versions(), ["v1.0.0"] * 4)
        fleet.rbctl("undo", operation, "--reason", "back")
        self.assert_back()

    def test_7_auto_goes_through_ci_where_no_host_has_the_target(self):
        fleet = self.fleet
        self.mode("deploy")
        plan = fleet.rbctl_json("plan", "prod", "--to", "v1.0.0")
        self.assertEqual({host["method"] for host in plan["hosts"]} & {"redeploy"}, set(), "it is the last of the three")
        fleet.git("checkout", "-q", "-B", "next", "v1.1.0")
        for name, text in (("NEWS", "only in git, and not in any mirror yet\n"), ("VERSION", "v1.1.1\n")):
            with open(fleet.path("work", name), "w", encoding="utf-8") as f:
                f.write(text)
            fleet.git("add", name)
        fleet.git("commit", "-q", "-m", "next")
        fleet.git("tag", "v1.1.1")
        commit = fleet.commit_of("v1.1.1")
        fleet.push("v1.1.1")
        plan = fleet.rbctl("plan", "prod", "--to", commit).out
        self.assertIn("neither a usable backup nor the commit in its git mirror", plan)
        fleet.rbctl("rollback", "prod", "--to", commit, "--reason", "x")
        for host in HOSTS:
            self.assertTrue(os.path.exists(os.path.join(fleet.tree(host), "NEWS")), host)
        newest = fleet.rbctl_json("history", "prod", "--limit", "1")["operations"][0]
        fleet.rbctl("undo", newest["id"], "--reason", "back")
        self.assert_back()
        run = fleet.rbctl("rollback", "prod", "--to", "v1.0.0", "--method", "redeploy", "--host", "prod-1", "--reason", "x",
                          code=REFUSED)
        self.assertIn("every host of an environment at once", run.err)


if __name__ == "__main__":
    sys.exit(unittest.main(verbosity=2))

#!/usr/bin/env python3
"""Method B on a fleet of four in two environments, with a CI that really deploys: asked as a program, and as GitHub, which
is a server that holds every request against GitHub's own OpenAPI description and answers with it. CI is believed when the
agents see the target, healthy, and never else; what it leaves behind when it fails, hangs, deploys something else or is
aborted is brought back, in the environment before as well."""
import json
import os
import sys
import unittest

from fleet import ROOT, Fleet, PYTHON, wait_for

sys.path.insert(0, os.path.join(ROOT, "tests", "ci_provider"))
from node_modules import node_modules  # noqa: E402

DONE, REFUSED, REVERTED = 0, 5, 6
CI = os.path.join(os.path.dirname(os.path.abspath(__file__)), "redeploy_ci.py")
GITHUB = os.path.join(ROOT, "tests", "ci_provider", "github.mjs")
TOKEN = "not-a-real-token"
HOSTS = {"test": ["test-1", "test-2"], "prod": ["prod-1", "prod-2"]}
# What runs is the same again after each scenario.
BEFORE, TARGET = "v1.1.0", "v1.0.0"


class WithCi(Fleet):
    provider = "command"

    def write_fleet(self):
        call = lambda verb, *args: "[" + ", ".join(f'"{a}"' for a in (PYTHON, CI, self.path("ci"), verb, *args)) + "]"
        self.fleet_extra = "    ci:\n      poll: 200ms\n      deadline: 8s\n"
        if self.provider == "command":
            self.fleet_extra += (f'      command:\n        dispatch: {call("dispatch", "{key}", "{commit}", "{environment}")}\n'
                                 f'        status: {call("status", "{run}")}\n        cancel: {call("cancel", "{run}")}\n')
        else:
            self.fleet_extra += (f'      github: {{repository: team/bot, workflow: deploy.yml, ref_input: commit, '
                                 f'environment_input: environment, key_input: rb_operation, '
                                 f'token_file: {self.path("ci", "token")}, base_url: "{self.github}"}}\n')
        super().write_fleet()

    def start_github(self):
        """The same CI, asked as GitHub is."""
        env = {**os.environ, "RB_NODE_MODULES": node_modules()}
        port = self.path("ci", "port")
        self._spawn("github", ["/usr/bin/env", "node", GITHUB, self.path("ci"), PYTHON, CI, self.path("ci")], env)
        wait_for(lambda: os.path.exists(port), "GitHub to listen")
        with open(port, encoding="utf-8") as f:
            self.github = f"http://127.0.0.1:{f.read()}"


class Redeploy(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        # What CI changes must never be taken for a deploy by other means, however soon an agent looks. This CI restarts a
        # service by killing it, after which a unit probe would look on for 10 s.
        cls.fleet = cls.enterClassContext(WithCi(HOSTS, verify_deadline="20s", on_failure="revert-all",
                                                 unit_probe="",
                                                 agent_options=("--external-settle", "0s")))
        os.mkdir(cls.fleet.path("ci"))
        with open(cls.fleet.path("ci", "token"), "w", encoding="utf-8") as f:
            os.chmod(f.name, 0o600)
            f.write(TOKEN)
        # Healthy, and calls itself what was asked for; one file is another.
        cls.fleet.git("checkout", "-q", "-B", "wrong", TARGET)
        with open(cls.fleet.path("work", "README.md"), "a", encoding="utf-8") as f:
            f.write("something else\n")
        cls.fleet.git("add", "README.md")
        cls.fleet.git("commit", "-q", "-m", "wrong")
        for tag in (TARGET, BEFORE):
            for environment in HOSTS:
                cls.fleet.deploy(environment, tag)

    def setUp(self):
        self.assertEqual(self.versions(), [BEFORE] * 4)

    def go_through(self, provider):
        """From now on CI is asked so."""
        fleet = self.fleet
        if fleet.provider == provider:
            return
        if provider == "github":
            if node_modules() is None:
                self.skipTest("there is no npm")
            fleet.start_github()
        fleet.provider = provider
        fleet.kill("controller")
        fleet.write_fleet()
        fleet.start_controller()
        fleet.wait_connected()

    def ci_does(self, test, prod):
        fleet = self.fleet
        with open(fleet.path("ci", "ci.json"), "w", encoding="utf-8") as f:
            json.dump({"modes": {"test": test, "prod": prod}, "repository": fleet.path("work"), "mark": fleet.mark,
                       "trees": {env: [fleet.tree(host) for host in hosts] for env, hosts in HOSTS.items()},
                       "wrong": fleet.commit_of("wrong")}, f)

    def versions(self):
        return [(self.fleet.health(host) or {}).get("version") for host in self.fleet.hosts]

    def newest(self):
        return self.fleet.rbctl_json("history", "prod", "--limit", "1")["operations"][0]["id"]

    def begin(self):
        return self.fleet.rbctl_json("rollback", "prod", "--through", "test,prod", "--to", TARGET, "--method", "redeploy",
                                     "--reason", "x", "--no-wait")["id"]

    def run_to_its_end(self, code):
        """Through both environments. What `rbctl show` says, as JSON and as text."""
        operation = self.begin()
        self.fleet.rbctl("watch", operation, code=code)
        return self.fleet.rbctl_json("show", operation, code=None), self.fleet.rbctl("show", operation, code=None).out

    def assert_back(self):
        """Every tree is wholly what it was, and its service healthy."""
        fleet = self.fleet
        wait_for(lambda: self.versions() == [BEFORE] * 4, "every service to be back", 60)
        for host in fleet.hosts:
            self.assertEqual(fleet.contents(host), fleet.contents_of(BEFORE), host)
        kinds = {one["kind"] for one in fleet.rbctl_json("history", "--limit", "100")["operations"]}
        self.assertLessEqual(kinds, {"deploy", "rollback", "undo"})

    def undo(self, operation):
        """Of both environments, one after the other."""
        self.fleet.rbctl("undo", operation, "--reason", "back")
        self.assert_back()

    def runs(self):
        return {name for name in os.listdir(self.fleet.path("ci")) if name.startswith("op-")}

    def go_through_every_end(self, what_failed, what_cancelled):
        fleet, before = self.fleet, self.runs()

        # Good: one run for each environment, and the agents see it.
        self.ci_does("deploy", "deploy")
        shown, text = self.run_to_its_end(DONE)
        self.assertEqual(self.versions(), [TARGET] * 4)
        self.assertEqual([host["method"] for host in shown["hosts"]], ["redeploy"] * 4)
        self.assertLess(shown["recovery_seconds"], 600)
        self.assertEqual((shown["target_met"], shown["target_seconds"]), (True, 600))
        self.assertEqual(self.runs() - before, {f"{shown['id']}-{wave}" for wave in (1, 2)})
        self.assertEqual(text.count("CI has begun: run"), 2)
        self.assertEqual(text.count("the target is on disk, and healthy"), 4)
        for host in fleet.hosts:
            self.assertEqual(fleet.contents(host), fleet.contents_of(TARGET), host)
        print(f"method B through {fleet.provider}: 4 hosts in 2 environments, recovery {shown['recovery_seconds']:.1f} s "
              f"of {shown['target_seconds']:.0f} s", flush=True)
        # It is a release like any other, and what it replaced can be gone back to.
        status = fleet.rbctl_json("status", "prod")
        self.assertEqual({one["runs"]["version"] for one in status["hosts"]}, {TARGET})
        self.undo(shown["id"])

        # CI fails.
        self.ci_does("fail", "deploy")
        shown, text = self.run_to_its_end(REVERTED)
        self.assertIn(what_failed, text)
        self.assertIn("the target is not on the disk", text)
        self.assert_back()

        # CI never ends: for as long as the fleet file says.
        self.ci_does("hang", "deploy")
        shown, text = self.run_to_its_end(REVERTED)
        self.assertIn("CI is asked to cancel the run", text)
        self.assertIn(what_cancelled, text)
        self.assert_back()

        # CI says that all is well, and has deployed something else.
        self.ci_does("deploy", "wrong")
        shown, text = self.run_to_its_end(REVERTED)
        self.assertIn("succeed" if fleet.provider == "command" else "success", text)
        self.assertIn("the target is not on the disk: 1 files differ", text)
        self.assertEqual(text.count("the target is on disk, and healthy"), 2, "test has it, prod never does")
        self.assert_back()

        # Aborted when half of the second environment is done.
        self.ci_does("deploy", "half")
        operation = self.begin()
        run = fleet.path("ci", operation + "-2")
        wait_for(lambda: os.path.exists(os.path.join(run, "deployed")), "half of the hosts to be deployed to")
        fleet.rbctl("abort", operation)
        fleet.rbctl("watch", operation, code=REVERTED)
        with open(os.path.join(run, "status"), encoding="utf-8") as f:
            self.assertEqual(f.read(), "cancelled as asked")
        self.assert_back()

    def test_1_through_a_program(self):
        self.go_through("command")
        self.go_through_every_end("the tests of the workflow failed", "cancelled as asked")

    def test_2_a_controller_that_is_killed_finds_its_run_again(self):
        fleet = self.fleet
        self.go_through("command")
        self.ci_does("deploy", "deploy")
        before = self.runs()
        fleet.kill("controller")
        fleet.start_controller(failpoint="controller.driver.before-ask-ci")
        fleet.wait_connected()
        fleet.start_rbctl("rollback", "prod", "--to", TARGET, "--method", "redeploy", "--reason", "x", "--no-wait")
        wait_for(lambda: fleet.ended("controller"), "the controller to die right before it asks")
        self.assertEqual(self.runs(), before)
        fleet.start_controller()
        fleet.wait_connected()
        wait_for(lambda: self.runs() - before, "CI to be asked")
        fleet.kill("controller")
        fleet.start_controller()
        fleet.wait_connected()
        operation = self.newest()
        fleet.rbctl("watch", operation, code=DONE)
        self.assertEqual(self.runs() - before, {operation + "-1"}, "one run, however often the controller dies")
        self.assertEqual(self.versions(), [BEFORE] * 2 + [TARGET] * 2)
        self.undo(operation)

    def test_3_auto_goes_through_ci_where_no_host_has_the_target(self):
        fleet = self.fleet
        self.go_through("command")
        self.ci_does("deploy", "deploy")
        plan = fleet.rbctl_json("plan", "prod", "--to", TARGET)
        self.assertEqual({host["method"] for host in plan["hosts"]} & {"redeploy"}, set(), "it is the last of the three")
        fleet.git("checkout", "-q", "-B", "next", BEFORE)
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
        for host in HOSTS["prod"]:
            self.assertTrue(os.path.exists(os.path.join(fleet.tree(host), "NEWS")), host)
        self.undo(self.newest())
        run = fleet.rbctl("rollback", "prod", "--to", TARGET, "--method", "redeploy", "--host", "prod-1", "--reason", "x",
                          code=REFUSED)
        self.assertIn("every host of an environment at once", run.err)

    def test_4_through_github(self):
        self.go_through("github")
        self.go_through_every_end("job deploy the tests of the workflow failed failure", "cancelled")
        with open(self.fleet.path("ci", "calls"), encoding="utf-8") as f:
            calls = f.read()
        if os.path.exists(self.fleet.path("ci", "problems")):
            with open(self.fleet.path("ci", "problems"), encoding="utf-8") as f:
                self.fail("what does not fit GitHub's description: " + f.read(2000))
        runs = "/repos/team/bot/actions/runs/"
        for call in ("GET /repos/team/bot/actions/workflows/deploy.yml\n",
                     "POST /repos/team/bot/actions/workflows/deploy.yml/dispatches\n"):
            self.assertIn(call, calls)
        self.assertRegex(calls, f"GET {runs}[0-9]+/jobs\n")
        self.assertRegex(calls, f"POST {runs}[0-9]+/cancel\n")
        shown = self.fleet.rbctl("history").out + self.fleet.rbctl("audit", "list").out
        with open(self.fleet.path("logs", "controller.log"), encoding="utf-8") as f:
            self.assertNotIn(TOKEN, shown + f.read())


if __name__ == "__main__":
    sys.exit(unittest.main(verbosity=2))

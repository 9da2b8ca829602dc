#!/usr/bin/env python3
"""Real servers, real outages: power cuts at ten moments of a rollback, one that a drill makes from inside, a network
that is cut during the commit, a controller that is off, packages that are upgraded meanwhile, removed and purged; and
what a recovery costs beyond a bare restart."""
import os
import statistics
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from host_fleet import HEALTH, NEWER, SERVICE, HostFleet, wait_for  # noqa: E402
from lab import skip_unless_possible  # noqa: E402

HOSTS = ["prod-1", "prod-2"]
FINAL = {"succeeded", "aborted", "reverted", "needs_attention"}
# Before, in the middle of, and after everything that changes something. Where the agent stands when the power goes.
MOMENTS = ["agent.prepare.begin", "engine.prepare.after-intent", "agent.commit.before-stop", "agent.commit.after-stop",
           "engine.commit.after-begin", "engine.commit.after-first-rename", "engine.commit.before-done",
           "agent.commit.after-start", "agent.keep.begin", "engine.keep.before-discard"]
# After these the tree is half of each release: only the drop-in stands between it and the service.
TORN = {"engine.commit.after-begin", "engine.commit.after-first-rename", "engine.commit.before-done"}
MOST_OVERHEAD_SECONDS = 0.3
ROUNDS = 5
DROP_IN = f"/etc/systemd/system/{SERVICE}.service.d/50-rb-agent.conf"

# systemctl restart until the first healthy answer, in seconds, seen from the host itself.
BARE_RESTART = f"""
import json, subprocess, time, urllib.request
began = time.monotonic()
subprocess.run(["systemctl", "restart", "{SERVICE}"], check=True)
while True:
    try:
        with urllib.request.urlopen("{HEALTH}", timeout=2) as answer:
            if json.load(answer)["status"] == "healthy":
                break
    except OSError:
        pass
    time.sleep(0.002)
print(time.monotonic() - began)
"""


class OutageTest(unittest.TestCase):
    """One fleet, brought up once; each test leaves both hosts healthy on the release `now`."""

    @classmethod
    def setUpClass(cls):
        cls.fleet = cls.enterClassContext(HostFleet(
            {"prod": HOSTS}, clones=["prod-2"], verify_seconds=12,
            agent_lines="    drills: {allow: [host-power-cut], longest: 120s}\n",
            drills="{allow: [host-power-cut], windows: [\"00:00-24:00\"], longest: 120s}"))
        cls.lab = cls.fleet.lab
        for version in ("v1.0.0", "v1.1.0"):
            cls.fleet.deploy("prod", version)
        cls.now, cls.other = "v1.1.0", "v1.0.0"

    def sh(self, host, script, check=True):
        return self.lab.run(host, "sh", "-c", script, check=check)

    def rollback(self, *args):
        return ("rollback", "prod", "--to", self.other, "--force", "--reason", "a test", *args)

    def turn(self):
        cls = type(self)
        cls.now, cls.other = cls.other, cls.now

    def release_of(self, host):
        """The one whose every file is there; None when the tree is a mixture."""
        there = self.fleet.files(host)
        there.pop("untracked.txt", None)
        return next((tag for tag in ("v1.0.0", "v1.1.0") if there == self.fleet.files_of(tag)), None)

    def newest(self):
        return self.fleet.operations("prod")[0]

    def wait_ended(self):
        wait_for(lambda: self.newest()["state"] in FINAL, "the operation to end", 90)

    def settle(self):
        """Every host where the fleet says it is, and healthy: so that the next test begins on firm ground."""
        for host in HOSTS:
            self.sh(host, "systemctl start rb-agent")
        self.fleet.wait_connected(seconds=60)
        self.wait_ended()
        for host in HOSTS:
            if self.release_of(host) != self.now:
                self.fleet.rbctl("deploy", "prod", "--to", self.now, "--force", "--reason", "settle", code=None)
                break
        for host in HOSTS:
            wait_for(lambda at=host: self.fleet.is_healthy(at, self.now), f"{host} to be healthy on {self.now}")

    def test_1_power_cuts(self):
        for moment in MOMENTS:
            with self.subTest(moment):
                self.power_cut("prod-1", moment)
                self.settle()

    def power_cut(self, host, moment):
        # The agent stays where it ended until the power goes; the setting goes with it.
        self.fleet.drop_in(host, "rb-agent", f"[Service]\nEnvironment=RB_FAILPOINT={moment}\nRestart=no\n")
        self.sh(host, "systemctl restart rb-agent")
        self.fleet.wait_connected()
        rollback = self.fleet.start_rbctl(*self.rollback())
        self.addCleanup(rollback.kill)
        wait_for(lambda: self.sh(host, "systemctl show -P Result rb-agent").strip() == "signal", f"{moment} to come",
                 60)
        self.lab("crash", host)
        # Only the service comes back at first: whoever makes the tree whole, it is not the agent.
        wants = os.path.join(self.lab.folder, "hosts", host, "etc", "systemd", "system", "multi-user.target.wants",
                             "rb-agent.service")
        os.rename(wants, wants + ".away")
        self.lab("boot", host)
        self.lab("exec", host, "sh", "-c", "cd /etc/systemd/system/multi-user.target.wants && "
                 "mv rb-agent.service.away rb-agent.service")
        self.assertEqual(self.sh(host, "systemctl is-active rb-agent", check=False).strip(), "inactive")
        release = self.release_of(host)
        self.assertIsNotNone(release, f"{host} is a mixture after a power cut at {moment}: {self.fleet.files(host)}")
        wait_for(lambda: self.fleet.is_healthy(host, release), f"{host} to run {release} after {moment}")
        if moment in TORN:
            said = self.sh(host, f"journalctl -b -u {SERVICE} -o cat")
            self.assertRegex(said, r"completed the swap of operation .*(.|\n)*starts on port")
        self.sh(host, "systemctl start rb-agent")
        rollback.communicate(timeout=90)
        # It was back at once, and healthy: no reason for the fleet to stay on what it was to leave.
        operation = self.newest()
        releases = {at: self.release_of(at) for at in HOSTS}
        print(f"power cut at {moment}: {release} after boot; the operation {operation['state']}, {releases}")
        self.assertEqual(operation["state"], "succeeded")
        self.assertEqual(set(releases.values()), {self.other})
        self.turn()

    def test_0_a_drill_cuts_the_power_from_inside(self):
        """The agent has systemd reboot the host at once: nothing is ended, nothing written back. Then it boots. First of
        all, since a drill goes back to what is good, and what the others roll back from is not."""
        struck, other = HOSTS
        boot = {host: self.boot_id(host) for host in HOSTS}
        drill = self.fleet.rbctl_json("drill", "run", "host-power-cut", "prod", "--reason", "rehearsal", code=None)
        self.assertEqual(drill["state"], "passed", drill)
        hosts = {host["host"]: host for host in drill["hosts"]}
        self.assertTrue(hosts[struck]["struck"])
        self.assertEqual((hosts[struck]["put_back"], hosts[struck]["error"]), (0, ""))
        self.assertRegex(drill["observed"], f"{struck}: struck, at work again after [0-9.]+ s")
        self.assertNotEqual(self.boot_id(struck), boot[struck], "it really went down")
        self.assertEqual(self.boot_id(other), boot[other], "and nobody else")
        last = self.sh(struck, "journalctl -b -1 -o cat -n 30")
        self.assertIn("host-power-cut now", last)
        self.assertNotIn("Stopped", last[last.index("host-power-cut now"):], "nothing was ended in good order")
        for host in HOSTS:
            self.assertEqual(self.release_of(host), self.now)
            self.assertTrue(self.fleet.is_healthy(host, self.now))
        recovery = self.fleet.rbctl_json("show", drill["recovery_operation"])
        self.assertEqual((recovery["kind"], recovery["outcome"]), ("rollback", "succeeded"))
        print(f"power cut by a drill: {drill['observed']}")
        # Once, and never again by itself: a rollback that comes later finds nothing armed.
        boot[struck] = self.boot_id(struck)
        self.fleet.rbctl("rollback", "prod", "--to", self.other, "--force", "--reason", "is anything armed?")
        self.turn()
        self.assertEqual(self.boot_id(struck), boot[struck])

    def boot_id(self, host):
        return self.sh(host, "journalctl -b -n 1 -o export | sed -n 's/^_BOOT_ID=//p'").strip()

    def test_2_network_cut_during_the_commit(self):
        cut, other = "prod-2", "prod-1"
        # Stopping takes a while, so that there is a "during".
        self.fleet.drop_in(cut, SERVICE, "[Service]\nExecStop=/bin/sleep 2\n")
        rollback = self.fleet.start_rbctl(*self.rollback())
        self.addCleanup(rollback.kill)
        wait_for(lambda: self.sh(cut, f"systemctl is-active {SERVICE}", check=False).strip() == "deactivating",
                 f"{cut} to stop its service")
        # Packets vanish, and nobody is told.
        self.lab("drop", cut)
        out, _ = rollback.communicate(timeout=60)
        self.assertEqual(rollback.returncode, 3, out)
        self.assertRegex(out, f"{cut}: state not known(.|\n)*rbctl repair {cut}")
        self.assertEqual(self.newest()["state"], "needs_attention")
        self.assertTrue(self.fleet.is_healthy(other, self.other), "the other host has ended")
        self.assert_lock_is_free(cut, other)
        # By its own policy: a rollback is finished, and kept.
        wait_for(lambda: self.fleet.is_healthy(cut, self.other), f"{cut} to finish by itself")
        self.assertEqual(self.release_of(cut), self.other)
        self.fleet.drop_in(cut, SERVICE, "")
        self.lab("plug", cut)
        self.fleet.wait_connected()
        repaired = self.fleet.rbctl("repair", cut, "--reason", "the network is back")
        print(f"network cut: {out.splitlines()[-1]}\nrepair: {repaired.out.splitlines()[-1]}")
        self.turn()
        status = self.fleet.rbctl_json("status", "prod")
        self.assertEqual({host["host"]: (host["runs"]["version"], host["drifted"], host["missed"])
                          for host in status["hosts"]}, {host: (self.now, False, None) for host in HOSTS})
        self.settle()

    def assert_lock_is_free(self, cut, other):
        """Nobody waits for a host that may never come back: it is named, and what concerns the others begins at once."""
        status = self.fleet.rbctl_json("status", "prod")
        self.assertEqual({host["host"]: (host["operation"], host["connected"]) for host in status["hosts"]},
                         {other: (None, True), cut: (None, False)})
        refused = self.fleet.rbctl("backup", "create", "prod", "--reason", "is it free?", code=5).err
        self.assertIn(f"{cut} is offline", refused)
        self.assertNotIn("is at work on", refused)
        self.fleet.rbctl("backup", "create", "prod", "--host", other, "--reason", "is it free?")

    def test_3_the_controllers_host_is_off(self):
        host = "prod-1"
        self.lab("halt", "controller")
        said = self.sh(host, f"rb-agent local rollback --to {self.other} --force --reason 'nobody else is up'")
        self.assertIn("healthy on", said)
        self.assertTrue(self.fleet.is_healthy(host, self.other))
        self.assertEqual(self.release_of(host), self.other)
        self.lab("boot", "controller")
        self.fleet.wait_connected(seconds=60)
        by_hand = wait_for(lambda: [one for one in self.fleet.operations("prod") if one["kind"] == "local"],
                           "what was done by hand to be in the history")
        self.assertEqual([(one["hosts"][0]["host"], one["outcome"], one["reason"]) for one in by_hand],
                         [(host, "succeeded", "nobody else is up")])
        print(f"by hand: {said.splitlines()[-1]}\nhistory: {by_hand[0]['requested_by']}: {by_hand[0]['summary']}")
        # The other host follows, so that the fleet is one again.
        self.fleet.rbctl(*self.rollback("--even-if-there"))
        self.turn()
        self.settle()

    def test_4_packages_are_upgraded_in_the_middle(self):
        # The new state is there, and the service on its way up.
        for host in HOSTS:
            self.fleet.drop_in(host, SERVICE, "[Service]\nExecStartPost=/bin/sleep 4\n")
        self.fleet.rbctl(*self.rollback("--no-wait"))
        for host in HOSTS:
            wait_for(lambda at=host: self.sh(at, f"systemctl is-active {SERVICE}", check=False).strip() == "activating",
                     f"{host} to start its service")
        before = {host: self.sh(host, f"systemctl show -P ExecMainPID {SERVICE}") for host in HOSTS}
        for host, package in (("prod-1", "rb-agent"), ("controller", "rb-controller"), ("prod-2", "rb-agent")):
            self.fleet.install(host, f"/srv/packages/newer-{package}.deb")
            self.assertEqual(self.sh(host, f"dpkg-query -W -f '${{Version}} ${{db:Status-Status}}' {package}"),
                             f"{NEWER} installed")
        self.fleet.wait_connected(seconds=60)
        self.wait_ended()
        self.assertEqual(self.newest()["state"], "succeeded", self.newest())
        for host in HOSTS:
            self.assertEqual(self.release_of(host), self.other)
            wait_for(lambda at=host: self.fleet.is_healthy(at, self.other), f"{host} to be healthy")
            self.assertEqual(self.sh(host, f"systemctl show -P ExecMainPID {SERVICE}"), before[host],
                             "an upgrade of the agent is no outage of the service")
            self.fleet.drop_in(host, SERVICE, "")
        self.turn()

    def test_5_what_a_recovery_costs(self):
        recoveries = {"backup": [], "git": []}
        bare = []
        for _ in range(ROUNDS):
            for method in recoveries:
                bare.append(float(self.lab.run("prod-1", "python3", "-c", BARE_RESTART)))
                report = self.fleet.rbctl_json(*self.rollback("--method", method))
                self.assertEqual(report["outcome"], "succeeded", report["summary"])
                recoveries[method].append(
                    next(host["recovery_seconds"] for host in report["hosts"] if host["host"] == "prod-1"))
                self.turn()
        restart = statistics.median(bare)
        print(f"\nbare systemctl restart to healthy: median {restart:.3f} s of {len(bare)}")
        for method, seconds in recoveries.items():
            overhead = statistics.median(seconds) - restart
            print(f"by {method}: recovery median {statistics.median(seconds):.3f} s of {ROUNDS} "
                  f"({', '.join(f'{each:.3f}' for each in seconds)}), {overhead:+.3f} s beyond it, "
                  f"of {MOST_OVERHEAD_SECONDS} s at most")
            self.assertLessEqual(overhead, MOST_OVERHEAD_SECONDS, method)

    def test_6_remove_and_purge(self):
        host = "prod-1"
        self.sh(host, f"test -e {DROP_IN}")
        self.sh(host, "dpkg -r rb-agent")
        self.assertEqual(self.sh(host, f"ls -d {DROP_IN} /usr/bin/rb-agent /lib/systemd/system/rb-agent.service "
                                       "2>/dev/null", check=False), "")
        self.sh(host, "test -e /var/lib/rb-agent/store && test -e /etc/rb/agent.yaml")
        self.assertTrue(self.fleet.is_healthy(host, self.now), "the service is none of a package's business")
        self.sh(host, f"systemctl restart {SERVICE}")
        wait_for(lambda: self.fleet.is_healthy(host, self.now), "the service to start without an agent")
        # Installed again, it is what it was.
        self.fleet.install(host, "rb-agent")
        wait_for(lambda: self.sh(host, f"ls {DROP_IN} 2>/dev/null", check=False), "the drop-in to be back")
        self.fleet.wait_connected()
        self.sh(host, "dpkg -P rb-agent")
        self.sh("controller", "dpkg -P rb-controller")
        for at, name in ((host, "rb-agent"), ("controller", "rb-controller")):
            left = self.sh(at, f"find / -xdev \\( -name '{name}*' -o -name '50-rb*' -o -path '/etc/rb*' \\) "
                               "-not -path '/srv/*' -not -path '/proc/*'; "
                               f"ls -d /etc/rb /var/lib/{name} /usr/bin/{name} 2>/dev/null", check=False)
            self.assertEqual(left, "", f"{name} left something behind")
        self.assertTrue(self.fleet.is_healthy(host, self.now))


if __name__ == "__main__":
    skip_unless_possible()
    unittest.main(verbosity=2)

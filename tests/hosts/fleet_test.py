#!/usr/bin/env python3
"""Real servers: the packages, the three failures of the procedure by hand times every method that recovers from them."""
import os
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from host_fleet import SERVICE, TREE, HostFleet, wait_for  # noqa: E402
from lab import skip_unless_possible  # noqa: E402

ENVIRONMENTS = {"test": ["test-1", "test-2"], "prod": ["prod-1", "prod-2"]}
TARGETS = {"backup": 180, "git": 120}


class FleetTest(unittest.TestCase):
    """One fleet, brought up once; each test leaves v1.1.0 healthy everywhere."""

    @classmethod
    def setUpClass(cls):
        cls.fleet = cls.enterClassContext(HostFleet(ENVIRONMENTS, clones=["test-2", "prod-2"]))
        cls.lab = cls.fleet.lab
        cls.table = []
        for environment in ENVIRONMENTS:
            for version in ("v1.0.0", "v1.1.0"):
                cls.fleet.deploy(environment, version)
            cls.fleet.rbctl("backup", "create", environment, "--reason", "before the failures")

    @classmethod
    def tearDownClass(cls):
        print("\nRecovery on real hosts, seconds (target 180 by backup, 120 by git)")
        print(f"{'failure':18} {'method':8} {'environment':12} {'recovery':>9} {'downtime':>9} {'target':>7}")
        for row in cls.table:
            print(f"{row[0]:18} {row[1]:8} {row[2]:12} {row[3]:9.2f} {row[4]:9.2f} {'met' if row[5] else 'MISSED':>7}")

    def sh(self, host, script, check=True):
        return self.lab.run(host, "sh", "-c", script, check=check)

    def recover(self, failure, method, *args):
        """Rolls every environment back, one after the other, and checks what the checklist of the procedure asks for."""
        for environment, hosts in ENVIRONMENTS.items():
            report = self.fleet.rbctl_json("rollback", environment, "--method", method, "--reason", failure, *args)
            self.assertEqual(report["outcome"], "succeeded", report["summary"])
            for host in report["hosts"]:
                self.assertEqual((host["method"], host["verdict"]), (method, "healthy"), host)
                self.assertLess(host["recovery_seconds"], TARGETS[method], host)
                self.assertTrue(all(probe["passed"] for probe in host["probes"]), host["probes"])
                # Out of the journal, for who reads the incident.
                self.assertTrue(any("Connected to chat" in line for line in host["log_lines"]), host["log_lines"])
            self.assertTrue(report["target_met"])
            self.table.append((failure, method, environment, report["recovery_seconds"],
                               max(host["downtime_seconds"] for host in report["hosts"]), report["target_met"]))
            for host in hosts:
                self.check(host, "v1.1.0")

    def check(self, host, version):
        self.assertTrue(self.fleet.is_healthy(host, version), f"{host}: {self.fleet.health(host)}")
        self.assertEqual(self.sh(host, f"systemctl is-active {SERVICE}").strip(), "active", host)
        there, wanted = self.fleet.files(host), self.fleet.files_of(version)
        if host in self.fleet.clones:
            self.assertEqual(there.pop("untracked.txt")[1], "rosey:rosey", f"{host}: what nobody tracks stays")
        self.assertEqual(there, wanted, host)
        if host in self.fleet.clones:
            self.check_clone(host, version)
        foreign = self.sh(host, f"find {TREE} ! -user rosey -o ! -group rosey")
        self.assertEqual(foreign, "", f"{host}: not everything belongs to rosey:rosey")

    def check_clone(self, host, version):
        """HEAD and index are where the tree is, for whoever looks with git."""
        def git(*args):
            return self.lab.run(host, "runuser", "-u", "rosey", "--", "git", "-C", TREE, *args).strip()
        self.assertEqual(git("rev-parse", "HEAD"), self.fleet.commit_of(version), host)
        self.assertEqual(git("symbolic-ref", "HEAD"), "refs/heads/main", host)
        self.assertEqual(git("status", "--porcelain"), "?? untracked.txt", host)
        git("fsck", "--connectivity-only")

    def ship_broken_code(self):
        for environment, hosts in ENVIRONMENTS.items():
            self.fleet.deploy(environment, "v1.2.0", "--no-revert", "--force", code=3)
            for host in hosts:
                self.assertIsNone(self.fleet.health(host), host)

    def test_1_bad_code_by_backup(self):
        self.ship_broken_code()
        self.recover("bad code", "backup", "--to", self.fleet.commit_of("v1.1.0")[:7])

    def test_1_bad_code_by_git(self):
        self.ship_broken_code()
        self.recover("bad code", "git", "--to", self.fleet.commit_of("v1.1.0")[:7])

    def damage_databases(self):
        for host in self.fleet.hosts:
            self.sh(host, f"dd if=/dev/urandom of={TREE}/data/bot.db bs=100 count=1 conv=notrunc status=none; "
                          f"rm -f {TREE}/data/bot.db-wal {TREE}/data/bot.db-shm; systemctl restart {SERVICE}")
        for host in self.fleet.hosts:
            wait_for(lambda at=host: not self.fleet.is_healthy(at, "v1.1.0"), f"{host} to notice its broken database")

    def test_2_database_alone(self):
        self.damage_databases()
        self.recover("damaged database", "backup", "--only", "data")

    def test_2_database_with_data(self):
        self.damage_databases()
        self.recover("database + code", "backup", "--with-data", "--to", "v1.1.0")

    def break_config(self):
        for host in self.fleet.hosts:
            self.sh(host, f"echo 'invalid json {{' >>{TREE}/config-prod.json; systemctl restart {SERVICE}")
        for host in self.fleet.hosts:
            wait_for(lambda at=host: self.fleet.health(at) is None, f"{host} to be down")

    def test_3_bad_config_by_backup(self):
        self.break_config()
        self.recover("bad config", "backup", "--only", "config")

    def test_3_bad_config_by_git(self):
        self.break_config()
        self.recover("bad config", "git", "--to", "v1.1.0")


if __name__ == "__main__":
    skip_unless_possible()
    unittest.main(verbosity=2)

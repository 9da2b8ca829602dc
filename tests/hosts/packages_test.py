#!/usr/bin/env python3
"""Builds the packages that the other tests of this folder install, and looks at what is in them: packages_test.py FOLDER"""
import os
import shutil
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from host_fleet import build_packages, packages_in  # noqa: E402

COMPLETIONS = {"bash": "usr/share/bash-completion/completions/rbctl",
               "zsh": "usr/share/zsh/vendor-completions/_rbctl",
               "fish": "usr/share/fish/vendor_completions.d/rbctl.fish"}
MAN_PAGES = {"rbctl": "man1/rbctl.1", "rb-agent": "man8/rb-agent.8", "rb-controller": "man8/rb-controller.8"}


class PackagesTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        shutil.rmtree(FOLDER, ignore_errors=True)
        # A folder that is there is complete: the other tests take it as it is.
        build_packages(FOLDER + ".new")
        os.rename(FOLDER + ".new", FOLDER)
        cls.packages = packages_in(FOLDER)
        cls.unpacked = os.path.join(FOLDER, "unpacked")
        cls.addClassCleanup(shutil.rmtree, cls.unpacked, True)
        os.mkdir(cls.unpacked)
        for name, path in cls.packages.items():
            subprocess.run(["dpkg-deb", "-x", path, os.path.join(cls.unpacked, name)], check=True)

    def file(self, package, path):
        with open(os.path.join(self.unpacked, package, path), encoding="utf-8") as file:
            return file.read()

    def test_programs_units_and_pages(self):
        self.assertEqual(set(self.packages), set(MAN_PAGES))
        for name, page in MAN_PAGES.items():
            self.assertTrue(os.access(os.path.join(self.unpacked, name, "usr/bin", name), os.X_OK))
            self.assertIn(f".Dt {name.upper()} {page[-1]}", self.file(name, f"usr/share/man/{page}"))
            if name != "rbctl":
                self.assertIn(f"ExecStart=/usr/bin/{name} serve", self.file(name, f"lib/systemd/system/{name}.service"))
        self.file("rb-agent", "etc/rb/agent.yaml.example")
        self.file("rb-controller", "etc/rb/fleet.yaml.example")

    def test_completions(self):
        for shell, path in COMPLETIONS.items():
            text = self.file("rbctl", path)
            for word in ("rollback", "runbook"):
                self.assertIn(word, text, shell)
        # bash asks the installed file what may come next.
        script = (f". {os.path.join(self.unpacked, 'rbctl', COMPLETIONS['bash'])}; COMP_WORDS=(rbctl roll); COMP_CWORD=1; "
                  "f=$(complete -p rbctl | sed 's/.*-F \\([^ ]*\\).*/\\1/'); $f rbctl roll rbctl; echo ${COMPREPLY[@]}")
        program = os.path.join(self.unpacked, "rbctl", "usr", "bin")
        done = subprocess.run(["bash", "--norc", "-c", script], env={"PATH": f"{program}:/usr/bin:/bin"}, text=True,
                              capture_output=True, check=True)
        self.assertIn("rollback", done.stdout.split(), done.stderr)


if __name__ == "__main__":
    FOLDER = os.path.abspath(sys.argv.pop(1))
    unittest.main(verbosity=2)

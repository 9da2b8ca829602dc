#!/usr/bin/env python3
"""Runs the systemd supervisor's and the journal probe's tests on a host of their own: systemd_test.py TEST_PROGRAM"""
import os
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from lab import HOSTS, Lab, skip_unless_possible  # noqa: E402


def main():
    program = os.path.abspath(sys.argv[1])
    skip_unless_possible()
    with Lab("alone", bind=[os.path.dirname(program)]) as lab:
        done = subprocess.run([HOSTS, "exec", "alone", "env", "RB_TEST_HOST=1", program], env=lab.environment,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=240)
        print(done.stdout)
        # A program that skipped everything has shown nothing.
        sys.exit(done.returncode or int("[  PASSED  ]" not in done.stdout or "SKIPPED" in done.stdout))


if __name__ == "__main__":
    main()

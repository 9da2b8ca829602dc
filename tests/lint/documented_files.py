#!/usr/bin/env python3
"""Every fleet file that README.md and docs/ show is one that rb-controller takes.

    documented_files.py RB_CONTROLLER
"""
import glob
import os
import re
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def main():
    checked, failed = 0, 0
    for path in [os.path.join(ROOT, "README.md"), *sorted(glob.glob(os.path.join(ROOT, "docs", "*.md")))]:
        with open(path, encoding="utf-8") as f:
            blocks = re.findall(r"^```yaml\n(# /etc/rb/fleet\.yaml\n.*?)^```$", f.read(), re.M | re.S)
        for block in blocks:
            with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
                file.write(block)
                file.flush()
                run = subprocess.run([sys.argv[1], "check", "--fleet", file.name], capture_output=True, text=True,
                                     timeout=30, check=False)
            checked += 1
            if run.returncode != 0:
                failed += 1
                print(f"{os.path.relpath(path, ROOT)}:\n{run.stdout}{run.stderr}")
    print(f"{checked} fleet files checked, {failed} refused")
    # One in README.md, one in docs/operations.md.
    return 1 if failed or checked < 2 else 0


sys.exit(main())

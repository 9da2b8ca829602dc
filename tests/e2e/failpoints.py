"""Names of the failpoints of a program, as they stand in its sources."""
import os
import re

from fleet import ROOT


def failpoints(folder, wanted=lambda name: True):
    names = set()
    for path, _, files in os.walk(os.path.join(ROOT, folder)):
        for name in files:
            if name.endswith((".h", ".cc")) and "_test" not in name:
                with open(os.path.join(path, name), encoding="utf-8") as f:
                    names.update(re.findall(r'RB_FAILPOINT\(\s*"([^"]+)"', f.read()))
    return sorted(filter(wanted, names))

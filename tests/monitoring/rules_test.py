#!/usr/bin/env python3
"""deploy/prometheus: valid by promtool, each alert tested both ways, each runbook link leads somewhere, and no query asks
for a metric that is not served."""
import glob
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
RULES = sorted(glob.glob(os.path.join(ROOT, "deploy/prometheus/rules/*.yml")))


def read(*path):
    with open(os.path.join(ROOT, *path), encoding="utf-8") as f:
        return f.read()


def main():
    problems = []
    for command in (["check", "rules", *RULES],
                    ["check", "config", os.path.join(ROOT, "deploy/prometheus/prometheus.yml")],
                    ["test", "rules", *(os.path.join(ROOT, "tests/monitoring", name) for name in
                                        ("alerts_test.yml", "objective_test.yml", "recording_test.yml"))]):
        run = subprocess.run(["promtool", *command], capture_output=True, text=True, timeout=50, check=False)
        if run.returncode != 0:
            problems.append(f"promtool {' '.join(command)}:\n{run.stdout}{run.stderr}")
    rules = "".join(read(os.path.relpath(path, ROOT)) for path in RULES)
    alerts = re.findall(r"- alert: (\w+)", rules)
    tests = read("tests/monitoring/alerts_test.yml") + read("tests/monitoring/objective_test.yml")
    for alert in alerts:
        fires = re.search(rf"alertname: {alert}\n +eval_time: \S+\n +exp_alerts:\n +- exp_labels", tests)
        quiet = re.search(rf"alertname: {alert}, eval_time: \S+, exp_alerts: \[\]", tests)
        if not fires or not quiet:
            problems.append(f"{alert} is not tested both ways")
    recording = read("tests/monitoring/recording_test.yml")
    for record in re.findall(r"- record: (\S+)", rules):
        if f"expr: {record}\n" not in recording:
            problems.append(f"{record} is not tested in recording_test.yml")
    links = re.findall(r"runbook_url: docs/alerts\.md#(\S+)", rules)
    if len(links) != len(alerts) or rules.count("summary: ") != len(alerts):
        problems.append("an alert has no summary or no runbook_url")
    anchors = {re.sub(r"[^a-z0-9-]", "", title.lower()) for title in re.findall(r"^## (.+)$", read("docs/alerts.md"), re.M)}
    problems += [f"docs/alerts.md has no part #{link}" for link in links if link not in anchors]
    problems += [f"docs/alerts.md speaks of #{anchor}, which is no alert" for anchor in anchors - set(links)]
    served = set(re.findall(r"^\| `(rb_\w+)`", read("docs/metrics.md"), re.M))
    asked = {re.sub(r"_(bucket|sum|count)$", "", name) if name not in served else name
             for name in re.findall(r"\brb_\w+", rules)}
    problems += [f"the rules ask for {name}, which nothing serves" for name in sorted(asked - served)]
    print(f"{len(alerts)} alerts, {len(served)} metrics")
    if len(alerts) < 10 or len(served) < 20:
        problems.append("the files were not understood")
    for problem in problems:
        print(problem)
    return 1 if problems else 0


sys.exit(main())

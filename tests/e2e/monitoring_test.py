#!/usr/bin/env python3
"""A fleet with a real Prometheus and a real Alertmanager beside it, with the files that are shipped in deploy/: a drill in
time makes no alert, one that is too slow makes one, and a webhook gets it with the right words; every query of the
dashboards has an answer; what leaves the fleet file leaves Prometheus."""
import base64
import glob
import http.server
import json
import os
import re
import ssl
import subprocess
import threading
import unittest
import urllib.error
import urllib.parse
import urllib.request

from alertmanager import Alertmanager
from fleet import ROOT, SERVICE, Fleet, free_ports, wait_for

DEPLOY = os.path.join(ROOT, "deploy", "prometheus")
USER, PASSWORD = "prometheus", "much secret"
# Grafana asks these when something is wrong, or while something is under way.
MAY_BE_EMPTY = ("rb_probe_passed", "rb_operation_accepted_timestamp_seconds", "rb_operation_progress_timestamp_seconds")


class Receiver:
    """A webhook that keeps what Alertmanager sends."""

    def __init__(self):
        self.alerts = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.alerts += body["alerts"]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def told(self, status):
        return [a for a in self.alerts if a["status"] == status]


class Monitoring(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.metrics_port, cls.prometheus_port, cls.alertmanager_port, dead = free_ports(4)
        cls.receiver = Receiver()
        cls.addClassCleanup(cls.receiver.server.shutdown)
        # Nothing but a drill's recovery from git can be too slow.
        cls.fleet = Fleet({"test": ["test-1"], "prod": ["prod-1"]}, metrics=f"127.0.0.1:{cls.metrics_port}",
                          drills={"test": "{allow: [bad-code], longest: 60s}"},
                          targets="backup: 3m, redeploy: 10m, git: 1ms")
        fleet = cls.fleet
        cls.addClassCleanup(fleet.close)
        cls.make_secrets()
        secured = ", ".join(f"{key}: {fleet.path(name)}" for key, name in (
            ("certificate", "metrics.crt"), ("key", "metrics.key"), ("password_file", "metrics.password")))
        fleet.service_lines = (f"    drills: {{allow: [bad-code], longest: 60s}}\n"
                               f"metrics: {{address: \"127.0.0.1:0\", {secured}}}\n")
        fleet.fleet_extra = (f"metrics: {{{secured}}}\n"
                             f"schedules:\n  yearly: {{kind: backup, cron: \"0 0 1 1 *\", environments: [test]}}\n"
                             f"notifications:\n  alertmanager: {{url: \"http://127.0.0.1:{cls.alertmanager_port}\"}}\n  rules:\n"
                             f"    - {{name: nobody, webhook: {{url: \"http://127.0.0.1:{dead}/\"}}}}\n")
        fleet.__enter__()
        cls.start_monitoring()

    @classmethod
    def make_secrets(cls):
        path = cls.fleet.path
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days",
                        "2", "-subj", "/CN=metrics", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout",
                        path("metrics.key"), "-out", path("metrics.crt")], check=True, capture_output=True)
        for name, text in (("metrics.password", f"{USER}:{PASSWORD}\n"), ("scrape.password", PASSWORD)):
            with open(path(name), "w", encoding="utf-8") as f:
                f.write(text)
        for name in ("metrics.key", "metrics.password", "scrape.password"):
            os.chmod(path(name), 0o600)
        cls.tls = ssl.create_default_context(cafile=path("metrics.crt"))

    @classmethod
    def start_monitoring(cls):
        fleet = cls.fleet
        with open(os.path.join(DEPLOY, "prometheus.yml"), encoding="utf-8") as f:
            config = f.read()
        # The shipped file, but for its pace, for where things are here, and with what it says of TLS.
        for shipped, here in (("_interval: 15s", "_interval: 500ms"), ("127.0.0.1:9464", f"127.0.0.1:{cls.metrics_port}"),
                              ("127.0.0.1:9093", f"127.0.0.1:{cls.alertmanager_port}"), ("interval: 30s", "interval: 1s"),
                              ("rules/*.yml", os.path.join(DEPLOY, "rules", "*.yml")),
                              ("/var/lib/rb-controller", fleet.path("controller")),
                              ("    #   scheme: https\n", "    scheme: https\n"),
                              ("    #   tls_config:", "    tls_config:"), ("    #   basic_auth:", "    basic_auth:"),
                              ("    # tls_config:", "    tls_config:"), ("    # basic_auth:", "    basic_auth:"),
                              ("/etc/prometheus/rb-ca.crt", fleet.path("metrics.crt")),
                              ("/etc/prometheus/rb-password", fleet.path("scrape.password"))):
            assert shipped in config, shipped
            config = config.replace(shipped, here)
        os.mkdir(fleet.path("monitoring"))
        with open(fleet.path("monitoring", "prometheus.yml"), "w", encoding="utf-8") as f:
            f.write(config)
        cls.alertmanager = Alertmanager(fleet, cls.alertmanager_port, f"http://127.0.0.1:{cls.receiver.port}/")
        cls.alertmanager.start()
        fleet._spawn("prometheus", ["/usr/bin/prometheus",
                                    f"--config.file={fleet.path('monitoring', 'prometheus.yml')}",
                                    f"--storage.tsdb.path={fleet.path('monitoring', 'tsdb')}",
                                    f"--web.listen-address=127.0.0.1:{cls.prometheus_port}"])

    def get(self, url, password=PASSWORD):
        request = urllib.request.Request(url)
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{USER}:{password}".encode()).decode())
        with urllib.request.urlopen(request, timeout=10, context=self.tls if url.startswith("https") else None) as answer:
            return answer.read().decode()

    def controller_metrics(self):
        return self.get(f"https://127.0.0.1:{self.metrics_port}/metrics")

    def ask(self, path, **parameters):
        """Prometheus' answer; None as long as it does not answer."""
        try:
            text = self.get(f"http://127.0.0.1:{self.prometheus_port}/api/v1/{path}?"
                            + urllib.parse.urlencode(parameters))
        except urllib.error.HTTPError as error:
            self.assertGreaterEqual(error.code, 500, f"{parameters}: {error.read()}")
            return None
        except (ConnectionError, urllib.error.URLError):
            return None
        return json.loads(text)["data"]

    def query(self, expression):
        """[(labels, value)]."""
        data = self.ask("query", query=expression)
        return [(one["metric"], float(one["value"][1])) for one in data["result"]] if data else []

    def value(self, expression, wanted):
        """Waits until it is that, of one series."""
        wait_for(lambda: [v for _, v in self.query(expression)] == [wanted], f"{expression} to be {wanted}, not "
                 f"{self.query(expression)}")

    def firing(self):
        return sorted(labels["alertname"] for labels, _ in self.query('ALERTS{alertstate="firing"}'))

    def drill(self, method, outcome):
        run = self.fleet.rbctl_json("drill", "run", "bad-code", "test", "--method", method, code=None)
        self.assertEqual(run["state"], outcome, json.dumps(run, indent=1))
        # Its host's alerts were silenced for as long as it took, whatever came of it.
        self.alertmanager.wait_for(run["id"], "expired", "test-1")
        silence = next(one for one in self.alertmanager.silences() if one["comment"].startswith(run["id"] + ":"))
        self.assertEqual(silence["matchers"][0]["name"], "host")
        self.assertLess(silence["startsAt"], run["ended_at"])
        self.assertGreaterEqual(silence["endsAt"][:19], run["ended_at"][:19])

    def test_a_good_drill_is_seen_and_a_slow_one_is_told(self):
        fleet = self.fleet
        for environment in ("test", "prod"):
            fleet.deploy(environment, "v1.0.0")
        of_test = f'environment="test",service="{SERVICE}"'
        self.value(f'rb_drills_total{{{of_test},outcome="passed"}}', 0)
        wait_for(lambda: [v for _, v in self.query('up{job="rb-agent"}')] == [1.0, 1.0], "both agents to be discovered")

        self.drill("backup", "passed")
        self.value(f'rb_drills_total{{{of_test},outcome="passed"}}', 1)
        self.value(f'rb_drill_last_outcome{{{of_test},fault="bad-code",outcome="passed"}}', 1)
        self.value(f'rb_recoveries_total{{{of_test},method="backup",drill="true",target="met"}}', 1)
        self.value('sum(rb_recovery_seconds_count{outcome="succeeded",drill="true",job="rb-controller"})', 1)
        self.value("sum(rb_agent_connected)", 2)
        self.value("rb:recoveries:missed_ratio30d", 0)
        self.assertEqual((self.firing(), self.receiver.alerts), ([], []))

        self.drill("git", "missed_target")
        self.value(f'rb_drills_total{{{of_test},outcome="missed_target"}}', 1)
        self.value(f'rb_recoveries_total{{{of_test},method="git",drill="true",target="missed"}}', 1)
        wait_for(lambda: self.query("rb:recoveries:missed_ratio30d > 0.3 < 0.7"), "half of the recoveries to be too slow")
        wait_for(lambda: self.query("rb:recovery_objective:burn30d > 5"), "the objective to be burned")
        self.value(f"rb:rollbacks:increase1h{{{of_test}}}", 0)
        wait_for(lambda: self.query(f"rb:recovery_seconds:p95_30d{{{of_test}}}"), "its 95th percentile")
        wait_for(lambda: self.query('rb:releases:usable{environment="prod",host="prod-1"} > 0'), "prod's releases")
        told = wait_for(lambda: self.receiver.told("firing"), "the webhook to be told")
        self.assertEqual(self.firing(), ["RbDrillFailed"])
        self.assertEqual(len(told), 1)
        self.assertEqual({k: told[0]["labels"][k] for k in ("alertname", "environment", "service", "fault", "outcome")},
                         {"alertname": "RbDrillFailed", "environment": "test", "service": SERVICE, "fault": "bad-code",
                          "outcome": "missed_target"})
        self.assertEqual(told[0]["annotations"], {
            "summary": f"The last bad-code drill of test/{SERVICE} missed its target",
            "runbook_url": "docs/alerts.md#rbdrillfailed"})

        self.check_endpoints()
        self.check_dashboards()

        # One that passes ends it.
        self.drill("backup", "passed")
        over = wait_for(lambda: self.receiver.told("resolved"), "the webhook to be told that it is over")
        self.assertEqual(([a["labels"]["alertname"] for a in over], self.firing()), (["RbDrillFailed"], []))

        # When things last happened outlives a restart; what is no longer in the fleet file, which is read then and at no
        # other time, is no longer there: a host, an environment, a service.
        self.assertIn('host="prod-1"', self.controller_metrics())
        fleet.environments = {"test": ["test-1"], "prod": ["prod-2"]}
        text = self.restart_controller()
        self.assertNotIn("prod-1", text)
        self.assertIn('rb_agent_connected{host="prod-2"} 0\n', text)
        fleet.environments = {"test": ["test-1"]}
        text = self.restart_controller()
        self.assertNotIn("prod", text)
        self.assertRegex(text, r'rb_drill_last_outcome\{[^}]*outcome="passed"[^}]*\} 1\n')
        with open(fleet.path("controller", "prometheus-agents.json"), encoding="utf-8") as f:
            self.assertEqual([one["labels"]["host"] for one in json.load(f)], ["test-1"])
        wait_for(lambda: not self.query('{host="prod-1"} or {environment="prod",__name__!~"rb:.+"}'), "prod-1 to be gone from Prometheus")
        text = self.restart_controller("other-bot")
        self.assertNotIn(SERVICE, text)
        self.assertIn('service="other-bot"', text)

    def restart_controller(self, service=SERVICE):
        """With the fleet file as it is by now, and its service so called. What it measures then."""
        fleet = self.fleet
        fleet.kill("controller")
        fleet.write_fleet()
        with open(fleet.path("fleet.yaml"), encoding="utf-8") as f:
            text = f.read()
        with open(fleet.path("fleet.yaml"), "w", encoding="utf-8") as f:
            f.write(text.replace(f"  {SERVICE}:", f"  {service}:"))
        fleet.start_controller()
        return self.controller_metrics()

    def check_endpoints(self):
        """Both keep to Prometheus' rules, and to their password."""
        with open(self.fleet.path("hosts", "prod-1", "state", "metrics.address"), encoding="utf-8") as f:
            agent = f"https://{f.read().strip()}/metrics"
        for address in (f"https://127.0.0.1:{self.metrics_port}/metrics", agent):
            check = subprocess.run(["promtool", "check", "metrics"], input=self.get(address), capture_output=True,
                                   text=True, check=False, timeout=30)
            self.assertEqual((check.returncode, check.stdout + check.stderr), (0, ""), address)
            with self.assertRaises(urllib.error.HTTPError) as refused:
                self.get(address, "wrong")
            self.assertEqual(refused.exception.code, 401)
            refused.exception.close()
        text = self.get(agent)
        self.assertIn("rb_store_dedup_ratio", text)
        self.assertTrue(re.search(r'rb_downtime_seconds_count\{method="git"', text), "a deploy takes the commit from git")

    def check_dashboards(self):
        """Every query is answered, with data where there has to be some, and has the labels that its legend names."""
        empty, asked = [], 0
        for path in sorted(glob.glob(os.path.join(ROOT, "deploy", "grafana", "dashboards", "*.json"))):
            with open(path, encoding="utf-8") as f:
                dashboard = json.load(f)
            for variable in dashboard["templating"]["list"]:
                if variable["type"] != "query":
                    continue
                metric, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"]).groups()
                values = self.ask(f"label/{label}/values", **{"match[]": self.filled(metric)})
                self.assertTrue(values, variable)
            for panel in dashboard["panels"]:
                for target in panel["targets"]:
                    asked += 1
                    series = self.query(self.filled(target["expr"]))
                    where = f"{os.path.basename(path)}: {panel['title']}: {target['expr']}"
                    if not series and not any(name in target["expr"] for name in MAY_BE_EMPTY):
                        empty.append(where)
                    for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                        self.assertTrue(all(label in labels for labels, _ in series), f"{where}: no label {label}")
        self.assertEqual(empty, [])
        self.assertGreater(asked, 30)

    @staticmethod
    def filled(expression):
        return re.sub(r"\$(environment|service)", ".*", expression)


if __name__ == "__main__":
    unittest.main(verbosity=2)

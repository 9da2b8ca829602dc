"""A real Alertmanager for tests, of Debian's package, beside a fleet."""
import json
import signal
import urllib.request

from fleet import free_ports, wait_for


class Alertmanager:
    def __init__(self, fleet, port=None, receiver="http://127.0.0.1:1/"):
        """`receiver` is told of every alert. What it knows lies in the fleet's folder and outlives stop()."""
        self.fleet, self.port = fleet, port or free_ports(1)[0]
        self.config = fleet.path("alertmanager.yml")
        with open(self.config, "w", encoding="utf-8") as f:
            f.write(f"""
route: {{receiver: here, group_by: ['...'], group_wait: 0s, group_interval: 1s, repeat_interval: 1h}}
receivers:
  - name: here
    webhook_configs: [{{url: "{receiver}", send_resolved: true}}]
""")

    def start(self):
        self.fleet._spawn("alertmanager", ["/usr/bin/prometheus-alertmanager", f"--config.file={self.config}",
                                           f"--storage.path={self.fleet.path('alertmanager')}",
                                           f"--web.listen-address=127.0.0.1:{self.port}", "--cluster.listen-address="])

    def stop(self):
        self.fleet.kill("alertmanager", signal.SIGTERM)

    def silences(self):
        """Those it has ever had, oldest first; none while it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v2/silences", timeout=5) as answer:
                return sorted(json.load(answer), key=lambda one: one["startsAt"])
        except (OSError, ValueError):
            return []

    def of(self, operation):
        """(state, hosts) of each silence that was ever made for an operation or drill."""
        return [(one["status"]["state"], one["matchers"][0]["value"]) for one in self.silences()
                if one["comment"].startswith(operation + ":")]

    def wait_for(self, operation, state, hosts):
        """Until it has that one silence, and no other."""
        wait_for(lambda: self.of(operation) == [(state, f"^({hosts})$")],
                 f"one {state} silence of {hosts} for {operation}, not {self.of(operation)}")

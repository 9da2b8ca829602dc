#!/usr/bin/env python3
"""Notifications, and silences in a real Alertmanager: each receiver is told once what it asked for, also when it or the
controller was down in between, and no operation waits for any of them; a silence lies there while an operation runs, and
is lifted however it ends."""
import http.server
import json
import os
import socketserver
import threading
import unittest

from alertmanager import Alertmanager
from fleet import Fleet, free_ports, wait_for

SECRET = "hooks-secret-7d1"


class Receiver:
    """An HTTP server of webhooks."""

    def __init__(self):
        self.got, self.refuse = [], False
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if not outer.refuse:
                    outer.got.append((self.path, body, self.headers.get("Authorization")))
                self.send_response(503 if outer.refuse else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def of(self, path):
        return [body for where, body, _ in self.got if where == path]


class Mailbox:
    """An SMTP server."""

    def __init__(self):
        self.mails = []
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                say = lambda text: self.wfile.write(text.encode() + b"\r\n")
                say("220 test")
                while line := self.rfile.readline():
                    verb = line.split()[0].upper() if line.split() else b""
                    if verb == b"DATA":
                        say("354 go on")
                        mail = b""
                        while (part := self.rfile.readline()) != b".\r\n":
                            mail += part
                        outer.mails.append(mail.decode())
                    elif verb == b"QUIT":
                        say("221 bye")
                        return
                    say("250 ok")
        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


class Notifications(unittest.TestCase):
    def test_each_is_told_once_whatever_was_down(self):
        receiver, mailbox, (alertmanager_port,) = Receiver(), Mailbox(), free_ports(1)

        class Told(Fleet):
            def write_fleet(self):
                base = f"http://127.0.0.1:{receiver.port}"
                for name in ("slack", "discord", "nobody"):
                    with open(self.path(name), "w", encoding="utf-8") as f:
                        os.chmod(f.name, 0o600)
                        f.write(f"{base if name != 'nobody' else 'http://127.0.0.1:1'}/{name}/{SECRET}\n")
                with open(self.path("token"), "w", encoding="utf-8") as f:
                    os.chmod(f.name, 0o600)
                    f.write(SECRET)
                self.fleet_extra = f"""notifications:
  alertmanager: {{url: "http://127.0.0.1:{alertmanager_port}/", host_label: instance}}
  rules:
    - {{name: hook, events: [started, succeeded, reverted], webhook: {{url: "{base}/hook", token_file: {self.path("token")}}}}}
    - {{name: chat, events: [succeeded, reverted], slack: {{url_file: {self.path("slack")}}}, template: "{{kind}} {{outcome}} by {{by}}: {{reason}}"}}
    - {{name: away, events: [started], slack: {{url_file: {self.path("nobody")}}}}}
    - {{name: room, environments: [prod], discord: {{url_file: {self.path("discord")}}}}}
    - {{name: users, environments: [prod], events: [announcement], webhook: {{url: "{base}/users"}}}}
    - {{name: mail, events: [succeeded], email: {{server: "smtp://127.0.0.1:{mailbox.port}", plaintext: true,
        from: rb@example.org, to: [ops@example.org]}}}}
"""
                super().write_fleet()

        with Told({"test": ["test-1"], "prod": ["prod-1"]}, gates={"test": "{approval: true}"}) as fleet:
            alertmanager = Alertmanager(fleet, alertmanager_port)
            alertmanager.start()

            def last(environment):
                return fleet.rbctl_json("history", environment, "--limit", "1")["operations"][0]["id"]
            fleet.deploy("test", "v1.0.0", "--override-gate", "approval")
            fleet.deploy("prod", "v1.0.0")
            wait_for(lambda: len(mailbox.mails) == 2 and len(receiver.of(f"/discord/{SECRET}")) == 1, "the first to be told")
            for environment in ("test", "prod"):
                alertmanager.wait_for(last(environment), "expired", environment + "-1")
            self.assertEqual({one["matchers"][0]["name"] for one in alertmanager.silences()}, {"instance"})
            self.assertEqual(receiver.of(f"/slack/{SECRET}")[1], {"text": "deploy succeeded by alice: deploy v1.0.0"})
            self.assertEqual([body["event"] for body in receiver.of("/hook")], ["started", "succeeded"] * 2)
            self.assertEqual({token for where, _, token in receiver.got if where == "/hook"}, {f"Bearer {SECRET}"})
            self.assertIn("Subject: [rbctl] prod/sample-bot succeeded\r\n", mailbox.mails[1])

            # Nobody listens: the operation does not wait; the controller is killed, and tells them afterwards. What was
            # over by then leaves no silence behind.
            receiver.refuse = True
            alertmanager.stop()
            fleet.deploy("prod", "v1.1.0")
            fleet.kill("controller")
            fleet.start_controller()
            fleet.wait_connected()
            receiver.refuse = False
            alertmanager.start()
            wait_for(lambda: len(receiver.of("/hook")) == 6 and len(receiver.of(f"/discord/{SECRET}")) == 2,
                     "those that were missed", 60)
            alertmanager.wait_for(last("prod"), "expired", "prod-1")
            keys = [body["key"] for body in receiver.of("/hook")]
            self.assertEqual(len(keys), len(set(keys)), "once each")

            # One that is aborted.
            run = fleet.rbctl("rollback", "test", "--to", "v1.0.0", "--announce", "soon", code=5)
            self.assertIn("nobody would hear", run.err)
            aborted = fleet.rbctl_json("deploy", "test", "--to", "v1.1.0", "--reason", "x", "--no-wait")["id"]
            alertmanager.wait_for(aborted, "active", "test-1")
            fleet.rbctl("abort", aborted)
            alertmanager.wait_for(aborted, "expired", "test-1")

            # A failure is told as one, though the controller is killed in the middle of it: before it knew that its
            # silence was made, which is not made twice.
            fleet.push("v1.2.0")
            fleet.kill("controller")
            fleet.start_controller(failpoint="controller.notify.after-send")
            fleet.wait_connected()
            fleet.start_rbctl("deploy", "prod", "--to", "v1.2.0", "--reason", "x", "--announce", "back in a minute",
                              "--no-wait")
            wait_for(lambda: fleet.ended("controller"), "the controller to die right after it has told somebody")
            # From the next operation on, what fails is left as it is.
            fleet.on_failure = "hold"
            fleet.write_fleet()
            fleet.start_controller()
            fleet.wait_connected()
            reverted = last("prod")
            alertmanager.wait_for(reverted, "active", "prod-1")
            fleet.rbctl("watch", reverted, code=6)
            alertmanager.wait_for(reverted, "expired", "prod-1")
            wait_for(lambda: len(receiver.of("/users")) == 2, "the announcements")
            before, after = (body["text"] for body in receiver.of("/users"))
            self.assertEqual(before, "prod/sample-bot: back in a minute (a deploy begins)")
            self.assertTrue(after.startswith("prod/sample-bot: back in a minute (over: reverted. "), after)
            wait_for(lambda: receiver.of("/hook")[-1]["event"] == "reverted", "the revert to be told")

            # One that a person has to look at: the alerts are wanted from now on.
            fleet.rbctl("quarantine", "release", "v1.2.0", "--reason", "once more", code=None)
            fleet.rbctl("deploy", "prod", "--to", "v1.2.0", "--reason", "x", "--force", code=3)
            alertmanager.wait_for(last("prod"), "expired", "prod-1")
            self.assertEqual([one["status"]["state"] for one in alertmanager.silences()], ["expired"] * 6)

            shown = fleet.rbctl("history", "prod").out + fleet.rbctl("audit", "list").out
            shown += fleet.rbctl("show", reverted, "-o", "json", code=None).out
            for name in ("logs/controller.log", "controller/notifications"):
                with open(fleet.path(*name.split("/")), encoding="utf-8", errors="replace") as f:
                    shown += f.read()
            self.assertRegex(shown, "/away: .*; trying again")
            self.assertRegex(shown, "/hook: .*; trying again")
            self.assertNotIn(SECRET, shown)


if __name__ == "__main__":
    unittest.main(verbosity=2)

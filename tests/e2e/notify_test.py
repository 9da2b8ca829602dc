#!/usr/bin/env python3
"""Notifications and silences: each receiver is told once what it asked for, also when it or the controller was down in
between, and no operation waits for any of them."""
import http.server
import json
import os
import socketserver
import threading
import unittest

from fleet import Fleet, wait_for

SECRET = "hooks-secret-7d1"


class Receiver:
    """An HTTP server of webhooks, and a small Alertmanager."""

    def __init__(self):
        self.got, self.silences, self.refuse = [], {}, False
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def answer(self, status, body=None):
                data = b"" if body is None else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self):
                self.answer(200, list(outer.silences.values()))

            def do_DELETE(self):
                outer.silences[self.path.rsplit("/", 1)[1]]["status"]["state"] = "expired"
                self.answer(200)

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if outer.refuse:
                    return self.answer(503)
                if self.path == "/api/v2/silences":
                    number = f"s{len(outer.silences)}"
                    outer.silences[number] = {**body, "id": number, "status": {"state": "active"}}
                    return self.answer(200, {"silenceID": number})
                outer.got.append((self.path, body, self.headers.get("Authorization")))
                self.answer(200)
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
        receiver, mailbox = Receiver(), Mailbox()

        class Told(Fleet):
            def write_fleet(self):
                base = f"http://127.0.0.1:{receiver.port}"
                for name in ("slack", "discord"):
                    with open(self.path(name), "w", encoding="utf-8") as f:
                        os.chmod(f.name, 0o600)
                        f.write(f"{base}/{name}/{SECRET}\n")
                with open(self.path("token"), "w", encoding="utf-8") as f:
                    os.chmod(f.name, 0o600)
                    f.write(SECRET)
                self.fleet_extra = f"""notifications:
  alertmanager: {{url: "{base}", host_label: instance}}
  rules:
    - {{name: hook, events: [started, succeeded, reverted], webhook: {{url: "{base}/hook", token_file: {self.path("token")}}}}}
    - {{name: chat, events: [succeeded, reverted], slack: {{url_file: {self.path("slack")}}}, template: "{{kind}} {{outcome}} by {{by}}: {{reason}}"}}
    - {{name: room, environments: [prod], discord: {{url_file: {self.path("discord")}}}}}
    - {{name: users, environments: [prod], events: [announcement], webhook: {{url: "{base}/users"}}}}
    - {{name: mail, events: [succeeded], email: {{server: "smtp://127.0.0.1:{mailbox.port}", plaintext: true,
        from: rb@example.org, to: [ops@example.org]}}}}
"""
                super().write_fleet()

        with Told({"test": ["test-1"], "prod": ["prod-1"]}) as fleet:
            fleet.deploy("test", "v1.0.0")
            fleet.deploy("prod", "v1.0.0")
            wait_for(lambda: len(mailbox.mails) == 2 and len(receiver.of(f"/discord/{SECRET}")) == 1, "the first to be told")
            wait_for(lambda: len(receiver.silences) == 2 and all(
                one["status"]["state"] == "expired" for one in receiver.silences.values()), "both silences to be lifted")
            matcher = receiver.silences["s1"]["matchers"][0]
            self.assertEqual((matcher["name"], matcher["value"]), ("instance", "^(prod-1)$"))
            self.assertEqual(receiver.of(f"/slack/{SECRET}")[1], {"text": "deploy succeeded by alice: deploy v1.0.0"})
            self.assertEqual([body["event"] for body in receiver.of("/hook")], ["started", "succeeded"] * 2)
            self.assertEqual({token for where, _, token in receiver.got if where == "/hook"}, {f"Bearer {SECRET}"})
            self.assertIn("Subject: [rbctl] prod/sample-bot succeeded\r\n", mailbox.mails[1])

            # Nobody listens: the operation does not wait; the controller is killed, and tells them afterwards.
            receiver.refuse = True
            fleet.deploy("prod", "v1.1.0")
            fleet.kill("controller")
            fleet.start_controller()
            fleet.wait_connected()
            receiver.refuse = False
            wait_for(lambda: len(receiver.of("/hook")) == 6 and len(receiver.of(f"/discord/{SECRET}")) == 2,
                     "those that were missed", 60)
            wait_for(lambda: len(receiver.silences) == 3 and receiver.silences["s2"]["status"]["state"] == "expired",
                     "the silence to be lifted", 60)
            keys = [body["key"] for body in receiver.of("/hook")]
            self.assertEqual(len(keys), len(set(keys)), "once each")

            # A failure is told as one.
            run = fleet.rbctl("rollback", "test", "--to", "v1.0.0", "--announce", "soon", code=5)
            self.assertIn("nobody would hear", run.err)
            fleet.push("v1.2.0")
            fleet.rbctl("deploy", "prod", "--to", "v1.2.0", "--reason", "x", "--announce", "back in a minute", code=6)
            wait_for(lambda: len(receiver.of("/users")) == 2, "the announcements")
            before, after = (body["text"] for body in receiver.of("/users"))
            self.assertEqual(before, "prod/sample-bot: back in a minute (a deploy begins)")
            self.assertTrue(after.startswith("prod/sample-bot: back in a minute (over: reverted. "), after)
            wait_for(lambda: receiver.of("/hook")[-1]["event"] == "reverted", "the revert to be told")
            wait_for(lambda: receiver.silences["s3"]["status"]["state"] == "expired", "its silence to be lifted", 60)
            shown = fleet.rbctl("history", "prod").out + fleet.rbctl("audit", "list").out
            with open(fleet.path("logs", "controller.log"), encoding="utf-8") as f:
                shown += f.read()
            self.assertIn("trying again", shown)
            self.assertNotIn(SECRET, shown)


if __name__ == "__main__":
    unittest.main(verbosity=2)

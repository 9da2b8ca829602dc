#!/usr/bin/env python3
"""Who is let in, and to do what."""
import base64
import json
import os
import re
import shutil
import socket
import sqlite3
import ssl
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from fleet import Fleet  # noqa: E402


def listeners(pid):
    """Addresses on which the process listens, over IPv4 and IPv6."""
    inodes = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            match = re.match(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{fd}"))
        except OSError:
            continue
        if match:
            inodes.add(match.group(1))
    found = set()
    for table in ("tcp", "tcp6"):
        with open(f"/proc/{pid}/net/{table}", encoding="utf-8") as f:
            for line in f.read().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in inodes:
                    address, port = fields[1].split(":")
                    found.add((address, int(port, 16)))
    return found


def answer_in_plaintext(port):
    """What comes back for a plain HTTP/1.1 request."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as s:
        s.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        s.settimeout(3)
        data = b""
        try:
            while len(data) < 65536:
                part = s.recv(4096)
                if not part:
                    break
                data += part
        except OSError:
            pass
        return data


def read_token(line):
    """Its parts: common/adapters/identity.h says what they are."""
    text = line.strip().removeprefix("rbjoin1.")
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def write_token(parts):
    return "rbjoin1." + base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()


class Security(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.fleet = cls.enterClassContext(Fleet({"test": ["test-1"]}))
        cls.fleet.deploy("test", "v1.0.0")
        cls.fleet.deploy("test", "v1.1.0")

    def records(self, **wanted):
        """The audit log's, newest first."""
        records = self.fleet.rbctl_json("audit", "list", "--last", "1000")["records"]
        return [one for one in records if all(one[key] == value for key, value in wanted.items())]

    def test_every_request_is_on_record_allowed_or_not(self):
        fleet = self.fleet
        viewer = fleet.operator("victor", "viewer")
        fleet.rbctl("rollback", "test", "--to", "v1.0.0", "--reason", "not mine", identity=viewer, code=5)
        record = self.records(who="victor", request="StartOperation")[0]
        self.assertFalse(record["allowed"])
        self.assertIn("viewer", record["refusal"])
        self.assertEqual((record["role"], record["subject"], record["reason"]),
                         ("viewer", "rollback test to v1.0.0", "not mine"))
        self.assertIn("127.0.0.1", record["from"])
        fleet.rbctl("rollback", "test", "--to", "v9.9.9", "--reason", "no such thing", code=5)
        self.assertFalse(self.records(who="alice", reason="no such thing")[0]["allowed"], "refused by the plan")
        fleet.rbctl("status", identity=viewer)
        self.assertTrue(self.records(who="victor", request="GetStatus")[0]["allowed"])
        self.assertTrue(self.records(who="local", request="operator add", subject="victor as viewer"))
        self.assertTrue(self.records(request="Join", subject="test-1"))
        self.assertTrue(self.records(who="test-1", request="Connect"))
        fleet.rbctl("audit", "list", identity=viewer, code=5)
        text = fleet.rbctl("audit", "list", "--last", "1000").out
        for secret in ("BEGIN", "PRIVATE"):
            self.assertNotIn(secret, text)

    def test_the_audit_log_shows_what_was_done_to_it(self):
        with Fleet({"test": ["test-1"]}) as fleet:
            fleet.rbctl("status")
            head = fleet.rbctl_json("audit", "verify")["head"]
            fleet.rbctl("status")
            run = fleet.rbctl("audit", "verify", "--expect", head)
            self.assertIn("intact", run.out)
            fleet.rbctl("audit", "verify", "--expect", "12", code=5)
            self.assertIn("no record has the hash", fleet.rbctl("audit", "verify", "--expect", "0" * 64, code=1).out)
            fleet.kill("controller")
            path = fleet.path("controller", "controller.db")

            def change(*statements):
                connection = sqlite3.connect(path)
                with connection:
                    for statement in statements:
                        connection.execute(statement)
                self.assertEqual(connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0], 0)
                connection.close()

            def check(code, says):
                run = fleet.program("rb-controller", "audit", "verify", "--dir", fleet.path("controller"), code=code)
                self.assertIn(says, run.out + run.err)
            check(0, "intact")
            nowhere = fleet.path("nowhere")
            os.mkdir(nowhere)
            run = fleet.program("rb-controller", "audit", "verify", "--dir", nowhere, code=1)
            self.assertIn("no controller's store", run.err)
            self.assertEqual(os.listdir(nowhere), [])
            replace = ("INSERT OR REPLACE INTO audit SELECT {}, at_us, 'nobody', role, source, request, subject, reason, "
                       "allowed, refusal, hash FROM audit WHERE number = 2")
            for statement in ("UPDATE audit SET who = 'nobody' WHERE number = 2", "DELETE FROM audit WHERE number = 2",
                              replace.format(2), replace.format(-3)):
                with self.assertRaisesRegex(sqlite3.IntegrityError, "only appended to"):
                    change(statement)
            change("DROP TRIGGER audit_is_not_changed", "DROP TRIGGER audit_is_not_removed",
                   "DROP TRIGGER audit_goes_on_at_its_end")
            check(0, "intact")
            with open(path, "rb") as f:
                whole = f.read()
            for statements, says in [
                    (["UPDATE audit SET who = 'nobody' WHERE number = 2"], "record 2 is not what was written"),
                    (["DELETE FROM audit WHERE number = 2"], "record 2 is missing"),
                    ([replace.format(2)], "record 2 is not what was written"),
                    ([replace.format(-3)], "the number -3, which was never given"),
                    (["DELETE FROM audit WHERE number = 2", "UPDATE audit SET number = number - 1 WHERE number > 2"],
                     "record 2 is not what was written"),
                    (["UPDATE audit SET number = -number WHERE number IN (2, 3)",
                      "UPDATE audit SET number = 5 + number WHERE number < 0"], "record 2 is not what was written")]:
                change(*statements)
                check(1, says)
                for extra in ("-wal", "-shm"):
                    if os.path.exists(path + extra):
                        os.remove(path + extra)
                with open(path, "wb") as f:
                    f.write(whole)
                check(0, "intact")
            change("UPDATE audit SET allowed = 1 - allowed WHERE number = 3")
            fleet.start_controller()
            fleet.wait_connected()
            run = fleet.rbctl_json("audit", "verify", code=1)
            self.assertEqual((run["intact"], run["bad_number"], run["count"]), (False, 3, 2))

    def test_without_a_client_certificate_the_handshake_fails(self):
        context = ssl.create_default_context(cafile=os.path.join(self.fleet.identity, "ca.crt"))
        context.check_hostname = False
        context.set_alpn_protocols(["h2"])
        with self.assertRaises((ssl.SSLError, ConnectionError)):
            with socket.create_connection(("127.0.0.1", self.fleet.controller_port), timeout=5) as raw:
                with context.wrap_socket(raw) as s:
                    # TLS 1.3 tells of a missing certificate only with the first bytes that are read.
                    s.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
                    received = s.recv(1)
                    if not received:
                        raise ConnectionError("closed")
        # The same with one is let in: it was not the test that failed.
        context.load_cert_chain(os.path.join(self.fleet.identity, "operator.crt"),
                                os.path.join(self.fleet.identity, "operator.key"))
        with socket.create_connection(("127.0.0.1", self.fleet.controller_port), timeout=5) as raw:
            with context.wrap_socket(raw) as s:
                s.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
                self.assertTrue(s.recv(1))

    def test_a_certificate_of_another_authority_is_refused(self):
        other = self.fleet.path("other-controller")
        stolen = self.fleet.path("other-identity")
        self.fleet.program("rb-controller", "init", "--dir", other, "--advertise", "127.0.0.1", "--admin", "alice",
                           "--out", stolen)
        # Its key and certificate, but our authority and address: the server has to refuse it, not the client.
        for name in ("ca.crt", "controller"):
            shutil.copy(os.path.join(self.fleet.identity, name), stolen)
        run = self.fleet.rbctl("agents", identity=stolen, code=None)
        self.assertIn(run.code, (4, 5))
        self.assertNotIn("test-1", run.out)

    def test_roles(self):
        viewer, operator = self.fleet.operator("vera", "viewer"), self.fleet.operator("otto", "operator")
        self.fleet.rbctl("status", "test", identity=viewer)
        before = (self.fleet.attributes("test-1"), self.fleet.service_pid("test-1"))
        run = self.fleet.rbctl("rollback", "test", "--to", "v1.0.0", identity=viewer, code=5)
        self.assertIn("viewer", run.out + run.err)
        self.fleet.rbctl("backup", "create", "test", "--reason", "x", identity=viewer, code=5)
        self.assertEqual(before, (self.fleet.attributes("test-1"), self.fleet.service_pid("test-1")))
        self.fleet.rbctl("rollback", "test", "--to", "v1.0.0", "--reason", "roles", identity=operator)
        entry = self.fleet.rbctl_json("history", "test")["operations"][0]
        self.assertEqual(entry["requested_by"], "otto")

    def test_an_agent_may_not_act_as_an_operator(self):
        state = self.fleet.path("hosts", "test-1", "state")
        found = {}
        for folder, _, names in os.walk(state):
            for name in names:
                if name.endswith((".crt", ".key")) and name not in ("ca.crt",):
                    found[name.rsplit(".", 1)[1]] = os.path.join(folder, name)
        self.assertEqual(sorted(found), ["crt", "key"], "the agent's own key and certificate")
        identity = self.fleet.path("agent-as-operator")
        shutil.copytree(self.fleet.identity, identity)
        shutil.copy(found["crt"], os.path.join(identity, "operator.crt"))
        shutil.copy(found["key"], os.path.join(identity, "operator.key"))
        run = self.fleet.rbctl("agents", identity=identity, code=None)
        self.assertEqual(run.code, 5, run)
        self.assertNotIn("test-1", run.out)

    def test_a_token_works_once_and_for_its_name(self):
        token = self.fleet.token("test-9")
        with open(token, encoding="utf-8") as f:
            text = f.read().strip()
        self.assertEqual(len(text.split("\n")), 1)
        stolen = self.fleet.path("stolen-token")
        with open(stolen, "w", encoding="utf-8") as f:
            f.write(write_token({**read_token(text), "name": "test-1"}) + "\n")
        run = self.fleet.program("rb-agent", "join", "--state", self.fleet.path("state-stolen"), "--token-file", stolen,
                                 code=None)
        self.assertNotEqual(run.code, 0)
        self.fleet.program("rb-agent", "join", "--state", self.fleet.path("state-9"), "--token-file", token)
        run = self.fleet.program("rb-agent", "join", "--state", self.fleet.path("state-9b"), "--token-file", token,
                                 code=None)
        self.assertNotEqual(run.code, 0)
        self.assertFalse([name for _, _, names in os.walk(self.fleet.path("state-9b")) for name in names
                          if name.endswith(".crt") and name != "ca.crt"])

    def test_a_join_that_cannot_be_put_on_record_does_not_happen(self):
        token = self.fleet.token("test-7")

        def store(statement):
            connection = sqlite3.connect(self.fleet.path("controller", "controller.db"), timeout=10)
            with connection:
                connection.execute(statement)
            connection.close()

        def join(code):
            return self.fleet.program("rb-agent", "join", "--state", self.fleet.path("state-7"), "--token-file", token,
                                      code=code)
        store("CREATE TRIGGER no_joins BEFORE INSERT ON audit WHEN NEW.request = 'Join' "
              "BEGIN SELECT RAISE(ABORT, 'no space is left'); END")
        try:
            self.assertIn("the token is still good", join(1).err)
        finally:
            store("DROP TRIGGER no_joins")
        join(0)

    def test_tokens_and_keys_lie_nowhere_in_the_open(self):
        token = self.fleet.token("test-8")
        with open(token, encoding="utf-8") as f:
            secret = read_token(f.read())["secret"]
        self.assertRegex(secret, r"^[0-9a-f]{64}$")
        for folder, _, names in os.walk(self.fleet.folder):
            for name in names:
                path = os.path.join(folder, name)
                if path == token:
                    continue
                with open(path, "rb") as f:
                    data = f.read()
                self.assertNotIn(secret.encode(), data, path)
                self.assertNotIn(bytes.fromhex(secret), data, path)
                if b"PRIVATE KEY" in data:
                    self.assertEqual(os.stat(path).st_mode & 0o077, 0, f"{path} can be read by others")

    def test_nothing_listens_in_plaintext_but_metrics_on_loopback(self):
        metrics = 0
        for key in ("controller", "test-1"):
            for address, port in listeners(self.fleet.processes[key].pid):
                self.assertIn(address, ("0100007F", "00000000000000000000000001000000",
                                        "0000000000000000FFFF00000100007F"), f"{key} listens beyond loopback")
                answer = answer_in_plaintext(port)
                if answer.startswith(b"HTTP/1."):
                    self.assertIn(b"rb_", answer, f"{key} answers in plaintext on {port}")
                    metrics += 1
        self.assertEqual(metrics, 2)


if __name__ == "__main__":
    unittest.main(verbosity=2)

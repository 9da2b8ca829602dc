#!/usr/bin/env python3
"""Databases of a real PostgreSQL server go back with a release: dumped, restored and undone by deploy/hooks/postgresql.

The server is this test's own: made in a temporary folder, on a unix socket alone, run by an unprivileged user. Where
there is no PostgreSQL the test ends as skipped.
"""
import contextlib
import glob
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests", "e2e"))
from fleet import BIN, MARK, marked, wait_for  # noqa: E402

SKIPPED = 77  # what ctest takes for "not run here"
DONE, FAILED, ATTENTION, REFUSED, REVERTED = 0, 1, 3, 5, 6
IS_ROOT = os.geteuid() == 0


def server_programs():
    """The folder of initdb and pg_ctl of the newest version; None when there is none."""
    folders = glob.glob("/usr/lib/postgresql/*/bin")
    folders.sort(key=lambda folder: int(folder.split("/")[-2]) if folder.split("/")[-2].isdigit() else 0)
    for folder in reversed(folders):
        if all(os.access(os.path.join(folder, name), os.X_OK) for name in ("initdb", "pg_ctl", "postgres")):
            return folder
    return None


def user_of_server():
    """PostgreSQL refuses to run as root."""
    if not IS_ROOT:
        return pwd.getpwuid(os.geteuid())
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    return None


class Server:
    def __init__(self):
        # On a real filesystem, and with a short path: a socket's may have 107 bytes.
        self.folder = tempfile.mkdtemp(prefix="rb-pg-", dir="/var/tmp")
        os.chmod(self.folder, 0o755)
        self.user = user_of_server()
        self.programs = server_programs()
        self.socket = os.path.join(self.folder, "server")
        os.mkdir(self.socket)
        os.chown(self.socket, self.user.pw_uid, self.user.pw_gid)
        self.data = os.path.join(self.socket, "data")
        self.run("initdb", "--pgdata", self.data, "--auth=peer", "--locale=C", "--encoding=UTF8", "--no-sync",
                 "--username", self.user.pw_name)
        self.start()

    def run(self, program, *args, text=None):
        path = os.path.join(self.programs, program)
        as_user = {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []} if IS_ROOT else {}
        done = subprocess.run([path, *args], cwd="/", input=text, capture_output=True, text=True, timeout=120,
                              env={"PATH": os.environ["PATH"], "HOME": self.socket, "LANG": "C.UTF-8",
                                   "PGHOST": self.socket}, **as_user)
        if done.returncode:
            raise AssertionError(f"{program} {' '.join(args)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def start(self):
        self.run("pg_ctl", "--pgdata", self.data, "--wait", "--log", os.path.join(self.socket, "log"), "--options",
                 f"-c listen_addresses='' -c unix_socket_directories='{self.socket}' -c fsync=off", "start")

    def stop(self):
        self.run("pg_ctl", "--pgdata", self.data, "--wait", "--mode=fast", "stop")

    def sql(self, database, *statements):
        return self.run("psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1",
                        "--dbname", database, text=";\n".join(statements) + ";\n")

    def close(self):
        try:
            self.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


class Postgres(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server()
        cls.addClassCleanup(cls.server.close)

    def setUp(self):
        self.name = "t" + re.sub(r"\W", "_", self.id().rsplit(".", 1)[1].lower())[:50]
        self.folder = os.path.join(self.server.folder, self.name)
        self.tree = os.path.join(self.folder, "tree")
        self.state = os.path.join(self.folder, "state")
        os.makedirs(self.tree)
        self.addCleanup(self.end_service)
        self.hook = os.path.join(self.folder, "postgresql")
        shutil.copy(os.path.join(ROOT, "deploy", "hooks", "postgresql"), self.hook)
        self.server.run("createdb", self.name)
        self.configure()
        self.serve("v1", "CREATE TABLE visits (id serial PRIMARY KEY, who text NOT NULL)",
                   "CREATE INDEX ON visits (who)",
                   "INSERT INTO visits (who) SELECT 'visitor ' || n FROM generate_series(1, 500) n",
                   "SELECT lo_from_bytea(4711, '\\xdeadbeef')")

    def configure(self, restore=None, probes="- unit: {}"):
        options = f"--host={self.server.socket}"
        restore = restore or f"[{self.hook}, restore, {self.name}, {options}]"
        with open(os.path.join(self.folder, "agent.yaml"), "w", encoding="utf-8") as f:
            f.write(f"""services:
  bot:
    tree: {self.tree}
    process:
      command: [sh, -c, "cat code; echo; echo ready; exec sleep infinity"]
      environment: {{{MARK}: "{self.folder}"}}
    database_hooks:
      - name: main
        dump: [{self.hook}, dump, {self.name}, {options}]
        restore: {restore}
        timeout: 2m
        user: {self.server.user.pw_name}
    probes:
      {probes}
""")

    def configure_so_that_v1_is_unhealthy(self):
        self.configure(probes='- log: {expect: "^ready$", forbid: "^v1$"}')

    def end_service(self):
        def ended():
            left = marked(f"{MARK}={self.folder}")
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not left
        wait_for(ended, "the service to end")

    # --- What the service is: its code, and what the database holds ---

    def serve(self, code, *statements):
        with open(os.path.join(self.tree, "code"), "w", encoding="utf-8") as f:
            f.write(code)
        self.server.sql(self.name, *statements)

    def code(self):
        with open(os.path.join(self.tree, "code"), encoding="utf-8") as f:
            return f.read()

    def rows(self):
        """All of the database: each table's rows, sequences, large objects, and indexes."""
        tables = self.server.sql(self.name, "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace "
                                            "ORDER BY relname").split()
        content = {}
        for table in tables:
            kind = self.server.sql(self.name, f"SELECT relkind FROM pg_class WHERE relname = '{table}'").strip()
            columns = {"r": "*", "S": "last_value, is_called"}.get(kind)
            content[f"{kind} {table}"] = columns and self.server.sql(self.name,
                                                                     f"SELECT {columns} FROM {table} ORDER BY 1")
        content["large objects"] = self.server.sql(self.name, "SELECT oid, lo_get(oid) FROM pg_largeobject_metadata")
        return content

    def damage(self):
        """What a release that went wrong has done to the data, and to the code."""
        self.serve("v2", "DELETE FROM visits WHERE id % 2 = 0", "UPDATE visits SET who = 'nobody' WHERE id < 100",
                   "ALTER TABLE visits ADD COLUMN mood text DEFAULT 'bad'",
                   "CREATE TABLE added AS SELECT generate_series(1, 10) AS n",
                   "SELECT lo_unlink(4711)")

    # --- The agent ---

    def agent(self, verb, *args, code=DONE, failpoint=None):
        environment = {**os.environ, MARK: "", **({"RB_FAILPOINT": failpoint} if failpoint else {})}
        done = subprocess.run([os.path.join(BIN, "rb-agent"), "local", verb, "bot", "--config",
                               os.path.join(self.folder, "agent.yaml"), "--state", self.state, *args],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, env=environment)
        self.assertEqual(done.returncode, code, f"{verb} {args}\n{done.stdout}\n{done.stderr}")
        return done.stdout + done.stderr

    def backup(self):
        return self.named_in(self.agent("backup", "--reason", "before it goes wrong"))[0].split()[0]

    def releases(self):
        return self.named_in(self.agent("list"))

    @staticmethod
    def named_in(said):
        return [line for line in said.splitlines() if line.startswith("bot/")]

    def rollback(self, release, *args, code=DONE, failpoint=None):
        return self.agent("rollback", "--to", release, "--reason", "test", *args, code=code, failpoint=failpoint)

    def is_running(self):
        return bool(marked(f"{MARK}={self.folder}"))

    # --- Tests ---

    def test_exactly_the_old_rows_come_back_and_then_the_new_ones_again(self):
        old = self.rows()
        release = self.backup()
        self.assertIn("database main", self.releases()[0])
        self.damage()
        new = self.rows()
        self.assertNotEqual(old, new)

        plan = self.agent("plan", "--to", release, "--with-data")
        self.assertIn("databases restored from their dumps, what was written to them since is lost: main", plan)
        self.assertEqual(self.rows(), new)

        self.rollback(release, "--with-data")
        self.assertEqual((self.code(), self.rows()), ("v1", old))
        self.assertTrue(self.is_running())

        # What it replaced is a release too, a bad one.
        replaced = next(line for line in self.releases() if " bad" in line)
        self.assertIn("database main", replaced)
        self.rollback(replaced.split()[0], "--with-data", "--force")
        self.assertEqual((self.code(), self.rows()), ("v2", new))

    def test_without_being_asked_for_the_data_stays(self):
        release = self.backup()
        self.damage()
        new = self.rows()
        self.rollback(release)
        self.assertEqual((self.code(), self.rows()), ("v1", new))
        replaced = next(line for line in self.releases() if " bad" in line)
        self.assertNotIn("database", replaced)
        said = self.rollback(replaced.split()[0], "--with-data", "--force", code=REFUSED)
        self.assertIn("holds no dump of database main", said)
        self.assertIn(release, said)

    def test_an_unhealthy_release_is_undone_with_its_data(self):
        release = self.backup()
        self.damage()
        new = self.rows()
        self.configure_so_that_v1_is_unhealthy()
        said = self.rollback(release, "--with-data", code=REVERTED)
        self.assertIn("not healthy on the new state; going back", said)
        self.assertEqual((self.code(), self.rows()), ("v2", new))

    def test_whoever_is_connected_does_not_stop_a_restore(self):
        old = self.rows()
        release = self.backup()
        self.damage()
        as_user = {"user": self.server.user.pw_uid, "group": self.server.user.pw_gid} if IS_ROOT else {}
        with subprocess.Popen([os.path.join(self.server.programs, "psql"), "--no-psqlrc", "--tuples-only", "--no-align",
                               "--host", self.server.socket, "--dbname", self.name], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd="/", **as_user) as other:
            other.stdin.write("SELECT 'connected';\n")
            other.stdin.flush()
            self.assertEqual(other.stdout.readline(), "connected\n")
            self.rollback(release, "--with-data")
            other.kill()
        self.assertEqual(self.rows(), old)

    def test_a_restore_that_fails_is_taken_back(self):
        release = self.backup()
        self.damage()
        new = self.rows()
        # Fails the first time, when it has done harm already.
        script = os.path.join(self.folder, "fails-once")
        marker = os.path.join(self.server.socket, self.name)
        with open(script, "w", encoding="utf-8") as f:
            f.write(f"""#!/bin/sh
if [ ! -e {marker} ]; then
  : >{marker}
  dropdb --host={self.server.socket} --force {self.name}
  echo 'it is the wrong version' >&2
  exit 4
fi
exec {self.hook} restore {self.name} --host={self.server.socket}
""")
        os.chmod(script, 0o755)
        self.configure(restore=f"[{script}]")
        said = self.rollback(release, "--with-data", code=REVERTED)
        self.assertIn("it last printed: it is the wrong version", said)
        self.assertIn("the tree is as it was; database main restored to what it held when the operation was prepared",
                      said)
        self.assertEqual((self.code(), self.rows()), ("v2", new))
        self.assertTrue(self.is_running())

    def test_what_cannot_be_taken_back_waits_for_recovery(self):
        release = self.backup()
        self.damage()
        new = self.rows()
        self.configure(restore="[sh, -c, 'echo no server here >&2; exit 1']")
        said = self.rollback(release, "--with-data", code=ATTENTION)
        self.assertIn("no server here", said)
        self.assertIn("Keep the service stopped", said)
        self.assertFalse(self.is_running())
        said = self.agent("recover", code=ATTENTION)
        self.assertIn("no server here", said)
        self.assertNotIn("Nothing was changed", said)
        self.configure()
        said = self.agent("recover")
        self.assertIn("the tree is wholly what it was before it", said)
        self.assertEqual((self.code(), self.rows()), ("v2", new))

    def test_a_restore_that_was_killed_half_way_is_done_again(self):
        old = self.rows()
        for failpoint in ("engine.restore.after-begin", "engine.restore.before-end", "engine.restore.after-end"):
            release = self.backup()
            self.damage()
            self.rollback(release, "--with-data", code=-signal.SIGKILL, failpoint=failpoint)
            said = self.agent("recover")
            self.assertIn("the tree is wholly the new state; database main restored", said)
            self.assertEqual((self.code(), self.rows()), ("v1", old), failpoint)
            self.assertIn("nothing to recover", self.agent("recover"))
            # The operation is committed, and nobody is there to keep or revert it: the next round begins afresh.
            shutil.rmtree(self.state)
            self.end_service()

    def test_an_undo_that_was_killed_half_way_is_done_again(self):
        release = self.backup()
        self.damage()
        new = self.rows()
        self.configure_so_that_v1_is_unhealthy()
        self.rollback(release, "--with-data", code=-signal.SIGKILL, failpoint="engine.undo.after-begin")
        self.assertNotEqual(self.rows(), new)
        self.assertIn("database main restored to what it held when", self.agent("recover"))
        self.assertEqual((self.code(), self.rows()), ("v2", new))

    def test_without_its_server_there_is_no_backup_but_a_rollback_of_the_code(self):
        release = self.backup()
        self.damage()
        new = self.rows()
        before = self.releases()
        self.server.stop()
        try:
            said = self.agent("backup", code=FAILED)
            self.assertIn("the backup was not taken; nothing was changed: database main: its dump command", said)
            self.assertIn("exited with status 1; it last printed: pg_dump: error: connection to server", said)
            self.assertEqual(self.releases(), before)
            said = self.rollback(release, "--with-data", code=FAILED)
            self.assertIn("nothing was changed", said)
            self.assertEqual(self.code(), "v2")
            self.rollback(release)
            self.assertEqual(self.code(), "v1")
        finally:
            self.server.start()
        self.assertEqual(self.rows(), new)

    def test_a_proof_says_that_no_server_has_read_the_dump(self):
        self.backup()
        said = self.agent("verify")
        self.assertIn("proved", said)
        self.assertRegex(said, r"the dump of database main \(.*\) is whole by its digests; it was not restored into a "
                               r"server")

    def test_a_large_database_takes_bounded_memory_and_little_room_the_second_time(self):
        self.serve("v1", "CREATE TABLE large AS SELECT n, md5(n::text) || md5((n + 1)::text) AS text "
                         "FROM generate_series(1, 2000000) n")
        count = "SELECT count(*), sum(hashtext(text)) FROM large"
        old = self.server.sql(self.name, count)
        release, first = self.backup(), self.size_of_store()
        self.serve("v1", "UPDATE large SET text = 'changed' WHERE n = 1000000")
        self.assertNotEqual(self.backup(), release)
        self.assertLess(self.size_of_store(), first * 1.5)
        process = subprocess.Popen([os.path.join(BIN, "rb-agent"), "local", "rollback", "bot", "--config",
                                    os.path.join(self.folder, "agent.yaml"), "--state", self.state, "--to", release,
                                    "--with-data"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        self.assertEqual(process.returncode, DONE)
        self.assertEqual(self.server.sql(self.name, count), old)
        print(f"store: {first >> 20} MiB, then {self.size_of_store() >> 20} MiB; "
              f"the agent took {usage.ru_maxrss >> 10} MiB of memory at most")
        self.assertLess(usage.ru_maxrss, 100 << 10)

    def size_of_store(self):
        return sum(os.path.getsize(path) for path in glob.glob(os.path.join(self.state, "store", "packs", "*")))


if __name__ == "__main__":
    MISSING = ("PostgreSQL's server is missing; run deploy/install-packages --test" if server_programs() is None else
               "pg_dump and its like are not on the path" if shutil.which("pg_restore") is None else
               "there is no unprivileged user to run it" if user_of_server() is None else "")
    if MISSING:
        print(f"skipped: {MISSING}", file=sys.stderr)
        sys.exit(SKIPPED)
    unittest.main(verbosity=2)

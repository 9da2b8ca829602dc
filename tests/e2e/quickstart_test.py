#!/usr/bin/env python3
"""deploy/quickstart with the built programs: up, a second run, and down; and the commands that README.md shows."""
import os
import re
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from fleet import BIN, ROOT, marked, start_time  # noqa: E402


class Quickstart(unittest.TestCase):
    def setUp(self):
        scratch = self.enterContext(tempfile.TemporaryDirectory(prefix="rb-quickstart-"))
        self.folder = os.path.join(scratch, "a fleet")
        self.mark = f"QUICKSTART_FLEET={self.folder}"
        self.addCleanup(self.quickstart, "--down", code=None)

    def quickstart(self, *args, code=0):
        run = subprocess.run([os.path.join(ROOT, "deploy", "quickstart"), *args], capture_output=True, text=True,
                             timeout=400, stdin=subprocess.DEVNULL,
                             env={**os.environ, "QUICKSTART_DIR": self.folder, "QUICKSTART_BIN_DIR": BIN})
        if code is not None:
            self.assertEqual(run.returncode, code, f"{run.stdout}\n{run.stderr}")
        return run.stdout + run.stderr

    def shell(self, text, code=0):
        run = subprocess.run(["bash", "-euo", "pipefail", "-c", f"source '{self.folder}/env'\n{text}"], cwd=ROOT,
                             capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
        self.assertEqual(run.returncode, code, f"{text}\n{run.stdout}\n{run.stderr}")
        return run.stdout + run.stderr

    def test_up_again_and_down(self):
        text = self.quickstart()
        self.assertIn("rbctl ended with 3", text)
        self.assertRegex(text, r"curl: \(7\)")
        self.assertGreaterEqual(text.count('"version": "v1.1.0"'), 3)
        self.assertIn("recovery", text)
        processes = {pid: start_time(pid) for pid in marked(self.mark)}
        self.assertEqual(len(processes), 1 + 4 + 4, "a controller, four agents, four services")

        with self.subTest("a second run finds it running, and changes nothing"):
            self.assertIn("running already", self.quickstart())
            self.assertEqual(processes, {pid: start_time(pid) for pid in marked(self.mark)})

        with self.subTest("the commands that README.md shows as ones to try"):
            with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as f:
                blocks = re.findall(r"^```sh tested\n(.*?)^```", f.read(), flags=re.S | re.M)
            self.assertTrue(blocks, "README.md marks none of its commands as tested")
            for block in blocks:
                self.shell(block)

        # Somebody else's process in a tree is not ours to end.
        stranger = subprocess.Popen(["sleep", "600"], cwd=os.path.join(self.folder, "hosts", "prod-1", "sample-bot"))
        try:
            self.quickstart("--down")
            self.assertEqual(marked(self.mark), [])
            self.assertFalse([pid for pid, began in processes.items() if start_time(pid) == began])
            self.assertIsNone(stranger.poll())
        finally:
            stranger.kill()
            stranger.wait()

        with self.subTest("down when nothing runs"):
            self.assertIn("ended 0 processes", self.quickstart("--down"))

    def test_a_folder_that_is_not_ours_is_left_alone(self):
        os.makedirs(self.folder)
        with open(os.path.join(self.folder, "precious"), "w", encoding="utf-8") as f:
            f.write("x")
        self.assertIn("nothing was done", self.quickstart(code=2))
        self.assertEqual(os.listdir(self.folder), ["precious"])


if __name__ == "__main__":
    unittest.main(verbosity=2)

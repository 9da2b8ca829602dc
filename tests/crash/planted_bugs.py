#!/usr/bin/env python3
"""Every safety test can fail: each planted bug is found by the test that is there to find it.

  planted_bugs.py BUILD_FOLDER races|others

A bug is switched on by RB_PLANTED_BUG in a build with failpoints; common/failpoint.h. Ends with 77 (skipped) where a
test cannot run.
"""
import os
import subprocess
import sys

# Met by chance: within seconds where nothing else runs, and the test ends as soon as it has met it.
RACES = ["links-followed"]

# Bug, the test that finds it with its options and environment, and what it says then.
BUGS = [
    ("no-fsync-of-files", "engine_crash_test", "*ext4*", {"RB_CRASH_STATES": "400"}, "torn"),
    ("no-fsync-of-folders", "engine_crash_test", "*", {"RB_CRASH_STATES": "400"}, "bad_states"),
    ("no-fsync-of-packs", "engine_crash_test", "*ext4*", {"RB_CRASH_STATES": "400"}, "damaged"),
    ("no-fsync-of-journal", "durable_file_crash_test", "*AJournalKeeps*", {}, "bad_states"),
    ("intent-after-swap", "engine_kill_test", "*", {}, "torn"),
    ("digest-not-checked", "engine_test", "*EveryDamagedByte*", {}, "Failure"),
    ("mode-not-restored", "engine_test", "*AProofComparesWhatIsGivenBack*", {}, "has other attributes"),
    ("collection-beside-captures", "engine_test", "*GarbageCollectionBeside*", {}, "Failure"),
    ("links-followed", "link_race_test", "*", {"RB_RACE_SECONDS": "240"}, "outside"),
    ("restore-not-marked", "database_kill_test", "*", {"RB_KILL_STEP": "7"}, "with another database"),
    ("undo-recorded-late", "fault_keeper_test", "*TheUndoIsOnRecord*", {}, "Failure"),
    ("fault-never-ends", "fault_keeper_test", "*EndsAlone*", {}, "Failure"),
    ("drill-not-allowed", "controller_drill_test", "ResolveDrillTest*", {}, "drills are not allowed in prod"),
    ("strike-not-recorded", "fault_keeper_test", "*StrikesOnce*", {}, "Failure"),
    ("half-injected-left", "fault_keeper_test", "*KilledInTheMiddleOfInjecting*", {}, "Failure"),
    ("lock-kept", "controller_core_test", "*WhenAllIsThereAlready*", {}, "Failure"),
    ("attention-called-success", "controller_core_test", "*ALostReportAlone*", {}, "Failure"),
    ("drill-quarantines", "controller_core_test", "*uarantine*", {}, "Failure"),
    ("ended-taken-for-injected", "controller_drill_test", "*WasCutOffInTheMiddle*", {}, "Failure"),
    ("sidecars-left", "engine_test", "*DatabaseJournals*", {}, "another database"),
]


def main():
    folder, races = sys.argv[1], {"races": True, "others": False}[sys.argv[2]]
    missed, skipped = [], []
    for bug, test, only, environment, words in BUGS:
        if (bug in RACES) != races:
            continue
        path = os.path.join(folder, "bin", test)
        if not os.path.exists(path):
            skipped.append(f"{bug}: there is no {test}")
            continue
        run = subprocess.run([path, f"--gtest_filter={only}"], env={**os.environ, **environment, "RB_PLANTED_BUG": bug},
                             capture_output=True, text=True, errors="replace", timeout=600, check=False)
        output = run.stdout + run.stderr
        if run.returncode == 0 and "SKIPPED" in output:
            skipped.append(f"{bug}: {test} skipped itself")
        elif run.returncode == 0 or words not in output:
            missed.append(bug)
            print(f"MISSED {bug}: {test} ended with {run.returncode}\n{output[-2000:]}")
        else:
            found = next(line.strip() for line in output.splitlines() if words in line)
            print(f"found {bug} by {test}: {found[:160]}")
    for line in skipped:
        print("skipped", line)
    if missed:
        sys.exit(1)
    if skipped:
        sys.exit(77)


main()

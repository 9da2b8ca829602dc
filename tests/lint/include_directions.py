#!/usr/bin/env python3
"""Fails when an include runs against the layers: main -> adapters -> core -> common.

  include_directions.py             checks the whole tree
  include_directions.py --self-test shows that each rule catches what it is there for
"""
import os
import re
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FOLDERS = ("common", "agent", "controller", "rbctl", "tests")
OURS = ("common", "agent", "controller", "rbctl", "tests")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')

# What only adapters and programs may see.
HEAVY = ("grpc", "grpcpp/", "google/protobuf/", "google/rpc/", "rb/v1/", "git2", "sqlite3", "prometheus/", "yaml-cpp/",
         "nlohmann/", "curl/", "sdbus-c++/", "systemd/", "CLI/")
TESTING = ("gtest/", "gmock/")


def is_heavy(header):
    return header.startswith(HEAVY)


def is_standard(header):
    return "/" not in header and "." not in header


def layer_of(path):
    """(program, layer): the layers are common, common/adapters, core, adapters, main, rbctl and tests."""
    parts = path.split("/")
    if parts[0] == "tests":
        return "tests", "tests"
    if parts[0] == "rbctl":
        return "rbctl", "rbctl"
    if parts[0] == "common":
        return "common", "common/adapters" if parts[1] == "adapters" else "common"
    if len(parts) > 2 and parts[1] in ("core", "adapters"):
        return parts[0], parts[1]
    return parts[0], "main"


def objection(path, header):
    """Why the file `path` may not include `header`; None when it may."""
    program, layer = layer_of(path)
    first = header.split("/")[0]
    is_test = path.endswith("_test.cc") or os.path.basename(path).startswith("test_") or "_test_" in path
    if header.startswith(TESTING):
        return None if is_test or layer == "tests" or os.path.basename(path) == "test_util.h" else \
            "only tests see GoogleTest"
    if layer == "tests":
        return None
    if first in OURS and "/" in header:
        other, other_layer = layer_of(header)
        if other == "tests":
            return "nothing includes tests/"
        if other == "common":
            if other_layer == "common/adapters" and layer in ("core", "common"):
                return f"{layer} does not see common/adapters"
            if header == "common/test_util.h" and not is_test:
                return "only tests see test_util.h"
            return None
        if program == "common":
            return "common includes nothing but common"
        if other != program:
            return f"{program}/ and {other}/ share nothing but the contract in proto/ and common/"
        order = {"core": 0, "adapters": 1, "main": 2, "rbctl": 2}
        if order[other_layer] > order[layer]:
            return f"{layer} does not see {other_layer}"
        return None
    if header.startswith("absl/") or is_standard(header):
        return None
    if is_heavy(header):
        if layer in ("core", "common"):
            return "only adapters and programs see third-party libraries and generated headers"
        return None
    if layer == "core" and not is_test:
        if path.startswith("agent/core/engine/") and not header.startswith("openssl/"):
            return None  # POSIX and zstd; digests come through common/digest.h
        return "a core sees the standard library, Abseil and common alone"
    return None


def check(root):
    found, files = [], 0
    for top in FOLDERS:
        for folder, folders, names in os.walk(os.path.join(root, top)):
            folders.sort()
            for name in sorted(names):
                if not name.endswith((".h", ".cc")):
                    continue
                files += 1
                full = os.path.join(folder, name)
                path = os.path.relpath(full, root)
                with open(full, encoding="utf-8") as f:
                    for number, line in enumerate(f, 1):
                        match = INCLUDE.match(line)
                        if not match:
                            continue
                        header = match.group(2)
                        why = objection(path, header)
                        if not why and header.split("/")[0] in OURS and "/" in header and \
                                not os.path.exists(os.path.join(root, header)):
                            why = "there is no such file"
                        if why:
                            found.append(f"{path}:{number}: includes {header}: {why}")
    return files, found


def self_test():
    wrong = [
        ("agent/adapters/link/link.cc", "controller/core/plan.h"),
        ("controller/adapters/store/store.cc", "agent/core/release.h"),
        ("agent/core/task/task.cc", "agent/adapters/git/git_mirror.h"),
        ("agent/core/task/task.cc", "rb/v1/types.pb.h"),
        ("agent/core/task/task.cc", "common/adapters/yaml_message.h"),
        ("agent/core/task/task.cc", "unistd.h"),
        ("agent/core/task/task.cc", "zstd.h"),
        ("agent/core/engine/pack.cc", "openssl/evp.h"),
        ("agent/core/engine/pack.cc", "sqlite3.h"),
        ("controller/core/operation.cc", "sys/stat.h"),
        ("controller/core/operation.cc", "grpcpp/grpcpp.h"),
        ("controller/core/operation.cc", "nlohmann/json.hpp"),
        ("controller/core/operation.cc", "gmock/gmock.h"),
        ("common/text.cc", "agent/core/service.h"),
        ("common/text.cc", "google/protobuf/message.h"),
        ("common/text.cc", "common/adapters/yaml_message.h"),
        ("rbctl/render.cc", "controller/core/plan.h"),
        ("agent/adapters/link/link.cc", "agent/daemon.h"),
        ("agent/adapters/link/link.cc", "common/test_util.h"),
        ("agent/adapters/link/link.cc", "tests/sim/world.h"),
    ]
    right = [
        ("agent/main.cc", "agent/adapters/link/link.h"),
        ("agent/main.cc", "CLI/CLI.hpp"),
        ("agent/adapters/link/link.cc", "grpcpp/grpcpp.h"),
        ("agent/adapters/link/link.cc", "agent/core/task/task.h"),
        ("agent/adapters/link/link.cc", "rb/v1/agent_link.grpc.pb.h"),
        ("agent/core/engine/pack.cc", "zstd.h"),
        ("agent/core/engine/pack.cc", "sys/stat.h"),
        ("agent/core/engine/pack.cc", "common/digest.h"),
        ("agent/core/task/task.cc", "agent/core/engine/engine.h"),
        ("agent/core/task/task.cc", "absl/time/time.h"),
        ("agent/core/task/task_test.cc", "gmock/gmock.h"),
        ("common/digest.cc", "openssl/evp.h"),
        ("common/adapters/yaml_message.cc", "yaml-cpp/yaml.h"),
        ("controller/core/plan.cc", "map"),
        ("rbctl/main.cc", "rb/v1/fleet_service.grpc.pb.h"),
        ("tests/sim/world.cc", "agent/core/task/task.h"),
        ("tests/sim/world.cc", "controller/core/operation.h"),
    ]
    bad = [f"lets through: {path} includes {header}" for path, header in wrong if not objection(path, header)]
    bad += [f"refuses: {path} includes {header}: {objection(path, header)}"
            for path, header in right if objection(path, header)]
    with tempfile.TemporaryDirectory() as root:
        os.makedirs(f"{root}/agent/core")
        os.makedirs(f"{root}/controller/core")
        with open(f"{root}/controller/core/plan.h", "w", encoding="utf-8"):
            pass
        with open(f"{root}/agent/core/a.cc", "w", encoding="utf-8") as f:
            f.write('#include <string>\n  #  include "controller/core/plan.h"\n#include "agent/core/none.h"\n')
        files, found = check(root)
        if files != 2 or len(found) != 2 or not found[0].startswith("agent/core/a.cc:2:") or \
                "no such file" not in found[1]:
            bad.append(f"a planted file: {files} files, {found}")
    return bad


def main():
    if sys.argv[1:] == ["--self-test"]:
        bad = self_test()
        print("\n".join(bad) or "each rule catches what it is there for")
        return 1 if bad else 0
    files, found = check(ROOT)
    print("\n".join(found) or f"{files} files include in the right direction")
    if files < 10:
        print("fewer than 10 files were found: is this the right folder?")
        return 1
    return 1 if found else 0


sys.exit(main())

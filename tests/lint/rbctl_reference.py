#!/usr/bin/env python3
"""Keeps the commands and options in docs/rbctl.md what `rbctl --help` says.

    rbctl_reference.py RBCTL            fails when the document says anything else
    rbctl_reference.py RBCTL --write    writes it
"""
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "deploy", "packaging"))
from help_text import commands_of, help_of, options_of, section  # noqa: E402

DOCUMENT = os.path.join(ROOT, "docs", "rbctl.md")
BEGIN, END = "<!-- from rbctl --help: begin -->\n", "<!-- from rbctl --help: end -->\n"


def cell(text):
    return text.replace("|", "\\|")


def generate(rbctl):
    lines = ["| command | what it does |", "|---|---|"]
    top = section(help_of(rbctl), "Subcommands")
    lines += [f"| `{name}` | {cell(description)} |" for name, description in top]
    lines += ["", "For all of them:", "", "| option | |", "|---|---|"]
    lines += [f"| `{cell(name)}` | {cell(description)} |" for name, description in options_of(rbctl)]
    for (name,) in commands_of(rbctl):
        for command in [(name,), *commands_of(rbctl, name)]:
            options = options_of(rbctl, *command)
            if options:
                lines += ["", f"### {' '.join(command)}", "", "| | |", "|---|---|"]
                lines += [f"| `{cell(option)}` | {cell(description)} |" for option, description in options]
    return "\n".join(lines) + "\n"


def main():
    rbctl = sys.argv[1]
    with open(DOCUMENT, encoding="utf-8") as f:
        text = f.read()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    current = before + BEGIN + generate(rbctl) + END + after
    if "--write" in sys.argv[2:]:
        with open(DOCUMENT, "w", encoding="utf-8") as f:
            f.write(current)
    elif current != text:
        for ours, theirs in zip(text.splitlines(), current.splitlines()):
            if ours != theirs:
                print(f"docs/rbctl.md says: {ours}\nrbctl says:         {theirs}")
                break
        sys.exit("docs/rbctl.md is not what rbctl --help says; run tests/lint/rbctl_reference.py RBCTL --write")
    if "| `rollback` |" not in current or "--reason" not in current:
        sys.exit("the help text was not understood")


if __name__ == "__main__":
    main()

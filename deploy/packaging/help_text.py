"""What a program's --help says, as data: for the reference in docs/rbctl.md, and for man pages."""
import os
import re
import subprocess


def help_of(program, *command):
    return subprocess.run([program, *command, "--help"], capture_output=True, text=True, check=True, timeout=30,
                          env={"PATH": os.environ["PATH"]}).stdout


def section(text, title):
    """Pairs of name and description of one part of a help text; a description may begin on the next line."""
    found = re.search(rf"^{title}:\n((?:  .*\n)+)", text, re.M)
    pairs = []
    for line in found.group(1).splitlines() if found else []:
        if line.startswith("   ") and pairs:
            pairs[-1][1] += " " + line.strip()
        else:
            name, _, description = line.strip().partition("  ")
            pairs.append([name, description.strip()])
    return [(name, " ".join(description.split())) for name, description in pairs]


def commands_of(program, *parent):
    return [(*parent, name) for name, _ in section(help_of(program, *parent), "Subcommands")]


def options_of(program, *command):
    text = help_of(program, *command)
    return [pair for title in ("Positionals", "Options") for pair in section(text, title)
            if not pair[0].startswith("-h,")]

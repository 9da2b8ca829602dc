#!/usr/bin/env python3
"""Writes a program's man page from what its --help says: man_page.py PROGRAM SECTION FOLDER

The text around it, and the files that each program has, are here; commands and options are never written twice.
"""
import datetime
import os
import re
import sys
import textwrap

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from help_text import commands_of, help_of, options_of, section  # noqa: E402

IDENTITY = "The operator's key and certificate, the authority's certificate, and the controller's address."
ABOUT = {
    "rbctl": {
        "is": "roll a fleet of servers back as one",
        "text": "asks rb-controller to roll the services of an environment back, to deploy, to take backups, and shows "
                "what runs, what happened, and how long a recovery took. A rollback is prepared on every host while the "
                "service keeps running, committed everywhere at one moment, and verified with probes.",
        "files": [("$RBCTL_IDENTITY", IDENTITY), ("~/.rbctl", "The same, when RBCTL_IDENTITY is not set.")],
        "status": [("0", "Done, or already there and healthy."), ("1", "Failed; nothing was changed."),
                   ("2", "Wrong usage."), ("3", "A host needs attention."), ("4", "The controller was not reached."),
                   ("5", "Refused: a lock, a gate, a permission, or no release to go to."),
                   ("6", "Reverted to what was there before.")],
        "see": [("rb-controller", 8), ("rb-agent", 8)],
    },
    "rb-agent": {
        "is": "keep releases of this server's services, and bring them back",
        "text": "runs on every server. It captures the folder of each service as releases that are proved restorable, "
                "and brings it from one to another by renames. It is asked by rb-controller, or by hand with the "
                "commands below local. Before a unit starts, systemd runs its command recover, so that nothing starts "
                "on a folder that is half swapped.",
        "files": [("/etc/rb/agent.yaml", "What runs here, and how. It must belong to root."),
                  ("/var/lib/rb-agent", "Releases, journals, git mirrors and the identity."),
                  ("/etc/systemd/system/UNIT.d/50-rb-agent.conf", "Makes a unit wait for recover. Written by serve.")],
        "status": [("0", "Done."), ("1", "Failed; nothing was changed."), ("2", "Wrong usage, or a wrong file."),
                   ("3", "Needs attention."), ("5", "Refused."), ("6", "Reverted to what was there before.")],
        "see": [("rbctl", 1), ("rb-controller", 8), ("systemd.service", 5)],
    },
    "rb-controller": {
        "is": "plan operations for a fleet, carry them out, keep their history",
        "text": "knows the fleet file, and what each agent reports. It carries out rollbacks, deploys and backups over "
                "all servers of an environment: committed everywhere or nowhere, whatever is killed or cut off.",
        "files": [("/etc/rb/fleet.yaml", "Environments, services, targets, gates."),
                  ("/var/lib/rb-controller", "The certificate authority, and the database with the history.")],
        "status": [("0", "Done."), ("1", "Failed."), ("2", "Wrong usage, or a wrong file.")],
        "see": [("rbctl", 1), ("rb-agent", 8)],
    },
}


def escape(text):
    """As roff wants it: no line begins with a control character, and a hyphen can be copied."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text[:1] in (".", "'") else text


def argument(text):
    """One argument of an mdoc macro, which may not be taken for a macro itself."""
    return '"' + escape(text).replace('"', '\\(dq') + '"'


def sentence_lines(text):
    """New sentence, new line, and short ones, as mandoc asks for."""
    return [escape(line) for sentence in re.sub(r"([.!?]) (?=[A-Z])", r"\1\n", text).splitlines()
            for line in textwrap.wrap(sentence, 72)]


def items(pairs, macro):
    lines = [".Bl -tag -width Ds"]
    for name, text in pairs:
        lines += [f".It {macro} {argument(name)}", *(sentence_lines(text) or ["\\&"])]
    return lines + [".El"]


def page(program, volume, date):
    name = os.path.basename(program)
    about = ABOUT[name]
    lines = [f".Dd {date}", f".Dt {name.upper()} {volume}", ".Os", ".Sh NAME", f".Nm {name}", f".Nd {about['is']}",
             ".Sh SYNOPSIS", ".Nm", ".Op Ar option ...", ".Ar command", ".Op Ar argument ...", ".Sh DESCRIPTION",
             ".Nm", *sentence_lines(about["text"]), ".Pp", "For all commands:", *items(options_of(program), "Sy"),
             ".Sh COMMANDS"]
    summaries = dict(section(help_of(program), "Subcommands"))
    for (command,) in commands_of(program):
        inner = commands_of(program, command)
        for path in inner or [(command,)]:
            summary = summaries[command] if not inner else dict(section(help_of(program, command), "Subcommands"))[path[-1]]
            lines += [f".Ss {' '.join(map(escape, path))}", *sentence_lines(summary or summaries[command])]
            options = options_of(program, *path)
            if options:
                lines += items(options, "Sy")
    lines += [".Sh FILES", *items(about["files"], "Pa"), ".Sh EXIT STATUS", *items(about["status"], "Er"),
              ".Sh SEE ALSO"]
    see = [f".Xr {other} {number} ," for other, number in sorted(about["see"], key=lambda each: each[::-1])]
    see[-1] = see[-1][:-2]
    return "\n".join(lines + see) + "\n"


def main():
    program, volume, folder = sys.argv[1:]
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    day = datetime.datetime.fromtimestamp(int(epoch), datetime.timezone.utc) if epoch else datetime.date.today()
    text = page(program, volume, f"{day:%B} {day.day}, {day.year}")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, f"{os.path.basename(program)}.{volume}"), "w", encoding="utf-8") as f:
        f.write(text)


if __name__ == "__main__":
    main()

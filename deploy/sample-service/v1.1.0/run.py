#!/usr/bin/env python3
"""Starts the sample bot: python3 run.py config-prod.json"""
import json
import os
import sys

from lib.bot import Bot
from lib import quotes  # noqa: F401  (registers its page)
from lib.web import serve


def main():
    folder = os.path.dirname(os.path.abspath(__file__))
    if len(sys.argv) != 2:
        sys.exit("usage: run.py CONFIG")
    with open(os.path.join(folder, sys.argv[1]), encoding="utf-8") as f:
        config = json.load(f)
    with open(os.path.join(folder, "VERSION"), encoding="utf-8") as f:
        version = f.read().strip()
    # The port belongs to the server, not to the release: a rollback of the config must not move it.
    port = int(os.environ.get("SAMPLE_BOT_PORT", config["port"]))
    print(f"sample-bot {version} starts on port {port}, channel {config['channel']}", flush=True)
    bot = Bot(os.path.join(folder, "data", "bot.db"), config, version)
    bot.start()
    serve(bot, port)


main()

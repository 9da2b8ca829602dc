"""The bot itself: greets its channel now and then, and remembers what it said in a database."""
import os
import sqlite3
import threading
import time


class Bot:
    def __init__(self, database, config, version):
        self.database = database
        self.config = config
        self.version = version
        self.connected = False
        self.last_beat = 0.0
        self.last_error = ""

    def start(self):
        os.makedirs(os.path.dirname(self.database), exist_ok=True)
        with self.open() as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("CREATE TABLE IF NOT EXISTS message(id INTEGER PRIMARY KEY, at REAL, text TEXT)")
        self.say("hello")
        threading.Thread(target=self.run, daemon=True).start()
        self.connected = True
        print("Connected to chat", flush=True)

    def open(self):
        return sqlite3.connect(self.database, timeout=2)

    def say(self, text):
        db = self.open()
        try:
            with db:
                db.execute("INSERT INTO message(at, text) VALUES (?, ?)", (time.time(), f"{self.greeting()} {text}"))
        finally:
            db.close()
        self.last_beat = time.monotonic()

    def greeting(self)
        return self.config.get("greeting", "Hi,")

    def run(self):
        while True:
            time.sleep(self.config["beat_seconds"])
            try:
                self.say("still here")
                self.last_error = ""
            except sqlite3.Error as error:
                self.last_error = str(error)
                print(f"ERROR cannot write to the database: {error}", flush=True)

    def health(self):
        """Looks, rather than remembers: reads the database and the age of the last thing said."""
        try:
            db = self.open()
            try:
                messages = db.execute("SELECT count(*) FROM message").fetchone()[0]
            finally:
                db.close()
            database = "ok"
        except sqlite3.Error as error:
            messages, database = None, str(error)
        quiet = time.monotonic() - self.last_beat
        alive = self.connected and quiet < 5 + self.config["beat_seconds"]
        healthy = alive and database == "ok" and not self.last_error
        return {
            "status": "healthy" if healthy else "unhealthy",
            "version": self.version,
            "connected": self.connected,
            "database": database,
            "messages": messages,
        }

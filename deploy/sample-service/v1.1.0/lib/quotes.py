"""New in v1.1.0: GET /api/latest, the last things that were said."""
from lib.web import page


@page("/api/latest")
def latest(bot):
    db = bot.open()
    try:
        rows = db.execute("SELECT id, text FROM message ORDER BY id DESC LIMIT 5").fetchall()
    finally:
        db.close()
    return {"latest": [{"id": number, "text": text} for number, text in rows]}

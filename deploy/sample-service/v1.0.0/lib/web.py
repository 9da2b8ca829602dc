"""GET /api/health, and nothing else. Small on purpose: importing http.server takes longer than all the rest."""
import json
import socket
import threading

PAGES = {}


def page(path):
    def register(function):
        PAGES[path] = function
        return function

    return register


@page("/api/health")
def health(bot):
    return bot.health()


def answer(connection, bot):
    with connection:
        connection.settimeout(5)
        request = b""
        while b"\r\n\r\n" not in request and len(request) < 16384:
            part = connection.recv(4096)
            if not part:
                return
            request += part
        words = request.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        function = PAGES.get(words[1].split("?")[0]) if len(words) == 3 and words[0] == "GET" else None
        status, body = ("200 OK", function(bot)) if function else ("404 Not Found", {"error": "no such page"})
        data = json.dumps(body).encode() + b"\n"
        head = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(data)}",
                "Connection: close", "", ""]
        connection.sendall("\r\n".join(head).encode() + data)


def answer_or_give_up(connection, bot):
    try:
        answer(connection, bot)
    except OSError:
        pass  # the caller went away


def serve(bot, port):
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(16)
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=answer_or_give_up, args=(connection, bot), daemon=True).start()

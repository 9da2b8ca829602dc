#!/usr/bin/env python3
"""A real git server for tests: `git_server.py FOLDER` serves FOLDER/remote.git over HTTP, by git's own http-backend, to
whoever gives the password in FOLDER/password. Writes FOLDER/http-port. With `ssh` as second argument: over SSH, by a real
sshd with keys made for it; writes FOLDER/ssh-port, FOLDER/key and FOLDER/known_hosts."""
import base64
import getpass
import http.server
import os
import socket
import subprocess
import sys
import time

FOLDER = sys.argv[1]


def publish(name, text):
    with open(os.path.join(FOLDER, name + ".new"), "w", encoding="utf-8") as f:
        f.write(text)
    os.rename(os.path.join(FOLDER, name + ".new"), os.path.join(FOLDER, name))


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        with open(os.path.join(FOLDER, "password"), encoding="utf-8") as f:
            wanted = "Basic " + base64.b64encode(("x-access-token:" + f.read().strip()).encode()).decode()
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while (size := int(self.rfile.readline().split(b";")[0], 16)) > 0:
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        env = {"GIT_PROJECT_ROOT": FOLDER, "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": path, "QUERY_STRING": query,
               "REQUEST_METHOD": self.command, "CONTENT_TYPE": self.headers.get("Content-Type", ""),
               "CONTENT_LENGTH": str(len(body)), "REMOTE_USER": "x", "REMOTE_ADDR": "127.0.0.1", "PATH": os.environ["PATH"],
               "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""), "GIT_CONFIG_COUNT": "1",
               "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
        answer = subprocess.run(["git", "http-backend"], input=body, env=env, capture_output=True, check=False).stdout
        head, _, data = answer.partition(b"\r\n\r\n")
        headers = [line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line]
        self.send_response(int(dict(headers).get("Status", "200").split()[0]))
        for name, value in headers:
            if name != "Status":
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_GET


def serve_ssh():
    for name in ("key", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-m", "PEM", "-f", os.path.join(FOLDER, name)],
                       check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with open(os.path.join(FOLDER, "key.pub"), encoding="utf-8") as f:
        publish("authorized", f.read())
    with open(os.path.join(FOLDER, "host_key.pub"), encoding="utf-8") as f:
        publish("known_hosts", f"[127.0.0.1]:{port} " + " ".join(f.read().split()[:2]) + "\n")
    publish("sshd_config", f"""Port {port}
ListenAddress 127.0.0.1
HostKey {FOLDER}/host_key
AuthorizedKeysFile {FOLDER}/authorized
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
""")
    os.makedirs("/run/sshd", exist_ok=True)
    server = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", os.path.join(FOLDER, "sshd_config")],
                              stderr=subprocess.DEVNULL)
    for _ in range(500):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.02)
    publish("user", getpass.getuser())
    publish("ssh-port", str(port))
    server.wait()


if len(sys.argv) > 2:
    serve_ssh()
else:
    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    publish("http-port", str(http_server.server_address[1]))
    http_server.serve_forever()

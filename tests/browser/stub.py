"""The dashboard's files with an admin API made up: for what no relay says on demand. Hostile texts, floods, expiring
certificates, and answers that fail."""

import json
import math
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "zrc_admin_stub"
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><b>bold</b>"


def policy():
    """The one that the relay serves."""
    found = re.search(r'const POLICY: &str = "(.*?)";', (ROOT / "src/ops/page.rs").read_text(), re.S)
    return re.sub(r"\\\s+", "", found[1])


class Stub:
    """A server on a free port. What it answers is in its attributes, for tests to change."""

    def __init__(self, port=0):
        self.started = time.time() - 93_784
        self.failing = {}
        # Answers that wait: an event for each method and path.
        self.held = {}
        self.role = "full"
        self.level = "normal"
        self.draining = None
        self.filter = "info"
        # How many events a second, and whether nothing at all is said on the stream of events any more.
        self.flood = 0
        self.silent = False
        self.blocks = [
            {"network": "192.0.2.0/24", "reason": "scans", "expires_at_unix": None, "configured": True},
            {"network": "2001:db8:dead::/48", "reason": HOSTILE, "expires_at_unix": None, "configured": False},
        ]
        self.audit = []
        self.asked = []
        self.listeners = []
        self.allocations = [self.allocation(number) for number in range(137)]
        self.log("init", "token laptop", "done")
        server = ThreadingHTTPServer(("127.0.0.1", port), self.handler())
        server.daemon_threads = True
        self.server = server
        self.port = server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self):
        for event in [*self.listeners, *self.held.values()]:
            event.set()
        self.server.shutdown()
        self.server.server_close()

    def allocation(self, number):
        digest = f"{(number * 2654435761 + 97) % 2**32:08x}" * 8
        return {
            "number": number,
            "id": digest[3:35],
            "allocation_id": digest[:32],
            "device_id": (f"{number % 9:x}" + digest)[:64],
            "peer_id": digest[::-1],
            "tier": [None, "free", "paid", HOSTILE][number % 4] if number < 4 else ["free", "paid"][number % 2],
            "state": ["paired", "paired", "paired", "waiting", "interrupted", "deserted"][number % 6],
            "quota": None if number % 7 == 6 else 10**9,
            "created": time.time() - 60 * (number + 1),
        }

    def show(self, it):
        age = time.time() - it["created"]
        moves = it["state"] == "paired"
        used = int(age * 1000 * (it["number"] % 17 + 1)) if moves else it["number"] * 1234
        if it["quota"]:
            used = min(used, it["quota"])
        sent = {"bytes": used // 2, "packets": used // 2400}
        return {
            **{key: it[key] for key in ("id", "allocation_id", "device_id", "peer_id", "tier", "state")},
            "connections": {"device": 1, "peer": int(moves)},
            "sent": {"device": sent, "peer": sent},
            "bytes_used": used,
            "last_activity_unix_ms": int(time.time() * 1000) - (50 if moves else 45_000) if it["number"] % 5 else None,
            "created_unix_ms": int(it["created"] * 1000),
            "age_secs": int(age),
            "expires_at_unix": int(it["created"]) + 28_800,
            "limits": {"bytes_per_sec": 1_250_000, "packets_per_sec": 20_000, "quota_bytes": it["quota"], "weight": 1},
        }

    def hold(self, method, path):
        """Such an answer waits until what this gives is set."""
        return self.held.setdefault((method, path), threading.Event())

    def stats(self):
        up = time.time() - self.started
        passed = {
            "datagrams": int(up * 900 + 6000 * math.sin(up / 15)),
            "datagram_bytes": int(up * 1_000_000 + 5_000_000 * math.sin(up / 15)),
            "raw_datagrams": int(up * 800),
            "stream_bytes": int(up * 40_000),
        }
        back = {key: value // 3 for key, value in passed.items()}
        of = lambda state: sum(it["state"] == state for it in self.allocations)
        ready = self.draining is None
        draining = {"name": "draining", "ok": ready, "detail": "no" if ready else "an administrator wants nobody new"}
        return {
            "version": "0.1.0 (commit abc)",
            "at_unix_ms": int(time.time() * 1000),
            "uptime_secs": int(up),
            "caller": {"name": "laptop", "role": self.role},
            "relay": {
                "relay_id": "5f" * 16,
                "addr": "2001:db8::7",
                "port": 4433,
                "server_name": "relay.example.com",
                "region": "eu-central",
                "pin": None,
            },
            "ready": ready,
            "checks": [
                {"name": "started", "ok": True, "detail": "all of it runs"},
                draining,
                {"name": "allocations", "ok": True, "detail": "137 of 1000"},
            ],
            "drain": {"draining": not ready, "deadline_unix_ms": self.draining},
            "certificate": {"origin": "files", "expires_at_unix": int(time.time()) + 6 * 86_400},
            "allocations": {
                "now": len(self.allocations),
                "max": 1000,
                **{state: of(state) for state in ("waiting", "paired", "interrupted", "deserted")},
                "created": 2911,
                "ended": {"RELEASED": 2411, "IDLE": 301, "QUOTA_EXCEEDED": 61, "KILLED": 1},
            },
            "connections": {"now": 241, "opened": 7311, "closed": {"RELEASED": 4822, "IDLE": 2201, "REPLACED": 47}},
            "forwarded": {"device": passed, "peer": back},
            "dropped": {"over_rate": int(up * 13), "no_peer": int(up * 6 + 40 * math.sin(up / 8)), "queue_full": int(up)},
            "refused": {"TOKEN_EXPIRED": 311, "TOKEN_INVALID": 42, "RATE_LIMITED": 17},
            "security_events": {"bad_token": 42, "limit_hit": 311, "blocked": 1702},
            "guard": {"level": self.level, "blocks": len(self.blocks)},
        }

    def log(self, action, detail, outcome):
        self.audit.append({
            "seq": len(self.audit),
            "at": "",
            "at_unix_ms": int(time.time() * 1000),
            "actor": "laptop",
            "role": "full",
            "source": "127.0.0.1",
            "action": action,
            "detail": detail,
            "outcome": outcome,
            "prev": "0" * 64,
            "hash": "0" * 64,
        })

    def events(self, write):
        """Writes them to a listener until it has gone or the server stops."""
        gone = threading.Event()
        self.listeners.append(gone)
        now = int(time.time() * 1000)
        ids = {"id": "ab" * 16, "allocation_id": "cd" * 16, "device_id": "ef" * 32}
        for name, data in [
            ("hello", {"version": "0.1.0", "at_unix_ms": now}),
            ("allocation_created", {"at_unix_ms": now, **ids, "by": "device"}),
            ("security", {"event": "bad_token", "reason": "expired", "at_unix_ms": now, "source": HOSTILE}),
            ("admin", {"event": "admin_action", "reason": "kill", "detail": "ab by laptop: done", "at_unix_ms": now}),
            ("missed", {"stream": "security", "missed": 12}),
            ("allocation_ended", {"at_unix_ms": now, "id": "ab" * 16, "code": "IDLE", "lifetime_ms": 71_000, "bytes_used": 42_000_000}),
        ]:
            write(f"event: {name}\ndata: {json.dumps(data)}\n\n")
        heard = 0
        while not gone.wait(0.02 if self.flood else 0.5):
            if self.silent:
                continue
            some = range(heard, heard + self.flood // 50)
            heard += len(some)
            flood = [{"event": "bad_token", "reason": "expired", "at_unix_ms": now, "connection": number} for number in some]
            write("".join(f"event: security\ndata: {json.dumps(data)}\n\n" for data in flood) or ": still here\n\n")

    def answer(self, method, path, query, body):
        """Status and body; None for no body."""
        match (method, path.split("/")[2:]):
            case ("GET", ["stats"]):
                return 200, self.stats()
            case ("GET", ["allocations"]):
                return 200, self.page(query)
            case ("GET", ["allocations", id]):
                found = [it for it in self.allocations if it["id"] == id]
                leg = {"rtt_us": 8_731, "raw_channel": True, "path_mtu_bytes": 1452}
                legs = [
                    {"connection": 41, "role": "device", "remote": "203.0.113.7:51002", **leg},
                    {"connection": 42, "role": "peer", "remote": "[2001:db8::42]:40211", **leg},
                ]
                return (200, {**self.show(found[0]), "legs": legs}) if found else (404, "there is no live allocation of that id")
            case ("DELETE", ["allocations", id]):
                before = len(self.allocations)
                self.allocations = [it for it in self.allocations if it["id"] != id]
                return (204, None) if len(self.allocations) < before else (404, "there is no live allocation of that id")
            case ("GET", ["blocks"]):
                return 200, {"blocks": self.blocks, "total": len(self.blocks), "next": None}
            case ("POST", ["blocks"]):
                if not re.fullmatch(r"[0-9a-f.:/]+", body["network"]):
                    return 400, f"{body['network']} is no network"
                block = {"network": body["network"], "reason": body["reason"], "expires_at_unix": None, "configured": False}
                self.blocks.append(block)
                return 201, block
            case ("DELETE", ["blocks"]):
                self.blocks = [it for it in self.blocks if it["network"] != query["network"]]
                return 204, None
            case ("POST", ["drain"]):
                self.draining = int(time.time() + body["deadline_secs"]) * 1000
                return 202, {"draining": True, "deadline_unix_ms": self.draining}
            case ("DELETE", ["drain"]):
                self.draining = None
                return 204, None
            case ("GET", ["log"]):
                return 200, {"filter": self.filter}
            case ("PUT", ["log"]):
                if not re.fullmatch(r"[a-z0-9_:=,]+", body["filter"]):
                    return 400, "filter is off, error, warn, info, debug or trace"
                self.filter = body["filter"]
                return 200, {"filter": self.filter}
            case ("GET", ["audit"]):
                return 200, {"entries": self.audit[-int(query["tail"]) :], "total": len(self.audit)}
        return 404, "there is no such path"

    def page(self, query):
        keys = {"id": "id", "bytes": "bytes_used", "created": "created_unix_ms", "expires": "expires_at_unix"}
        keys["activity"] = "last_activity_unix_ms"
        found = [self.show(it) for it in self.allocations]
        found = [
            it
            for it in found
            if it["id"].startswith(query.get("id", ""))
            and it["device_id"].startswith(query.get("device", ""))
            and it["state"].startswith(query.get("state", ""))
        ]
        found.sort(key=lambda it: it[keys[query["sort"]]] or 0, reverse=query["order"] == "desc")
        begin, limit = int(query.get("cursor", 0)), int(query["limit"])
        more = begin + limit < len(found)
        return {"allocations": found[begin : begin + limit], "total": len(found), "next": str(begin + limit) if more else None}

    def handler(stub):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def reply(self, status, content_type, text, headers=()):
                body = text.encode()
                self.send_response(status)
                for name, value in [("Content-Type", content_type), ("Content-Length", len(body)), *headers]:
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(body)

            def problem(self, status, detail, headers=()):
                problem = json.dumps({"title": "", "status": status, "detail": detail})
                self.reply(status, "application/problem+json", problem, headers)

            def do(self):
                address = urlsplit(self.path)
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                stub.asked.append((self.command, self.path))
                if not address.path.startswith("/admin/"):
                    return self.file(address.path)
                if (self.command, address.path) in stub.held:
                    stub.held[self.command, address.path].wait(60)
                if address.path in stub.failing:
                    status, detail, headers = stub.failing[address.path]
                    return self.problem(status, detail, headers)
                if self.headers.get("authorization") != f"Bearer {TOKEN}":
                    return self.problem(401, "the token is not good")
                if stub.role == "read" and self.command != "GET":
                    return self.problem(403, "this token may look and not touch")
                if address.path == "/admin/events":
                    return self.stream()
                query = {key: value for key, [value] in parse_qs(address.query).items()}
                status, answer = stub.answer(self.command, address.path, query, json.loads(body or "null"))
                if status >= 400:
                    return self.problem(status, answer)
                if self.command != "GET":
                    stub.log(self.command.lower(), self.path, "done")
                return self.reply(status, "application/json", "" if answer is None else json.dumps(answer))

            do_GET = do_POST = do_PUT = do_DELETE = do

            def file(self, path):
                name = "dashboard.html" if path in ("/", "/dashboard") else path.removeprefix("/assets/")
                file = ROOT / "admin" / Path(name).name
                if not file.is_file():
                    return self.problem(404, "there is no such page")
                content_type = TYPES.get(file.suffix, "text/plain")
                return self.reply(200, content_type, file.read_text(), [("Content-Security-Policy", policy())])

            def stream(self):
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()

                def write(text):
                    data = text.encode()
                    self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

                try:
                    stub.events(write)
                    self.wfile.write(b"0\r\n\r\n")
                except OSError:
                    pass
                self.close_connection = True

        return Handler


if __name__ == "__main__":
    stub = Stub(8700)
    print(stub.url, TOKEN)
    threading.Event().wait()

"""The handler of docs/site.md, as printed, beside a web service that knows the assignments.

    exit:down 2001:db8:1::1 ------ 2001:db8:1::2 home:up
    exit:lo   127.0.0.1:8080       the service
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from daemon import Daemon
from docs import printed
from lab import Lab, Program, eventually, needs

pytestmark = needs("ip link add dev eth0 type veth")

HANDLER = printed("import json, time\n")
SERVICE = """
import http.server, json, os
class Service(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        said = json.load(open(os.path.join(os.path.dirname(__file__), "rows"))).get(self.path, {})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(said).encode())
http.server.HTTPServer(("127.0.0.1", 8080), Service).serve_forever()
"""
ROWS = ('{"/assignments/paid/ipv6/0": {"prefix": "2001:db8:9:100::/56"},'
        ' "/assignments/debtor/ipv6/0": {"refuse": "the bill is unpaid"}}')
EXIT = """
[ddpd]
handlers = {}
[pool six]
prefix = 2001:db8:4200::/40
give   = /56
""" + "".join(f"[grantee {name}]\nkey = @{name}\npools = six\n" for name in ("paid", "debtor", "dynamic", "late"))
ASKER = "[grantor exit]\nkey = @exit\naddress = 2001:db8:1::1\nask = ::/56\n"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("exit", "home") as lab:
        lab.cable("exit:down 2001:db8:1::1/64", "home:up 2001:db8:1::2/64")
        yield lab


def serve(lab: Lab) -> Program:
    """The service, when it answers."""
    (lab.folder / "rows").write_text(ROWS)
    (lab.folder / "service.py").write_text(SERVICE)
    program = lab["exit"].start(f"python3 {lab.folder}/service.py")
    eventually(lambda: lab["exit"].ask("ss -Hltn src 127.0.0.1:8080").stdout, what="the service listens")
    return program


def asked(lab: Lab, name: str) -> dict[str, Any]:
    done = lab["home"].ddpd(ASKER, name).command("ask", "--json")
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def grantor(lab: Lab) -> Daemon:
    file = lab.folder / "handlers.py"
    file.write_text(HANDLER)
    file.chmod(0o644)
    return lab["exit"].ddpd(EXIT.format(file)).start()


def test_the_handler_as_printed(lab: Lab) -> None:
    service = serve(lab)
    exit_ = grantor(lab)
    assert [row["prefix"] for row in asked(lab, "paid")["grants"]] == ["2001:db8:9:100::/56"]
    assert [row["prefix"][:11] for row in asked(lab, "dynamic")["grants"]] == ["2001:db8:42"]
    [refused] = asked(lab, "debtor")["refused"]
    assert (refused["reason"], refused["text"]) == ("SITE", "the bill is unpaid")
    service.end()
    [refused] = asked(lab, "late")["refused"]
    assert refused["reason"] == "SITE" and "URLError" in refused["text"]
    assert "handler failed handler=before_pins grantee=late" in exit_.log()
    assert [row["prefix"] for row in asked(lab, "paid")["grants"]] == ["2001:db8:9:100::/56"]   # for five minutes
    assert exit_.command("reload").returncode == 0                # the new functions know nothing
    again = {name: asked(lab, name) for name in ("paid", "late")}
    assert [row["prefix"] for row in again["paid"]["grants"]] == ["2001:db8:9:100::/56"]        # what it has
    assert not again["late"]["grants"] and again["late"]["refused"]
    assert {row["prefix"] for row in exit_.status()["granted"]} >= {"2001:db8:9:100::/56"}


def test_it_fits_on_fifteen_lines() -> None:
    assert len([line for line in HANDLER.splitlines() if line.strip()]) <= 15

"""How long until the first packet is through a tunnel that did not exist; what a thousand peers cost a start.

    make bench                            with the others
    tests/bench/wireguard.py [RUNS]       only this

        leaf ---- veth ---- hub           two namespaces, wireguard-go, both files as in docs/wireguard.md

The first: from the start of the grantee's program until a packet has been to the grantor and back, from an
address of its lease; beside it wg-quick, which makes the same tunnel from a file in which all is written down
already.  The second: a thousand peers with a lease each, whose allowed IPs somebody has removed.  What `wg` needs
alone to write them all, one call a peer as in a script, stands beside it.
"""

from __future__ import annotations

import base64
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import ddpd  # noqa: E402 - found by the line above
from bench import beside  # noqa: E402
from daemon import Daemon  # noqa: E402
from lab import Lab, eventually, public_of, secret_of, wg_name  # noqa: E402

PEERS = 1000
HUB_WG, LEAF_WG = wg_name("hub"), wg_name("leaf")
HUB = f"""
[pool home]
prefix = 2001:db8::/32
give   = /56 /128
[grantee leaf]
key   = @leaf
pools = home
rate  = 1000/1s
[wireguard {HUB_WG}]
pools     = home
add_peers = yes
address   = fd00:9::1/64
"""
LEAF = f"""
[grantor hub]
key     = @hub
address = 192.0.2.1
ask     = ::/128 on {LEAF_WG}
[tunnel {LEAF_WG}]
grantor = hub
routes  = fd00:9::/64
"""


def until(truth: Callable[[], object], began: float) -> float:
    """Milliseconds; asked every other one."""
    eventually(truth, 20, "the tunnel", every_s=0.002)
    return 1000 * (time.perf_counter() - began)


def by_ddpd(lab: Lab, hub: Daemon) -> float:
    leaf = lab["leaf"].ddpd(LEAF)
    began = time.perf_counter()
    leaf.launch()
    took_ms = until(lambda: lab["leaf"].reaches("fd00:9::1"), began)
    leaf.command("release")
    leaf.eventually(lambda: LEAF_WG not in lab["leaf"].look("link show"))
    leaf.kill()
    hub.eventually(lambda: not lab["hub"].allowed(HUB_WG))
    return took_ms


def by_wg_quick(lab: Lab, _: Daemon) -> float:
    conf = lab.folder / f"{LEAF_WG}.conf"
    key = base64.b64encode(secret_of("leaf")).decode()
    conf.write_text(f"[Interface]\nPrivateKey = {key}\nAddress = fd00:9::7/128\n"
                    f"[Peer]\nPublicKey = {public_of('hub')}\n"
                    "Endpoint = 192.0.2.1:51820\nAllowedIPs = fd00:9::/64\n")
    conf.chmod(0o600)
    lab["hub"].ask(f"wg set {HUB_WG} peer {public_of('leaf')} allowed-ips fd00:9::7/128")
    lab["hub"].ask(f"ip route replace fd00:9::7/128 dev {HUB_WG}")
    began = time.perf_counter()
    lab["leaf"].ask(f"wg-quick up {conf}")
    took_ms = until(lambda: lab["leaf"].reaches("fd00:9::1"), began)
    lab["leaf"].ask(f"wg-quick down {conf}")
    lab["hub"].ask(f"wg set {HUB_WG} peer {public_of('leaf')} remove")
    return took_ms


def first_packets(runs: int) -> None:
    with Lab("hub*", "leaf") as lab:
        lab.cable("hub:eth0 192.0.2.1/24", "leaf:eth0 192.0.2.2/24")
        hub = lab["hub"].ddpd(HUB).start()
        print(f"{'first packet through the tunnel, ms':44}", *(f"{name:>12}" for name in ("median", "least", "most")))
        for name, how in (("ddpd, from its start", by_ddpd), ("wg-quick up, all written down", by_wg_quick)):
            found = sorted(how(lab, hub) for _ in range(runs))
            print(f"{name:44}", *(f"{value:12.0f}" for value in (median(found), found[0], found[-1])), flush=True)


# ==== a thousand peers ================================================================


def key_of(n: int) -> str:
    return base64.b64encode(ddpd.digest(n.to_bytes(4, "big"))).decode()


def prefix_of(n: int) -> str:
    return f"2001:db8:{n:x}::/56"


def write_leases(daemon: Daemon) -> None:
    """A file of a run that ended well."""
    rows = [{"kind": "run", "clean": True, "boot": "", "at": 0.0, "epoch": 1}]
    rows += [{"kind": "granted", "key": key_of(n), "slot": 0, "prefix": prefix_of(n), "state": "active",
              "valid": 43200, "left": 43000, "via": "", "dev": HUB_WG, "since": 1, "epoch": 1} for n in range(PEERS)]
    rows += [{"kind": "made", "what": f"allowed {HUB_WG} {key_of(n)} {prefix_of(n)}"} for n in range(PEERS)]
    text = ",\n".join(json.dumps({**row, "serial": n}) for n, row in enumerate(rows))
    (daemon.dir / "leases.json").write_text(f"[{text}]\n")


def used_s(pid: int) -> float:
    """Of a process, and of those that it has waited for."""
    parts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, parts[11:15])) / os.sysconf("SC_CLK_TCK")


def a_thousand(runs: int) -> None:
    with Lab("hub*") as lab:
        hub = lab["hub"].ddpd(HUB.split("[grantee")[0] + f"[wireguard {HUB_WG}]\npools = home\n")
        lab["hub"].wireguard(HUB_WG)
        print(f"\n{f'{PEERS} peers, all allowed IPs to be written':44} {'s':>12} {'CPU s':>12} {'wg':>12}")
        for name, how in (("ddpd, a start, routes too", by_start), ("wg, one call a peer", by_calls)):
            found = sorted(how(lab, hub) for _ in range(runs))
            print(f"{name:44}", *(f"{value:12.2f}" for value in found[len(found) // 2][:2]),
                  f"{found[0][2]:12}", flush=True)
            strip(lab)


def strip(lab: Lab) -> None:
    lab["hub"].ask(f"wg addconf {HUB_WG} /dev/stdin",
                   "".join(f"[Peer]\nPublicKey = {key_of(n)}\nAllowedIPs = fd00::{n:x}/128\n" for n in range(PEERS)))
    lab["hub"].look("-6 route flush proto 221")


def is_whole(lab: Lab) -> bool:
    return sum(len(allowed) for allowed in lab["hub"].allowed(HUB_WG).values()) == 2 * PEERS


def by_start(lab: Lab, hub: Daemon) -> tuple[float, float, int]:
    """-v tells each `wg`; looks are calls too."""
    strip(lab)
    write_leases(hub)
    hub.logfile.write_text("")
    began = time.perf_counter()
    pid = hub.launch("run", "-v").pid
    until(lambda: "started version" in hub.log(), began)
    until(lambda: is_whole(lab) and len(lab["hub"].routes()) == PEERS, began)
    took_s, cpu_s = time.perf_counter() - began, used_s(pid)
    hub.stop()
    return took_s, cpu_s, hub.log().count('run command="wg ')


def by_calls(lab: Lab, _: Daemon) -> tuple[float, float, int]:
    strip(lab)
    before = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    script = "".join(f"wg set {HUB_WG} peer {key_of(n)} allowed-ips fd00::{n:x}/128,{prefix_of(n)}\n"
                     for n in range(PEERS))
    began = time.perf_counter()
    lab["hub"].ask("sh -s", script)
    took_s = time.perf_counter() - began
    return took_s, sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - before, PEERS


def bench(runs: int = 3) -> None:
    first_packets(2 * runs + 1)
    a_thousand(runs)


if __name__ == "__main__":
    sys.exit(beside.main(bench, sys.argv[1:]))

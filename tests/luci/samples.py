"""A configuration with every key, and a status with every kind of row."""

from __future__ import annotations

import base64
from typing import Any

Uci = dict[str, dict[str, dict[str, Any]]]


def key_of(number: int) -> str:
    return base64.b64encode(bytes([number]) * 32).decode()


KEY = key_of(7)
FOREVER = 4294967295

# Every key of ddpd.conf as UCI has it, none at its default: a field that loses its value is seen to.
FULL: dict[str, dict[str, str | list[str]]] = {
    "ddpd": {
        "key": "/etc/ddpd/other", "status": "/tmp/status.json", "listen": ["[::]:4373", "192.0.2.1"],
        "leases": "/mnt/leases.json", "control": "/tmp/ddpd.sock", "mark": "222", "load": "300", "hold": "60d",
        "pins": ["/etc/ddpd/pins.csv", "/etc/p"],
        "grantees": "/etc/ddpd/grantees.d", "handlers": "/etc/ddpd/site.py", "accounting": "/tmp/accounting",
        "rate": "100/1s", "resolv": "/tmp/resolv", "dnsmasq": "/tmp/dnsmasq", "radvd": "/tmp/radvd",
        "dhcp": "/tmp/dhcp",
    },
    "pool": {
        "prefix": "2001:db8:42::/48", "give": ["/56-/60", "/64"],
        "reserve": ["2001:db8:42::/56", "2001:db8:42:100::/56"],
        "share": "1/2", "lifetime": "6h", "preferred": "2h", "renew": "1h", "rebind": "90m",
        "dns": ["2001:db8::53", "192.0.2.53"],
        "search": ["example.net", "lan"], "ntp": ["2001:db8::123"], "mtu": "1420",
    },
    "grantee": {
        "key": key_of(1), "pools": ["home", "Other.pool"], "limit": "3", "lengths": ["/56", "/64"],
        "total": ["::/52", "0.0.0.0/28"],
        "lifetime": "1h-6h", "rate": "2/1m", "until": "2027-03-31", "pin": ["2001:db8:42:500::/56"],
        "route": "via fe80::7 dev @lan", "was": [key_of(2), key_of(3)],
    },
    "grantor": {
        "key": key_of(4), "address": ["exit1.example.net:3373", "[2001:db8::1]:4000", "gateway"],
        "ask": ["::/56 on @lan br-guest=7", "3: ::/60", "0.0.0.0/32"], "default": "via fe80::1 dev @wan redistribute",
        "rank": "nearest", "install": "no", "hook": "/etc/ddpd/hook", "hook_style": "odhcp6c",
        "accept": ["2001:db8::/32"],
        "hostname": "router.example.net", "keepalive": "25s", "suffix": "::2", "release": "yes",
    },
    "ndp": {
        "proxy": ["leased", "static 2001:db8::5", "iface 2001:db8:1::/64 @lan"], "method": "kernel", "router": "no",
        "source": "target", "autowire": "yes", "ttl": "10s", "allow": ["2001:db8::/32"], "deny": ["2001:db8:6::/48"],
    },
    "wireguard": {
        "pools": ["home"], "limit": "2", "lengths": ["/64", "/128"], "total": ["::/60"], "lifetime": "1d",
        "rate": "1/1s", "add_peers": "yes", "listen": "51821", "address": ["10.9.0.1/24", "fd00:9::1/64"],
        "endpoint": "vpn.example.net:51821", "allowed": ["2000::/3"], "keepalive": "15s", "dynamic": "no",
    },
    "tunnel": {"grantor": "exit1", "routes": ["2001:db8::/32", "10.0.0.0/8"], "mtu": "1380"},
}
OURS = {"ddpd": {"enabled": "1", "config": "/etc/ddpd/by-hand.conf"}, "pool": {"name": "home"},
        "grantee": {"name": "alice.lap-top"},
        "grantor": {"name": "exit1"}, "ndp": {"device": "@wan"}, "wireguard": {"device": "wg0"},
        "tunnel": {"device": "wg1"}}


def sections() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for kind, values in FULL.items():
        name = {"ddpd": "main", "pool": "home_", "grantee": "alice", "grantor": "exit"}.get(kind, f"{kind}0")
        more = {} if kind == "ddpd" else {"disabled": "1"}
        found[name] = {".name": name, ".type": kind, **OURS[kind], **more, **values}
    found["second"] = {".name": "second", ".type": "pool", "name": "Other.pool", "prefix": "ula", "give": ["/64"]}
    return found


UCI: Uci = {
    "ddpd": sections(),
    "network": {
        "loopback": {".name": "loopback", ".type": "interface", "proto": "static", "device": "lo"},
        "lan": {".name": "lan", ".type": "interface", "proto": "static", "device": "br-lan"},
        "wan": {".name": "wan", ".type": "interface", "proto": "dhcp", "device": "eth1"},
        "wan6d": {
            ".name": "wan6d", ".type": "interface", "proto": "ddpd", "device": "@wan",
            "grantor": ["exit1.example.net", "[2001:db8::1]:4000"],
            "key": key_of(4), "ask": ["::/56", "3: ::/60", "0.0.0.0/28 on @guest"], "defaultroute": "0", "peerdns": "0",
            "metric": "50", "mtu": "1400", "hostname": "router", "keepalive": "25s", "keyfile": "/etc/ddpd/other",
            "accept": ["2000::/3"], "norelease": "1",
        },
    },
}


def granted(number: int, **more: Any) -> dict[str, Any]:
    return {"grantee": f"grantee{number}", "slot": 0, "prefix": f"2001:db8:42:{number:x}00::/56", "preferred": 20000,
            "valid": 43000,
            "from": f"[2001:db8:1::{number:x}]:3373", "hostname": f"host{number}", "reach": "via fe80::1 dev br-lan",
            "clone": False, "configured": True, "state": "active", "age": 90061, "by": "drawn", **more}


STATUS: dict[str, Any] = {
    "version": "0.1.0", "public_key": KEY, "uptime": 1000,
    "pools": [
        {"name": "home", "prefix": "2001:db8:42::/48", "leases": 3, "free_fraction": 0.9},
        {"name": "tight", "prefix": "2001:db8:43::/48", "leases": 210, "free_fraction": 0.17, "share": "1/2"},
        {"name": "full", "prefix": "192.0.2.0/24", "leases": 250, "free_fraction": 0.02},
        {"name": "moving", "prefix": "", "leases": 0, "free_fraction": 0.0, "follows": "grantor exit1"},
    ],
    "granted": [
        granted(1), granted(2, valid=FOREVER, preferred=FOREVER, hostname="", by="pinned"),
        granted(3, state="deprecated", preferred=0, reach="none (no route to it)", configured=False),
        granted(4, clone=True, age=0),
    ],
    "granted_in_all": 6,
    "held": [
        {"grantor": "exit1", "state": "bound", "slot": 0, "prefix": "2001:db8:99:1200::/56", "preferred": 1803,
         "valid": 3605, "waits": False},
        {"grantor": "exit1", "state": "bound", "slot": 1, "prefix": "198.51.100.7/32", "preferred": 0, "valid": 700,
         "waits": False},
        {"grantor": "exit2", "state": "bound", "slot": 0, "prefix": "2001:db8:88::/56", "preferred": 0, "valid": 700,
         "waits": True},
    ],
    "grantors": [
        {"name": "exit1", "state": "bound", "at": "[2001:db8::1]:3373", "interface": "eth1",
         "default": ["IPv6 via fe80::1 dev eth1"],
         "tunnel": "", "trip_ms": 12.5, "refused": [{"slot": 2, "reason": "no-prefix", "text": "the pools are full"}]},
        {"name": "exit2", "state": "asking", "at": "", "interface": "", "default": [], "tunnel": "", "trip_ms": None,
         "refused": []},
    ],
    "ndp": [{"interface": "eth1", "state": "listens", "method": "own",
             "proxied": ["leased", "static 2001:db8::5/128"], "heard": 120,
             "answered": 100, "asked_inside": 3, "ignored": {"not ours": 17}, "inside": {}, "known_inside": 0,
             "wired": 0, "deaf_inside": {}}],
    "wireguard": [{"interface": "wg0", "state": "there", "public_key": KEY, "port": 51820, "peers": 3, "added_peers": 1,
                   "allowed_ips": 5, "leased_ips": 2, "made": True}],
    "grantees": 4, "skipped": 2, "sessions": 3, "recovering": 120, "disk_full": True, "under_load": True,
    "counters": {"heard ask": 812, "sent answer": 800, "drop unknown key": 12},
}

"""A tunnel between two hosts of the laboratory: two real tun devices, and a process that carries the packets.

    tunnel(lab, "vps:tun0 fd77::1/64", "home:tun0 fd77::2/64")      # as Lab.cable, and as quickly gone

The process is a program of the first host: with it, and so with the laboratory, both devices end.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
from pathlib import Path

from lab import Host, Lab, LabError, Program, enter, eventually

TUN = "/dev/net/tun"
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000


def tunnel(lab: Lab, one: str, other: str) -> Program:
    (a, a_dev, a_has), (b, b_dev, b_has) = lab.end(one), lab.end(other)
    pump = a.start(f"{sys.executable} {Path(__file__).resolve()} {a.netns} {a_dev} {b.netns} {b_dev}")
    eventually(lambda: not pump.running() or (is_there(a, a_dev) and is_there(b, b_dev)), 10, "the tunnel")
    if not pump.running():
        raise LabError(f"no tunnel: {pump.log().strip().splitlines()[-1]}")
    for host, dev, addresses in (a, a_dev, a_has), (b, b_dev, b_has):
        host.ip(f"link set dev {dev} up")
        host.address(dev, *addresses)
    return pump


def is_there(host: Host, dev: str) -> bool:
    return bool(host.look(f"link show dev {dev}"))


# ==== the process =====================================================================


def opened(netns: str, dev: str) -> int:
    """A new tun device of that namespace."""
    with open(f"/run/netns/{netns}") as theirs:
        enter(theirs.fileno())
    tun = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", dev.encode(), IFF_TUN | IFF_NO_PI))
    return tun


def carry(a: int, b: int) -> None:
    other = {a: b, b: a}
    while True:
        for tun in select.select([a, b], [], [])[0]:
            try:
                packet = os.read(tun, 65535)
                os.write(other[tun], packet)
            except OSError:                # down, for now: what is sent there is lost
                pass


def main(a: str, a_dev: str, b: str, b_dev: str) -> None:
    carry(opened(a, a_dev), opened(b, b_dev))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The seccomp profile as a file: an allow-list, and what docs/sandbox.md says is not on it."""

from __future__ import annotations

import json
import re
import signal
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from controller.core.containers.config import SandboxConfig
from controller.sandbox.inputs import SECCOMP_PROFILE, sealed

RULES: dict[str, Any] = json.loads(SECCOMP_PROFILE.read_text())
ALLOWING = [rule for rule in RULES["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW"]
ANYHOW = {name for rule in ALLOWING if "args" not in rule for name in rule["names"]}
"""Allowed whatever the arguments."""
WITH_ARGUMENTS = {name for rule in ALLOWING if "args" in rule for name in rule["names"]}


def test_what_is_not_named_is_denied() -> None:
    assert (RULES["defaultAction"], RULES["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 1)
    others = [rule for rule in RULES["syscalls"] if rule not in ALLOWING]
    assert [(rule["names"], rule["action"], rule["errnoRet"]) for rule in others] == [
        (["clone3"], "SCMP_ACT_ERRNO", 38)
    ]
    named = "clone fadvise64 madvise mknod mknodat personality preadv2 socket socketpair"
    assert set(named.split()) == WITH_ARGUMENTS
    assert not ANYHOW & WITH_ARGUMENTS
    assert RULES["version"]


def test_only_64_bit_programs() -> None:
    assert {entry["architecture"] for entry in RULES["archMap"]} == {"SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"}
    assert all(entry["subArchitectures"] == [] for entry in RULES["archMap"])
    assert "architectures" not in RULES


def test_only_sockets_of_four_families() -> None:
    rules = [rule for rule in ALLOWING if "socket" in rule["names"]]
    families = [arg for rule in rules for arg in rule["args"] if arg["index"] == 0]
    assert len(families) == len(rules)
    assert {(arg["op"], arg["value"]) for arg in families} == {
        ("SCMP_CMP_EQ", family) for family in (1, 2, 10, 16)
    }


def test_what_the_page_says_is_denied() -> None:
    page = (Path(__file__).parents[2] / "docs" / "sandbox.md").read_text(encoding="utf-8")
    table = page.split("| denied |", 1)[1].split("\n\n", 1)[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    denied = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert len(denied) > 60
    assert denied & ANYHOW == set()
    # "Other than" their uses.
    assert denied & WITH_ARGUMENTS == {"clone", "fadvise64", "madvise", "mknod", "personality", "preadv2"}


def test_every_container_is_told_the_whole_profile() -> None:
    assert json.loads(sealed(SandboxConfig()).seccomp) == RULES


def allowed(name: str, *arguments: int) -> bool:
    """Is a call let in? Any rule does it of which every comparison holds, seccomp_rule_add(3)."""

    def holds(arg: dict[str, Any]) -> bool:
        value = arguments[arg["index"]]
        if arg["op"] == "SCMP_CMP_MASKED_EQ":
            return bool(value & arg["value"] == arg["valueTwo"])
        assert arg["op"] == "SCMP_CMP_EQ"
        return bool(value == arg["value"])

    rules = [rule for rule in ALLOWING if name in rule["names"]]
    return any(all(map(holds, rule.get("args", []))) for rule in rules)


STREAM, DGRAM, RAW = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW
INET, INET6, NETLINK = socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK
NETLINK_ROUTE, NETLINK_NETFILTER, NETLINK_KOBJECT_UEVENT = 0, 12, 15
SETTLED = socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
NAMESPACES = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET."""
A_THREAD = 0x003D0F00
"""The flags of pthread_create."""
KINDS = (stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFREG, stat.S_IFSOCK)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        *((("socket", family, kind, 0), True) for family in (INET, INET6) for kind in (STREAM, DGRAM)),
        *((("socket", family, STREAM | SETTLED, socket.IPPROTO_TCP), True) for family in (INET, INET6)),
        *((("socket", family, DGRAM | SETTLED, socket.IPPROTO_UDP), True) for family in (INET, INET6)),
        *((("socket", family, RAW, 0), False) for family in (INET, INET6)),
        *(
            (("socket", family, kind, number), False)
            for family in (INET, INET6)
            for kind in (STREAM, DGRAM)
            for number in (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6, socket.IPPROTO_SCTP, 262)
        ),
        (("socket", socket.AF_UNIX, RAW, 0), True),
        (("socket", NETLINK, RAW | SETTLED, NETLINK_ROUTE), True),
        *(
            (("socket", NETLINK, RAW, number), False)
            for number in (NETLINK_NETFILTER, NETLINK_KOBJECT_UEVENT)
        ),
        *(
            (("socket", family, kind, 0), False)
            for family in (17, 38, 40, 0, 31, 44)
            for kind in (STREAM, DGRAM, RAW)
        ),
        (("socketpair", socket.AF_UNIX, STREAM, 0), True),
        (("socketpair", INET, STREAM, 0), False),
        (("clone", signal.SIGCHLD), True),
        (("clone", A_THREAD), True),
        *((("clone", signal.SIGCHLD | flag), False) for flag in NAMESPACES),
        *((("mknod", 0, kind | 0o600), kind == stat.S_IFIFO) for kind in KINDS),
        *((("mknodat", 0, 0, kind | 0o600), kind == stat.S_IFIFO) for kind in KINDS),
        (("personality", 0), True),
        (("personality", 0xFFFFFFFF), True),
        (("personality", 0x0040000), False),
    ],
)
def test_which_arguments_are_let_in(call: tuple[Any, ...], expected: bool) -> None:
    """Packets, raw and ICMP sockets, AF_ALG, AF_VSOCK, XDP, namespaces, devices, fixed addresses: denied."""
    assert allowed(*call) == expected

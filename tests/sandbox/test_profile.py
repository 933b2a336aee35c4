"""The seccomp profile as a file: an allow-list, and what docs/sandbox.md says is not on it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from controller.core.sandbox_config import SandboxConfig
from controller.seccomp import PROFILE, sealed

RULES: dict[str, Any] = json.loads(PROFILE.read_text())
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
    assert {"clone", "mknod", "mknodat", "personality", "socket", "socketpair"} == WITH_ARGUMENTS
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
    assert denied & WITH_ARGUMENTS == {"clone", "mknod", "personality"}  # "other than" their one use


def test_every_container_is_told_the_whole_profile() -> None:
    assert json.loads(sealed(SandboxConfig()).seccomp) == RULES

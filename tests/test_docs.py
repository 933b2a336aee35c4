"""The documents name everything there is, and nothing that is not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import typer
from pydantic import BaseModel

from controller.cli import app
from controller.settings import Settings
from tests.attacks.suite import ASSAULTS, ATTACKS

ROOT = Path(__file__).parent.parent


def setting_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from setting_names(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_setting_is_documented() -> None:
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE) == list(setting_names(Settings))


def test_every_verb_is_documented() -> None:
    verbs = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    rows = re.findall(
        r"^\| (`glovebox .*?) \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    named = {word for row in rows for word in re.findall(r"[a-z]+", row.replace("glovebox", ""))}
    assert verbs == named


def test_make_targets_the_readme_names_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(
        re.findall(r"(?:^|`)make ([a-z]+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert named and named <= targets


def links(page: Path) -> list[Path]:
    return [page.parent / link for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))]


def test_what_a_page_links_to_exists_and_every_page_can_be_come_to() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    linked = {link.resolve() for page in [*pages, ROOT / "CHANGELOG.md"] for link in links(page)}
    assert len(linked) > 10
    assert [str(link) for link in linked if not link.exists()] == []
    alone = {page.name for page in pages if page not in linked and page.parent.name != "decisions"}
    assert alone == {"README.md"}


def test_what_the_account_of_security_names_exists() -> None:
    """Every setting that weakens something, every test and target that shows something, every page."""
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    weakening = text.split("## Settings that weaken it")[1].split("\n\nOutside")[0]
    rows = [line.split("|")[1] for line in weakening.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert len(named) > 25 and named <= set(setting_names(Settings))
    tests = set(re.findall(r"`(tests/[^`]+)`", text))
    assert len(tests) > 30
    assert [path for path in tests if not (ROOT / path).exists()] == []
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z]+)", text)) <= targets


def test_every_row_the_account_of_security_names_is_attacked() -> None:
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b([MCA]\d{1,2})\b", text))
    for first, last in re.findall(r"\bM(\d+) to M(\d+)", text):
        named |= {f"M{number}" for number in range(int(first), int(last))}
    assert {case.row for case in ATTACKS} | {case.row for case in ASSAULTS} == named

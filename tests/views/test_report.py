"""The report says what the journal says; no description becomes markup, and no run breaks the picture."""

from __future__ import annotations

import datetime as dt
import hashlib
from pathlib import Path
from xml.etree import ElementTree

import pytest

from controller.core.errors import UserError
from controller.core.events import AgentReturned, CertificateOpened, CertificateSettled
from controller.core.state import fold
from controller.core.values import Cause
from controller.views import chart, report
from controller.views.stairs import climb
from tests.core.statistics.test_certificate import decided
from tests.support.efforts import PROVENANCE, Story, small
from tests.support.two_slots import StoryOfTwo
from tests.views.test_tables import costly


def rendered(story: Story) -> str:
    return report.render(story.records, fold(story.records))


def row(text: str, start: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_all_files_are_written_and_the_same_journal_gives_the_same_files(tmp_path: Path) -> None:
    paths = report.write(small().records, tmp_path / "a" / "b")
    again = report.write(small().records, tmp_path / "c")
    assert [path.name for path in paths] == ["report.md", "report.html", "progress.svg", "holdout.svg"]
    assert paths[3].read_bytes().startswith(b"<?xml")
    for one, other in zip(paths, again, strict=True):
        assert hashlib.sha256(one.read_bytes()).digest() == hashlib.sha256(other.read_bytes()).digest()
    picture = ElementTree.parse(paths[2]).getroot()
    assert (picture.get("width"), picture.get("height")) == ("864pt", "468pt")


def test_the_account_of_a_small_effort() -> None:
    text = rendered(small())
    assert "# autoresearch/mar1" in text
    assert "6 experiments: 3 keep, 1 discard, 1 crash, 1 reject." in text
    assert "Best single run of a keep: 1.850000 bits per byte (experiment 5" in text
    assert "baseline 2.000000; change -0.150000 (-7.50%)" in text
    assert row(text, "1")[2:] == ["1.900000", "-0.100000", "-5.00%", "provisional", "MATRIX_LR 0.04 → 0.05"]
    assert row(text, "4") == ["4", "1.900500", "0.000500", "wider"]
    assert row(text, "crash") == ["crash", "oom", "1"]
    assert row(text, "reject") == ["reject", "non-causal", "1"]
    assert row(text, "refused before it ran") == ["refused before it ran", "identical", "1"]
    assert row(text, "training")[1] == "0:29:03"
    assert "+0.0500" in text.split("## Validation and hold-out")[1]
    assert "1" * 64 in text and "0.1.0" in text


def test_the_account_of_two_slots(tmp_path: Path) -> None:
    """A keep may have a lower number than the one before it; an hour on two slots is two hours of work."""
    story = StoryOfTwo()
    one, other = story.open(0, "one"), story.open(1, "other")
    story.end(other, 1.9)
    story.end(one, 1.8)
    text = rendered(story)
    assert "Best single run of a keep: 1.800000 bits per byte (experiment 1" in text
    kept = text.split("## What was kept")[1].split("##")[0].strip().splitlines()[2:]
    assert [line.split("|")[1].strip() for line in kept] == ["0", "2", "1"]
    assert row(text, "1")[3] == "-0.100000"
    span = row(text, "first to last entry of the journal, on 2 slots")
    began, ended = (dt.datetime.fromisoformat(story.records[at].time) for at in (0, -1))
    hours, minutes, seconds = map(int, span[1].split(":"))
    assert 3600 * hours + 60 * minutes + seconds == round(2 * (ended - began).total_seconds())
    assert span[2] == "100%"
    assert report.write(story.records, tmp_path)[2].read_bytes().startswith(b"<?xml")


def test_the_stairs_show_what_had_to_be_beaten_and_what_is_certified() -> None:
    _, stairs = climb(small().records)
    assert stairs.certified == stairs.frontier[:1] == [(0, 2.0)]
    assert stairs.frontier == sorted(stairs.frontier, key=lambda step: -step[1]) and len(stairs.frontier) > 1


def test_a_certified_gain_comes_first() -> None:
    story = small()
    text = rendered(story)
    assert "**Nothing is certified.**" in text and "are provisional" in text
    state = fold(story.records)
    head = state.chain[-1]
    story.tell(CertificateOpened(certificate=0, base=0, head=head))
    story.tell(decided("certified", head=head))
    story.tell(CertificateSettled(certificate=0, commit="c"))
    text = rendered(story)
    assert "**Certified gain: 0.100000 bits per byte (95 % interval 0.050000 to 0.150000)**" in text
    assert f"| 0 | 0 → {head} | certified | +0.100000 | +0.050000 to +0.150000 | 200 | 2 |" in text
    assert row(text, str(head))[5] == "certified"
    _, stairs = climb(story.records)
    assert stairs.certified[-1][1] == stairs.frontier[-1][1]


def test_the_account_of_what_it_cost_and_of_an_agent_that_was_away() -> None:
    story = costly()
    story.tell(AgentReturned(agent="claude", seconds=90.0))
    text = rendered(story)
    assert "$0.75, up to $2.00 more on its way for 4 requests to a language model, 1 of them failed." in text
    assert "Experiments that came of them: 1, $0.75 for each." in text
    assert "1 have no end on record" in text
    assert row(text, "2026-03-01") == ["2026-03-01", "4", "800", "75%", "100", "2.75"]
    assert row(text, "all") == ["all", "4", "800", "75%", "100", "2.75"]
    assert row(text, "absences") == ["absences", "1"]
    assert row(text, "experiments by an understudy") == ["experiments by an understudy", "1"]
    assert r"a constant \[tuner in place of claude\]" in text
    assert "What it cost" not in rendered(small()) and "at work" not in rendered(small())


def test_sections_without_content_are_left_out() -> None:
    story = Story()
    story.run("baseline", 2.0)
    text = rendered(story)
    assert "hold-out" not in text and "Near misses" not in text and "What failed" not in text


def test_a_changed_provenance_shows_both_values() -> None:
    story = small()
    changed = PROVENANCE.model_copy(update={"image": "sha256:" + "9" * 64})
    story.records += Story(provenance=changed).records[1:]
    line = row(rendered(story), "image")[1]
    assert line.index("1111") < line.index("→") < line.index("9999")


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("MATRIX_LR 0.04 → 0.05", "MATRIX_LR 0.04 → 0.05"),
        ("a | b", r"a \| b"),
        ("![x](http://evil)", r"!\[x\](http\://evil)"),
        ("<script>", r"\<script\>"),
        ("_it_ **b** `c` ~d~ $e$", r"\_it\_ \*\*b\*\* \`c\` \~d\~ \$e\$"),
        ("a\\|b", r"a\\\|b"),
        ("www.evil.test", r"www\.evil.test"),
        ("# not a\nheading &amp; \x1b[31mred", r"\# not a heading \&amp; red"),
    ],
)
def test_descriptions_stay_text(text: str, safe: str) -> None:
    assert report.escape(text) == safe


def test_a_hostile_description_adds_no_cell_and_no_line() -> None:
    hostile = "x | y |\n| 9 | `\\| <b> | $\\frac{"
    text = rendered(small([hostile] * 5))
    lines = [line for line in text.splitlines() if line.startswith("| 1 | `")]
    assert len(lines) == 1
    assert len(lines[0].replace("\\\\", "").replace("\\|", "").strip("|").split("|")) == 7


@pytest.mark.parametrize(
    "results",
    [
        [],
        [2.0],
        [Cause.OOM],
        [2.0, 2.0, 2.0],
        [2.0, 50.0, Cause.NAN, Cause.NON_CAUSAL],
        [2.0 - 0.01 * step for step in range(60)],
    ],
)
def test_any_effort_can_be_drawn(tmp_path: Path, results: list[float | Cause]) -> None:
    story = Story(tag="$x_1$")
    for result in results:
        story.run("$\\frac{1}{ 深い\x1b[31m _^ %", result)
    chart.draw(*climb(story.records), tmp_path / "progress.svg")
    assert (tmp_path / "progress.svg").read_bytes().startswith(b"<?xml")
    assert report.render(story.records, fold(story.records)).startswith("# autoresearch/\\$x_1\\$")


def test_an_empty_journal_is_no_error(tmp_path: Path) -> None:
    paths = report.write([], tmp_path)
    assert "nothing yet" in (tmp_path / "report.md").read_text()
    assert [path.name for path in paths] == ["report.md", "report.html", "progress.svg"]


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^The report cannot be written to [^\n]+\.$"):
        report.write(small().records, tmp_path / "file" / "sub")

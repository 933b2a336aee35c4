"""What Prometheus reads is what the journal says, in its own conventions."""

from __future__ import annotations

import json
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from controller.core.state import fold
from controller.core.values import Verdict
from controller.store.journal import read_records
from tests.support.glovebox import PROJECT
from tests.support.hostile import TEXTS
from tests.web.fabricate import Effort
from tests.web.served import Served, served, write_hostile

ONCE_MEASURED = ("certified_gain_bpb", "sigma_bpb", "slot_faults")
"""There is no sample of these in an effort that has just begun."""


def samples(text: str) -> dict[tuple[str, ...], float]:
    """By name and values of the labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def text(small: Served) -> str:
    answer = small.get("/metrics", {})
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return answer.text


def test_names_units_and_help_follow_the_conventions(text: str) -> None:
    families = list(text_string_to_metric_families(text))
    assert len(families) > 25
    for family in families:
        assert re.fullmatch(r"glovebox(_[a-z]+)*", family.name)
        assert family.documentation.endswith(".")
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")
            assert not re.search(r"_(ms|minutes|hours|mb|gb|percent|count)$", family.name)


def test_the_values_are_those_of_the_journal(text: str, short: Effort) -> None:
    state, told = fold(read_records(short.home)), samples(text)
    for verdict in Verdict:
        assert told["glovebox_experiments_total", verdict.value] == state.count(verdict)
    assert state.frontier is not None and told["glovebox_frontier_val_bpb",] == state.frontier.val_bpb
    assert told["glovebox_spent_dollars_total",] == pytest.approx(state.spending.total.usd)
    assert told["glovebox_tokens_total", "output"] == state.spending.total.usage.output_tokens
    assert told["glovebox_journal_lines_total",] == state.seq + 1
    assert told["glovebox_open_experiments",] == 1 and told["glovebox_open_proposals",] == 1
    assert told["glovebox_controller_up",] == 1 and told["glovebox_journal_intact",] == 1


def test_the_dashboard_asks_for_metrics_that_there_are(text: str) -> None:
    dashboard = json.loads((PROJECT / "docs" / "web" / "grafana.json").read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    named = {name for query in asked for name in re.findall(r"glovebox_\w+", query)}
    there = {name for name, *_ in samples(text)} | {f"glovebox_{name}" for name in ONCE_MEASURED}
    assert len(named) > 12 and named <= there


def test_the_holdout_is_not_among_them(text: str, short: Effort) -> None:
    known = {str(value) for value in samples(text).values()}
    state = fold(read_records(short.home))
    scores = [e.score for e in state.experiments if e.score]
    assert scores and "holdout" not in text and "fresh" not in text
    for score in scores:
        assert known.isdisjoint({str(score.holdout_bpb), str(score.on_fresh_rows)})


def test_labels_hold_any_text(tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("spoiled")
    with served(home) as site:
        for hostile in ('a"b\\c\nd', TEXTS["HTML"], TEXTS["lines and tabs"]):
            site.caught_up(write_hostile(home, hostile))
            info = [name for name in samples(site.get("/metrics", {}).text) if name[0] == "glovebox_info"]
            assert len(info) == 1 and "\n" not in "".join(info[0])

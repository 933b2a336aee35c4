"""Replicates: what they measure, and what they say of the machine."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.statistics.replicates import Pool, Run, drift, mean, spread_of
from controller.core.values import Cause
from tests.core.telling import Told


def runs(*scores: float, first: int = 0, slot: int = 0) -> list[Run]:
    return [Run(first + place, slot, score) for place, score in enumerate(scores)]


def test_each_slot_has_a_level_of_its_own() -> None:
    same = spread_of({0: runs(1.0, 1.2), 7: runs(0.5, 0.6, first=7)})
    apart = spread_of({0: [*runs(1.0, 1.2), *runs(3.0, 3.2, first=2, slot=1)], 7: runs(0.5, 0.6, first=7)})
    assert same is not None and apart is not None
    assert (same.df, apart.df) == (2, 3)
    assert apart.sigma == pytest.approx(((0.02 + 0.02 + 0.005) / 3) ** 0.5)


@given(
    st.lists(
        st.builds(Run, st.just(0), st.integers(0, 1), st.floats(1, 2), st.none() | st.floats(1, 2)),
        max_size=30,
    ),
    st.data(),
)
def test_the_spread_that_is_kept_up_to_date_is_that_of_all_runs(made: list[Run], data: st.DataObject) -> None:
    all_runs: dict[int, list[Run]] = {}
    pool = fresh = Pool()
    for number, drawn in enumerate(made):
        run, program = replace(drawn, experiment=number), data.draw(st.integers(0, 3))
        group = [known for known in all_runs.setdefault(program, []) if known.slot == run.slot]
        pool = pool.adding([known.val_bpb for known in group], run.val_bpb)
        if run.fresh_bpb is not None:
            fresh = fresh.adding([r.fresh_bpb for r in group if r.fresh_bpb is not None], run.fresh_bpb)
        all_runs[program].append(run)
    left_out = set(data.draw(st.lists(st.sampled_from(range(len(made))) if made else st.nothing())))
    both = {program: all_runs.get(program, []) for program in (0, 1)}
    left_out &= {run.experiment for runs in both.values() for run in runs}
    for told, expected in (
        (pool.spread, spread_of(all_runs)),
        (fresh.spread, spread_of(all_runs, fresh=True)),
        (pool.without(both, left_out).spread, spread_of(all_runs, without=left_out)),
        (fresh.without(both, left_out, fresh=True).spread, spread_of(all_runs, without=left_out, fresh=True)),
    ):
        assert (told is None) == (expected is None)
        if told is not None and expected is not None:
            assert told.df == expected.df and told.sigma == pytest.approx(expected.sigma, abs=1e-7)


def test_what_is_like_before_is_no_drift() -> None:
    assert drift({0: runs(1.0, 1.1, 1.05, 1.2, 1.02)}) is None


def test_a_run_far_from_its_earlier_ones_is_a_drift() -> None:
    found = drift({0: runs(1.0, 1.01, 1.02, 1.0, 1.01), 9: runs(0.8, 0.81, 0.95, first=9)})
    assert found is not None and (found.program, found.experiment) == (9, 11)
    assert found.change == pytest.approx(0.145) and found.p_value < 0.001


def test_too_little_is_known_for_a_drift() -> None:
    assert drift({}) is None
    assert drift({0: runs(1.0)}) is None
    assert drift({0: runs(1.0, 1.01, 9.0)}) is None
    assert drift({0: runs(1.0, 1.01, 1.02, 1.0, 1.01), 9: runs(9.0, first=9)}) is None


# --- in the state ---------------------------------------------------------------------------------


def test_the_mean_of_fresh_runs_has_to_be_beaten() -> None:
    told = Told().baseline(2.0)
    assert told.state.frontier is not None and told.state.frontier.val_bpb == 2.0
    told.replicated(0, 2.2)
    assert told.state.frontier.val_bpb == told.state.baseline_bpb == pytest.approx(2.1)
    assert told.state.frontier.runs == 2


def test_the_run_that_a_keep_was_selected_by_is_not_among_them() -> None:
    told = Told().baseline(2.0).opened().kept(1.5)
    told.replicated(1, 1.8)
    assert told.state.frontier is not None and told.state.frontier.val_bpb == 1.5
    told.replicated(1, 1.9)
    assert told.state.frontier.val_bpb == pytest.approx(1.85)
    assert mean(told.state.runs[1]) == pytest.approx(1.85)


def test_a_replicate_is_neither_an_idea_nor_a_crash_to_repair() -> None:
    told = Told().baseline(2.0)
    told.again(0, slot=0).crashed(Cause.SYNTAX)
    state = told.state
    assert (state.candidates, state.replicates, state.to_repair) == (1, 1, None)
    assert state.verdicts.total() == 1 and state.notebook.read == 1
    assert state.runs[0] == [Run(0, 0, 2.0)]

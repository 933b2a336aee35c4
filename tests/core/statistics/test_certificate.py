"""What comes of a certificate, and what is due for it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from controller.core.events import (
    CertificateDecided,
    CertificateOpened,
    CertificateSettled,
    ProposalDropped,
)
from controller.core.plan import (
    Accept,
    Action,
    Ask,
    DecideCertificate,
    Drop,
    Move,
    OpenCertificate,
    SettleCertificate,
    Train,
    due,
    stop,
)
from controller.core.rules import KeepConfig, Limits
from controller.core.state import MERGE, REPLICATE
from controller.core.statistics.certificate import (
    FAILED_RUNS,
    SPARE_PAIRS,
    Certificate,
    CertifyConfig,
    PairRun,
    conclude,
    first_runs,
    note,
    weigh,
)
from controller.core.statistics.spread import Spread
from controller.core.values import Cause, Evidence, Verdict
from tests.core.telling import Told, at
from tests.support.efforts import fresh_rows

SPREAD = Spread(0.01, 20)
MOST = 12


def pairs(
    *scores: tuple[float | None, float | None], fresh: float | None = None, slot: int = 0
) -> Certificate:
    """(base, head) of each pair. `fresh`: how much better the head is on fresh rows."""
    certificate, number = Certificate(0, base=0, head=1), 10
    for pair, (base, head) in enumerate(scores):
        for is_head, score in ((False, base), (True, head)):
            level = None if fresh is None or score is None else 2.0 - fresh * is_head + 0.001 * pair
            certificate = certificate.with_run(PairRun(number, pair, is_head, slot, score, level))
            number += 1
    return certificate


def ended(certificate: Certificate, spread: Spread | None = SPREAD) -> str | None:
    found = conclude(certificate, spread, None, MOST)
    return None if found is None else found[0]


def test_a_gain_that_is_there_again_is_certified() -> None:
    certificate = pairs((2.0, 1.9), (2.01, 1.91))
    found = conclude(certificate, SPREAD, None, MOST)
    assert found is not None and found[0] == "certified"
    assert found[2].gain == pytest.approx(0.1) and found[2].e_value >= 100 and found[2].pairs == 2
    assert found[2].low is not None and found[2].high is not None
    assert 0.05 < found[2].low < 0.1 < found[2].high < 0.15


def test_a_small_gain_needs_more_pairs() -> None:
    assert ended(pairs((2.0, 1.98), (2.01, 1.99))) is None


def test_no_gain_is_hopeless_soon() -> None:
    assert ended(pairs((2.0, 2.01), (2.01, 2.0))) is None
    assert ended(pairs((2.0, 2.01), (2.01, 2.0), (2.0, 2.0))) == "failed"


def test_the_pairs_are_used_up() -> None:
    wavering = [(2.0, 1.98), (2.02, 1.99)] * (MOST // 2)
    assert ended(pairs(*wavering[:-1]), Spread(0.03, 20)) is None
    assert ended(pairs(*wavering), Spread(0.03, 20)) == "failed"


def test_a_head_must_not_choose_the_runs_that_count() -> None:
    good = [(2.0, 1.98)]
    assert ended(pairs(*good, *[(2.0, None)] * (FAILED_RUNS - 1))) is None
    assert ended(pairs(*good, *[(2.0, None)] * FAILED_RUNS)) == "failed"


def test_pairs_that_the_old_program_spoils_are_replaced_for_a_while() -> None:
    lost = [(None, 1.9)]
    assert ended(pairs(*lost * (MOST + SPARE_PAIRS - 1))) is None
    assert ended(pairs(*lost * (MOST + SPARE_PAIRS))) == "failed"


def test_half_a_pair_is_not_looked_at() -> None:
    whole = pairs((2.0, 1.98))
    half = whole.with_run(PairRun(20, 1, True, 0, 1.0))
    assert weigh(half, SPREAD, None) == weigh(whole, SPREAD, None)


def test_the_hold_out_may_contradict() -> None:
    gain = [(2.0, 1.9), (2.01, 1.91)]
    assert ended(pairs(*gain, fresh=0.1)) == "certified"
    found = conclude(pairs(*gain, fresh=-0.1), SPREAD, Spread(0.01, 20), MOST)
    assert found is not None and found[0] == "overfit" and "a loss on the hold-out" in found[1]


def test_the_sign_of_the_hold_out_counts_if_it_is_precise() -> None:
    gain = [(2.0, 1.9), (2.01, 1.91)]
    precise = conclude(pairs(*gain, fresh=-0.005), SPREAD, Spread(0.01, 20), MOST)
    vague = conclude(pairs(*gain, fresh=-0.005), SPREAD, Spread(0.3, 20), MOST)
    assert precise is not None and precise[0] == "overfit" and "too precise" in precise[1]
    assert vague is not None and vague[0] == "certified"


def test_an_old_program_that_became_worse_makes_no_gain() -> None:
    """It could go by the clock, and its successor leave that out."""
    certificate = pairs((2.0, 1.9), (2.01, 1.91))
    for earlier, outcome in (([1.9, 1.91], "failed"), ([2.0, 2.01], "certified"), ([2.1], "certified")):
        found = conclude(certificate, SPREAD, None, MOST, earlier)
        assert found is not None and found[0] == outcome
    recent = conclude(certificate, SPREAD, None, MOST, [1.9, 2.0, 2.01, 2.0, 2.01])
    assert recent is not None and recent[0] == "certified"


def test_a_pair_on_two_slots_is_replaced() -> None:
    certificate = pairs((2.0, 1.9))
    certificate = certificate.with_run(PairRun(20, 1, False, 0, 2.0)).with_run(PairRun(21, 1, True, 1, 1.9))
    assert len(certificate.pairs) == 2 and weigh(certificate, SPREAD, None).pairs == 1


def test_slots_are_compared_with_themselves() -> None:
    certificate = pairs((2.0, 1.9))
    for run in pairs((3.0, 2.91), slot=1).runs:
        certificate = certificate.with_run(PairRun(run.experiment, 1, run.is_head, 1, run.val_bpb))
    assert weigh(certificate, SPREAD, None).gain == pytest.approx(0.095)


def test_heads_run_first_and_second_in_turn() -> None:
    assert [first_runs(pair) for pair in range(3)] == [(True, False), (False, True), (True, False)]


def test_the_note_says_what_was_found() -> None:
    assert '"outcome": "certified"' in note(decided("certified"), "abc") and '"journal": "abc"' in note(
        decided("certified"), "abc"
    )


# --- what is due ----------------------------------------------------------------------------------

TWO = CertifyConfig(share=1.0, keeps=2)
FRESH = fresh_rows(0.0)
GENEROUS: dict[str, Any] = {"certify": TWO}
EVIDENCE = Evidence(
    pairs=2,
    gain=0.1,
    low=0.05,
    high=0.15,
    e_value=200.0,
    sigma=0.01,
    df=20,
    holdout_gain=None,
    holdout_low=None,
    holdout_high=None,
    holdout_e_against=1.0,
)


def decided(outcome: str, certificate: int = 0, base: int = 0, head: int = 2) -> CertificateDecided:
    return CertificateDecided.model_validate(
        {
            "certificate": certificate,
            "base": base,
            "head": head,
            "outcome": outcome,
            "rule": "as told",
            "evidence": EVIDENCE,
            "most_pairs": MOST,
        }
    )


def chain(keeps: int = 2) -> Told:
    """Experiment 0 is the baseline, 1, 2, … are kept."""
    told = Told().baseline(2.0)
    for number in range(keeps):
        told.opened().kept(1.9 - 0.1 * number)
    return told


def opened(keeps: int = 2) -> Told:
    return chain(keeps).tell(CertificateOpened(certificate=0, base=0, head=keeps))


def half(told: Told, pair: int, is_head: bool, slot: int | None = None) -> Told:
    """One run of a pair is asked for and made, and opened if a slot is named."""
    head = told.state.certificate.head if told.state.certificate else 0
    told.idea(REPLICATE, "replicate", repeats=head if is_head else 0, certificate=0, pair=pair)
    return told if slot is None else told.opened(slot, told.state.next_proposal - 1)


def run(told: Told, pair: int, is_head: bool, val_bpb: float) -> Told:
    return half(told, pair, is_head, slot=0).judged(val_bpb).decided(Verdict.DISCARD, Cause.REPLICATE)


def asks(pair: int, *heads: bool) -> list[Ask]:
    return [
        Ask(REPLICATE, "replicate", repeats=2 if is_head else 0, certificate=0, pair=pair)
        for is_head in heads
    ]


@pytest.mark.parametrize(
    ("told", "rules", "actions"),
    [
        (chain(), GENEROUS, [OpenCertificate(base=0, head=2)]),
        (chain(1), GENEROUS, [Ask("tuner", "propose")]),
        (chain(1), {"certify": TWO, "limits": Limits(2)}, [OpenCertificate(base=0, head=1)]),
        (chain(1), {"certify": TWO, "exhausted": "nothing left"}, [OpenCertificate(base=0, head=1)]),
        (chain(1), {"certify": TWO, "keep": KeepConfig(rule="certified")}, [OpenCertificate(base=0, head=1)]),
        (chain(), {"certify": CertifyConfig(share=0.0, keeps=1)}, [Ask("tuner", "propose")]),
        (chain(), {"certify": CertifyConfig(share=0.5, keeps=1)}, [Ask("tuner", "propose")]),
        (chain().tried(1), {"certify": CertifyConfig(share=0.5, keeps=1)}, [OpenCertificate(base=0, head=2)]),
        (
            chain(1).replicated(0, 2.001, 2.002, 1.999),
            {"certify": CertifyConfig(share=1.0)},
            [OpenCertificate(base=0, head=1)],
        ),
        (opened(), GENEROUS, asks(0, True, False)),
        (half(opened(), 0, True), GENEROUS, [Accept(3, 0), *asks(0, False)]),
        (half(half(opened(), 0, True), 0, False), GENEROUS, [Accept(3, 0)]),
        (half(half(opened(), 0, True, slot=0), 0, False), GENEROUS, [Train(3, 0)]),
        (half(run(opened(), 0, True, 1.8), 0, False), GENEROUS, [Accept(4, 0)]),
        (run(run(opened(), 0, True, 1.8), 0, False, 2.0), GENEROUS, asks(1, False, True)),
        (opened().tell(decided("certified")), GENEROUS, [SettleCertificate(0)]),
        (
            half(opened(), 0, True).tell(decided("failed"), CertificateSettled(certificate=0, commit="back")),
            GENEROUS,
            [Drop(3, "its certificate is decided")],
        ),
    ],
    ids=[
        "enough keeps",
        "not enough of them",
        "at the end one is enough",
        "or if the agent has nothing left",
        "or if each keep is to be certified",
        "no share",
        "runs have to be earned first",
        "and then it begins",
        "a great gain is enough",
        "both halves of a pair are asked for",
        "what is there is not asked for again",
        "the first half runs first",
        "the second one waits for its slot",
        "and takes it",
        "the next pair begins the other way round",
        "what is decided is settled before anything else",
        "what was asked for it is dropped",
    ],
)
def test_what_is_due(told: Told, rules: dict[str, Any], actions: list[Action]) -> None:
    assert due(told.state, at(**rules)) == actions


def test_a_pair_runs_on_one_slot_and_ideas_on_the_other() -> None:
    told = half(half(opened(), 0, True, slot=1), 0, False)
    assert due(told.state, at(slots=2, **GENEROUS)) == [Train(3, 1), *asks(1, False, True)]
    told = half(half(told, 1, False), 1, True)
    assert due(told.state, at(slots=2, **GENEROUS)) == [Train(3, 1), Accept(5, 0)]


def test_a_certificate_is_decided_by_its_pairs() -> None:
    told = opened().replicated(0, 2.001, 2.002, 1.999)
    for pair in range(2):
        for is_head in first_runs(pair):
            run(told, pair, is_head, 1.8 if is_head else 2.0)
    (action,) = due(told.state, at(**GENEROUS))
    assert isinstance(action, DecideCertificate) and action.event.outcome == "certified"


def test_the_last_idea_is_waited_for_before_the_last_certificate() -> None:
    told = chain(1).opened()
    rules: dict[str, Any] = {"certify": TWO, "limits": Limits(3)}
    assert due(told.state, at(slots=2, **rules)) == [Train(2, 0)]
    told.kept(1.7)
    assert due(told.state, at(slots=2, **rules)) == [OpenCertificate(base=0, head=2)]


def test_an_agent_with_nothing_left_leaves_no_chain_uncertified() -> None:
    left: dict[str, Any] = {"certify": TWO, "exhausted": "nothing left"}
    assert due(chain(1).state, at(**left)) == [OpenCertificate(base=0, head=1)]
    assert due(chain(1).idea().state, at(**left)) == [Accept(2, 0)]
    assert due(chain(1).opened().state, at(**left)) == [Train(2, 0)]
    assert stop(chain(1).state, at(**left)) is None


def test_the_second_half_waits_until_the_first_has_another_slot() -> None:
    told = half(half(opened(), 0, True, slot=1), 0, False)
    assert due(told.state, at(slots=1, **GENEROUS)) == [Move(3, 0)]


def test_an_effort_does_not_end_in_the_middle_of_one() -> None:
    assert stop(opened().state, at(limits=Limits(3), **GENEROUS)) is None
    assert stop(opened().state, at(exhausted="nothing left", **GENEROUS)) is None
    assert stop(chain(1).state, at(exhausted="nothing left", limits=Limits(2), **GENEROUS)) is None


# --- in the state ---------------------------------------------------------------------------------


def test_a_certified_head_is_what_the_next_chain_has_to_beat() -> None:
    told = opened().tell(decided("certified"), CertificateSettled(certificate=0, commit="c2"))
    state = told.state
    assert state.certified is not None and state.certified.experiment == 2
    assert (state.chain, state.fallen, state.certificate) == ([], {}, None)
    assert state.frontier is not None and state.frontier.experiment == 2


def test_a_keep_during_the_pairs_stays_provisional() -> None:
    told = opened().opened().kept(1.5)
    told.tell(decided("certified"), CertificateSettled(certificate=0, commit="c2"))
    assert told.state.chain == [3]


def test_a_chain_that_fails_is_taken_back() -> None:
    told = opened().replicated(0, 2.2)
    told.tell(decided("failed"), CertificateSettled(certificate=0, commit="back"))
    state = told.state
    assert state.frontier is not None and state.frontier.commit == "back"
    assert state.frontier.experiment == 0 and state.frontier.val_bpb == pytest.approx(2.1)
    assert (state.chain, state.fallen) == ([], {1: "c1", 2: "c2"})
    assert (state.to_merge, state.to_combine, state.to_repair) == ([], [], None)
    told.opened().kept(2.0)
    assert state.chain == [4]


def test_what_started_from_a_chain_that_was_taken_back_is_not_merged_with_what_is_left() -> None:
    told = opened().opened(slot=0)
    told.tell(decided("failed"), CertificateSettled(certificate=0, commit="back")).kept(1.5)
    assert told.state.to_merge == [] and told.state.chain == [3]


def test_what_was_asked_for_on_account_of_the_chain_is_not_wanted_again() -> None:
    told = opened().idea(MERGE, "merge", merges=1)
    number = told.state.next_proposal - 1
    told.tell(decided("failed"), CertificateSettled(certificate=0, commit="back"))
    told.tell(ProposalDropped(proposal=number, reason="stale"))
    assert (told.state.to_merge, told.state.to_combine) == ([], [])


def test_what_started_before_the_chain_has_nothing_to_be_merged_with_after_it() -> None:
    """It has the certified program's change, under another commit."""
    told = Told().baseline(2.0).opened(slot=1).opened(slot=0).kept(1.9, of=2)
    told.tell(CertificateOpened(certificate=0, base=0, head=2), decided("failed", head=2))
    told.tell(CertificateSettled(certificate=0, commit="back")).kept(1.8, of=1)
    assert told.state.to_merge == [] and told.state.chain == [1]


def test_the_lineage_ends_where_the_certified_head_does() -> None:
    told = Told().baseline(2.0)
    told.state.lineage.append(FRESH)
    told.opened().kept(1.9)  # whose score says nothing of fresh rows
    told.tell(CertificateOpened(certificate=0, base=0, head=1), decided("failed", head=1))
    told.tell(CertificateSettled(certificate=0, commit="back"))
    assert told.state.lineage == [FRESH]


def test_a_margin_comes_from_the_spread() -> None:
    told = Told().baseline(2.0).replicated(0, 2.02, 1.98, 2.0)
    sigma = math.sqrt((2 * 0.02**2) / 3)
    assert told.state.margin(KeepConfig(rule="margin", margin=2.0)) == pytest.approx(2 * sigma)
    assert told.state.margin(KeepConfig()) == 0.0
    assert Told().baseline().state.margin(KeepConfig(rule="margin")) == 0.0

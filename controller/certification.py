"""What is done with certificates: they are opened, decided and settled, on record and in the repository."""

from __future__ import annotations

from controller.core import plan
from controller.core.events import CertificateDecided, CertificateOpened, CertificateSettled
from controller.core.plan import OnCertificate
from controller.core.statistics.certificate import note, taken_back
from controller.ports import Repository
from controller.store.effort import Effort


def perform(effort: Effort, repository: Repository, action: OnCertificate) -> None:
    """The caller holds the effort's lock. Raises InfrastructureError."""
    match action:
        case plan.OpenCertificate(base=base, head=head):
            number = len(effort.state.certificates)
            effort.record(CertificateOpened(certificate=number, base=base, head=head))
        case plan.DecideCertificate(event=event):
            effort.record(event)
        case plan.SettleCertificate():
            _settle(effort, repository)


def _settle(effort: Effort, repository: Repository) -> None:
    state, decided = effort.state, effort.state.unsettled
    assert decided is not None and state.certified is not None
    if decided.outcome == "certified":
        commit = state.experiments[decided.head].commit or ""
        repository.certify(commit, note(decided, state.head))
    else:
        trailers = _trailers(decided, state.head)
        commit = repository.take_back(state.certified.commit, taken_back(decided), trailers)
    effort.record(CertificateSettled(certificate=decided.certificate, commit=commit))


def _trailers(decided: CertificateDecided, head: str) -> dict[str, str]:
    return {
        "Certificate": str(decided.certificate),
        "Outcome": decided.outcome,
        "Back-To": str(decided.base),
        "Journal": head,
    }

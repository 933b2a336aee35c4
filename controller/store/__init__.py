"""A home on disk: journal, snapshot, ledger, runs, repository, retention, verification."""

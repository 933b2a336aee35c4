"""Who hears of events while they happen: terminal, log, heartbeat, notifications."""

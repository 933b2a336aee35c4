"""Training, scoring and rehearsal in containers, and the monitor of the machine they run on."""

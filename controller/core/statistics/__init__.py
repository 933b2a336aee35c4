"""What differences between noisy scores are worth: replicates, spread, evidence, certificates. Pure."""

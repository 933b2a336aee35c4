"""What differences between noisy scores are worth: spread, evidence, intervals. Pure."""

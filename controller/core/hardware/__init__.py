"""GPUs and CPUs: what the tools say about them, and whether a run was disturbed."""

"""GPUs and CPUs: parsing the tools' output, and detecting noisy neighbours."""

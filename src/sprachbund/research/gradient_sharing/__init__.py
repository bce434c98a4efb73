"""Gradient-driven sharing: gradients decide which layers split, by which groups, how wide (arXiv 2603.25836)."""

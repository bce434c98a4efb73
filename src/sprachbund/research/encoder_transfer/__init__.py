"""Encoder transfer: warm starts over data, latency and bits (arXiv 2606.24169)."""

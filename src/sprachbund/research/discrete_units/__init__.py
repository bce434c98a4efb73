"""Discrete units with hard parameter sharing (arXiv 2309.15826)."""

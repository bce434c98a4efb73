"""One file per system, read top to bottom."""

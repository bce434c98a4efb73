"""Studies of what a start, an amount of data, a latency and a number of bits are worth (arXiv 2606.24169)."""

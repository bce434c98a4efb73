"""Test set-up shared by all rooms."""

import torch

# Tiny models are faster on one thread, and the tests of a busy machine then do not wait for each other.
torch.set_num_threads(1)

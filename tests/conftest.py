"""Settings of every test."""

import torch

# Models this small run faster on one thread, and a busy machine slows them less.
torch.set_num_threads(1)

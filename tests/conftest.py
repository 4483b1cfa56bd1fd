"""Settings of every test."""

import torch

from secateur.reporting.style import STYLE

# Models this small run faster on one thread, and a busy machine slows them less.
torch.set_num_threads(1)

# Fonts of PDF figures as outlines: embedding them whole, as reports do, takes longer than all the rest of a report.
STYLE["pdf.fonttype"] = 3

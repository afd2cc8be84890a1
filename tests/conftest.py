"""Settings for all tests."""

import torch

torch.set_num_threads(1)  # the tests run in one process per core

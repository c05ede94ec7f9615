"""The one question that divides the code paths: may the host look at a tensor in the middle of a step?"""

import torch


def can_look(device: torch.device) -> bool:
    """True: rows are compacted by index, and work that no row needs is skipped; shapes depend on the data.

    False: looking would wait for the device (about 1 ms) and cannot be captured in a CUDA graph. Shapes are fixed, no
    value is read, rows that need nothing are skipped on the device or computed for nothing.
    """
    return device.type == "cpu"

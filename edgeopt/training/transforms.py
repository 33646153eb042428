"""Whether one is inside a transform of `torch.func`."""

import torch


def in_transform() -> bool:
    """Return whether this runs inside `torch.func.vmap` or another of its transforms.

    Elsewhere tensors are ordinary ones: they can be changed in place, and autograd keeps what one backward pass needs.
    """
    return torch._C._functorch.maybe_current_level() is not None

"""What other libraries say when they are imported. Programs may silence it; the library leaves its
host process alone."""

import logging

# transformers imports torchao where it is installed. torchao then warns of each CUDA kernel that a
# CPU build of torch cannot load, and torch of how torchao registers its enums.
TALKATIVE = ("torchao", "torch.utils._pytree")


def quiet_imports() -> None:
    """Errors are still reported. For the top of a program, before torch is imported."""
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)

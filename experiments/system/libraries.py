"""What programs set in the libraries that they use, before the first model is loaded; and waiting
for a device."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def quiet_transformers() -> None:
    """No progress bars and no advice; errors are still reported."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def check_threads(threads: int | None) -> None:
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be >= 1, or null for torch's default, got {threads}")


def set_threads(threads: int | None) -> None:
    """How many processor threads torch takes for an operation. None leaves its default."""
    check_threads(threads)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def synchronize(device: "torch.device") -> None:
    """Wait until the device has done what it was given, so that a clock may be read."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)

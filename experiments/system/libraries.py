"""What programs set in the libraries that they use, before the first model is loaded; and waiting
for a device."""

from typing import TYPE_CHECKING

from specdec.threads import threads_for

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


def set_threads(threads: int | None, target: str = "") -> None:
    """How many processor threads torch takes for an operation. None: one for a target whose weights
    are small, else torch's default (`specdec.threads`)."""
    check_threads(threads)
    threads = threads_for(target) if threads is None and target else threads
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def synchronize(device: "torch.device") -> None:
    """Wait until the device has done what it was given, so that a clock may be read."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)

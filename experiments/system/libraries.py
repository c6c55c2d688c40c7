"""What programs set in the libraries that they use, before the first model is loaded; and waiting
for a device."""

from typing import TYPE_CHECKING

from specdec.threads import choose, fit

if TYPE_CHECKING:
    import torch

    from specdec import TransformersLM


def quiet_transformers() -> None:
    """No progress bars and no advice; errors are still reported."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def check_threads(threads: int | None) -> None:
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be >= 1, or null to have them chosen, got {threads}")


def set_threads(threads: int | None, target: "TransformersLM | None" = None) -> None:
    """How many processor threads torch takes for an operation. None: as many as make passes of the
    loaded target fastest; without a target, torch's default (`specdec.threads`)."""
    check_threads(threads)
    if threads is None and target is not None:
        fit(target)
    else:
        choose(threads)


def synchronize(device: "torch.device") -> None:
    """Wait until the device has done what it was given, so that a clock may be read."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)

"""Watching a training run: its logger, and a picture of the log at the end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.report import logger

Entry = dict[str, float]


@contextmanager
def reporting(config: DictConfig | None) -> Iterator[Callable[[Entry], None]]:
    """Hands out what takes each entry of the log. None: of several processes, this one does not
    report."""
    if config is None or config.logger is None:
        yield lambda entry: None
        return
    whole: Any = OmegaConf.to_container(config, resolve=True)
    with logger.opened(whole["logger"], config.title, Path(config.output), whole) as run:
        yield lambda entry: run.log(
            {key: value for key, value in entry.items() if key != "step"}, step=entry["step"]
        )


def curves(log: list[Entry], path: Path, title: str) -> None:
    """The loss, and below it what acceptance was measured by, against steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shares = [name for name in log[-1] if name.startswith(("top1", "agreement", "overlap"))]
    others = [name for name in log[-1] if name in ("tau", "bits_per_byte", "nats_per_token", "kl")]
    panels = [
        (["loss"], "loss"),
        *([(others[:1], others[0])] if others else []),
        *([(shares, "share")] if shares else []),
    ]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(6, 2.3 * len(panels)), sharex=True, squeeze=False
    )
    steps = [entry["step"] for entry in log]
    for axis, (names, label) in zip(axes[:, 0], panels, strict=True):
        for name, style in zip(names, ("-o", "--s", ":^", "-.d", "-v", "--<", ":>"), strict=False):
            axis.plot(
                steps,
                [entry[name] for entry in log],
                style,
                markersize=3,
                label=name.replace("_", " "),
            )
        axis.set_ylabel(label.replace("_", " "))
        if len(names) > 1:
            axis.legend(fontsize=7, ncols=2)
        axis.grid(alpha=0.3)
    axes[0, 0].set_title(f"training of {title}")
    axes[-1, 0].set_xlabel("step")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)

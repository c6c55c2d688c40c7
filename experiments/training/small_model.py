"""A draft model distilled from its target at every position of text (DistillSpec 2310.08461; its
forward KL is the default)."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from experiments.training.losses import distance
from experiments.training.text import Stream


def start_from(draft: PreTrainedModel, target: PreTrainedModel) -> None:
    """The draft's embedding begins as the principal components of the target's, scaled to its own
    initial size."""
    wide = target.get_input_embeddings().weight.detach().float()
    narrow = draft.get_input_embeddings().weight
    if wide.shape[1] < narrow.shape[1]:
        return
    left, scale, _ = torch.linalg.svd(wide - wide.mean(0), full_matrices=False)
    components = left[:, : narrow.shape[1]] * scale[: narrow.shape[1]]
    with torch.no_grad():
        narrow.copy_(components * narrow.std() / components.std())


def loss(draft: nn.Module, target: nn.Module, ids: Tensor, kind: str) -> Tensor:
    """Mean distance (`experiments.training.losses`) of q to p over the positions of ids (B, T)."""
    with torch.no_grad():
        p = target(input_ids=ids, use_cache=False).logits.float().softmax(-1)
    logits = draft(input_ids=ids, use_cache=False).logits
    return distance(p.flatten(0, 1), logits.flatten(0, 1), kind).mean()


def agreement(
    draft: nn.Module, target: nn.Module, stream: Stream, context: int, windows: int
) -> dict[str, float]:
    """On held-out text: the share of positions with one argmax, the overlap sum(min(p, q)), and the
    KL."""
    windows = min(windows, len(stream.ids) // context)
    ids = torch.from_numpy(
        stream.ids[: windows * context].reshape(windows, context).astype("int64")
    )
    same = overlap = kl = 0.0
    for rows in ids.split(8):
        rows = rows.to(next(draft.parameters()).device)
        with torch.autocast(rows.device.type, torch.bfloat16):
            p, q = (
                model(input_ids=rows, use_cache=False).logits.float().log_softmax(-1)
                for model in (target, draft)
            )
        share = len(rows) / windows
        same += float((p.argmax(-1) == q.argmax(-1)).float().mean()) * share
        overlap += float(torch.minimum(p.exp(), q.exp()).sum(-1).mean()) * share
        kl += float((p.exp() * (p - q)).sum(-1).mean()) * share
    return {"agreement": same, "overlap": overlap, "kl": kl}

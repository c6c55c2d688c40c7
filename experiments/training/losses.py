"""What a head is trained for: to guess the target's law. alpha = sum_x min(p(x), q(x)) is the share
of drafts that a lossless rule accepts (Leviathan et al. 2211.17192, theorem 3.5), so two of the
losses aim at it directly (2602.23881).

Letters: n positions, V vocabulary (of the head, which may be a part of the target's).
"""

import torch
from torch import Tensor

LOSSES = ("ce", "kl", "tv", "hybrid", "dspark")


def distance(p: Tensor, logits: Tensor, loss: str) -> Tensor:
    """(n,) loss of logits (n, V) against laws p (n, V), which sum to less than 1 where the head
    lacks tokens.

    ce      cross-entropy with the target's most probable token
    kl      KL(p || q) in nats
    tv      total variation 1 - alpha
    hybrid  lambda KL + (1 - lambda) TV with lambda = exp(-3 alpha), alpha not differentiated: KL
            while the head is far off, where TV has no slope, TV when it is close (2602.23881)
    dspark  0.1 KL + 0.9 L1, where L1 = sum |p - q| (2607.05147, with the cross-entropy between p
            and q in place of KL: they differ by p's own entropy, which has no slope)
    """
    log_q = logits.float().log_softmax(-1)
    if loss == "ce":
        return -log_q.gather(-1, p.argmax(-1, keepdim=True))[..., 0]
    if loss == "tv":
        return 1 - torch.minimum(p, log_q.exp()).sum(-1)
    divergence = (p * (p.clamp(min=1e-20).log() - log_q)).sum(-1)
    if loss == "dspark":
        return 0.1 * divergence + 0.9 * (p - log_q.exp()).abs().sum(-1)
    if loss == "kl":
        return divergence
    if loss != "hybrid":
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    alpha = torch.minimum(p, log_q.exp()).sum(-1)
    share = torch.exp(-3 * alpha.detach())
    return share * divergence + (1 - share) * (1 - alpha)


def mass_by_rank(p: Tensor, logits: Tensor, ranks: int) -> Tensor:
    """(ranks,) mean probability under p (n, V) of the token that the head ranks r-th: how often
    that draft is right; zero of no positions."""
    if not len(p):
        return p.new_zeros(min(ranks, logits.shape[-1]))
    best = logits.topk(min(ranks, logits.shape[-1]), -1).indices
    return p.gather(-1, best).mean(0)

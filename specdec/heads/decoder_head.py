"""Heads that run inside a transformers decoder of their own."""

from collections.abc import Callable
from typing import Self

from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel

from specdec.heads.head import Head
from specdec.models import attention


class DecoderHead(Head):
    """A head with a decoder: what holds for it as a module."""

    decoder: PreTrainedModel

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As in any module (for `to` and similar), except that frequencies stay as exact as in the
        target: rounding them to 16 bits would change RoPE's rotation at position 100."""
        exact = {name: buffer for name, buffer in self.named_buffers() if name.endswith("inv_freq")}
        Module._apply(self, fn, recurse)
        for name, buffer in exact.items():
            module, _, own = name.rpartition(".")
            setattr(self.get_submodule(module), own, buffer.to(fn(buffer).device))
        return self

    def runner(self) -> Self:
        """The same weights in separate shells, with the attention used for drafting. For one run
        only, since a pass leaves traces in its shells."""
        shell: Self = attention.shallow(self)
        shell._modules["decoder"] = attention.rewired(self.decoder, attention.choose(self.decoder))
        return shell

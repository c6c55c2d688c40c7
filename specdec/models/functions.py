"""A function of tensors alone, compiled where the passes of the target are: for heads that keep no
memory.

Letters: B rows.
"""

import time
from collections.abc import Callable, Hashable
from warnings import warn

from torch import Tensor

from specdec.interfaces import Compile, CompiledPass
from specdec.models import compiled
from specdec.models.whole import Function


class CompiledFunctions:
    """What was compiled, by what it was compiled for. Kept for all runs to come."""

    def __init__(self) -> None:
        self.made: dict[Hashable, Function] = {}
        self.why_not: str | None = None


class RunOf:
    """The calls of one run (`specdec.interfaces.OpenedCompiled`). `function(*tensors)`; key:
    whatever it depends on besides them."""

    nbytes = 0

    def __init__(
        self,
        name: str,
        function: Callable[..., Tensor],
        key: Hashable,
        kept: CompiledFunctions,
        compile: Compile,
    ) -> None:
        self.name, self.forward_seconds = name, 0.0
        self.compiled: list[CompiledPass] = []
        self._function, self._key, self._kept, self._compile = function, key, kept, compile

    def __call__(self, *arguments: Tensor) -> Tensor:
        function = self._made(arguments) if self._compile else self._function
        began = time.perf_counter()
        out: Tensor = function(*arguments)
        self.forward_seconds += time.perf_counter() - began
        return out

    def close(self) -> None:
        """There is nothing to free."""

    def reserve(self, slots: int) -> None:
        """There is no memory."""

    def _made(self, arguments: tuple[Tensor, ...]) -> Function:
        kept = self._kept
        key = (self._key, tuple(each.shape for each in arguments))
        if key not in kept.made and kept.why_not is None:
            rows = arguments[0].shape[0]
            began = time.perf_counter()
            try:
                function = compiled.first_call(
                    CompiledPass(self.name, 1, rows, 0, 0.0),
                    lambda: compiled.built(compiled.alone(self._function), {}),
                    arguments,
                )
            except Exception as error:  # whatever tracing, a compiler or a driver raises
                kept.why_not = compiled.reason(error)
                if self._compile == "require":
                    raise ValueError(
                        f"{self.name}: it cannot be compiled ({kept.why_not}), and "
                        "compile='require' of the target asks for it; load the target without"
                    ) from None
                warn(
                    f"{self.name}: it cannot be compiled ({kept.why_not}); it runs uncompiled",
                    stacklevel=3,
                )
            else:
                kept.made[key] = function
                seconds = time.perf_counter() - began
                self.compiled.append(CompiledPass(self.name, 1, rows, 0, seconds))
        return kept.made.get(key, self._function)

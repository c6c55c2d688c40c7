"""A decoder's passes compiled, one for each shape: so many nodes, rows and slots of memory.

Lengths, places, pages and ancestors are tensors inside, so a decode meets few shapes: its nodes are
padded to a bucket, a row of its memory has a power of two of slots. What padding writes goes to the
row's last slot, or to the scratch page of a pool, which nobody reads. Passes of other shapes (long
prompts, trees of more than `WIDEST` nodes) run as they are.

On a CPU the weights are packed when a pass is compiled ("freezing"): later changes of the weights
are not seen. On CUDA the compiled pass is captured as a graph, over buffers that stay where they
are.

Letters: B rows, n nodes of one pass (padded), W = WIDEST nodes of its tree, T slots.
"""

import sys
import threading
import time
import types
from collections.abc import Callable, Hashable
from types import SimpleNamespace
from typing import Any, NamedTuple
from warnings import catch_warnings, simplefilter, warn

import torch
from torch import Tensor
from torch._inductor import config as inductor
from torch.nn import Module

from specdec.errors import did_you_mean
from specdec.interfaces import Compile, CompiledPass
from specdec.models.capture import Captured
from specdec.models.fixed import FixedPages, FixedSlots
from specdec.models.masks import WIDEST, masks_at, tree_of
from specdec.models.memory import Few, Forward, Layout, Memory, Pass, as_it_is
from specdec.models.whole import Function, Passes, Piece, Whole, padded, traced

NODES = (1, 2, 4, 8, 16, 24, 32, WIDEST)  # what the nodes of a pass are padded to
OFTEN = 4  # passes of one shape in a run, from which on a larger one does not do
SHALLOW = 12  # layers up to which the code around the kernels is compiled too
LOOPED = 2  # a draft as a whole may have so many times more
CAPTURES = {"cuda"}  # devices on which a compiled pass is captured as a graph


def compile_mode(value: Any) -> Compile:
    """Raises ValueError for what is no setting of `compile`."""
    if value is None or isinstance(value, bool):
        return value
    if value == "require":
        return "require"
    hint = did_you_mean(value, ["require"]) if isinstance(value, str) else ""
    raise ValueError(f"compile must be True, False, 'require' or None, got {value!r}{hint}")


# Recording and compiling change what modules and compiled functions of the process do.
_compiling = threading.RLock()
_idle = threading.Event()  # nothing is being recorded
_idle.set()


class Shape(NamedTuple):
    """What a compiled pass is made for."""

    nodes: int
    rows: int
    slots: int
    form: Hashable  # of the memory (`Memory.form`)
    options: tuple[tuple[str, Any], ...]  # arguments of the model that are no tensors


class CompiledModel:
    """A decoder whose passes over few tokens are compiled. Make one per module: it keeps what was
    compiled for all runs to come."""

    def __init__(self, module: Module, layout: Layout, dtype: torch.dtype) -> None:
        self.module, self.layout, self.dtype = module, layout, dtype
        self._passes: dict[Shape, Callable[..., Any]] = {}
        self._pieces: dict[Hashable, Whole] = {}
        self._lock = threading.RLock()  # of what is compiled
        self._why_not: str | None = None  # why its passes cannot be compiled
        self._no_pieces = False  # and why no drafts as a whole
        self._warned: set[str] = set()

    @property
    def shapes(self) -> list[Shape]:
        """Of the passes that are compiled so far."""
        return list(self._passes)

    def forward(self, required: bool, module: Module | None = None) -> Forward:
        """Its passes, for `Memory.run`. required: an error where one cannot be compiled; else there
        is a warning, and they run as they are. module: in whose shells they do so, if passes leave
        traces there."""
        plain = as_it_is(module or self.module)

        def forward(memory: Memory, over: Pass, inputs: dict[str, Any]) -> Any:
            if over.few is None or not self._can(over.few, required):
                return plain(memory, over, inputs)
            out = self._run(memory, over.few, inputs, required)
            return plain(memory, over, inputs) if out is None else out

        return forward

    def _can(self, few: Few, required: bool) -> bool:
        nodes = few.structure.num_nodes
        if nodes > WIDEST:
            self._warn_once(f"a tree of {nodes} nodes runs uncompiled: the most is {WIDEST}")
        elif self._why_not is not None:
            self._cannot(required)
        return nodes <= WIDEST and self._why_not is None

    def _run(self, memory: Memory, few: Few, inputs: dict[str, Any], required: bool) -> Any:
        """A compiled pass. None if it cannot be compiled."""
        nodes = few.structure.num_nodes
        memory.make_room(max(few.first) + nodes)
        tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        options = tuple((name, value) for name, value in inputs.items() if name not in tensors)
        count = nodes - few.start
        shape = self._shape(count, memory, options)
        arguments = (
            {name: padded(value, shape.nodes) for name, value in tensors.items()},
            *tree_of(few.structure, few.start, shape.nodes),
            torch.tensor([*few.first, few.start, count], device=memory.device),
            memory.addresses(),
        )
        if shape not in self._passes:
            try:
                self._make(shape, memory, arguments)
            except Exception as error:  # whatever tracing, a compiler or a driver raises
                self._why_not = reason(error)
                self._cannot(required)
                return None
        with memory.timed():
            found = self._call(shape, self._passes[shape], memory, arguments)
        if isinstance(found, Tensor):
            return found[:, :count]
        logits, hidden = found
        states = tuple(each[:, :count] for each in hidden)
        return SimpleNamespace(logits=logits[:, :count], hidden_states=states)

    def _shape(self, count: int, memory: Memory, options: tuple[tuple[str, Any], ...]) -> Shape:
        """A larger one that is there already serves a shape that a run needs now and then: trees
        are smaller where a text ends, and compiling takes thousands of passes' time."""
        memory_of = memory.rows, memory.slots, memory.form
        fits = (Shape(n, *memory_of, options) for n in NODES if n >= count)
        exact = next(fits)
        if exact in self._passes:
            return exact
        memory.uses[self, exact] += 1
        if memory.uses[self, exact] >= OFTEN:
            return exact
        return next((larger for larger in fits if larger in self._passes), exact)

    def _make(self, shape: Shape, memory: Memory, arguments: Any) -> None:
        """Compile, and run once: compilers work at the first call."""
        with self._lock:
            if shape in self._passes:
                return
            nodes, rows, slots, _, options = shape
            made = CompiledPass(self.layout.name, nodes, rows, slots, 0.0)

            def make() -> Callable[..., Any]:
                one_pass = alone(self._traced(slots, options))
                return built(one_pass, self._options(memory.device, len(self.layout.shapes)))

            self._passes[shape] = self._compiled(made, make, memory, arguments)

    def _compiled(
        self, made: CompiledPass, make: Callable[[], Function], memory: Memory, arguments: Any
    ) -> Function:
        """What `make` gives, called once; reported as `made`."""
        began = time.perf_counter()
        function = first_call(made, make, (*arguments, memory.views))
        memory.compiled.append(made._replace(seconds=time.perf_counter() - began))
        return function

    def _options(self, device: torch.device, layers: int) -> dict[str, Any]:
        """Of Inductor. A C++ wrapper around the kernels saves a few per cent of a pass; its compile
        time grows faster than the number of layers."""
        if device.type != "cpu":
            return {}
        return {"freezing": True, "cpp_wrapper": layers <= SHALLOW}

    def _call(self, key: Hashable, function: Function, memory: Memory, arguments: Any) -> Any:
        if memory.device.type not in CAPTURES:
            return function(*arguments, memory.views)
        if (self, key) not in memory.graphs:
            views = memory.views
            memory.graphs[self, key] = Captured(lambda *given: function(*given, views), arguments)
        return memory.graphs[self, key](arguments)

    def _traced(self, slots: int, options: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
        """The pass as a function of tensors alone."""
        module, layout, dtype = self.module, self.layout, self.dtype
        scratch, settings = slots - 1, dict(options)

        def one_pass(
            inputs: dict[str, Tensor],
            depths: Tensor,
            ancestors: Tensor,
            where: Tensor,
            addresses: tuple[Tensor, ...],
            views: list[list[Tensor]],
        ) -> Any:
            rows, nodes = ancestors.shape[:2]
            first, start, count = where[:rows, None], where[rows], where[rows + 1 :, None]
            numbers = torch.arange(nodes, device=where.device)
            own = (start + numbers).clamp(max=WIDEST - 1).expand(rows, -1)
            positions = first + depths.gather(1, own)
            written = torch.where(numbers < count, first + start + numbers, scratch)
            kind = FixedPages if addresses else FixedSlots
            seen = masks_at(layout.kinds, ancestors, depths, first, positions, scratch + 1, dtype)
            out = module(
                **inputs,
                **settings,
                position_ids=positions.clamp(max=layout.context - 1),
                attention_mask=seen,
                past_key_values=kind(views, slots, written, *addresses),
                use_cache=True,
            )
            return out if isinstance(out, Tensor) else (out.logits, out.hidden_states or ())

        return one_pass

    # --------------------------------------------------------------------------- drafts as a whole

    def at_once(self, memory: Memory, piece: Piece) -> tuple[list[Tensor], Any] | None:
        """What `piece` makes of new tokens, as one compiled function; they are committed. None
        where that cannot be: then the passes are run one by one."""
        if self._why_not is not None or self._no_pieces:
            return None
        memory.claim(piece.counts, piece.nodes)
        key = (piece.key, memory.rows, memory.slots, memory.form)
        places = torch.tensor([memory.lengths, piece.counts], device=memory.device)
        arguments = (places, piece.inputs, memory.addresses())
        if key not in self._pieces:
            try:
                self._make_whole(key, memory, piece, arguments)
            except Exception as error:  # as above
                self._no_pieces = True
                self._warn_once(f"drafts cannot be compiled as a whole ({reason(error)})")
                return None
        whole = self._pieces[key]
        with memory.timed():
            tensors = self._call(key, whole.function, memory, arguments)
        memory.calls += piece.steps
        memory.commit(piece.counts, root=piece.root, nodes=piece.nodes)
        return tensors, whole.facts[0]

    def _make_whole(self, key: Hashable, memory: Memory, piece: Piece, arguments: Any) -> None:
        with self._lock:
            if key in self._pieces:
                return
            facts: list[Any] = []  # what the piece says besides its tensors, known once it has run
            one_pass = self._traced(memory.slots, ())

            def whole(
                places: Tensor,
                inputs: dict[str, Tensor],
                addresses: tuple[Tensor, ...],
                views: list[list[Tensor]],
            ) -> list[Tensor]:
                passes = Passes(one_pass, places[0], places[1], (addresses, views))
                tensors, said = piece.make(passes, inputs)
                facts[:] = [said]
                return tensors

            def make() -> Function:
                layers = piece.steps * len(self.layout.shapes)
                options = self._options(memory.device, layers // LOOPED)
                return recorded(whole, (*arguments, memory.views), options)

            nodes = piece.nodes
            made = CompiledPass(
                self.layout.name, nodes, memory.rows, memory.slots, 0.0, piece.steps
            )
            function = self._compiled(made, make, memory, arguments)
            self._pieces[key] = Whole(function, facts)

    # ------------------------------------------------------------------------------- when it fails

    def _cannot(self, required: bool) -> None:
        what = f"it cannot be compiled ({self._why_not})"
        if required:
            raise ValueError(
                f"{self.layout.name}: {what}, and compile='require' asks for it; load it without"
            )
        self._warn_once(f"{what}; its passes run uncompiled")

    def _warn_once(self, what: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warn(f"{self.layout.name}: {what}", stacklevel=2)


def first_call(made: CompiledPass, make: Callable[[], Function], arguments: Any) -> Function:
    """What `make` gives, called once, since compilers work at the first call; a line tells of
    it."""
    steps = f" steps={made.steps}" if made.steps > 1 else ""
    print(
        f"compiling {made.model}: nodes={made.nodes} rows={made.rows} slots={made.slots}"
        f"{steps} ...",
        file=sys.stderr,
        flush=True,
    )
    with catch_warnings():
        simplefilter("ignore")  # of compilers, about themselves
        function = make()
        function(*arguments)
    return function


def reason(error: Exception) -> str:
    """In one line: a compiler's error begins with whose it is, and goes on for pages."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    while said and said[0].endswith(":"):
        said = [" ".join(said[:2]), *said[2:]] if len(said) > 1 else [said[0].rstrip(":")]
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def recorded(function: Function, arguments: tuple[Any, ...], options: dict[str, Any]) -> Function:
    """What `function` does to these arguments, compiled at its first call."""
    with _compiling:
        _idle.clear()
        try:
            graph = traced(function, arguments)
        finally:
            _idle.set()
    return built(graph, options)


def built(function: Function, options: dict[str, Any]) -> Function:
    """`function`, compiled at its first call for the shapes that it then gets."""
    # Each shape has a function of its own; nothing else ever changes.
    options = {**options, "guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
    compiled: Function = torch.compile(function, dynamic=False, fullgraph=True, options=options)
    frozen, first = bool(options.get("freezing")), [True]

    def call(*arguments: Any) -> Any:
        if not first:
            _idle.wait()
            return compiled(*arguments)
        # Whether weights become constants is decided before a backend sees its options.
        with _compiling, inductor.patch(freezing=frozen):
            out = compiled(*arguments)
        first.clear()
        return out

    return call


def alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with a code object of its own: what is compiled is kept by code object, and
    without guards one pass would be taken for another."""
    assert isinstance(function, types.FunctionType)
    return types.FunctionType(
        function.__code__.replace(), function.__globals__, closure=function.__closure__
    )

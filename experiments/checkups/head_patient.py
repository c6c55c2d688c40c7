"""A folder of a trained head with a target, and the ways in which its files could be read.

A convention that is off by one still drafts, and loses nothing but speed. So each other reading is
decoded too, on the same prompts: tau shows which one the head was trained for.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch

import specdec
from experiments.checkups.acceptance import table_of
from experiments.checkups.patient import Patient
from experiments.measuring.play import Play
from experiments.measuring.ways import Sample
from experiments.prompts.conversation import uses_chat
from experiments.training.teacher import Teacher
from specdec.heads.block import BlockHead
from specdec.heads.head import Head
from specdec.heads.recognised import Recognised
from specdec.interfaces import Tap
from specdec.plugins import build, construct
from specdec.registry import described

AS_IT_IS = "as it is"
LOWER, HIGHER = "layer ids one lower", "layer ids one higher"
SHORTEST = 8  # tokens of a text that a head is tried on, and a block more
ANCHOR, OTHER_PROMPTS = "the other anchor convention", "the other form of prompts"


@dataclass(frozen=True)
class Reading:
    """settings: of the head, in place of what its files say. chat: through the chat template or
    not; None: as the patient's prompts."""

    said: str  # "with all layer ids one lower"
    settings: Mapping[str, Any] = field(default_factory=dict)
    chat: bool | None = None


@dataclass(frozen=True)
class Tau:
    """What a reading gave; `refused` is the reason why it could not be decoded."""

    tau: float | None = None
    per_prompt: tuple[float, ...] = ()
    # how often the first guess is right, in plain passes over a text; None: none is long enough
    right: float | None = None
    refused: str | None = None


@dataclass(frozen=True)
class HeadPatient(Patient):
    """drafter: as `drafter_of` makes it from `found`."""

    found: Recognised | None = None

    @cached_property
    def recognised(self) -> Recognised:
        assert self.found is not None
        return self.found

    @cached_property
    def loaded(self) -> Head:
        """The drafter's."""
        heads = vars(self.method)["heads"]
        assert isinstance(heads, Head)
        return heads

    @cached_property
    def head(self) -> Head:
        """A copy for plain passes over a text."""
        return everywhere(reread(self.loaded, {}), self.target.context)

    @cached_property
    def taps(self) -> list[Tap]:
        """What the head reads, also where its file leaves that to the target."""
        try:
            return list(self.loaded.taps_for(self.target))
        except ValueError:  # layers that the target does not have
            return list(self.loaded.taps)

    @cached_property
    def through_template(self) -> bool:
        return uses_chat(self.target.tokenizer, self.chat)

    @cached_property
    def readings(self) -> dict[str, Reading]:
        """By name, the file's own first."""
        found = {AS_IT_IS: Reading("as the file says")}
        if "taps" in self.loaded.settings:
            for name, step in ((LOWER, -1), (HIGHER, 1)):
                taps = [tap + step if isinstance(tap, int) else tap for tap in self.taps]
                if taps != self.taps and self._has_layers(taps):
                    found[name] = Reading(f"with all {name}", {"taps": taps})
        if isinstance(self.loaded, BlockHead) and (other := turned(self.loaded)):
            guesses = "guesses" if other["from_anchor"] else "guesses nothing"
            value = str(other["from_anchor"]).lower()
            said = f"with a root whose place {guesses} (sample_from_anchor {value})"
            found[ANCHOR] = Reading(said, other)
        if getattr(self.target.tokenizer, "chat_template", None) is not None:
            other_form = "as plain text" if self.through_template else "through the chat template"
            found[OTHER_PROMPTS] = Reading(
                f"with prompts {other_form}", chat=not self.through_template
            )
        return found

    def _has_layers(self, taps: list[Tap]) -> bool:
        return all(not isinstance(tap, int) or 0 <= tap < self.target.layers for tap in taps)

    @cached_property
    def taus(self) -> dict[str, Tau]:
        """Of every reading."""
        found = {}
        with self.bar("readings", len(self.readings)) as advance:
            for name in self.readings:
                output = self.output(name)
                if isinstance(output, str):
                    found[name] = Tau(refused=output)
                else:
                    report = output.report
                    taus = report.tau, tuple(report.tau_per_row)
                    found[name] = Tau(*taus, self._right(self.readings[name], output))
                advance()
        return found

    def _right(self, reading: Reading, output: specdec.Output) -> float | None:
        """How often the first guess is right under this reading. All readings see one text, which
        any of them may have decoded; prompts of another form come with a text of their own."""
        if reading.chat is None:
            output = next(one for one in self._outputs.values() if not isinstance(one, str))
        head = everywhere(reread(self.loaded, reading.settings), self.target.context)
        teacher = Teacher(self.target, head.taps_for(self.target))
        texts = (
            torch.tensor([[*prompt, *tokens.tolist()]], device=self.target.device)
            for prompt, tokens in zip(output.prompts, output.tokens, strict=True)
        )
        together = head.block if isinstance(head, BlockHead) else head.settings.get("depths", 0)
        shortest = SHORTEST + together
        lessons = [
            teacher.lesson(ids, teacher.states(ids)) for ids in texts if ids.shape[1] > shortest
        ]
        return table_of(head, teacher, lessons, 0.0)[0][0] if lessons else None

    @cached_property
    def _outputs(self) -> dict[str, specdec.Output | str]:
        """Of the readings that were asked for so far."""
        return {}

    def output(self, name: str) -> specdec.Output | str:
        """What this reading decodes; or why it cannot be decoded."""
        if name not in self._outputs:
            self._outputs[name] = self._decode(self.readings[name])
        return self._outputs[name]

    def _decode(self, reading: Reading) -> specdec.Output | str:
        play = self.play
        if reading.chat is not None:
            prompts = [prompt for batch in play.batches for prompt in batch]
            play = Play(prompts, self.target, reading.chat, 1, self.max_new_tokens, "skip")
        given = [ids for batch, _ in play.all() for ids in batch]
        try:
            heads = reread(self.loaded, reading.settings)
            drafter = build("drafter", {**self.drafter, **self.shape, "heads": heads})
            return specdec.generate(
                self.target,
                given,
                drafter=drafter,
                max_new_tokens=self.max_new_tokens,
                ignore_eos=True,
                seed=self.seed,
                **asdict(self.sampling),
            )
        except ValueError as error:
            return str(error)

    @property
    def samples(self) -> Iterator[tuple[list[int], Sample]]:
        """Each prompt's ids, and what was decoded with the head as it is."""
        output = self.output(AS_IT_IS)
        if isinstance(output, str):
            return
        for prompt, tokens in zip(output.prompts, output.tokens, strict=True):
            yield list(prompt), Sample([tokens.tolist()], output.report.wall_seconds)

    @cached_property
    def shape(self) -> dict[str, Any]:
        """The trees of all readings: of the drafter's YAML, and no deeper than the shallowest
        reading's block."""
        if not isinstance(self.loaded, BlockHead):
            return {}
        blocks = [
            reading.settings.get("block", self.loaded.block) for reading in self.readings.values()
        ]
        return {"depth": min(blocks)}


def drafter_of(found: Recognised) -> dict[str, Any]:
    """The settings of the drafter that uses a folder of a head."""
    known, settings = described("drafter", found.kind), found.config.get("settings") or {}
    given: dict[str, Any] = {"name": found.kind, "heads": str(found.folder)}
    if "exit" in known and "exit" in settings:
        given["exit"] = settings["exit"]
    if "depth" in known and "heads" in settings:  # as many heads as the tree is deep
        given["depth"] = settings["heads"]
    depths = found.settings.get("depths", 1)
    if "depth" in known and depths > 1:  # no deeper than it guesses in one pass
        given["depth"] = min(known["depth"], depths)
    return given


def reread(head: Head, settings: Mapping[str, Any]) -> Head:
    """The same weights in a head with other settings."""
    arguments = {**head.settings, **settings}
    made: Head = construct(f"a {head.kind} head", type(head), arguments)
    made.load_state_dict(head.state_dict())
    made.to(next(head.parameters()).dtype)
    made.shared, made.notes, made.target_layers = head.shared, head.notes, head.target_layers
    return made.eval()


def everywhere(head: Head, context: int) -> Head:
    """The same head, which guesses behind every place of a text: a block head draws some places
    anew at each call, unless it takes all."""
    if isinstance(head, BlockHead):
        head.anchors = context
    return head


def turned(head: BlockHead) -> dict[str, Any] | None:
    """The settings of the other anchor convention, for as many places; None for a block that would
    guess nothing."""
    from_anchor = not head.from_anchor
    block = head.places if from_anchor else head.places - 1
    return {"from_anchor": from_anchor, "block": block} if block else None

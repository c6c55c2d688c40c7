"""What the files of a head say: its layout, what it is made of, what it reads and guesses, and
which target it needs."""

from typing import Any

from experiments.checkups.finding import Finding, good, note
from experiments.checkups.head_patient import HeadPatient
from specdec.heads import speculators
from specdec.heads.block import BlockHead
from specdec.heads.decoder_head import DecoderHead


def layout(patient: HeadPatient) -> Finding:
    found = patient.recognised
    return good(
        f"A head of kind {found.kind}, in {found.layout}. The drafter {found.kind} uses it.",
        kind=found.kind,
        layout=found.layout,
    )


def architecture(patient: HeadPatient) -> Finding:
    head = patient.loaded
    weights = list(head.parameters())
    count = sum(weight.numel() for weight in weights)
    dtype = str(weights[0].dtype).removeprefix("torch.")
    numbers: dict[str, Any] = {"weights": count, "dtype": dtype, "hidden_size": head.hidden_size}
    built = ""
    if isinstance(head, DecoderHead):
        config = head.decoder.config
        numbers |= {"layers": config.num_hidden_layers, "family": config.model_type}
        built = f"{config.num_hidden_layers} decoder layer(s) of the family {config.model_type}, "
    size = f"{count / 1e6:.1f} million" if count >= 1e6 else f"{count}"
    return good(f"{built}{size} weights in {dtype}, hidden size {head.hidden_size}.", **numbers)


def reads(patient: HeadPatient) -> Finding:
    taps = list(patient.loaded.taps)
    if not taps:
        return note(
            "The files do not say which of the target's layers it reads; the usual ones are taken "
            "(docs/heads.md).",
            taps=taps,
        )
    layers = [tap for tap in taps if isinstance(tap, int)]
    parts = []
    if layers:
        parts.append(f"the states that enter the target's layers {', '.join(map(str, layers))}")
    if len(layers) < len(taps):
        parts.append("the LM head's input")
    return good(f"It reads {' and '.join(parts)}.", taps=taps)


def guesses(patient: HeadPatient) -> Finding:
    head = patient.loaded
    own = head.vocabulary if head.token_ids is None else len(head.token_ids)
    numbers: dict[str, Any] = {"vocabulary": head.vocabulary, "own_vocabulary": own}
    known = f"{own} of the target's {head.vocabulary} tokens"
    if own == head.vocabulary:
        known = f"all {own} tokens of the target"
    if not isinstance(head, BlockHead):
        depths = head.settings.get("depths", 1)
        if depths == 1:
            return good(f"It knows {known}.", **numbers)
        numbers["depths"] = depths
        return good(f"It knows {known} and guesses {depths} of them in one pass.", **numbers)
    numbers |= {
        "block": head.block,
        "places": head.places,
        "mask_token": head.mask_token,
        "sample_from_anchor": head.from_anchor,
    }
    root = "guesses too" if head.from_anchor else "guesses nothing"
    return good(
        f"It knows {known} and guesses {head.block} at once, in a block of {head.places} places "
        f"with mask token {head.mask_token}; the root's place {root} (sample_from_anchor "
        f"{str(head.from_anchor).lower()}).",
        **numbers,
    )


def needs(patient: HeadPatient) -> Finding:
    """What a target must have, and which one it was made for, as far as the files say it."""
    head = patient.loaded
    said = f"A target with hidden size {head.hidden_size} and {head.vocabulary} tokens"
    numbers: dict[str, Any] = {"hidden_size": head.hidden_size, "vocabulary": head.vocabulary}
    layers = [tap for tap in head.taps if isinstance(tap, int)]
    if head.target_layers is not None:
        said += f", of {head.target_layers} layers"
        numbers["layers"] = head.target_layers
    elif layers:
        said += f", of at least {max(layers) + 1} layers"
        numbers["least_layers"] = max(layers) + 1
    mark = head.notes.get("target")
    if mark and mark.get("tokenizer"):
        said += f", whose tokenizer has the digest {mark['tokenizer']}"
        numbers["tokenizer"] = mark["tokenizer"]
    name = head.notes.get("trained_for") or speculators.verifier_of(patient.recognised.config)
    if name:
        return good(f"{said}. It was trained for {name}.", **numbers, trained_for=name)
    if mark:
        return good(f"{said}, and whose embedding is the one it remembers.", **numbers)
    return note(f"{said}. The files do not say which one it was trained for.", **numbers)

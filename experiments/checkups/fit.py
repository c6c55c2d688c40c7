"""Whether target and drafter mean the same by a token id, and whether the chat template ends where
the target ends."""

from typing import Any

from experiments.checkups.finding import Finding, does_not_apply, good, note, wrong
from experiments.checkups.patient import Patient
from experiments.prompts.conversation import uses_chat
from specdec.models.language_model import TransformersLM


def vocabulary(patient: Patient) -> Finding:
    target = patient.target
    tokenizer: Any = target.tokenizer  # transformers' types of tokenizers say little
    if patient.refusal:
        return wrong(f"The drafter refuses this target: {patient.refusal}.")
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest >= target.vocabulary:
        return wrong(
            f"The tokenizer of {target.name} gives ids up to {highest} and the model knows "
            f"{target.vocabulary} tokens: one of the two belongs to another model.",
            highest=highest,
            vocabulary=target.vocabulary,
        )
    if patient.draft_model is not None:
        return _of_a_model(patient, patient.draft_model)
    if patient.head is not None:
        kind = patient.head.kind
        if "target" in patient.head.notes or patient.head.shared:
            return good(
                f"The {kind} head remembers its target by some of its weights, and this is it "
                f"({target.vocabulary} tokens)."
            )
        return note(
            f"The file of the {kind} head does not say which target it was trained for; the sizes "
            f"agree ({target.vocabulary} tokens, hidden size {target.hidden_size})."
        )
    return does_not_apply(f"{patient.begun.yaml_name} has no vocabulary of its own")


def _of_a_model(patient: Patient, draft: TransformersLM) -> Finding:
    target = patient.target
    ours: Any = draft.tokenizer
    theirs: Any = target.tokenizer
    if ours is None:
        return note(
            f"The draft model has no tokenizer, so only the sizes could be compared: "
            f"{draft.vocabulary} tokens each."
        )
    apart = sum(
        list(ours(prompt.text)["input_ids"]) != list(theirs(prompt.text)["input_ids"])
        for prompt in patient.prompts
    )
    if apart:
        return note(
            f"Draft model and target have the same {target.vocabulary} tokens, but split "
            f"{apart} of {len(patient.prompts)} prompts differently: the draft model was trained "
            "on text that looks different in tokens, which costs acceptance.",
            apart=apart,
        )
    return good(
        f"Draft model and target have the same {target.vocabulary} tokens and split all "
        f"{len(patient.prompts)} prompts alike.",
        vocabulary=target.vocabulary,
    )


def template(patient: Patient) -> Finding:
    """Raises ValueError where chat=true and there is no template."""
    tokenizer: Any = patient.target.tokenizer
    theirs = getattr(getattr(patient.draft_model, "tokenizer", None), "chat_template", None)
    if not uses_chat(tokenizer, patient.chat):
        if theirs and not tokenizer.chat_template:
            return note(
                "The draft model has a chat template and the target has none: the draft model was "
                "trained on conversations, and prompts are plain text here."
            )
        return does_not_apply("prompts are plain text, without a chat template")
    said = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Goodbye"}
    opening = tokenizer.apply_chat_template(
        list(said[:1]), tokenize=False, add_generation_prompt=True
    )
    whole = tokenizer.apply_chat_template(list(said), tokenize=False)
    ids = tokenizer(opening, add_special_tokens=False)["input_ids"]
    if tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2:
        return wrong(
            f"The chat template writes {tokenizer.bos_token!r} twice at the start of a prompt; the "
            "target has never seen that."
        )
    ends = _ends(tokenizer, whole.rpartition("Goodbye")[2])
    if ends and ends[0] not in patient.target.eos_ids:
        token = tokenizer.convert_ids_to_tokens(ends[0])
        return wrong(
            f"The chat template ends an answer with {token!r} (id {ends[0]}), and the target's "
            f"end-of-sequence ids are {sorted(patient.target.eos_ids)}: texts go on after their "
            "end. Add the id to eos_token_id in generation_config.json.",
            ends_with=ends[0],
        )
    if theirs is not None and theirs != tokenizer.chat_template:
        return note(
            "The draft model has another chat template than the target, so it was trained on turns "
            "that look different, which costs acceptance."
        )
    if not whole.startswith(opening):
        return note(
            "The chat template writes earlier answers differently from the one to be generated, so "
            "a later turn does not continue the tokens of the turn before."
        )
    if not ends:
        return note("The chat template ends an answer with no special token.")
    token = tokenizer.convert_ids_to_tokens(ends[0])
    return good(f"The chat template ends an answer with {token!r}, and so does the target.")


def _ends(tokenizer: Any, after: str) -> list[int]:
    """The special tokens that the template writes after an answer."""
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    return [token for token in ids if token in tokenizer.all_special_ids]

"""The pages of the reference that are written from the code: options of every YAML and program."""

import argparse
import ast
import re
from collections.abc import Iterable
from pathlib import Path

import notebooks
import yaml

from experiments.terminal.meanings import (
    COMMON,
    CONF,
    ROOT,
    Described,
    Option,
    beside,
    classes,
    fields,
    filled,
    module_docstring,
    plugin,
    plugin_file,
    programs,
    read_yaml,
)

SCHEMA = ROOT / "experiments/study/schema.py"
SWITCHES = {  # attributes of a rule that restrict or extend where it may be used
    "chain_only": "chains only",
    "needs_fixed_width": "the number of siblings must be known before the first is drawn",
    "zero_temperature_only": "temperature 0 only",
    "coupled": "also exact under coupled chance",
}
GROUPS = {  # of conf/, beside drafter and verifier; schema: whose fields its keys are
    "target": ("The model whose law is kept.", "Target"),
    "sampling": ("How logits become a law.", "Sampling"),
    "prompts": ("Where prompts come from.", "Prompts"),
    "method": ("A drafter with its settings, under one name: what a sweep lists.", None),
    "recipe": ("Published pairs of a target and a head; [Recipes](../recipes.md).", None),
    "experiment": ("Studies: what all runs share, and what is compared.", None),
    "debug": ("Any run, made small.", None),
    "launcher": ("Where the jobs of a sweep run.", None),
}


# ------------------------------------------------------------------------------------- Markdown


def escaped(text: str) -> str:
    """Text for a cell or a paragraph; what is between backticks stays code."""
    parts = text.split("`")
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"([*_|<>\[\]])", r"\\\1", parts[i])
        parts[i] = parts[i].replace("\\<", "&lt;").replace("\\>", "&gt;")
    for i in range(1, len(parts), 2):
        parts[i] = parts[i].replace("|", "\\|")
    return "`".join(parts)


def linked(text: str) -> str:
    """arXiv numbers as links."""
    return re.sub(r"(?<![\d./])(\d{4}\.\d{5})(?!\d)", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else ""


def table(options: Iterable[Option], prefix: str = "") -> str:
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for option in options:
        meaning = linked(escaped(option.meaning))
        if option.note:
            meaning += f"<br>{code(option.default)}: {escaped(option.note)}"
        default = "required" if option.default in ("required", "???") else code(option.default)
        rows.append(f"| {code(prefix + option.key)} | {default} | {meaning} |")
    return "\n".join(rows)


def prose(docstring: str) -> str:
    """A docstring as paragraphs; indented and aligned lines are kept as they are."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", docstring.strip()):
        if paragraph.startswith("Letters:"):
            continue
        lines = paragraph.splitlines()
        aligned = any(line.startswith("    ") or re.search(r"\S {3,}\S", line) for line in lines)
        if aligned or lines[0].startswith("python -m "):
            parts.append("```text\n" + paragraph + "\n```")
        else:
            parts.append(linked(escaped(" ".join(lines))))
    return "\n\n".join(parts)


def yaml_block(one: Described) -> str:
    values = {key: value for key, value in one.values.items() if key != "defaults"}
    chosen = [
        f"{group.removeprefix('override /')}={option}"
        for entry in one.values.get("defaults", [])
        if isinstance(entry, dict)
        for group, option in entry.items()
    ]
    text = yaml.safe_dump(values, sort_keys=False, width=100) if values else ""
    picks = f"# chooses {' '.join(chosen)}\n" if chosen else ""
    return f"```yaml\n{picks}{text}```"


def _commands(one: Described) -> str:
    return "```text\n" + "\n".join(one.commands) + "\n```\n\n" if one.commands else ""


# ---------------------------------------------------------------------------------------- pages


def drafters() -> str:
    parts = [
        "# Drafters",
        "Every drafter with every key of its YAML in `conf/drafter/`. A key is an argument in "
        'Python (`drafter={"name": "ngram", "length": 5}`), `drafter.length=5` in a command '
        "of `experiments`, and `--drafter ngram,length=5` in the shell. "
        "[Which drafter first](../choose.md) helps to choose; keys that shape trees are explained "
        "with pictures in [Trees](../concepts/trees.md).",
    ]
    for path in sorted((CONF / "drafter").glob("*.yaml")):
        one = plugin("drafter", path.stem)
        where = plugin_file(one)
        assert where is not None
        parts += [f"## {one.name}", prose(module_docstring(where))]
        # a YAML names its file, and then says what the docstring does not
        if more := one.text.rpartition(f"(drafters/{one.name}.py).")[2].strip():
            parts.append(escaped(more))
        if one.options:
            parts.append(table(one.options))
    return "\n\n".join(parts) + "\n"


def verifiers() -> str:
    parts = [
        "# Rules",
        "Every verifier with its sibling laws and every key of its YAML in `conf/verifier/`. "
        "[Rules](../concepts/rules.md) explains how they work and how to choose one.",
    ]
    for path in sorted((CONF / "verifier").glob("*.yaml")):
        one = plugin("verifier", path.stem)
        parts += [f"## {one.name}", escaped(one.text)]
        if (where := plugin_file(one)) is not None:
            target = str(one.values["_target_"]).rpartition(".")[2]
            parts += [_facts(where, target), prose(module_docstring(where))]
        if one.options:
            parts.append(table(one.options))
    return "\n\n".join(parts) + "\n"


def _facts(path: Path, name: str) -> str:
    """What a rule declares."""
    declared = {
        part.targets[0].id: part.value
        for part in classes(path)[name].body
        if isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Name)
    }
    laws = re.findall(r"SiblingLaw\.(\w+)", ast.unparse(declared["laws"])) or ["all"]
    facts = [f"Sibling laws: {', '.join(laws)}."]
    facts += [f"{text[0].upper()}{text[1:]}." for key, text in SWITCHES.items() if key in declared]
    if "max_vocabulary" in declared:
        facts.append(f"At most {ast.unparse(declared['max_vocabulary'])} tokens of vocabulary.")
    if "lossless" in declared:
        facts.append("**Lossy**: needs `allow_lossy`.")
    return "*" + " ".join(facts) + "*" if "lossless" not in declared else " ".join(facts)


def run() -> str:
    """Keys of `experiments.run`, as its --help lists them."""
    parts = [
        "# Keys of a run",
        "What `python -m experiments.run --help` lists. `key=value` sets a key, `group=option` "
        "takes a YAML of `conf/`; with `-m`, `key=1,2,3` makes a job for each value. A key or "
        "value that does not exist is refused, with the closest match.",
        "## Groups",
        "| group | options |\n|---|---|\n"
        + "\n".join(
            f"| `{group}` | {', '.join(code(path.stem) for path in _yamls(group))} |"
            for group in ("drafter", "verifier", *GROUPS)
        )
        + "\n| `logger` | `none`, `wandb` |",
        "The keys of `drafter` are on [Drafters](drafters.md), those of `verifier` on "
        "[Rules](verifiers.md), the options of the other groups on [Groups](groups.md).",
        "## The run",
        table(option for option in fields(SCHEMA, "Command") if option.key not in NESTED),
    ]
    for key, (title, name) in NESTED.items():
        if name:
            parts += [f"## {title}", table(fields(SCHEMA, name), f"{key}.")]
    return "\n\n".join(parts) + "\n"


NESTED: dict[str, tuple[str, str | None]] = {  # keys of a run that are groups of keys
    "target": ("The target", "Target"),
    "sampling": ("Sampling", "Sampling"),
    "prompts": ("Prompts", "Prompts"),
    "assisted": ("The baseline `assisted`", "Assisted"),
    "prompt_lookup": ("The baseline `prompt_lookup`", "PromptLookup"),
    "logger": ("Weights & Biases", "Logger"),
    "drafter": ("", None),
    "verifier": ("", None),
}


def _yamls(group: str) -> list[Path]:
    return sorted((CONF / group).glob("*.yaml"))


def groups() -> str:
    parts = [
        "# Groups",
        "The options of each group of `conf/` and what they set. `target=demo_deep` takes one; "
        "[Keys of a run](run.md) explains the keys.",
    ]
    for group, (text, _) in GROUPS.items():
        parts += [f"## {group}", text]
        for path in _yamls(group):
            one = read_yaml(path)
            parts += [
                f"### {group}={one.name}",
                linked(escaped(one.text)) + "\n\n" + _commands(one) + yaml_block(one),
            ]
    return "\n\n".join(parts) + "\n"


def certify() -> str:
    path = ROOT / "experiments/certify.py"
    own = filled(fields(path, "Certify"), COMMON)
    parts = [
        "# Keys of certify",
        prose(module_docstring(path)),
        table(option for option in own if option.key not in ("drafter", "verifier", "greedy")),
        table(filled(fields(path, "Greedy"), COMMON), "greedy."),
        "`drafter` and `verifier` are chosen and set as in a run: [Drafters](drafters.md), "
        "[Rules](verifiers.md). [Certificates](../certificates.md) explains what is computed.",
    ]
    return "\n\n".join(parts) + "\n"


def train() -> str:
    one = read_yaml(CONF / "train/train.yaml")
    parts = [
        "# Keys of train",
        "What `python -m experiments.train --help` lists; [Heads](../heads.md) is the guide.",
        _commands(one).strip(),
        table(filled(one.options, COMMON)),
        "## What is trained",
        "`drafter=NAME` takes one of these recipes. Keys below are `drafter.KEY`.",
    ]
    for recipe in beside(CONF / "train/drafter"):
        parts += [
            f"### drafter={recipe.name}",
            linked(escaped(recipe.text)),
            table(filled(recipe.options, COMMON)),
        ]
    parts += ["## The text", "`text=NAME` takes one of these. Keys below are `text.KEY`."]
    for text in beside(CONF / "train/text"):
        parts += [f"### text={text.name}", escaped(text.text), table(text.options)]
    return "\n\n".join(parts) + "\n"


def commands() -> str:
    parts = [
        "# Programs",
        "Programs that take `key=value`, with their keys. `--help` prints the same keys with their "
        "defaults; a switch such as `json=true` may be written `--json`. `experiments.run`, "
        "`certify` and `train` take Hydra configurations and have pages of their own: "
        "[run](run.md), [certify](certify.md), [train](train.md).",
    ]
    for program in programs():
        title = f"## {program.name.removeprefix('experiments.')}"
        parts += [title, prose(program.text)]
        if program.options:
            parts.append(table(program.options))
    parts += [*records(), SHELL]
    return "\n\n".join(parts) + "\n"


def records() -> list[str]:
    """Of the two programs for recorded trees, which take Hydra configurations."""
    record, replay = (ROOT / f"experiments/{name}.py" for name in ("record", "replay"))
    groups = ("target", "drafter", "sampling", "prompts")
    recorded = filled(fields(record, "Record"), COMMON)
    shape = filled(fields(replay, "Shape"), COMMON)
    replayed = filled(fields(replay, "Replay"), COMMON)
    return [
        "## record",
        "[Recorded trees, replayed](../replay_trees.md) is the guide. `target`, `drafter`, "
        "`sampling` and `prompts` are chosen as in [a run](run.md).",
        table(option for option in recorded if option.key not in groups),
        "## replay, of recorded trees",
        table(o for o in replayed if o.key not in ("drafter", "verifier", "costs")),
        table(shape, "drafter."),
        table(filled(fields(replay, "CostTable"), COMMON), "costs."),
    ]


SHELL = """\
## specdec

The shell command `specdec "PROMPT"` streams one continuation; `python -m specdec` is the same.

```text
{help}
```"""


class Wide(argparse.HelpFormatter):
    """Lines of one width, whatever terminal builds the site."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=100)


def all_pages() -> dict[str, str]:
    """Path in docs/ -> Markdown."""
    from specdec.__main__ import parser

    options = parser()
    options.formatter_class = Wide
    found = {
        "reference/drafters.md": drafters(),
        "reference/verifiers.md": verifiers(),
        "reference/run.md": run(),
        "reference/groups.md": groups(),
        "reference/certify.md": certify(),
        "reference/train.md": train(),
        "reference/programs.md": commands().replace("{help}", options.format_help().strip()),
    }
    card = (ROOT / "specdec/demo/README.md").read_text(encoding="utf-8")
    return {**found, **notebooks.pages(), "demo_family.md": card}

"""What is imported before it is needed. Help, a composed configuration and `import specdec` know no
torch and no models."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "transformers", "accelerate", "scipy")
COMMANDS = sorted(
    ".".join(path.relative_to(ROOT / "experiments").with_suffix("").parts).removesuffix(".__main__")
    for path in (ROOT / "experiments").rglob("*.py")
    if '\nif __name__ == "__main__":\n' in path.read_text(encoding="utf-8")
)
COMPOSED = (
    "run",
    "certify",
    "train",
    "record",
)  # by Hydra, which also shows the configuration of a job

ASK = """
import contextlib, io, json, runpy, sys
found, heavy, lines = {}, *map(json.loads, sys.argv[1:])
for module, *arguments in lines:
    sys.argv[:] = [module, *arguments]
    said = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(said):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    found[" ".join([module, *arguments])] = [sorted(set(sys.modules) & set(heavy)), said.getvalue()]
    if "hydra.core.global_hydra" in sys.modules:
        sys.modules["hydra.core.global_hydra"].GlobalHydra.instance().clear()
print(json.dumps(found))
"""


def asked(*lines: list[str]) -> dict[str, tuple[list[str], str]]:
    """Command lines, one after the other in one fresh process: the heavy libraries that had been
    imported after each, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ASK, json.dumps(HEAVY), json.dumps(lines)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_help_and_configurations_import_no_models():
    helps = [["specdec", "--help"], *([f"experiments.{name}", "--help"] for name in COMMANDS)]
    found = asked(*helps, *([f"experiments.{name}", "--cfg", "job"] for name in COMPOSED))
    assert {line: heavy for line, (heavy, _) in found.items() if heavy} == {}
    for line, (_, said) in found.items():
        assert (
            "drafter:" if "--cfg" in line else line.split()[0].partition(".")[2] or "specdec"
        ) in said, line


def test_importing_the_page_imports_no_models():
    code = "import sys, specdec; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "specdec" in done.stdout.split()
    assert not {*HEAVY, "numpy"} & set(done.stdout.split())

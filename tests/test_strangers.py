"""A package of somebody else: its plug-ins are known under the names of its YAMLs, everywhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import specdec
from experiments import compare_verifiers
from experiments.certificates import kept, suite
from specdec import registry
from specdec.plugins import build
from tests.models import lm
from tests.strangers import BROKEN, IN_ORDER, announce, write

ROOT = Path(__file__).resolve().parent.parent
LAWS = (
    "-m",
    "pytest",
    "-q",
    "-rA",
    "-p",
    "no:cacheprovider",
    "--pyargs",
    "experiments.certificates.laws",
)


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An allowed package with plug-ins in order; Python finds it, and nobody has imported it."""
    package = f"theirs_{tmp_path.name.rstrip('0123456789')}"
    write(tmp_path / "repository", package, IN_ORDER)
    monkeypatch.syspath_prepend(tmp_path / "repository")
    monkeypatch.setenv("SPECDEC_ALLOW", package)
    yield package
    for module in [module for module in sys.modules if module.partition(".")[0] == package]:
        del sys.modules[module]


def python(
    *arguments: str, cwd: Path, allow: str = "", path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """A command in another folder. Our checkout stands for an installation."""
    places = [str(ROOT), *([str(path)] if path else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}
    environment |= {"SPECDEC_ALLOW": allow} if allow else {}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_generate_knows_names_and_calls_plugins_by_them(theirs):
    """Two names on one class, a function, and a rule."""
    target, prompt = lm("llama_gqa"), [1, 2, 3, 4]
    plain = specdec.generate(target, prompt, drafter="none", max_new_tokens=8)
    for drafter in ("echo", "echo_far", "echo_made", {"name": "echo_far", "length": 1}):
        out = specdec.generate(target, prompt, drafter=drafter, verifier="mine", max_new_tokens=8)
        assert out.report.drafter == (drafter if isinstance(drafter, str) else "echo_far")
        assert out.report.verifier == "mine"
        assert torch.equal(out.tokens[0], plain.tokens[0])
    made_directly = type(build("drafter", "echo"))(1)
    out = specdec.generate(target, prompt, drafter=made_directly, max_new_tokens=8)
    assert out.report.drafter == "Repeat"  # its class: two names share it


def test_rules_of_others_are_compared_too(theirs):
    assert {"mine", "naive"} <= set(compare_verifiers.rules())


def test_a_certificate_of_a_package_that_is_not_here_is_passed_over(tmp_path):
    """Somebody certified a drafter of their own in this folder, and now decodes without it."""
    content = {"pair": ["gone", "naive"], "verdict": "certified"}
    for name, drafter in (
        ("a", {"_target_": "gone.X"}),
        ("b", {"name": "gone", "_target_": "gone.X"}),
    ):
        content |= {"drafter": drafter, "verifier": {"_target_": "verifiers.naive.Naive"}}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert kept.find_law({"name": "none"}, {"name": "naive"}, tmp_path) is None


def test_names_are_found_without_importing_their_package(tmp_path, monkeypatch):
    package = "theirs_that_fails_when_imported"
    root = write(tmp_path, package, IN_ORDER)
    (root / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SPECDEC_ALLOW", package)
    assert {"echo", "ngram"} <= set(registry.names("drafter"))
    with pytest.raises(
        ValueError, match=r"_target_ .*Repeat cannot be imported: RuntimeError: imported"
    ):
        build("drafter", "echo")


def test_an_unknown_name_says_which_packages_are_not_found(theirs, monkeypatch):
    with pytest.raises(ValueError, match=r"unknown drafter 'ecko'; did you mean 'echo'\?"):
        build("drafter", "ecko")
    monkeypatch.setenv("SPECDEC_ALLOW", "teirs")
    with pytest.raises(
        ValueError, match=r"unknown drafter 'echo'.*does not find teirs here.*PYTHONPATH"
    ):
        build("drafter", "echo")
    done = python("-m", "experiments.run", "drafter=echo", cwd=Path.cwd(), allow="teirs")
    assert "drafter has no option 'echo'" in done.stderr
    assert "does not find teirs here" in done.stderr


def test_an_unknown_name_says_how_a_package_is_allowed(monkeypatch):
    monkeypatch.delenv("SPECDEC_ALLOW", raising=False)
    with pytest.raises(ValueError, match="package of your own need SPECDEC_ALLOW=PACKAGE"):
        build("drafter", "echo")


def test_a_yaml_without_a_class_is_named(theirs, tmp_path):
    folder = tmp_path / "repository" / theirs / "conf/drafter"
    (folder / "nothing.yaml").write_text("length: 2\n")
    with pytest.raises(ValueError, match=r"and .*nothing\.yaml has no _target_"):
        build("drafter", "nothing")


@pytest.mark.parametrize("name", ["../verifier/greedy", "x/../ngram", "", "."])
def test_a_path_is_no_name(name):
    with pytest.raises(ValueError, match="unknown drafter"):
        build("drafter", name)


def test_a_name_of_ours_is_refused_with_both_places(tmp_path, monkeypatch, command):
    package = "theirs_with_our_names"
    root = write(
        tmp_path / "repository", package, {"drafter/ngram.yaml": IN_ORDER["drafter/echo.yaml"]}
    )
    monkeypatch.syspath_prepend(tmp_path / "repository")
    monkeypatch.setenv("SPECDEC_ALLOW", package)
    for choose in (
        lambda: build("drafter", "ngram"),
        lambda: command("drafter=ngram", "hydra.run.dir=run"),
    ):
        with pytest.raises(ValueError, match=r"two drafters are called 'ngram'") as caught:
            choose()
        for place in (registry.CONF, root / "conf"):
            assert str(place / "drafter" / "ngram.yaml") in str(caught.value)
    assert build("drafter", "none") is not None  # only that name is in doubt


def test_a_run_and_its_report(theirs, command, tmp_path):
    root = command(
        "-m",
        "drafter=echo,none",
        "verifier=mine",
        "study=theirs",
        "hydra.sweep.dir=multirun/theirs/one",
    )
    results = [
        json.loads((root / "multirun/theirs/one" / job / "result.json").read_text()) for job in "01"
    ]
    assert [result["status"] for result in results] == ["ok", "ok"]
    assert [result["choices"]["drafter"] for result in results] == ["echo", "none"]
    assert results[0]["config"]["label"] == "echo"
    assert results[0]["certificate"]["verdict"] == "not certified"
    # The package itself is not needed to read what it left.
    done = python("-m", "experiments.report", "study=theirs", cwd=root)
    assert done.returncode == 0, done.stderr
    assert "echo" in (root / "multirun/theirs/report/index.html").read_text()
    found = command("experiment=echoes", "hydra.run.dir=experiment")
    assert (
        json.loads((found / "experiment" / "result.json").read_text())["choices"]["drafter"]
        == "echo"
    )


@pytest.mark.parametrize("announced", [False, True])
def test_commands_in_another_folder(announced, tmp_path):
    """Help, certificates and the laws: of an allowed package, and of one that announces itself."""
    package, repository, elsewhere = (
        "theirs_to_run",
        tmp_path / "repository",
        tmp_path / "elsewhere",
    )
    write(repository, package, IN_ORDER)
    elsewhere.mkdir()
    if announced:
        announce(repository, package)

    def run(*arguments: str) -> str:
        done = python(
            *arguments, cwd=elsewhere, allow="" if announced else package, path=repository
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "echo_far" in run("-m", "specdec", "--help")
    assert "echo_far" in run("-m", "experiments.run", "--help")
    assert f"{package}.plugins.rules.Mine" in run(
        "-m", "experiments.run", "drafter=echo", "verifier=mine", "--cfg", "job"
    )
    train = ("-m", "experiments.train", "--cfg", "job")
    assert f"{package}.heads.H.for_target" in run(*train, "drafter=their_head", "output=out")
    wrong = python(*train, "drafter=echo", cwd=elsewhere, allow=package, path=repository)
    assert "drafter has no option 'echo'" in wrong.stderr  # it drafts, and is no recipe
    if announced:
        return
    run(
        "-m",
        "experiments.certify",
        "drafter=echo_far",
        "verifier=mine",
        "checks=[exact]",
        "size=50",
        "progress=false",
    )
    (found,) = (elsewhere / "certificates").glob("*.json")
    certificate = json.loads(found.read_text())
    assert certificate["pair"] == ["echo_far", "mine"]
    assert certificate["verdict"] == "certified"
    said = run(*LAWS, "-k", "(echo and mine) or order")
    assert "failed" not in said
    passed = "\n".join(line for line in said.splitlines() if line.startswith("PASSED"))
    for test in (
        "has_a_partner[echo]",
        "has_a_partner[mine]",
        "one_round",
        "two_rounds",
        "temperature_0",
    ):
        assert test in passed
    assert "has_a_partner[ngram]" not in said  # their plug-ins, not ours


def test_a_broken_plugin_fails_its_own_tests_only(tmp_path):
    write(tmp_path, "theirs_in_parts", {**IN_ORDER, **BROKEN})
    done = python(
        *LAWS, "-k", "echo or order", cwd=tmp_path, allow="theirs_in_parts", path=tmp_path
    )
    failed = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("FAILED")}
    broken = {Path(name).stem for name in BROKEN}
    in_order = {name.partition("[")[2].rstrip("]") for name in failed if "in_order" in name}
    assert in_order == broken - {"liar"}, done.stdout[-3000:]
    assert {name for name in failed if "in_order" not in name} == {
        name for name in failed if "liar" in name
    }
    assert any("liar" in name for name in failed), done.stdout[-3000:]
    for reason in (
        "must hold settings",
        "no YAML",
        "given by name or by _target_",
        "a_library_that_is_not_here",
        "has no attribute 'X'",
        "no weights for so few tokens",
        "lenght",
    ):
        assert reason in done.stdout


def test_without_plugins_of_others_the_law_line_says_what_to_do(tmp_path):
    done = python(*LAWS, cwd=tmp_path)
    assert done.returncode != 0
    assert "name yours in SPECDEC_ALLOW" in done.stdout + done.stderr


def test_a_broken_yaml_of_ours_stops_nobody_else(tmp_path, monkeypatch):
    """What every test is made of, before and after a few broken files lie in conf/."""
    before = suite.plugins(), suite.rules(), suite.drafters(), suite.pairs.__wrapped__()
    for folder in ("drafter", "verifier"):
        (tmp_path / folder).mkdir()
        for path in (registry.CONF / folder).glob("*.yaml"):
            (tmp_path / folder / path.name).write_text(path.read_text())
    broken = {name: text for name, text in BROKEN.items() if "{" not in text}
    for name, text in {**broken, "verifier/lost.yaml": "_target_: verifiers.lost.Lost\n"}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(registry, "CONF", tmp_path)
    after = suite.plugins(), suite.rules(), suite.drafters(), suite.pairs.__wrapped__()
    assert after[1:] == before[1:]
    new = set(after[0]) - set(before[0])
    assert {name for _, name in new} == {"no_settings", "no_yaml", "no_target", "lost"}
    for group, name in new:
        with pytest.raises(ValueError, match=f"{name}|given by name or by _target_"):
            suite.examine(group, name)

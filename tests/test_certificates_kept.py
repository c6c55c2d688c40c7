"""Certificates over time: of which code they are, when they are stale, what is said of them, how a
folder is renewed. And the shipped ones."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import specdec
from experiments import certify as certify_command
from experiments.certificates import certificate, code, kept, renew
from experiments.certificates.kept import SHIPPED, attached, find_law
from experiments.certificates.law import Law, mark
from experiments.study import schema
from experiments.system.surroundings import ROOT, Git, git_state, surroundings
from specdec import registry
from specdec.registry import CONF
from tests.strangers import IN_ORDER, write

RENEW = "commit, then `python -m experiments.certify again=experiments/certificates/shipped`"
DRAFTER, RULE = {"name": "ngram", "length": 2}, {"name": "naive"}
ALL = ("exact", "sampled", "greedy")


# ------------------------------------------------------------------------------- digests of code

PROGRAM = '''
def accept(p: float, q: float, u: float) -> bool:
    """Leviathan et al."""
    if q <= 0:
        raise ValueError(f"q is {q}")
    return u < p / q
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Leviathan et al.", "Chen et al."),
        ('    """Leviathan et al."""\n', ""),
        ("u < p / q", "(u < p / q)  # strict, so that p = 0 never happens"),
        ("p: float, q: float, u: float", "\n    p: float,\n    q: float,\n    u: float,\n"),
        ("q is {q}", "q must be positive, got {q}"),
    ],
    ids=["docstring", "no docstring", "comment", "layout", "words of an error"],
)
def test_text_is_no_program(old, new):
    assert PROGRAM.count(old) == 1
    assert code.program(PROGRAM.replace(old, new)) == code.program(PROGRAM)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("u < p", "u <= p"),
        ("p / q", "q / p"),
        ("q <= 0", "q <= 0.0"),
        ("return ", ""),
        ("ValueError", "TypeError"),
        ("def accept", "def refuse"),
    ],
)
def test_a_program_is_what_it_does(old, new):
    assert PROGRAM.count(old) == 1
    assert code.program(PROGRAM.replace(old, new)) != code.program(PROGRAM)


def test_the_digest_is_the_same_in_every_release_of_python():
    """Of a file with what releases write differently into their trees."""
    text = (
        "import a.b as c\n@c\nclass A(B, x=1):\n    y: int = 0\n    def f(self, *a, k=1, **b):\n"
        "        return f'{a!r:>{k}} {b=}' 'more' + b'x'.decode() if a else {**b}\n"
    )
    assert code.program(text) == "077442d5b5ae28d2"


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A copy of specdec/ whose digest is taken instead."""
    folder = shutil.copytree(
        Path(specdec.__file__).parent,
        tmp_path / "specdec",
        ignore=shutil.ignore_patterns("demo", "__pycache__"),
    )
    monkeypatch.setattr(specdec, "__file__", str(folder / "__init__.py"))
    code._library.cache_clear()
    yield folder
    code._library.cache_clear()


def test_the_library_is_part_of_every_certificates_code(library):
    def after(name, old, new):
        text = (library / name).read_text()
        assert old in text
        (library / name).write_text(text.replace(old, new))
        code._library.cache_clear()
        return code.code_of(DRAFTER, RULE)

    before = code.code_of(DRAFTER, RULE)
    code._library.cache_clear()
    assert code.code_of(DRAFTER, RULE) == before
    assert after("chance.py", '"""Every random draw', '"""Each random draw') == before
    assert after("__main__.py", "def main", "print()\n\n\ndef main") == before
    found = after("verifying/walk.py", "below > 0", "below >= 0")
    assert found["specdec"] != before["specdec"]
    assert {**found, "specdec": None} == {**before, "specdec": None}
    (library / "new.py").write_text("x = 1\n")
    code._library.cache_clear()
    assert code.code_of(DRAFTER, RULE)["specdec"] != found["specdec"]


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """A package of somebody else, and how its files are changed."""
    package = f"theirs_{tmp_path.name.rstrip('0123456789')}"
    root = write(tmp_path / "repository", package, IN_ORDER)
    (root / "plugins" / "helper.py").write_text("COPIES = 2\n")
    chains = root / "plugins" / "chains.py"
    chains.write_text(
        chains.read_text().replace("import torch", "import torch\nfrom .helper import COPIES")
    )
    monkeypatch.syspath_prepend(root.parent)
    monkeypatch.setenv("SPECDEC_ALLOW", package)

    def forget():
        code._modules.cache_clear()
        registry._read.cache_clear()

    def change(name, old, new):
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new))
        forget()

    forget()
    yield change
    forget()
    for module in [module for module in sys.modules if module.partition(".")[0] == package]:
        del sys.modules[module]


def test_a_plugin_of_a_strangers_package_goes_stale_the_same_way(theirs, tmp_path):
    drafter, rule = {"name": "echo"}, {"name": "mine"}
    plan = certificate.Plan(checks=["exact"], tables=certificate.standard()[:1])
    made = certificate.certify(certificate.Pair(drafter, rule), plan, no_bar)
    kept.write(made, tmp_path / "kept")

    def said():
        return str(find_law(drafter, rule, tmp_path / "kept"))

    assert said() == "certified (exact)"
    assert any(name.endswith("plugins.rules") for name in code._modules(rules_module(rule)))
    assert "verifiers.naive" in code._modules(rules_module(rule))  # which theirs is made from
    theirs("plugins/chains.py", '"""A chain of', '"""Chains of')
    theirs("conf/drafter/echo.yaml", "length: 2", "length: 2  # copies")
    assert said() == "certified (exact)"
    theirs("plugins/chains.py", ".repeat(1, self.length + 1)", ".repeat(1, 1 + self.length)")
    assert said() == "stale: drafter changed"
    theirs("plugins/chains.py", ".repeat(1, 1 + self.length)", ".repeat(1, self.length + 1)")
    assert said() == "certified (exact)"
    theirs("plugins/helper.py", "2", "3")
    assert said() == "stale: drafter changed"
    theirs("plugins/helper.py", "3", "2")
    theirs("plugins/rules.py", "class Mine(Naive):", "class Mine(Naive):\n    coupled = False\n")
    assert said() == "stale: verifier changed"
    assert certify_command.summarise([made]) == ["echo + mine"]


def rules_module(rule):
    return code.find("verifier", rule).make.__module__


def test_another_yaml_is_another_code(theirs):
    before = code.code_of({"name": "echo"}, RULE)
    theirs("conf/drafter/echo.yaml", "length: 2", "length: 4")
    after = code.code_of({"name": "echo"}, RULE)
    assert [part for part in after if after[part] != before[part]] == ["drafter"]


# ----------------------------------------------------------------------------- what is said of them


@contextmanager
def no_bar(name, total):
    yield lambda: None


def written(folder, verdict="certified", drafter=DRAFTER, **changes):
    content = {
        "drafter": drafter,
        "verifier": RULE,
        "pair": ["ngram", "naive"],
        "verdict": verdict,
        "git": {"commit": "1" * 40, "dirty": False},
        "code": code.code_of(DRAFTER, RULE),
        "exact": {"lossless": True},
        "sampled": {"tests": []},
        "greedy": None,
    }
    return kept.write({**content, **changes}, folder)


def test_what_is_said_of_a_certificate(tmp_path):
    def said(**settings):
        return str(find_law({**DRAFTER, **settings}, RULE, tmp_path))

    path = written(tmp_path)
    assert said() == "certified (exact, sampled)"
    law = find_law(DRAFTER, RULE, tmp_path)
    assert (law.file, law.git, law.checks) == (
        str(path),
        Git(commit="1" * 40, dirty=False),
        ["exact", "sampled"],
    )
    assert said(length=3) == "certified: rule and tree, other settings (exact, sampled)"
    written(tmp_path, code={**code.code_of(DRAFTER, RULE), "specdec": "another"})
    assert said() == "stale: specdec changed"
    written(tmp_path, code={})  # from before there were digests
    assert said(length=3) == "stale: specdec, drafter, verifier changed"
    written(tmp_path, drafter={**DRAFTER, "length": 9})
    assert said(length=9) == "certified (exact, sampled)"
    # one of this code goes before a stale one of the very same settings
    assert said() == "certified: rule and tree, other settings (exact, sampled)"
    written(tmp_path, verdict="not certified")
    assert said() == "not certified: a check failed"


def test_an_argument_that_is_none_is_as_good_as_not_given(tmp_path):
    """Arguments that a drafter has learnt since have no part in what was certified without them."""
    before = {"_target_": "drafters.small_model.SmallModel", "model": "demo-draft", "depth": 4}
    written(tmp_path, drafter=before, code=code.code_of(before, RULE), pair=["small_model", "x"])

    def said(**settings):
        return str(find_law({**before, **settings}, RULE, tmp_path))

    assert said(acceptance=None, stop=None, lookup=False) == "certified (exact, sampled)"
    assert said(depth=3) == "certified: rule and tree, other settings (exact, sampled)"
    assert said(branching=2, draw="sequoia", nodes=4) == "None"


def test_what_a_run_says(tmp_path, monkeypatch):
    """Without a certificate the rule still is lossless by its contract, and that is said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kept, "SHIPPED", tmp_path / "none")
    report = SimpleNamespace(lossless=True, verifier="naive")
    none = attached(DRAFTER, {"name": "auto"}, report)
    assert (none.verdict, str(none)) == ("not certified", "lossless, not certified")
    lossy = SimpleNamespace(lossless=False, verifier="typical")
    assert str(attached(DRAFTER, {"name": "typical"}, lossy)) == "lossy"
    written(tmp_path / "certificates")
    found = attached(DRAFTER, {"name": "auto"}, report)
    assert str(found) == "certified (exact, sampled)"


def test_pages_colour_what_is_certified_in_these_settings_and_what_is_not():
    sure = Law(verdict="certified", checks=["exact"], same_settings=True)
    assert mark(str(sure)) == "certified"
    assert mark(str(replace(sure, same_settings=False))) == ""
    assert mark(str(Law(verdict="stale", changed=["specdec"]))) == "stale"
    assert mark(str(Law(verdict="lossy"))) == "lossy"
    assert mark(str(Law(verdict="not certified"))) == ""


# ----------------------------------------------------------------------------------------- renewal


def small(seconds, seed, **plan):
    """The plan of a certificate that takes no time."""
    few = {"outcomes": 1000, "size": 1, "strength": 0.001, "prompts": 1, "max_new_tokens": 4}
    return {"seconds": seconds, "plan": {**few, "target": "tiny", "seed": seed, **plan}}


def test_a_renewal_keeps_the_settings_of_what_it_renews(tmp_path):
    written(tmp_path, **small(1.0, seed=3))
    written(tmp_path, drafter={**DRAFTER, "length": 3}, **small(9.0, seed=4, strength=0.5))
    renewals, current = renew.wanted(str(tmp_path), str(tmp_path), ALL, surroundings())
    assert not current
    assert [one.seconds for one in renewals] == [9.0, 1.0]  # so that none is last alone
    long, short = renewals
    assert long.pair.drafter == {**DRAFTER, "length": 3}
    assert (long.plan.seed, long.plan.strength) == (4, 0.5)
    assert (short.plan.seed, short.plan.strength, short.plan.target) == (3, 0.001, "tiny")
    assert short.plan.checks == ALL


def test_a_certificate_of_this_code_stays(tmp_path):
    where = replace(surroundings(), git=Git(commit="2" * 40, dirty=False))
    plan = small(1.0, 0)["plan"]
    own = {"schema_version": kept.SCHEMA_VERSION, "versions": where.versions}
    own |= {"plan": {**plan, "checks": list(ALL)}}

    def stays(checks=ALL, into=tmp_path, **changes):
        written(tmp_path, **{**own, **changes})
        return not renew.wanted(str(tmp_path), str(into), checks, where)[0]

    assert stays()
    assert stays(checks=("exact",))
    assert not stays(into=tmp_path / "other")  # nothing is there
    assert not stays(code={})
    assert not stays(schema_version=2)
    assert not stays(versions={**where.versions, "torch": "0.1"})
    assert not stays(plan={**plan, "checks": ["exact", "greedy"]})
    assert not stays(git={"commit": "1" * 40, "dirty": True})


def test_settings_that_a_renewal_keeps_are_refused(tmp_path):
    config = OmegaConf.structured(
        certify_command.Certify(again=str(tmp_path), seed=5, drafter={}, verifier={})
    )
    with pytest.raises(ValueError, match="again= keeps outcomes, size, strength, seed"):
        certify_command.certify_again(config)


def command(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.certify", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )


def test_a_folder_is_renewed_side_by_side(tmp_path):
    """From the command line: two processes, each pair's own settings, a name that settings have
    outgrown."""
    written(tmp_path, **small(1.0, seed=3), code={})
    outgrown = written(tmp_path, drafter={"name": "none"}, **small(2.0, seed=4), code={})
    old = outgrown.rename(tmp_path / "none-naive-00000000.json")
    run = command(f"again={tmp_path}", "workers=2", "checks=[exact,sampled]")
    said = run.communicate()[1]
    assert run.returncode == 0, said
    assert not old.exists()
    found = [content for _, content in kept.read_certificates(tmp_path)]
    assert [one["pair"] for one in found] == [["ngram", "naive"], ["none", "naive"]]
    assert [one["plan"]["seed"] for one in found] == [3, 4]
    assert {kept.law_of(one).verdict for one in found} == {"certified"}
    assert {tuple(kept.checks_of(one)) for one in found} == {("exact", "sampled")}
    assert "ngram + naive: certified (exact, sampled), " in said
    assert "4 sampled tests as one family; those that fall: none" in said


@pytest.mark.slow
def test_a_renewal_that_is_killed_goes_on(tmp_path):
    lengths = (1, 2, 3, 4)
    for length in lengths:
        drafter = {**DRAFTER, "length": length}
        written(tmp_path, drafter=drafter, code={}, **small(length, seed=length, size=4000))
    ask = (f"again={tmp_path}", "workers=1", "checks=[exact]")
    run = command(*ask)
    deadline = time.monotonic() + 300
    while not current(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    done = current(tmp_path)
    assert 0 < len(done) < len(lengths)
    assert len(list(kept.read_certificates(tmp_path))) == len(lengths)  # each is whole
    times = {path: path.stat().st_mtime_ns for path in done}
    run = command(*ask)
    said = run.communicate()[1]
    assert run.returncode == 0, said
    assert f"{len(done)} of {len(lengths)} are of this code already and stay" in said
    assert {path: path.stat().st_mtime_ns for path in done} == times
    assert len(current(tmp_path)) == len(lengths)


def current(folder):
    return [path for path, one in kept.read_certificates(folder) if not code.changed(one)]


def test_certificates_do_not_make_their_own_checkout_dirty(tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "code.py").write_text("x = 1\n")
    git("add", ".")
    git("-c", "user.name=n", "-c", "user.email=e", "commit", "-m", "m")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "new.json").write_text("{}")
    assert git_state(tmp_path).dirty
    assert not git_state(tmp_path, tmp_path / "kept").dirty
    assert git_state(tmp_path, Path("/elsewhere")).dirty
    (tmp_path / "code.py").write_text("x = 2\n")
    assert git_state(tmp_path, tmp_path / "kept").dirty


# --------------------------------------------------------------------------------- the shipped ones

SHIPPED_ONES = list(kept.read_certificates(SHIPPED))
CODE = ("specdec", "drafters", "verifiers", "conf/drafter", "conf/verifier")


def edited():
    """Files of the code that certificates speak of which differ from the commit."""
    if not (ROOT / ".git").exists():
        return ""
    asked = ["git", "-C", str(ROOT), "status", "--porcelain", "--", *CODE]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def test_the_shipped_certificates_are_of_this_code():
    """Code that is being edited is not certified yet, so then this is not asked; a commit is."""
    stale = {path.name: code.changed(one) for path, one in SHIPPED_ONES if code.changed(one)}
    if stale and (files := edited()):
        pytest.skip(f"{len(stale)} certificates are stale while code is edited: {files}")
    assert not stale, f"the code changed since; {RENEW}, and commit what it writes: {stale}"


def test_the_shipped_certificates_have_all_checks():
    for path, one in SHIPPED_ONES:
        checks = kept.checks_of(one)
        assert checks[:2] == ["exact", "sampled"], f"{path.name} has {checks}; {RENEW}"
        refused = any("refused at temperature 0" in reason for reason in one["exact"]["left_out"])
        assert refused or checks[2:] == ["greedy"], f"{path.name} has {checks}; {RENEW}"
        assert one["verdict"] == "certified", path.name
        assert one["plan"]["strength"] == 1, path.name


def test_the_shipped_certificates_name_a_commit():
    dirty = [path.name for path, one in SHIPPED_ONES if not one["git"] or one["git"]["dirty"]]
    assert not dirty, f"made with local changes; {RENEW}: {dirty}"


def demo_pairs():
    """Drafter, verifier and temperature of every run of `make demo`."""
    schema.register()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        whole = compose("run", ["experiment=demo"], return_hydra_config=True)
        swept = whole.hydra.sweeper.params
        for chosen in itertools.product(*(values.split(",") for values in swept.values())):
            options = [f"{name}={value}" for name, value in zip(swept, chosen, strict=True)]
            job = compose("run", ["experiment=demo", *options])
            plain = OmegaConf.to_container(job, resolve=True)
            yield plain["drafter"], plain["verifier"], plain["sampling"]["temperature"]


def test_the_demo_is_certified_in_its_very_settings():
    for drafter, verifier, temperature in demo_pairs():
        law = find_law(drafter, verifier, SHIPPED, temperature=temperature)
        assert law, (drafter, temperature)
        assert law.same_settings, (drafter, temperature)
        assert law.verdict in ("certified", "stale"), law

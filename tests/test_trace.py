"""The trace of a run: its numbers are those of the run, which goes on as without it; and its page
opens, is small, and draws what is in view."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import specdec
from experiments.certificates import suite
from specdec import Coupled
from specdec import __main__ as command
from specdec.measuring.report import Nodes, Report, Served, Step
from specdec.models.load import BUNDLED
from specdec.output import Output
from specdec.plugins import build
from specdec.trace.page import TracePage, contents
from specdec.trace.pieces import rounds_of, words
from tests.exact import Toy, table, title
from tests.models import prompts, shared, similar
from tests.test_reads import RULES, counted, drafter_for

CHAIN = {"name": "small_model", "depth": 3}
TREE = {"name": "small_model", "depth": 3, "branching": 2}
LOOKUP = {"name": "ngram", "tree": True}


def traced(drafter, rule="auto", temperature=1.0, **options):
    model = shared("llama_gqa", torch.float64)
    made = suite.make(drafter, specdec.load(model), specdec.load(similar(model)))
    usual = {"max_new_tokens": 24, "allow_lossy": True, "temperature": temperature}
    return specdec.generate(
        model, prompts(9, 4, 6), drafter=made, verifier=rule, **{**usual, **options}
    )


# ------------------------------------------------------------------------------------- the numbers


@pytest.mark.parametrize("rule", RULES)
def test_a_traced_run_keeps_the_same_tokens_and_reads_once(rule):
    drafter, temperature = drafter_for(rule)
    plain = traced(drafter, rule, temperature)
    watched = traced(drafter, rule, temperature, trace=True, seats=2)
    assert [row.tolist() for row in watched.tokens] == [row.tolist() for row in plain.tokens]
    assert all(step.nodes is None for step in plain.steps)
    model = shared("llama_gqa")
    made = suite.make(drafter, specdec.load(model), specdec.load(similar(model)))
    for new, reads in counted(made, build("verifier", rule), temperature, trace=True):
        assert sum(reads.values()) == 1 or new, reads


@pytest.mark.parametrize("drafter", [CHAIN, TREE, LOOKUP], ids=title)
def test_tokens_are_those_of_the_text(drafter):
    output = traced(drafter, trace=True)
    for prompt, tokens in enumerate(output.tokens):
        found, root = [], output.prompts[prompt][-1]
        for step, row, start, depths in rounds_of(output, prompt):
            assert start == len(found)
            path = step.path[row][: step.num_accepted[row]]
            assert step.nodes.tokens[row, 0] == root
            after = [*step.nodes.tokens[row, path], step.nodes.drawn[row, ([0, *path])[-1]]]
            found += after[: len(depths)]
            assert depths == [*range(1, len(path) + 1), 0][: len(depths)]
            root = found[-1]
        assert found == tokens.tolist()


def test_p_and_q_are_the_laws_of_the_tables():
    toy = Toy(table(4, 8, 1), table(4, 8, 2))
    drafter = {**TREE, "model": toy.draft}
    output = specdec.generate(
        toy.target, [[0]], drafter=drafter, temperature=1.0, max_new_tokens=8, trace=True
    )
    text, seen = output.tokens[0].tolist(), 0
    for step, row, start, _ in rounds_of(output, 0):
        parents, nodes = step.parents[row], step.nodes
        for node in np.flatnonzero(parents >= 0):
            path, above = [], parents[node]
            while above > 0:
                path.insert(0, int(nodes.tokens[row, above]))
                above = parents[above]
            prefix = (*text[:start], *path)
            for weights, found in ((toy.p, nodes.p), (toy.q, nodes.q)):
                law = np.array(weights[prefix]) / sum(weights[prefix])
                assert found[row, node] == pytest.approx(law[nodes.tokens[row, node]], abs=1e-6)
            seen += 1
    assert seen > 10


def test_the_coin_decides_on_a_chain():
    """Leviathan's rule: a coin below min(1, p/q) accepts, and the first that is not ends the
    round."""
    accepted = rejected = 0
    for step in traced(CHAIN, "token", trace=True).steps:
        for row in np.flatnonzero(step.live):
            nodes = Nodes(*(values[row] for values in step.nodes))
            for node in np.flatnonzero(step.parents[row] >= 0):
                reached = node - 1 <= step.num_accepted[row]
                assert np.isnan(nodes.asked[node]) == (not reached)
                if reached:
                    ratio = min(1.0, nodes.p[node] / nodes.q[node])
                    assert nodes.asked[node] == pytest.approx(ratio)
                    won = nodes.coin[node] < nodes.asked[node]
                    assert won == (node in step.path[row])
                    accepted, rejected = accepted + won, rejected + (not won)
    assert accepted > 5
    assert rejected > 1


def test_at_temperature_0_the_argmax_is_drawn():
    output = traced(TREE, temperature=0.0, trace=True)
    for step in output.steps:
        drafted = (step.parents >= 0) & step.live[:, None]
        above = np.take_along_axis(step.nodes.drawn, step.parents.clip(0).astype(int), 1)
        assert (step.nodes.p[drafted] == (above == step.nodes.tokens)[drafted]).all()
        assert np.isnan(step.nodes.q).all()
        assert np.isnan(step.nodes.coin).all()


def test_races_have_no_coins():
    output = traced(LOOKUP, "naive", chance=Coupled(1), trace=True)
    assert all(np.isnan(step.nodes.coin).all() for step in output.steps)
    assert contents(output)["texts"][0]["rounds"]


# ---------------------------------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BUNDLED["demo"])


def written(tokenizer, rounds: int, nodes: int = 24) -> Output:
    """A run of so many rounds of ranked trees, made up: binary trees of which two nodes are
    accepted."""
    draws = np.random.default_rng(0)
    parents = np.array([[-1, *((n - 1) // 2 for n in range(1, nodes + 1))]])
    steps, text = [], []
    for number in range(rounds):
        tokens, drawn = draws.integers(0, len(tokenizer), (2, 1, nodes + 1))
        unit = draws.random((5, 1, nodes + 1))
        text += [tokens[0, 1], tokens[0, 3], drawn[0, 3]]
        steps.append(
            Step(
                number,
                np.array([True]),
                parents.astype(np.int16),
                np.array([[1, 3, -1, -1]], dtype=np.int16),
                np.array([2]),
                np.array([3]),
                SimpleNamespace(seconds={"draft": 0.002, "score": unit[0, 0, 0], "verify": 1e-4}),
                {},
                np.array([0]),
                Nodes(tokens, unit[0], unit[1], unit[2], unit[3], drawn, unit[4]),
            )
        )
    report = Report(steps, [Served(0, 1, 2)], 9.0, {}, {}, "small_model", "traversal", True)
    tokens = torch.tensor(np.array(text))
    return Output(
        [tokenizer.decode(text)], [tokens], ["length"], steps, report, [[1, 2, 3]], tokenizer
    )


def data(page: TracePage) -> dict:
    found = re.search(r'id="data">(.*?)</script>', page.html, re.S)
    return json.loads(found.group(1))


def test_a_page_holds_its_run(tokenizer):
    output = written(tokenizer, 5)
    held = data(output.trace())
    assert held == json.loads(json.dumps(contents(output)))
    (text,) = held["texts"]
    assert "".join(text["words"]) == "".join(
        words(tokenizer, output.prompts[0], output.tokens[0].tolist())
    )
    one = text["rounds"][3]
    assert one["tokens"] == output.steps[3].nodes.tokens[0].tolist()
    assert one["p"][5] == pytest.approx(output.steps[3].nodes.p[0, 5], rel=1e-3)
    assert held["shapes"] == [output.steps[0].parents[0].tolist()]
    assert held["labels"][str(one["tokens"][5])]


def test_nothing_is_fetched_and_no_text_ends_the_data(tokenizer):
    output = written(tokenizer, 1)
    evil = tokenizer.encode("</script><script>alert(1)</script><!--")
    output.prompts[0][:] = evil
    page = output.trace()
    assert "alert(1)</script>" not in page.html
    assert "</script><script>alert(1)" in data(page)["texts"][0]["prompt"]
    rest = page.html.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|src=|@import|url\(", rest)
    assert "default-src 'none'" in page.html


def test_words_join_to_the_text(tokenizer):
    tokens = tokenizer.encode('naïve = "日本 🙂"\n\tx')
    assert "".join(words(tokenizer, [], tokens)) == tokenizer.decode(tokens)


def test_a_run_that_was_not_traced_is_refused():
    with pytest.raises(ValueError, match=r"generate\(\.\.\., trace=True\)"):
        traced(CHAIN).trace()
    with pytest.raises(ValueError, match="trace"):
        traced(CHAIN, trace="yes")


def test_notebooks_show_where_tokens_came_from(tokenizer):
    output = written(tokenizer, 4)
    output.prompts[0][:] = tokenizer.encode("x")
    html = output._repr_html_()
    said = re.search(r"<pre[^>]*>(.*)</pre>", html, re.S).group(1)
    assert unescape(re.sub(r"<span [^>]*>|</span>", "", said)) == "x" + "".join(
        words(tokenizer, output.prompts[0], output.tokens[0].tolist())
    )
    assert html.count('title="drafted at depth 2"') >= 4
    frame = output.trace()._repr_html_()
    assert output.trace().html == unescape(re.search(r'srcdoc="([^"]*)"', frame).group(1))


def test_the_command_writes_a_page(tiny, tmp_path, capsys):
    arguments = ["def read ( path )", "--target", str(tiny), "--drafter", "ngram"]
    page = tmp_path / "page.html"
    assert command.main([*arguments, "--max-new-tokens", "12", "--trace", str(page)]) == 0
    held = data(TracePage(page.read_text(encoding="utf-8")))
    assert len(held["texts"][0]["words"]) == 12
    assert str(page) in capsys.readouterr().err
    assert command.main([*arguments, "--trace", str(tmp_path / "none" / "page.html")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert command.main([*arguments, "--trace", str(page), "--compare"]) == 2
    assert "--compare measures" in capsys.readouterr().err


# ------------------------------------------------------------------------------------- in a browser

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--dump-dom",
    "--window-size=1200,800",
]
# What a reader does, after the page's own script: rounds in turn by key.
WALK = """<script>{
const seen = document.documentElement.dataset;
seen.spans = document.querySelectorAll("#text span").length;
const round = () => document.getElementById("where").textContent;
const key = name =>
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
seen.first = round();
const start = performance.now();
for (let n = 0; n < 400; n++) {
  key("ArrowRight");
  document.getElementById("tree").offsetHeight;
}
seen.each = (performance.now() - start) / 400;
key("End");
seen.last = round();
seen.nodes = document.querySelectorAll("#tree .n").length;
seen.yes = document.querySelectorAll("#tree .n.yes").length;
seen.wide = document.documentElement.scrollWidth - innerWidth;
key("ArrowLeft");
seen.back = round();
for (const block of blocks) fill(block);
const whole = shown.prompt + shown.words.join("") + "\\n(length)";
seen.same = document.getElementById("text").innerText === whole;
}</script></body>"""


def opened(html: str, folder: Path) -> dict[str, str]:
    """What the page noted of itself, opened in Chromium."""
    page = folder / "page.html"
    page.write_text(html, encoding="utf-8")
    arguments = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", page.as_uri()]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    root = re.search(r"<html[^>]*>", done.stdout)
    assert root, done.stderr[-2000:]
    return dict(re.findall(r'data-(\w+)="([^"]*)"', root.group()))


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium on this machine")
def test_2000_rounds_of_24_nodes_open_in_a_browser(tokenizer, tmp_path):
    html = written(tokenizer, 2000).trace().html
    assert len(html.encode()) <= 3_000_000
    seen = opened(html.replace("</body>", WALK), tmp_path)
    assert float(seen["opened"]) <= 2000  # ms from the start of loading to the first tree
    assert int(seen["spans"]) < 1000  # of 6,000 tokens: those in view
    assert seen["same"] == "true"  # the text goes from block to block as one
    assert float(seen["each"]) < 50  # ms per key, layout included
    assert seen["first"] == "round 1 of 2000: kept 3 (2 drafted, 1 bonus)"
    assert seen["last"].startswith("round 2000 of 2000")
    assert seen["back"].startswith("round 1999 of 2000")
    assert (int(seen["nodes"]), int(seen["yes"])) == (1 + 25 + 1, 2)  # head, tree, bonus
    assert float(seen["wide"]) <= 0  # nothing is wider than the window

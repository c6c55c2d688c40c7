"""Audits of other decoders: the cells, the verdict, commands, endpoints, transformers' generate."""

import copy
import io
import itertools
import json
import shlex
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from experiments import audit as program
from experiments.audits.cells import OTHERS, cells_of
from experiments.audits.endpoint import Completions
from experiments.audits.sampler import Command, Request, Sampler, checked, sampler_named, serve
from experiments.audits.transformers_sampler import Transformers
from experiments.audits.verdict import ANOTHER_LAW, CONSISTENT, Plan, audit
from experiments.certificates import tiny
from experiments.certificates.sampled import joint_law
from specdec import Sampling, TransformersLM

PROMPT = [0, 1, 2]
NO_END: frozenset[int] = frozenset()
PLAN = Plan(PROMPT, 3, Sampling(temperature=1.0), tv=0.1)
REQUEST = Request(PROMPT, 2, 1.0, None, None, 0, 2)


@contextmanager
def no_bar(name, total):
    yield lambda note="": None


def law_of(vocabulary: int, tokens: int, sampling: Sampling, eos: int | None = None) -> np.ndarray:
    return joint_law(tiny.llama(vocabulary), PROMPT, tokens, sampling, eos)


def double(vocabulary: int) -> PreTrainedModel:
    return copy.deepcopy(tiny.llama(vocabulary)).double()


class Drawn(Sampler):
    """Draws from a joint law (V ** tokens,) that was written down."""

    def __init__(self, law: np.ndarray, vocabulary: int, tokens: int) -> None:
        self.law, self.shape = law / law.sum(), (vocabulary,) * tokens
        self.seeds: list[int] = []

    def sample(self, request: Request) -> list[list[int]]:
        self.seeds.append(request.seed)
        drawn = np.random.default_rng(request.seed).choice(
            len(self.law), request.samples, p=self.law
        )
        return np.stack(np.unravel_index(drawn, self.shape), 1).tolist()


# ------------------------------------------------------------------------------------ cells


@pytest.mark.parametrize("least", [1e-9, 0.02, 0.3])
@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_p": 0.7}])
def test_cells_partition_the_joint_law(least, options):
    sampling = Sampling(temperature=0.8, **options)
    cells = cells_of(double(4), PROMPT, 3, sampling, NO_END, least)
    found = np.zeros(len(cells.law))
    joint = law_of(4, 3, sampling)
    for tokens, probability in zip(itertools.product(range(4), repeat=3), joint, strict=True):
        found[cells.cell(tokens)] += probability
    np.testing.assert_allclose(found, cells.law, atol=1e-12)
    assert cells.law.sum() == pytest.approx(1, abs=1e-12)
    assert all(
        cells.law[number] >= least for key, number in cells.numbers.items() if key[-1] != OTHERS
    )


def test_a_continuation_that_ended_is_a_cell():
    sampling, end = Sampling(temperature=1.0), 3
    cells = cells_of(double(4), PROMPT, 3, sampling, frozenset([end]), 1e-9)
    joint = law_of(4, 3, sampling, end).reshape(4, 4, 4)
    assert cells.law[cells.cell([1, end])] == pytest.approx(joint[1, end, end], abs=1e-12)
    assert cells.cell([end]) == cells.cell([end, 0, 1])  # what follows does not count


# ---------------------------------------------------------------------------------- verdicts


def run(sampler: Sampler, plan: Plan = PLAN, vocabulary: int = 4) -> dict:
    return audit(tiny.target(vocabulary), sampler, plan, no_bar)


def test_a_faithful_sampler_is_consistent_and_a_near_one_is_not():
    law = law_of(4, 3, PLAN.sampling)
    faithful = Drawn(law, 4, 3)
    found = run(faithful)
    assert found["verdict"] == CONSISTENT, found
    assert found["p"] > PLAN.alpha
    assert found["tv_upper_bound"] < 0.2
    assert found["tv_found"] <= PLAN.tv + 1e-9
    assert len(set(faithful.seeds)) == len(faithful.seeds) == -(-found["samples"] // PLAN.batch)
    colder = law_of(4, 3, Sampling(temperature=0.6))
    assert np.abs(colder - law).sum() / 2 > PLAN.tv
    assert run(Drawn(colder, 4, 3))["verdict"] == ANOTHER_LAW


def test_a_token_that_a_filter_forbids_is_another_law():
    sampling = Sampling(temperature=1.0, top_k=2)
    plan = replace(PLAN, sampling=sampling)
    assert run(Drawn(law_of(4, 3, sampling), 4, 3), plan)["verdict"] == CONSISTENT
    mixed = 0.98 * law_of(4, 3, sampling) + 0.02 * law_of(4, 3, Sampling(temperature=1.0))
    found = run(Drawn(mixed, 4, 3), plan)
    assert (found["verdict"], found["p"]) == (ANOTHER_LAW, 0.0)
    assert found["impossible"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 12}, "12 samples are too few to test anything"),
        ({"sampling": Sampling()}, "temperature must be > 0"),
        ({"sampling": Sampling(temperature=1.0, top_k=1)}, "only one continuation"),
        ({"alpha": 0.0}, "alpha must lie between 0 and 1"),
        ({"batch": 0}, "batch must be an integer >= 1"),
        ({"prompt": [0, 4]}, "a token of the prompt must be an integer <= 3, got 4"),
        ({"prompt": []}, "the prompt has no tokens"),
        ({"max_new_tokens": 100}, "exceed the context"),
    ],
)
def test_plans_that_can_tell_nothing_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        run(Drawn(law_of(4, 3, PLAN.sampling), 4, 3), replace(PLAN, **changes))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([[0, 1]], "gave 1 samples, 2 were asked for"),
        ("no list", "samples are lists of token ids, got no list"),
        ([[0, 1], [0, 4]], r"sample 1 holds 4, which is no id of the target's vocabulary of 4"),
        ([[0, 1], [0, True]], "sample 1 holds True"),
        ([[0, 1], [0, 1.0]], "sample 1 holds 1.0"),
        ([[0, 1], [0, 1, 2]], "sample 1 has 3 tokens, at most 2"),
        ([[0, 1], [0]], r"sample 1 has 1 of 2 tokens and does not end .*\(\[3\]\)"),
    ],
)
def test_answers_that_are_not_in_order_are_refused(answer, message):
    with pytest.raises(ValueError, match=message):
        checked(answer, REQUEST, 4, frozenset([3]))


def test_a_sample_may_end():
    assert checked([[3], [1, 3]], REQUEST, 4, frozenset([3])) == [[3], [1, 3]]


# ---------------------------------------------------------------------------------- commands

FAITHFUL = """
import json, random, sys
law = json.load(open(sys.argv[1]))
for line in sys.stdin:
    request = json.loads(line)
    random.seed(request["seed"])
    drawn = random.choices(range(64), law, k=request["samples"])
    print(json.dumps({"tokens": [[n // 16, n // 4 % 4, n % 4] for n in drawn]}), flush=True)
"""


def command_of(source: str, *arguments: str) -> str:
    return shlex.join([sys.executable, "-c", source, *arguments])


@pytest.fixture
def folder(tmp_path):
    tiny.llama(4).save_pretrained(tmp_path / "tiny")
    law = tmp_path / "law.json"
    law.write_text(json.dumps(law_of(4, 3, PLAN.sampling).tolist()))
    uniform = tmp_path / "uniform.json"
    uniform.write_text(json.dumps([1] * 64))
    return tmp_path


def options(folder, **given) -> program.Audit:
    return program.Audit(
        str(folder / "tiny"), prompt=PROMPT, max_new_tokens=3, tv=0.1, progress=False, **given
    )


def test_the_command_gives_a_line_and_exits_1_for_another_law(folder, capsys):
    program.main(options(folder, command=command_of(FAITHFUL, str(folder / "law.json"))))
    found = json.loads(capsys.readouterr().out)
    assert {"verdict", "p", "samples", "tv_upper_bound"} <= found.keys()
    assert found["verdict"] == CONSISTENT
    with pytest.raises(SystemExit) as exited:
        program.main(options(folder, command=command_of(FAITHFUL, str(folder / "uniform.json"))))
    assert exited.value.code == 1
    assert json.loads(capsys.readouterr().out)["verdict"] == ANOTHER_LAW


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import sys; sys.exit(3)", r"ended \(exit status 3\) after 0 answers"),
        ("input(); print('hello')", r"answer 1 is 'hello'"),
        ("input(); print('[1]', flush=True); input()", r"answer 1 is '\[1\]'"),
        ("input(); print(b'{}'.decode())", r"has to answer with one line of JSON"),
        ("import sys; input(); sys.stdout.buffer.write(b'\\xff\\n')", "no UTF-8"),
        ("import time; time.sleep(60)", "gave no line for 1 s after request 1"),
    ],
)
def test_commands_that_fail_are_refused_by_what_they_did(source, message):
    sampler = Command(command_of(source), timeout=1.0 if "sleep" in source else 60.0)
    try:
        with pytest.raises(ValueError, match=message):
            sampler.sample(REQUEST)
    finally:
        sampler.close()
    assert sampler.process.returncode is not None


def test_a_command_that_stops_half_way():
    answer = json.dumps({"tokens": [[0, 0], [0, 0]]})
    sampler = Command(command_of(f"input(); print('{answer}')"), timeout=60.0)
    assert sampler.sample(REQUEST) == [[0, 0], [0, 0]]
    with pytest.raises(ValueError, match=r"ended \(exit status 0\) after 1 answers"):
        sampler.sample(REQUEST)
    sampler.close()


@pytest.mark.parametrize("command", ["", "no_such_program_of_anybody --flag"])
def test_commands_that_cannot_be_started(command):
    with pytest.raises(ValueError, match=r"command is empty|cannot be started: No such file"):
        Command(command, timeout=1.0)


def test_one_of_command_and_callable_is_wanted(folder):
    with pytest.raises(ValueError, match="give one of command"):
        program.main(options(folder))


def test_serve_answers_every_line():
    sampler, asked = Drawn(law_of(4, 3, PLAN.sampling), 4, 3), replace(REQUEST, max_new_tokens=3)
    source, sink = io.StringIO(2 * f"{json.dumps(vars(asked))}\n"), io.StringIO()
    serve(sampler, source, sink)
    lines = [json.loads(line) for line in sink.getvalue().splitlines()]
    assert lines == 2 * [{"tokens": sampler.sample(asked)}]


# --------------------------------------------------------------------------------- callables

MINE = """
import json
import numpy as np
from experiments.audits.sampler import Request, Sampler

class Constant(Sampler):
    def sample(self, request):
        return [[0] * request.max_new_tokens] * request.samples

def made() -> Constant:
    return Constant()

def unsaid():
    raise RuntimeError("called")

class Wanting(Constant):
    def __init__(self, model):
        pass
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "my_samplers.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SPECDEC_ALLOW", "my_samplers")
    yield
    sys.modules.pop("my_samplers", None)


def test_a_callable_of_an_allowed_package(mine, folder, capsys):
    for name in ("Constant", "made"):
        with pytest.raises(SystemExit):
            program.main(options(folder, callable=f"my_samplers:{name}"))
        assert json.loads(capsys.readouterr().out)["verdict"] == ANOTHER_LAW


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_samplers.Constant", "callable must be package.module:Name"),
        ("os:system", "lies outside of .*SPECDEC_ALLOW"),
        ("my_samplers:unsaid", "Nothing was called"),
        ("my_samplers:absent", "cannot be imported"),
        ("my_samplers:Wanting", "callable my_samplers:Wanting: .*'model'"),
    ],
)
def test_callables_that_are_refused(mine, name, message):
    with pytest.raises(ValueError, match=message):
        sampler_named(name)


# --------------------------------------------------------------------------------- endpoints


class Server(BaseHTTPRequestHandler):
    """Answers as vLLM does."""

    asked: list[dict] = []  # noqa: RUF012

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Server.asked.append({"path": self.path, **body})
        choices = [{"text": "?", "token_ids": [0] * body["max_tokens"]}] * body["n"]
        if body["model"] == "without":
            choices = [{"text": "?"}]
        status = 404 if body["model"] == "unknown" else 200
        answer = json.dumps({"choices": choices, "error": "no such model"}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments):
        pass


def test_an_endpoint():
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        assert Completions(url, "any").sample(REQUEST) == [[0, 0], [0, 0]]
        (asked,) = Server.asked
        assert (asked["path"], asked["prompt"], asked["n"]) == ("/v1/completions", PROMPT, 2)
        assert asked["return_token_ids"] is True
        with pytest.raises(ValueError, match="gave no token_ids"):
            Completions(url, "without").sample(REQUEST)
        with pytest.raises(ValueError, match=r"refused the request \(404\): .*no such model"):
            Completions(url, "unknown").sample(REQUEST)
        server.shutdown()
    with pytest.raises(ValueError, match="cannot be reached"):
        Completions(url, "any").sample(REQUEST)
    with pytest.raises(ValueError, match="url must begin with"):
        Completions("localhost:8000", "any")


# ------------------------------------------------------------------- transformers' generate

WORDS = tuple("abcdefghijklmnopqrstuvw")  # of fewer, some orders do little harm


class InOrder(PreTrainedTokenizerFast):
    """Its vocabulary is listed in the order of the ids."""

    def get_vocab(self):
        return dict(sorted(super().get_vocab().items(), key=lambda item: item[1]))


def peaked(words: tuple[str, ...], seed: int, kind: type = PreTrainedTokenizerFast):
    """A model whose laws are far from uniform, with a word for each token."""
    model = copy.deepcopy(tiny.llama(len(words), seed=seed))
    with torch.no_grad():
        model.lm_head.weight.mul_(3)
    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return TransformersLM(model, kind(tokenizer_object=inner), "tiny")


def test_plain_generate_is_consistent():
    target = peaked(WORDS, 0)
    found = audit(target, Transformers(target), replace(PLAN, batch=512), no_bar)
    assert found["verdict"] == CONSISTENT, found
    assert found["samples"] > 1000


@pytest.mark.slow
def test_assisted_generate_of_one_tokenizer_is_consistent():
    target = peaked(WORDS, 0)
    sampler = Transformers(target, peaked(WORDS, 1), num_assistant_tokens=1)
    found = audit(target, sampler, replace(PLAN, tv=0.15), no_bar)
    assert found["verdict"] == CONSISTENT, found


def intersection(kind: type, samples: int) -> dict:
    """The target does not know the assistant's last token, so the assistant is pruned."""
    target, draft = peaked(WORDS, 0), peaked((*WORDS, "unknown"), 1, kind)
    sampler = Transformers(target, draft, 1, different_tokenizers=True)
    return audit(target, sampler, replace(PLAN, max_new_tokens=2, samples=samples), no_bar)


# It passes generation_config along with arguments of its own.
@pytest.mark.filterwarnings("ignore")
def test_intersection_drafting_of_transformers_samples_another_law():
    """docs/transformers_intersection_drafting.md"""
    found = intersection(PreTrainedTokenizerFast, 600)
    assert found["verdict"] == ANOTHER_LAW, found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_with_a_vocabulary_in_order_intersection_drafting_is_consistent():
    """So the order is what the test above has found."""
    found = intersection(InOrder, 1000)
    assert found["verdict"] == CONSISTENT, found

"""What benchmark_engine measures."""

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, Protocol

import psutil
import torch

import specdec
from experiments import prompts
from experiments.benchmarks.options import Line, line
from experiments.measuring.ways import load
from experiments.system.libraries import quiet_transformers, set_threads
from specdec.interfaces import KV, KeepsKV, Paged

PAGE = 16
CONTEXT = 512  # tokens of the texts that pages are compared on
PROMPT = 400  # tokens of the prompt that samples share


Asked = tuple[list[int], int]  # a prompt, and how many tokens it is to add


class Wanted(Protocol):
    """The options of benchmark_engine."""

    target: str
    draft: str
    dtype: str
    prompts: int
    shortest: int
    longest: int
    seats: int
    samples: int
    requests: int
    repeats: int
    seed: int
    threads: int | None


class Serving:
    def __init__(self, wanted: Wanted) -> None:
        quiet_transformers()
        set_threads(wanted.threads)
        self.wanted = wanted
        self.target = load(wanted.target, dtype=wanted.dtype)
        set_threads(wanted.threads, self.target)
        draft = load(wanted.draft, dtype=wanted.dtype)
        self.drafters: dict[str, dict[str, Any]] = {
            "none": {"name": "none"},
            "small_model": {"name": "small_model", "model": draft},
        }
        texts = [prompt.text for prompt in prompts.read("jsonl", "demo")]
        encode = self.target.tokenizer
        self.ids = [list(encode(text)["input_ids"]) for text in texts]
        draw = random.Random(wanted.seed)
        self.asked = [
            (self.ids[number % len(self.ids)], draw.randint(wanted.shortest, wanted.longest))
            for number in range(wanted.prompts)
        ]

    def engine(self, drafter: str, **options: Any) -> specdec.Engine:
        made = {"seats": self.wanted.seats, **options}
        return specdec.Engine(self.target, drafter=self.drafters[drafter], **made)

    def _play(self, engine: specdec.Engine, asked: Sequence[Asked], at_once: int) -> int:
        """Decode requests, `at_once` of them submitted together; how many tokens came of it."""
        tokens = 0
        for first in range(0, len(asked), at_once):
            for ids, new in asked[first : first + at_once]:
                engine.submit(ids, max_new_tokens=new, ignore_eos=True)
            tokens += sum(len(event.tokens) for event in engine)
        return tokens

    def _rate(self, play: Callable[[], int]) -> float:
        began = time.perf_counter()
        tokens = play()
        return tokens / (time.perf_counter() - began)

    def _rates(self, ways: Mapping[str, Callable[[], int]]) -> dict[str, list[float]]:
        """Tokens/s of each way, played in turn."""
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(self.wanted.repeats):
            for name, play in ways.items():
                found[name].append(self._rate(play))
        return found

    def _continuous(self, drafter: str, asked: Sequence[Asked], at_once: int) -> Callable[[], int]:
        def play() -> int:
            with self.engine(drafter) as engine:
                return self._play(engine, asked, at_once)

        return play

    def _warm(self) -> None:
        for name in self.drafters:
            with self.engine(name) as engine:
                self._play(engine, [(ids, 8) for ids, _ in self.asked[: self.wanted.seats]], 99)

    def batches(self) -> list[Line]:
        self._warm()
        everything = len(self.asked)
        lines = []
        rates = self._rates(
            {
                f"{name}, {how}": self._continuous(name, self.asked, at_once)
                for name in self.drafters
                for how, at_once in (("engine", everything), ("fixed", self.wanted.seats))
            }
        )
        for name in self.drafters:
            engine, fixed = rates[f"{name}, engine"], rates[f"{name}, fixed"]
            how = f"{median(engine):.0f}, {median(fixed):.0f} tokens/s"
            lines.append(line(f"{name}: engine / fixed batches", ratio(engine, fixed), how))
        return lines

    def transformers(self) -> list[Line]:
        """Against transformers' own continuous batching, which is made for CUDA."""
        asked = self.asked[: min(2 * self.wanted.seats, len(self.asked))]
        self._warm()
        try:
            self._theirs(asked[:1])
        except Exception as error:  # whatever it is that does not run on this device
            said = (str(error).splitlines() or [""])[0]
            return [line("generate_batch", "-", f"{type(error).__name__}: {said}"[:70])]
        rates = self._rates(
            {
                "theirs": lambda: self._theirs(asked),
                **{name: self._continuous(name, asked, len(asked)) for name in self.drafters},
            }
        )
        theirs = rates["theirs"]
        return [
            line(
                f"{name}: engine / generate_batch",
                ratio(rates[name], theirs),
                f"{median(rates[name]):.0f}, {median(theirs):.0f} tokens/s; {len(asked)} requests",
            )
            for name in self.drafters
        ]

    def _theirs(self, asked: Sequence[Asked]) -> int:
        from transformers import GenerationConfig

        model, total = self.target.model, 0
        longest = max(new for _, new in asked)
        config = GenerationConfig(max_new_tokens=longest, do_sample=False, eos_token_id=-1)
        with model.continuous_batching_context_manager(generation_config=config) as manager:
            for number, (ids, new) in enumerate(asked):
                manager.add_request(ids, request_id=str(number), max_new_tokens=new)
            for _ in asked:
                found = manager.get_result(timeout=60)
                if found is None:
                    raise TimeoutError("no result within a minute")
                total += len(found.generated_tokens)
        return total

    def generate(self) -> list[Line]:
        """One seat, one request after the other."""
        self._warm()
        asked = self.asked[: min(8, len(self.asked))]
        lines = []
        for name, drafter in self.drafters.items():

            def by_engine(name: str = name) -> int:
                with self.engine(name, seats=1) as engine:
                    return self._play(engine, asked, 1)

            def by_call(drafter: Any = drafter) -> int:
                options = {"drafter": drafter, "ignore_eos": True}
                return sum(
                    len(specdec.generate(self.target, ids, max_new_tokens=new, **options).tokens[0])
                    for ids, new in asked
                )

            rates = self._rates({"engine": by_engine, "generate": by_call})
            how = ", ".join(f"{median(each):.0f}" for each in rates.values()) + " tokens/s"
            measured = ratio(rates["engine"], rates["generate"])
            lines.append(line(f"{name}: engine of one seat / generate", measured, how))
        return lines

    def pages(self) -> list[Line]:
        self._warm()
        wanted, lines = self.wanted, []
        length = min(CONTEXT, self.target.context) - 64
        ids = [token for row in self.ids for token in row]
        asked = [
            (ids[first : first + length], 64)
            for first in range(0, wanted.seats * 2 * length, length)
            if len(ids[first : first + length]) == length
        ]
        for name in self.drafters:
            rates = self._rates(
                {
                    kv: lambda kv=kv, name=name: self._long(name, kv, asked)
                    for kv in ("paged", "contiguous")
                }
            )
            how = ", ".join(f"{median(each):.0f}" for each in rates.values()) + " tokens/s"
            what = f"{name}: paged / contiguous, {length + 64} tokens of context"
            lines.append(line(what, ratio(rates["paged"], rates["contiguous"]), how))
        return [*lines, *map(self._peak, sorted({wanted.seats, len(self.asked)}))]

    def _long(self, drafter: str, kv: Any, asked: Sequence[Asked]) -> int:
        with self.engine(drafter, kv=kv, page=PAGE) as engine:
            return self._play(engine, asked, len(asked))

    def _peak(self, seats: int) -> Line:
        """Pages that are kept for their text alone are not in use."""
        target = self.target
        assert isinstance(target, KeepsKV)
        longest = max(len(ids) + new for ids, new in self.asked)
        whole = seats * longest * target.bytes_per_token(KV())
        most = tokens = 0
        with self.engine("none", kv="paged", page=PAGE, seats=seats) as engine:
            handles = [
                engine.submit(ids, max_new_tokens=new, ignore_eos=True) for ids, new in self.asked
            ]
            while engine.busy:
                engine.step()
                used = engine.pages_in_use or 0
                if used > most:
                    live = [one for one in handles if one.emission.tokens and not one.over]
                    tokens = sum(len(one.text) - 1 for one in live)
                    most = used
        paged = most * PAGE * target.bytes_per_token(KV("paged", PAGE))
        how = f"{paged >> 20}, {whole >> 20} MiB; longest {longest}; the tokens alone "
        how += f"{tokens / (seats * longest):.2f}"
        what = f"memory at the peak, {seats} seats: paged / contiguous"
        return line(what, f"{paged / whole:.2f}", how)

    def samples(self) -> list[Line]:
        """Pages at the peak against those that the prompt and the samples' own tokens need."""
        wanted, new = self.wanted, 112  # the context is full then
        prompt = [token for row in self.ids for token in row][:PROMPT]
        most = 0
        whole = {"prefill_chunk": PROMPT}  # one pass for the prompt
        with self.engine("none", kv="paged", page=PAGE, seats=wanted.samples, **whole) as engine:
            memory = engine.memory
            assert isinstance(memory, Paged)
            passes = watched_reads(memory)
            engine.submit(
                prompt, max_new_tokens=new, samples=wanted.samples, temperature=1.0, ignore_eos=True
            )
            while engine.busy:
                engine.step()
                most = max(most, engine.pages_in_use or 0)
        own = memory.pages_for(PROMPT) + wanted.samples * memory.pages_for(new)
        how = f"{most} pages; {len(passes)} passes read {sum(passes)} tokens of prompts"
        what = f"{wanted.samples} samples of one prompt: pages / those of its text"
        return [line(what, f"{most / own:.2f}", how)]

    def host(self) -> list[Line]:
        lines = []
        for name in self.drafters:
            shares = []
            with self.engine(name, seats=16) as engine:
                for ids, _ in (self.asked * 16)[:16]:
                    engine.submit(ids, max_new_tokens=self.wanted.longest, ignore_eos=True)
                engine.step()
                while engine.busy:
                    began = time.perf_counter()
                    engine.step()
                    whole = time.perf_counter() - began
                    step = engine.last_step
                    assert step is not None
                    inside = sum(step.seconds[each] for each in ("draft", "score", "verify"))
                    shares.append((whole - inside, whole))
            share = median(mine / whole for mine, whole in shares)
            how = f"{1e3 * median(mine for mine, _ in shares):.2f} ms of a round, 16 seats"
            lines.append(line(f"{name}: host time of the scheduler", f"{share:.1%}", how))
        return lines

    def soak(self) -> list[Line]:
        """Tiny models and short texts: what counts is the number of requests."""
        draft = {"name": "small_model", "model": tiny(), "depth": 2}
        return [*self._soak("none", 1), *self._soak(draft, 2)]

    def _soak(self, drafter: Any, models: int) -> list[Line]:
        """models: that keep texts in pages, of one size each."""
        wanted, draw, target = self.wanted, random.Random(self.wanted.seed), tiny()
        system = [draw.randrange(target.vocabulary) for _ in range(8)]  # a third begins with it
        resident: list[int] = []
        process, over = psutil.Process(), 0
        memory = 24 * 4 * target.bytes_per_token() * models
        with specdec.Engine(
            target, drafter=drafter, seats=4, memory=memory, page=4, prefill_chunk=8
        ) as engine:
            live: list[Any] = []
            for number in range(wanted.requests):
                prompt = system * (number % 3 == 0)
                prompt += [draw.randrange(target.vocabulary) for _ in range(draw.randint(1, 20))]
                options = {"temperature": draw.choice([0.0, 1.0]), "seed": number}
                live.append(engine.submit(prompt, max_new_tokens=draw.randint(1, 12), **options))
                while len(live) > 8:
                    engine.step()
                    if draw.random() < 0.02:
                        draw.choice(live).cancel()
                    over += sum(handle.set_aside > 0 for handle in live if handle.over)
                    live = [handle for handle in live if not handle.over]
                if number in (wanted.requests // 5, wanted.requests - 1):
                    gc.collect()
                    resident.append(process.memory_info().rss)
            for _ in engine:
                pass
            left, pages = engine.pages_in_use, engine.memory
            assert isinstance(pages, Paged)
            use = pages.page_use
        growth, name = resident[1] / resident[0] - 1, name_of(drafter)
        how = f"{over} were set aside, {use.evicted} pages evicted, {use.adopted} tokens shared"
        since = f"from request {wanted.requests // 5} on"
        return [
            line(f"{name}, {wanted.requests} requests: pages in use at the end", str(left), how),
            line(f"{name}: growth of resident memory", f"{growth:.1%}", since),
        ]


def name_of(drafter: Any) -> str:
    return drafter if isinstance(drafter, str) else str(drafter["name"])


def tiny() -> specdec.TransformersLM:
    """A model of random weights that takes next to no time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=97,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    return specdec.load(LlamaForCausalLM(config).eval())


def watched_reads(memory: Any) -> list[int]:
    """Tokens of each pass that reads, from now on."""
    passes: list[int] = []
    read = memory.read

    def noted(tokens: Any, counts: Any, *more: Any, **options: Any) -> Any:
        passes.append(sum(counts))
        return read(tokens, counts, *more, **options)

    memory.read = noted
    return passes


def ratio(one: Sequence[float], other: Sequence[float]) -> str:
    """The median of the ratios, repeat by repeat."""
    found = median(mine / theirs for mine, theirs in zip(one, other, strict=True))
    return f"{found:.2f}x"

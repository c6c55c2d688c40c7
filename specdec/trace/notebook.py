"""What a notebook shows of an output: each token coloured by where it came from."""

from html import escape

from specdec.output import Output
from specdec.trace.pieces import rounds_of, words

MOST_PROMPTS, MOST_TOKENS = 8, 2000  # a notebook keeps all that it shows
MOST_OF_PROMPT = 500  # characters, from its end
HUES = (150, 175, 200, 225, 250, 275, 300, 325)  # of depths 1, 2 ...; see page.css
PILL = "border-radius:3px;background:hsl({hue} 70% 50% / .28)"


def fragment(output: Output) -> str:
    """HTML without scripts, in the colours of the page around it."""
    shown = min(len(output.tokens), MOST_PROMPTS)
    parts = [_text(output, prompt) for prompt in range(shown)]
    if shown < len(output.tokens):
        parts.append(f"<p>and {len(output.tokens) - shown} more prompts</p>")
    deepest = max((int(step.num_accepted.max(initial=0)) for step in output.steps), default=0)
    depths = range(1, min(deepest, len(HUES)) + 1)
    legend = " ".join([*(_span(str(depth), depth) for depth in depths), _span("target", 0)])
    head = f"<p>{escape(str(output.report))}<br><small>drafted at depth {legend}</small></p>"
    return f'<div style="overflow-wrap:anywhere">{head}{"".join(parts)}</div>'


def _text(output: Output, prompt: int) -> str:
    start = "".join(words(output.tokenizer, [], output.prompts[prompt]))[-MOST_OF_PROMPT:]
    asked = f'<span style="opacity:.6" title="prompt">{escape(start)}</span>'
    tokens = output.tokens[prompt].tolist()[:MOST_TOKENS]
    texts = words(output.tokenizer, output.prompts[prompt], tokens)
    depths = [depth for kept in rounds_of(output, prompt) for depth in kept.depths]
    said = "".join(_span(text, depth) for text, depth in zip(texts, depths, strict=False) if text)
    more = " ..." if len(tokens) < len(output.tokens[prompt]) else ""
    reason = escape(output.finish_reasons[prompt])
    return f'<pre style="white-space:pre-wrap">{asked}{said}{more}</pre><small>{reason}</small>'


def _span(text: str, depth: int) -> str:
    if not depth:
        return f'<span title="the target\'s own">{escape(text)}</span>'
    style = PILL.format(hue=HUES[min(depth, len(HUES)) - 1])
    return f'<span style="{style}" title="drafted at depth {depth}">{escape(text)}</span>'

"""The pictures of docs/concepts.md, computed with the library and written as SVG.

    python scripts/concept_figures.py [DIRECTORY]

Without a directory they go to docs/figures. The same library gives the same bytes. Each picture brings its own ground,
light or dark as the reader's system asks, so that it can be read on any page.
"""

import re
import sys
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gdssm import GDSSM, LinearRegression, as_predictor, construct, theory, tokens

DIRECTORY = Path(__file__).parents[1] / "docs/figures"
STYLE = """
  .ground { fill: #fbfbf8; stroke: #d8d8d0; }
  text { font: 14px "DejaVu Sans", Verdana, Arial, sans-serif; fill: #22221f; }
  .small { font-size: 12px; }
  .quiet { fill: #5b5b55; }
  .line { stroke: #22221f; fill: none; stroke-width: 1.5; }
  .thin { stroke: #b9b9b0; fill: none; }
  .box { fill: none; stroke: #5b5b55; stroke-width: 1.2; }
  .one { fill: #0072b2; } .two { fill: #d55e00; }
  .one-line { stroke: #0072b2; } .two-line { stroke: #d55e00; } .three-line { stroke: #5b5b55; }
  .curve { fill: none; stroke-width: 2.2; }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #1d2026; stroke: #3a3f49; }
    text { fill: #e6e6e1; }
    .quiet { fill: #a9a9a2; }
    .line { stroke: #e6e6e1; } .thin { stroke: #4a4f59; } .box { stroke: #a9a9a2; }
    .one { fill: #56b4e9; } .two { fill: #f0894a; }
    .one-line { stroke: #56b4e9; } .two-line { stroke: #f0894a; } .three-line { stroke: #a9a9a2; }
  }
"""
S, M4 = 1 / 12, 1 / 80  # variance and fourth moment of a uniform number in (-1/2, 1/2)


# Drawing


def svg(width: int, height: int, title: str, description: str, parts: Sequence[str]) -> str:
    """A whole picture with its name and description for readers who do not see it."""
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-labelledby="title description">\n<title id="title">{escape(title)}</title>\n'
        f'<desc id="description">{escape(description)}</desc>\n<style>{STYLE}</style>\n'
        f'<rect class="ground" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="6"/>\n{body}\n</svg>\n'
    )


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "middle") -> str:
    """Text; in a word, what follows _ is set lower and what follows ^ higher: "y_k^T"."""
    words = []
    for word in content.split(" "):
        base, *marks = re.split(r"([_^])", word)
        shown, back = escape(base), 0
        for mark, index in zip(marks[::2], marks[1::2], strict=True):
            shift = 4 if mark == "_" else -5
            shown += f'<tspan dy="{shift - back}" font-size="10">{escape(index)}</tspan>'
            back = shift
        words.append(shown + (f'<tspan dy="{-back}">&#8203;</tspan>' if back else ""))
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{kind}">{" ".join(words)}</text>'


def rect(x: float, y: float, width: float, height: float, kind: str, opacity: float = 1.0) -> str:
    """A rectangle."""
    see = "" if opacity == 1 else f' fill-opacity="{opacity:.3f}"'
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"{see}/>'


def path(points: Sequence[tuple[float, float]], kind: str, extra: str = "") -> str:
    """A line through points."""
    return f'<path class="{kind}" d="M{" L".join(f"{x:.1f},{y:.1f}" for x, y in points)}"{extra}/>'


def arrow(x0: float, y0: float, x1: float, y1: float) -> str:
    """A straight arrow, horizontal or vertical."""
    size = 6
    if x0 == x1:
        back = y1 - size if y1 > y0 else y1 + size
        head = [(x1 - size / 1.5, back), (x1, y1), (x1 + size / 1.5, back)]
    else:
        back = x1 - size if x1 > x0 else x1 + size
        head = [(back, y1 - size / 1.5), (x1, y1), (back, y1 + size / 1.5)]
    return path([(x0, y0), (x1, y1)], "line") + path(head, "line")


def ring(x: float, y: float) -> str:
    """A mark around a point."""
    return f'<circle class="curve three-line" cx="{x:.1f}" cy="{y:.1f}" r="6.5" style="stroke-width:1.4"/>'


# The pictures


def window_picture() -> str:
    """Tokens, windows over them, and what happens to each."""
    parts, left, step, top = [], 70, 74, 70
    names = ["x_1", "y_1", "x_2", "y_2", "x_3", "y_3", "x_q"]
    parts.append(text(20, top - 34, "tokens", "quiet small", "start"))
    for i, name in enumerate(names):
        x = left + i * step
        parts += [rect(x - 24, top - 22, 48, 34, "one" if name[0] == "x" else "two", 0.22), rect(x - 24, top - 22, 48, 34, "box")]
        parts.append(text(x, top, name))
    for k in range(3):
        first, last = left + 2 * k * step, left + (2 * k + 2) * step
        middle, y = (first + last) / 2, top + 34 + 12 * (k % 2)
        parts.append(path([(first - 20, y - 10), (first - 20, y), (last + 20, y), (last + 20, y - 10)], "line"))
        parts.append(arrow(middle, y, middle, 142))
        parts.append(text(middle, 162, f"S_{k + 1}^T w_q S_{k + 1}", "small"))
        parts.append(text(middle, 182, f"= x_{k + 1} y_{k + 1}^T", "small"))
        parts.append(arrow(middle, 192, middle, 222))
        parts += [rect(middle - 34, 224, 68, 44, "one", 0.12 + 0.14 * k), rect(middle - 34, 224, 68, 44, "box")]
        parts.append(text(middle, 251, f"Z_{k + 1}"))
        if k:
            parts.append(arrow(middle - 2 * step + 36, 246, middle - 38, 246))
            parts.append(text(middle - step, 239, "+", "small"))
    end = left + 6 * step
    parts += [arrow(end, 84, end, 310), arrow(left + 5 * step, 270, left + 5 * step, 310)]
    parts.append(text(end + 10, 214, "query", "quiet small", "start"))
    parts += [rect(left + 4.4 * step, 312, 2.1 * step, 34, "box"), text(left + 5.45 * step, 334, "C Z_3^T x_q")]
    parts.append(arrow(left + 4.4 * step - 4, 329, left + 3 * step + 24, 329))
    parts.append(text(left + 3 * step + 14, 334, "prediction ŷ", "", "end"))
    return svg(
        590,
        366,
        "Windows over interleaved tokens",
        "Seven tokens x1, y1, x2, y2, x3, y3 and the query. Windows of three tokens, two tokens apart, overlap in one token. "
        "Each gives a product x y-transposed, which is added to the state Z. The last state, multiplied with C and the query, "
        "is the prediction.",
        parts,
    )


def filling(counts: Sequence[int], d: int = 6) -> tuple[list[Tensor], Tensor]:
    """Implicit weights of one layer after some numbers of examples of one task, and the task's W.

    The layer is one step of gradient descent at the best rate for every length.
    """
    task = LinearRegression(d_x=d, d_y=d, n_examples=max(counts))
    context = task.sample(1, seed=3, dtype=torch.float64)
    layer = construct.gradient_descent(d, d, lr=1 / S, n_context=None, dtype=torch.float64).layer
    assert isinstance(layer, GDSSM)
    assert layer.count_offset is not None
    with torch.no_grad():
        layer.count_offset.fill_(d - 2 + M4 / S**2)
        states = [layer(tokens.interleave(context.x[:, :n], context.y[:, :n], context.x_query))[1] for n in counts]
        return [state.weights()[0, 0] for state in states], task.true_weights(1, seed=3, dtype=torch.float64)[0]


def filling_picture() -> str:
    """The implicit weights after more and more examples, beside the weights of the task."""
    counts = (1, 3, 10, 30, 100, 1000)
    found, wanted = filling(counts)
    panels = [*zip([f"{n} example{'s' * (n > 1)}" for n in counts], found, strict=True), ("the task's W", wanted)]
    cell, gap, columns = 20, 24, 4
    d = len(wanted)
    most = float(wanted.abs().max())
    parts = []
    for i, (name, weights) in enumerate(panels):
        x0, y0 = 24 + (i % columns) * (d * cell + gap), 40 + (i // columns) * (d * cell + 66)
        parts.append(text(x0 + d * cell / 2, y0 - 10, name, "small"))
        for row in range(d):
            for column in range(d):
                value = float(weights[row, column]) / most
                kind = "one" if value >= 0 else "two"
                parts.append(rect(x0 + column * cell, y0 + row * cell, cell, cell, kind, min(1.0, abs(value))))
        parts.append(rect(x0, y0, d * cell, d * cell, "box"))
        if weights is not wanted:
            error = float((weights - wanted).norm() / wanted.norm())
            parts.append(text(x0 + d * cell / 2, y0 + d * cell + 17, f"distance {error:.2f}", "small quiet"))
    x0, y0 = 24 + 3 * (d * cell + gap), 40 + d * cell + 66
    for i, (kind, name) in enumerate((("one", "positive"), ("two", "negative"))):
        parts += [rect(x0, y0 + 24 + 26 * i, 16, 16, kind, 0.8), text(x0 + 24, y0 + 37 + 26 * i, name, "small", "start")]
    return svg(
        24 * 2 + columns * d * cell + (columns - 1) * gap,
        40 + 2 * d * cell + 66 + 36,
        "The state filling up",
        f"The implicit weights of one layer after {', '.join(str(n) for n in counts)} examples of one task, as coloured squares, "
        "and the weights of the task. They approach them; the size of the state does not change.",
        parts,
    )


class Curves(NamedTuple):
    """Expected loss per output for k = 1, 2, ..: gradient descent at the best single rate, and the best rate in each step."""

    one_rate: list[float]
    best: list[float]
    rates: list[list[float]]


def curves(n: int = 10, d: int = 10, most: int = 6, tasks: int = 100_000) -> Curves:
    """Loss against k for uniform inputs without noise; rates from some contexts, losses from others.

    With p the residual polynomial, p(0) = 1, the error is W p(B) x_q, so the expected loss is 0.5 s E tr p(B)^2: only the
    eigenvalues of B = sum x x^T matter. Far larger k want more contexts: rare large eigenvalues rule the mean of p(B)^2.
    """
    task = LinearRegression(d_x=d, d_y=1, n_examples=n)
    known, other = (torch.linalg.eigvalsh(x.mT @ x) for x in (task.sample(tasks, seed=i, dtype=torch.float64).x for i in (11, 13)))

    def loss(eigenvalues: Tensor, rates: Sequence[float]) -> float:
        residual = torch.ones_like(eigenvalues)
        for rate in rates:
            residual = residual * (1 - rate * eigenvalues)
        return float(0.5 * S * residual.square().sum(1).mean())

    rates = [list(theory.best_polynomial(known.numpy(), k)[0]) for k in range(1, most + 1)]
    found = [_one_rate(lambda r: loss(known[:20_000], r), k) for k in range(1, most + 1)]
    one_rate = [loss(other, [rate] * (k + 1)) for k, rate in enumerate(found)]
    return Curves(one_rate, [loss(other, r) for r in rates], rates)


def _one_rate(loss: Callable[[list[float]], float], k: int) -> float:
    """The rate in (0, 2) whose k equal steps have the smallest loss, which falls and then rises."""
    low, high = 0.0, 2.0
    while high - low > 1e-4:
        a, b = low + (high - low) / 3, high - (high - low) / 3
        if loss([a] * k) < loss([b] * k):
            high = b
        else:
            low = a
    return low


def measured(rates: Sequence[float], n: int = 10, d: int = 10, tasks: int = 4_000) -> float:
    """The loss of the constructed layer with these rates on other tasks."""
    context = LinearRegression(d_x=d, d_y=d, n_examples=n).sample(tasks, seed=12, dtype=torch.float64)
    with torch.no_grad():
        prediction = as_predictor(construct.polynomial(d, d, rates=rates, dtype=torch.float64))(context)
    assert context.y_query is not None
    return float(0.5 * (prediction - context.y_query).square().mean())


def steps_picture() -> str:
    """Loss against the number of steps."""
    found = curves()
    _, closed = theory.one_step_optimum(10, 10, x_var=S, x_fourth_moment=M4)
    built = [measured(rates) for rates in found.rates]
    width, height, left, right, top, bottom = 600, 360, 66, 24, 40, 56
    most = 0.24

    def at(k: float, loss: float) -> tuple[float, float]:
        x = left + (k - 0.7) / (6.3 - 0.7) * (width - left - right)
        return x, height - bottom - loss / most * (height - top - bottom)

    parts = []
    for tick in (0, 0.05, 0.1, 0.15, 0.2):
        parts.append(path([at(0.7, tick), at(6.3, tick)], "thin"))
        parts.append(text(left - 8, at(0, tick)[1] + 4, f"{tick:.2f}", "small", "end"))
    for k in range(1, 7):
        parts.append(text(at(k, 0)[0], height - bottom + 20, str(k), "small"))
    parts.append(text((left + width - right) / 2, height - 12, "steps k at the readout", "small"))
    parts.append(text(left - 50, 22, "loss per output", "small", "start"))
    for values, name, kind, dash in (
        (found.one_rate, "one rate for all steps", "one", ""),
        (found.best, "best rate in each step", "two", ' stroke-dasharray="7 4"'),
    ):
        points = [at(k + 1, value) for k, value in enumerate(values)]
        parts.append(path(points, f"curve {kind}-line", dash))
        parts += [f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in points]
        x, y = at(3, values[2])
        x, y, anchor = (x + 6, y - 23, "start") if kind == "one" else (x + 24, y + 32, "end")
        parts.append(text(x, y, f"{name}: {values[2]:.3f} at k = 3", "small", anchor))
    parts += [ring(*at(k + 1, value)) for k, value in enumerate(built)]
    x, y = at(1, closed)
    parts.append(text(x + 14, y - 2, f"one step, closed form {closed:.5f}", "small", "start"))
    x, y = at(3.6, 0.215)
    parts += [ring(x, y), text(x + 14, y + 4, "constructed layer on 4,000 tasks", "small", "start")]
    return svg(
        width,
        height,
        "Loss against the number of steps",
        "Two falling curves from the same loss at one step: gradient descent with one rate falls slower than gradient descent "
        "with the best rate in each step. Losses of constructed layers lie on the lower curve.",
        parts,
    )


PICTURES: dict[str, Callable[[], str]] = {"windows": window_picture, "filling": filling_picture, "steps": steps_picture}


def main(directory: Path = DIRECTORY) -> None:
    """Write all pictures."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        target = directory / f"{name}.svg"
        target.write_text(draw(), encoding="utf-8")
        print(target)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*map(Path, sys.argv[1:2]))

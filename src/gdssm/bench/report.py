"""The table, the picture and the JSON of a benchmark's record. No torch here; matplotlib where a picture is asked for."""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]


def quantity(value: float, unit: str) -> str:
    """Three digits with a prefix, e.g. 12.3 GB."""
    for limit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def milliseconds(seconds: float) -> str:
    """Three digits of milliseconds."""
    return f"{float(f'{1e3 * seconds:.3g}'):g}"


def lines(record: Record) -> Iterator[str]:
    """The printed report."""
    made, top = record["environment"], record["ceilings"]
    where = made.get("gpu") or f"{made['processor']}, {made['threads']} threads"
    yield f"gdssm {made['gdssm']}, torch {made['torch']}, {where}"
    yield "ceilings: " + ", ".join(
        quantity(v, "B/s" if "bytes" in k else "FLOP/s") + f" {k.removesuffix('_per_second').replace('_', ' ')}"
        for k, v in top.items()
    )
    for name, what in record["programs"].items():
        yield f"  {name:15} {what}"
    for name, reason in record["skipped"].items():
        yield f"  {name:15} skipped: {reason}"
    yield "checked against float64 (RMS error over RMS; outputs, largest of the gradients):"
    for check in record["checks"]:
        mark = "" if check["ok"] else f"  BEYOND {check['limit']:.0e}"
        size = f"  D = {check['shape'][3]}" if "shape" in check else ""
        yield f"  {check['program']:15} {check['dtype']:9} {check['outputs']:.1e}  {check['gradients']:.1e}{size}{mark}"
    for case in record["cases"] + ([record["long"]] if "long" in record else []):
        yield from table(case, top)
    for name, fit in record["growth"].items():
        span = f"T = {fit['tokens'][0]} to {fit['tokens'][-1]}"
        yield f"growth, {name}: time T^{fit['time']:.3f}, memory T^{fit['memory']:.3f} ({span})"


def table(case: Record, top: Record) -> Iterator[str]:
    """One case: rows by program, times with quartiles, and over this library's."""
    decode = case["mode"] == "decode"
    b, t, h, d = case["shape"]
    yield f"{case['mode']}, (B, T, H, D) = ({b}, {t}, {h}, {d}), {case['dtype']}" + (", per token" if decode else "")
    heads = ("program", "ms", "quartiles", "over gdssm", "first, last tenth" if decode else "memory", "FLOP/s", "B/s", "of bound")
    rows = [heads]
    own = case["results"].get("gdssm", {}).get("median")
    for name, result in case["results"].items():
        seconds = result["median"]
        rate = result["bytes"] / seconds
        memory = f"{milliseconds(result['first_tenth'])}, {milliseconds(result['last_tenth'])}" if decode else ""
        rows.append(
            (
                name,
                milliseconds(seconds),
                f"{milliseconds(result['low'])} to {milliseconds(result['high'])}",
                f"{seconds / own:.2f}" if own else "",
                memory if decode else quantity(result["peak_bytes"], "B"),
                quantity(result["operations"] / seconds, ""),
                quantity(rate, ""),
                f"{bound(result, case['dtype'], top) / seconds:.0%}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
    for name, result in case["results"].items():
        if result.get("at"):
            yield f"  {name}, ms at token " + ", ".join(f"{n}: {milliseconds(s)}" for n, s in result["at"].items())


def bound(result: Record, dtype: str, top: Record) -> float:
    """Seconds that the bytes take at the rate of a copy, or the operations at that of a matrix product: the larger."""
    product = top.get(f"matmul_{dtype}_per_second") or top.get("matmul_bfloat16_per_second") or top["matmul_float32_per_second"]
    return max(result["bytes"] / top["copy_bytes_per_second"], result["operations"] / product)


def headline(record: Record) -> list[dict[str, Any]]:
    """Of every case that sweeps nothing: program, seconds, and seconds over this library's one stream."""
    found = []
    for case in record["cases"]:
        if not case["sweep"]:
            own = case["results"]["gdssm"]["median"]
            for name, result in case["results"].items():
                row = {"mode": case["mode"], "shape": case["shape"], "dtype": case["dtype"], "program": name}
                found.append(row | {"seconds": result["median"], "ratio": result["median"] / own})
    return found


def picture(record: Record) -> bytes:
    """A PNG: time against T of the forward pass where T was swept, and the first case's times."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context("default"):
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        bars(left, record["cases"])
        for name, (tokens, times) in curves(record["cases"]).items():
            right.plot(tokens, [1e3 * t for t in times], marker="o", label=name)
        right.set(xscale="log", yscale="log", xlabel="tokens T", ylabel="milliseconds", title="forward, time against T")
        if right.lines:
            right.legend(fontsize="small")
        file = io.BytesIO()
        FigureCanvasAgg(figure)
        figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return file.getvalue()


def bars(axes: Any, cases: Sequence[Record]) -> None:
    """The first training case, or the first case."""
    case = next((c for c in cases if c["mode"] == "training"), cases[0])
    names = list(case["results"])[::-1]
    axes.barh(names, [1e3 * case["results"][name]["median"] for name in names])
    axes.set(xlabel="milliseconds", title=f"{case['mode']}, (B, T, H, D) = {tuple(case['shape'])}, {case['dtype']}")


def curves(cases: Sequence[Record]) -> dict[str, tuple[list[int], list[float]]]:
    """Lengths and seconds of each program in the forward sweep over T."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for case in sorted((c for c in cases if c["sweep"] == "tokens" and c["mode"] == "forward"), key=lambda c: c["shape"][1]):
        for name, result in case["results"].items():
            tokens, times = found.setdefault(name, ([], []))
            tokens.append(case["shape"][1])
            times.append(result["median"])
    return found


def markdown(record: Record) -> str:
    """The readme's table: cases that sweep nothing and are no decoding, milliseconds and how many times this library's."""
    picked = [case for case in record["cases"] if not case["sweep"] and case["mode"] != "decode"]
    names = [name for name in record["programs"] if any(name in case["results"] for case in picked)]
    titles = [f"{case['mode']} ({', '.join(map(str, case['shape']))})" for case in picked]
    rows = [["", *titles], ["---"] * (len(titles) + 1)]
    for name in names:
        cells = []
        for case in picked:
            found, own = case["results"].get(name), case["results"]["gdssm"]["median"]
            cells.append(f"{milliseconds(found['median'])} ms, {found['median'] / own:.2f}" if found else "")
        rows.append([record["programs"][name], *cells])
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)

"""Records made up for tests of the report, and a reader of its page."""

import json
from html.parser import HTMLParser

import numpy as np

HOSTILE = "<script>alert('x')</script> & \"quoted\" </table>"
VOID = {"meta", "br", "link", "img", "hr", "input"}


def claim(name, value, target, relation="<=", holds=True, kind="replication"):
    return {"name": name, "kind": kind, "predicted": 1.0, "value": value, "target": target, "relation": relation, "holds": holds}


def make_results(n_seeds=5, **changed):
    claims = [
        claim("loss_ratio", 1.00371, 1.02),
        claim("sensitivity_cosine", 0.99962, 0.99, ">="),
        claim("success_rate", 1.0, 0.9, ">="),
        claim("learned_rate", 0.611, [0.55, 0.66], "between", kind="hypothesis"),
        claim("constructed & exact", 0.0, 0.0, "==", kind="identity"),
    ]
    environment = {"gdssm": "0.1.0", "python": "3.12.1", "torch": "2.6.0", "threads": 2, "machine": "x86_64", "seconds": 12.345}
    made = {
        "experiment": "one-step",
        "preset": "quick",
        "seeds": list(range(n_seeds)),
        "claims": claims,
        "environment": environment,
    }
    return made | changed


def make_variant(name="head decay", n_seeds=5, n_steps=9, d=4, seed=0):
    """Curves that fall to gradient descent's, weights near the construction."""
    rng = np.random.default_rng(seed)
    steps = np.linspace(0, 4000, n_steps).astype(int)
    fall = np.exp(-steps / rng.uniform(350, 700, (n_seeds, 1)))
    near = {"w_q": np.zeros((3, 3)), "d": np.zeros(3), "c": 0.6 * np.eye(d), "decay": np.ones((d, d))}
    near["w_q"][0, 1] = near["d"][2] = 1
    trained = {key: value + 0.01 * rng.standard_normal((n_seeds, *value.shape)) for key, value in near.items()}
    trained["decay"] = np.minimum(trained["decay"], 1)
    return {
        "name": name,
        "seeds": list(range(n_seeds)),
        "steps": steps.tolist(),
        "loss": (0.2062 + 0.4 * fall).tolist(),
        "sensitivity_cosine": (0.9997 - 0.95 * fall).tolist(),
        "sensitivity_difference": (0.05 + 1.5 * fall).tolist(),
        "prediction_difference": (0.04 + 1.3 * fall).tolist(),
        "gd_loss": 0.2049,
        "zero_loss": 0.4151,
        "closed_form_loss": 0.20623,
        "rate": (0.6 + 0.01 * rng.standard_normal(n_seeds)).tolist(),
        "trained": {key: value.tolist() for key, value in trained.items()},
        "constructed": {key: value.tolist() for key, value in near.items()},
        "snapshots": make_snapshots(rng, steps, near),
        "filling": make_filling(rng, d),
    }


def make_snapshots(rng, steps, near):
    """Weights that come closer to the construction with every step; the first ones are far beyond any colour scale."""
    noise = [50.0, *np.linspace(1, 0, len(steps))[1:]]
    made = {key: [value + scale * rng.standard_normal(value.shape) for scale in noise] for key, value in near.items()}
    made["decay"] = [np.clip(value, 0.5, 1) for value in made["decay"]]
    return {"seed": 2, "steps": steps.tolist(), **{key: np.array(values).tolist() for key, values in made.items()}}


def make_filling(rng, d, n=6, d_y=3):
    """One context of d inputs and d_y targets, and a trained layer near gradient descent."""
    x, y = rng.standard_normal((n, d)), rng.standard_normal((n, d_y))
    sums = np.array([sum((0.1 * np.outer(y[k], x[k]) for k in range(m)), np.zeros((d_y, d))) for m in range(n + 1)])
    trained = sums * (1 + 0.05 * rng.standard_normal(sums.shape))
    arrays = {"x": x, "y": y, "true": rng.standard_normal((d_y, d)), "trained": trained, "gradient_descent": sums}
    return {"seed": 2, "context": [10**6, 3], "rate": 0.6, **{key: value.tolist() for key, value in arrays.items()}}


def make_record(**changed):
    made = {
        "experiment": "one-step",
        "title": "One step of gradient descent",
        "question": "Does a trained layer become one step of gradient descent?",
        "settings": {"batch": 64, "lr": 0.02, "clipped": True, "note": HOSTILE},
        "variants": [make_variant()],
    }
    return made | changed


def save(directory, results, record, name="one-step"):
    (directory / name).mkdir(exist_ok=True)
    for file, value in (("results.json", results), ("record.json", record)):
        (directory / name / file).write_text(value if isinstance(value, str) else json.dumps(value))


class Page(HTMLParser):
    """Tags that balance, the text of table rows, ids and the attributes that load something."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.ids, self.loads, self.tags = [], [], [], [], set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        assert len(dict(attrs)) == len(attrs), f"<{tag}> repeats an attribute"
        for key, value in attrs:
            if key == "id":
                self.ids.append(value)
            if key == "fill" and not value.startswith("url"):
                continue
            if key in ("src", "href", "xlink:href", "style", "clip-path", "fill", "srcset", "data", "action"):
                self.loads.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "tr" in self.open:
            self.rows[-1] += data

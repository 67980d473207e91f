"""A configuration for `gdssm train`: a small character model of a text, here Python's own source, in about 5 seconds on one core.

gdssm train examples/text.py --out out/text
gdssm generate out/text --prompt "def " --length 300

Set `text` to a file of your own, and more steps. Writes metrics, checkpoints, the model and a report with a sample to out/text;
`--resume` goes on after an interruption. `gdssm generate` keeps a state of constant size, however much it has written.
"""

from gdssm import DeepConfig, Recipe, TextConfig

config = TextConfig(
    text="",  # "": the standard library of this Python; else a file in UTF-8, e.g. "shakespeare.txt"
    limit=200_000,  # characters to read
    window=64,
    model=DeepConfig(vocab_size=1, d_model=48, n_layers=2, n_heads=4),  # vocab_size becomes the text's
    recipe=Recipe(steps=80, batch=16, lr=1e-2, warmup=10),
    eval_windows=8,
    eval_points=2,
)

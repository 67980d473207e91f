"""Runs on a text: resumed to the same bytes, refused where the text changed; and `gdssm generate`, beside plain greedy decoding."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import gdssm
from gdssm import DeepConfig, Recipe, TextConfig, TrainConfig, checkpoint, cli, saving
from gdssm.config import ConfigError
from gdssm.generated import load, pieces
from gdssm.generated import run as write_text
from gdssm.generation import draw, generate
from gdssm.runs import load_training, run, write_record
from gdssm.sequences import Vocabulary
from gdssm.text_training import TextTraining
from gdssm.train import NonFiniteError

MODEL = DeepConfig(vocab_size=1, d_model=8, n_layers=1, n_heads=2)
TEXT = "".join(chr(97 + i**3 % 1009 % 7) for i in range(1500)) + "é"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "mine.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def config(text: Path, **changes: object) -> TextConfig:
    recipe = Recipe(steps=9, batch=4, lr=0.02, warmup=2)
    return TextConfig(text=str(text), window=8, model=MODEL, recipe=recipe, log_every=2, eval_points=2, **changes)


@pytest.fixture(scope="module")
def finished(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished")
    run(config(text), directory)
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    names = ("metrics.jsonl", "models/seed-0.safetensors", "checkpoints/step-00000009.safetensors")
    return {name: (directory / name).read_bytes() for name in names}


def test_an_interrupted_run_ends_with_the_same_bytes(
    text: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter(range(100))
    advance = TextTraining.advance

    def stop(training: TextTraining) -> object:
        if next(steps) == 6:
            raise KeyboardInterrupt
        return advance(training)

    with monkeypatch.context() as patch:
        patch.setattr(TextTraining, "advance", stop)
        with pytest.raises(KeyboardInterrupt):
            run(config(text), tmp_path, checkpoint_every=2)
    assert load_training(tmp_path).step == 6
    training = run(config(text), tmp_path, resume=True, checkpoint_every=2)
    assert contents(tmp_path) == contents(finished)
    assert training.step == 9
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "evaluation" in line] == [0, 3, 9]
    assert [line["step"] for line in lines if "gradient_norm" in line] == [0, 2, 4, 6, 8]


def test_a_run_goes_on_with_its_own_text_only(text: Path, finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "mine.txt"
    other.write_text(TEXT, encoding="utf-8")
    run(replace(config(other), recipe=Recipe(steps=2, batch=2)), tmp_path / "run")
    other.write_text(TEXT.replace("a", "b"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"the digest of the text is '\w+', the run that --resume goes on with has '\w+'"):
        run(replace(config(other), recipe=Recipe(steps=2, batch=2)), tmp_path / "run", resume=True)
    with pytest.raises(ConfigError, match="which is another text than the run began with"):
        load_training(tmp_path / "run")
    assert len(load(tmp_path / "run")[1]) == 8  # the finished model has its vocabulary in its file
    with pytest.raises(ConfigError, match="config is a TrainConfig, the run that --resume goes on with has a TextConfig"):
        run(TrainConfig(steps=2), finished, resume=True)


def test_the_record_says_what_the_metrics_say(finished: Path) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    folder, sentence = write_record(finished)
    bits = [json.loads(line)["evaluation"]["bits"][0] for line in before.decode().splitlines() if "evaluation" in line]
    assert sentence == f"step 9 of 9: {bits[-1]:.4f} bits per character on the validation"
    record = json.loads((folder / "record.json").read_text())
    assert record["blocks"][1]["series"][0]["y"] == bits
    assert record["blocks"][3]["paragraphs"][0].startswith(TEXT[round(0.9 * 1501) :][:32] + "|")
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_a_checkpoint_of_another_kind_is_refused(finished: Path, tmp_path: Path) -> None:
    path = finished / "checkpoints" / "step-00000009.safetensors"
    assert isinstance(checkpoint.load(path), TextTraining)
    content = {"kind": "images", "config": {}}
    with pytest.raises(ConfigError, match="kind is 'images'; allowed: in-context, text"):
        checkpoint.config_from(content)
    code, err = command("identify", str(finished))
    assert (code, err.count("\n")) == (2, 1)
    assert "a model of a text; a model that learns in context is needed" in err


def test_what_is_not_finite_stops_a_run(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = TextTraining.advance

    def spoil(training: TextTraining) -> object:
        if training.step == 4:
            with torch.no_grad():
                training.language_model.model.embedding.weight[0] = torch.nan
        return advance(training)

    monkeypatch.setattr(TextTraining, "advance", spoil)
    with pytest.raises(NonFiniteError, match=r"step 4: the loss is not finite; the last good checkpoint is .*step-00000003"):
        run(config(text), tmp_path, checkpoint_every=3)


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"level": "words"}, "level is 'words'; allowed: characters, bytes"),
        ({"window": 0}, "window must be an integer >= 1, got 0"),
        ({"model": DeepConfig(vocab_size=1, n_outputs=3, pooling="mean")}, "model must read tokens, in one direction"),
        ({"model": DeepConfig(d_input=3, n_outputs=3)}, "model must read tokens"),
        ({"recipe": {"stepz": 3}}, "recipe.stepz is no field of Recipe"),
    ],
)
def test_configurations_that_cannot_be_used(options: dict[str, object], fragment: str) -> None:
    with pytest.raises(ConfigError, match=fragment.replace(".", r"\.")):
        TextConfig(**options)


# Generation


@torch.no_grad()
def test_the_likeliest_tokens_are_those_of_plain_decoding() -> None:
    """Without a state: every token from the whole text before it."""
    torch.manual_seed(0)
    model = gdssm.GDSSMForSequenceModeling(vocab_size=9, d_model=16, n_layers=2, n_heads=2).double()
    prompt = torch.tensor([1, 2, 3])
    wanted = prompt
    for _ in range(20):
        wanted = torch.cat([wanted, model(wanted[None])[0][0, -1].argmax()[None]])
    assert list(generate(model, prompt, length=20, temperature=0)) == wanted[3:].tolist()


def test_draws_follow_the_softmax() -> None:
    logits, g = torch.tensor([0.0, 1.0, 2.0]), torch.Generator().manual_seed(0)
    for temperature in (0.5, 2.0):
        found = torch.bincount(torch.tensor([draw(logits, temperature, g) for _ in range(2500)]), minlength=3) / 2500
        torch.testing.assert_close(found, (logits / temperature).softmax(0), rtol=0, atol=4 * 0.5 / 2500**0.5)
    assert draw(logits, 0) == draw(logits, 1e-320, g) == 2


def test_every_token_reads_one_token() -> None:
    """Constant time for each: after the prompt no call sees more than the last token."""
    seen = []
    torch.manual_seed(0)
    model = gdssm.GDSSMForSequenceModeling(vocab_size=9, d_model=8, n_layers=1, n_heads=2)
    model.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    list(generate(model, torch.arange(5), length=30, temperature=1.0))
    assert seen == [(1, 5)] + [(1, 1)] * 29


def test_bytes_become_characters_as_soon_as_they_are_whole() -> None:
    found = list(pieces("aé中".encode(), Vocabulary()))
    assert [piece for piece in found if piece] == ["a", "é", "中"]
    assert "".join(pieces(b"a\xc3", Vocabulary())) == "a\ufffd"


def command(*arguments: str) -> tuple[int, str]:
    """Exit code and standard error of a command line."""
    import contextlib
    import io

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    return int(stop.value.code or 0), err.getvalue() if stop.value.code else out.getvalue()


def test_the_command_writes_text_from_a_run_a_checkpoint_and_a_model(finished: Path) -> None:
    options = ("--prompt", "ab", "--length", "40", "--seed", "3")
    paths = (finished, finished / "checkpoints" / "step-00000009.safetensors", finished / "models" / "seed-0.safetensors")
    found = [command("generate", str(path), *options) for path in paths]
    assert found[0][0] == 0
    assert found[0] == found[1] == found[2]
    assert found[0][1].startswith("ab")
    assert len(found[0][1]) == 43
    assert set(found[0][1]) <= set(TEXT) | {"\n"}
    assert command("generate", str(finished), *options[:4], "--seed", "4") != found[0]


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["nowhere"], "MODEL is 'nowhere', which does not exist"),
        (["FINISHED", "--prompt", "xyz"], "--prompt: text holds the character 'x' at position 0, which is none of the 8"),
        (["FINISHED", "--prompt="], "--prompt is empty"),
        (["FINISHED", "--length", "0"], "--length must be an integer >= 1, got 0"),
        (["FINISHED", "--temperature", "-1"], "--temperature must be a finite number >= 0"),
        (["FINISHED/metrics.jsonl"], "is no file that gdssm wrote"),
        (["FINISHED/models"], "a directory without run.json"),
        (["MODEL"], "which holds no model of a text with its vocabulary"),
        (["POOLED"], "which holds no model of a text with its vocabulary"),
        (["TWICE"], "twice.safetensors: vocabulary holds a character twice"),
        (["WRONG"], "the vocabulary has 3 tokens, the model reads 8"),
    ],
)
def test_models_and_prompts_that_cannot_be_used(arguments: list[str], fragment: str, finished: Path, tmp_path: Path) -> None:
    model, _ = load(finished)
    saving.save(model, tmp_path / "plain.safetensors")
    saving.save(model, tmp_path / "wrong.safetensors", {"vocabulary": Vocabulary("abc").as_record()})
    saving.save(model, tmp_path / "twice.safetensors", {"vocabulary": {"level": "characters", "symbols": "aabbccdd"}})
    pooled = gdssm.GDSSMForSequenceModeling(vocab_size=3, n_outputs=3, pooling="last", d_model=8, n_layers=1, n_heads=2)
    saving.save(pooled, tmp_path / "pooled.safetensors", {"vocabulary": Vocabulary("abc").as_record()})
    places = {
        "POOLED": tmp_path / "pooled.safetensors",
        "TWICE": tmp_path / "twice.safetensors",
        "MODEL": tmp_path / "plain.safetensors",
        "WRONG": tmp_path / "wrong.safetensors",
        "FINISHED": finished,
    }
    for name, path in places.items():
        arguments = [argument.replace(name, str(path)) for argument in arguments]
    code, err = command("generate", *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert fragment in err


def test_an_output_without_the_characters_gets_question_marks(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    write_text(finished, "é", length=3, temperature=0, seed=0)
    sys.stdout.flush()
    assert raw.getvalue().startswith(b"?")
    assert len(raw.getvalue()) == 5

"""What `gdssm generate` does: find a text model, and write what it says as it is drawn."""

import codecs
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from . import checkpoint, saving
from .config import UserError, shown
from .deep import GDSSMForSequenceModeling
from .generation import generate
from .runs import load_training
from .sequences import TextError, Vocabulary
from .storage import StorageError
from .text_training import TextTraining


class TextModelError(UserError):
    """A path that holds no model of a text; one line that names it."""


def run(path: Path, prompt: str | None, *, length: int, temperature: float, seed: int) -> None:
    """Print the prompt and `length` tokens after it, each as soon as it is drawn.

    path    a directory of `gdssm train`, a checkpoint in it, or a model file with a vocabulary in its notes
    prompt  None: a line break, or the vocabulary's first character where it has none

    Raises TextModelError and StorageError for paths without such a model, TextError for a prompt it cannot read, ConfigError
    for a length or temperature out of range.
    """
    model, vocabulary = load(path)
    if prompt is None:
        prompt = "\n" if not vocabulary.symbols or "\n" in vocabulary.symbols else vocabulary.symbols[0]
    if not prompt:
        raise TextError("--prompt is empty; at least one character is needed")
    try:
        given = vocabulary.encode(prompt)
    except TextError as error:
        raise TextError(f"--prompt: {error}") from None
    tokens = generate(model, given, length=length, temperature=temperature, generator=torch.Generator().manual_seed(seed))
    _write(prompt)
    for piece in pieces(tokens, vocabulary):
        _write(piece)
    _write("\n")


def _write(text: str) -> None:
    """To standard output at once; what its encoding does not have becomes a question mark."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def pieces(tokens: Iterable[int], vocabulary: Vocabulary) -> Iterator[str]:
    """Text of tokens as they come; a character of several bytes when its last one is there."""
    if vocabulary.symbols:
        for token in tokens:
            yield vocabulary.symbols[token]
        return
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        yield decoder.decode(bytes([token]))
    yield decoder.decode(b"", final=True)


def load(path: Path) -> tuple[GDSSMForSequenceModeling, Vocabulary]:
    """The model and its vocabulary. A run's last checkpoint counts, so it may still be under way."""
    if path.is_dir():
        if not (path / "run.json").is_file():
            raise TextModelError(f"MODEL is {shown(str(path))}, a directory without run.json: no run of gdssm train")
        return _of_training(path)
    try:
        model, notes = saving.load(path), saving.notes(path)
    except StorageError as error:
        try:
            return _of_training(path)
        except StorageError:
            raise error from None
    if not isinstance(model, GDSSMForSequenceModeling) or not model.config.predicts_next or "vocabulary" not in notes:
        raise TextModelError(f"MODEL is {shown(str(path))}, which holds no model of a text with its vocabulary")
    try:
        vocabulary = Vocabulary.from_record(notes["vocabulary"])
    except TextError as error:
        raise TextModelError(f"{path}: {error}") from None
    if len(vocabulary) != model.config.vocab_size:
        raise TextModelError(f"{path}: the vocabulary has {len(vocabulary)} tokens, the model reads {model.config.vocab_size}")
    return model, vocabulary


def _of_training(path: Path) -> tuple[GDSSMForSequenceModeling, Vocabulary]:
    """From a run's directory or a checkpoint. A finished run's model is read from its file, which needs no text."""
    finished = sorted(path.glob("models/seed-*.safetensors")) if path.is_dir() else []
    if finished:
        return load(finished[0])
    training = load_training(path) if path.is_dir() else checkpoint.load(path)
    if not isinstance(training, TextTraining):
        raise TextModelError(f"MODEL is {shown(str(path))}, a run that learns in context; one of a text is needed")
    return training.model(0).cpu(), training.text.vocabulary

"""Language modelling on any text: crops to train on by (seed, step), and the windows of a held-out part, in order.

Without a file the text is the Python standard library's own source, as it lies on every machine that runs this.
Axes: B crops, T tokens.
"""

import hashlib
import platform
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..config import check_choice, check_count, shown
from ..tasks.linear import generator
from .batch import SequenceBatch, check_split
from .vocabulary import LEVELS, TextError, Vocabulary

SHARES = {"train": (0.0, 0.9), "validation": (0.9, 0.95), "test": (0.95, 1.0)}  # of the text, by position
MOST_CHARACTERS = 10**9


@dataclass(frozen=True)
class Corpus:
    """A text with its name; `digest` tells two of them apart. TextError for an empty one."""

    text: str
    name: str

    def __post_init__(self) -> None:
        if not self.text:
            raise TextError(f"{self.name}: is empty; a text is needed")

    @property
    def digest(self) -> str:
        """The first 16 digits of the text's SHA-256."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


def read_corpus(path: str | Path = "", limit: int = 0) -> Corpus:
    """The text of a UTF-8 file; where path is "", the standard library's source. At most `limit` characters, 0: all.

    Line breaks of any system become newlines; a byte order mark at the start is left out.
    Raises TextError for a file that cannot be read, is no UTF-8 or is empty; ConfigError for a limit out of range.
    """
    check_count("limit", limit, 0, MOST_CHARACTERS)
    if str(path) == "":
        return _standard_library(limit or MOST_CHARACTERS)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise TextError(f"text is {shown(str(path))}, which cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TextError(f"text is {shown(str(path))}, which is no text in UTF-8") from None
    except ValueError:
        raise TextError(f"text is {shown(str(path))}, which is no path of a file") from None
    if not text:
        raise TextError(f"text is {shown(str(path))}, which is empty; a text is needed")
    return Corpus(text[: limit or None], Path(path).name)


def _standard_library(limit: int) -> Corpus:
    """The modules that lie in the standard library's folder itself, by name; those with other characters than ASCII not."""
    parts, size = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        try:
            part = path.read_text(encoding="ascii")
        except (OSError, ValueError):
            continue
        parts.append(part)
        size += len(part)
        if size >= limit:
            break
    if not parts:
        raise TextError("the source of Python's standard library was not found; name a text file")
    return Corpus("".join(parts)[:limit], f"standard library of Python {platform.python_version()}")


@dataclass(frozen=True, eq=False)
class Text:
    """A SequenceTask: predict every next token of windows of a text.

    tokens      (N,) the whole text: its first 90 % are trained on, 5 % are "validation", the last 5 % "test"
    vocabulary  what the tokens mean
    window      T
    most        windows of a held-out part that are looked at, spread over it evenly; 0: all

    Raises TextError where a part is shorter than a window and the token after it.
    """

    tokens: Tensor
    vocabulary: Vocabulary
    window: int = 256
    most: int = 0

    def __post_init__(self) -> None:
        check_count("window", self.window)
        check_count("most", self.most, 0)
        for name in SHARES:
            if len(self.part(name)) < self.window + 1:
                raise TextError(
                    f"text has {len(self.tokens)} {self.vocabulary.level}, of which {len(self.part(name))} are for {name}; "
                    f"a window of {self.window} needs at least {self.window + 1} there"
                )

    @classmethod
    def of(cls, corpus: Corpus, *, level: str = "characters", window: int = 256, most: int = 0) -> "Text":
        """A corpus by its characters or its bytes."""
        check_choice("level", level, LEVELS)
        vocabulary = Vocabulary.of(corpus.text, level)
        return cls(vocabulary.encode(corpus.text), vocabulary, window, most)

    @property
    def n_inputs(self) -> int:
        """Tokens of the vocabulary."""
        return len(self.vocabulary)

    n_outputs = n_inputs

    def part(self, name: str) -> Tensor:
        """The tokens of "train", "validation" or "test"."""
        start, end = (round(share * len(self.tokens)) for share in SHARES[name])
        return self.tokens[start:end]

    def batch(self, size: int, *, seed: int, step: int) -> SequenceBatch:
        """Crops from anywhere in the part that is trained on."""
        check_count("size", size)
        tokens = self.part("train")
        starts = torch.randint(len(tokens) - self.window, (size,), generator=generator(seed, step))
        crops = tokens[starts[:, None] + torch.arange(self.window + 1)]  # (B, T + 1)
        return SequenceBatch(crops[:, :-1], crops[:, 1:])

    def held_out(self, split: str) -> Sequence[SequenceBatch]:
        """Windows one after the other, each token predicted once from those of its own window; 32 in a batch."""
        check_split(split)
        tokens = self.part(split)
        count = (len(tokens) - 1) // self.window
        chosen = torch.linspace(0, count - 1, self.most).round().long() if 0 < self.most < count else torch.arange(count)
        places = chosen[:, None] * self.window + torch.arange(self.window + 1)
        return [SequenceBatch(tokens[some[:, :-1]], tokens[some[:, 1:]]) for some in places.split(32)]

"""Characters or bytes as tokens: encoding, decoding, and the error for a text that a vocabulary does not have."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import UserError, shown

LEVELS = ("characters", "bytes")


class TextError(UserError):
    """A text that cannot be used; one line that says why."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a text: token i is symbols[i]; without symbols the 256 bytes of UTF-8.

    Raises TextError where symbols hold a character twice.
    """

    symbols: str = ""

    def __post_init__(self) -> None:
        if len(set(self.symbols)) < len(self.symbols):
            raise TextError("vocabulary holds a character twice")

    @classmethod
    def of(cls, text: str, level: str = "characters") -> "Vocabulary":
        """All characters of a text, in their order in Unicode; or the bytes."""
        return cls("".join(sorted(set(text))) if level == "characters" else "")

    def __len__(self) -> int:
        return len(self.symbols) or 256

    @property
    def level(self) -> str:
        """ "characters" or "bytes"."""
        return "characters" if self.symbols else "bytes"

    def encode(self, text: str) -> Tensor:
        """The tokens of a text, (T,). TextError where it holds a character that the vocabulary, or UTF-8, does not."""
        if not self.symbols:
            try:
                data = text.encode()
            except UnicodeEncodeError as error:
                wrong = f"text holds the character {text[error.start]!r} at position {error.start}"
                raise TextError(f"{wrong}, which cannot be written in UTF-8") from None
            return torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8)[: len(data)].long()
        index = {symbol: i for i, symbol in enumerate(self.symbols)}
        unknown = next((i for i, symbol in enumerate(text) if symbol not in index), None)
        if unknown is not None:
            raise TextError(
                f"text holds the character {text[unknown]!r} at position {unknown}, which is none of the "
                f"{len(self)} characters of the vocabulary"
            )
        return torch.tensor([index[symbol] for symbol in text], dtype=torch.long)

    def decode(self, tokens: Tensor | Iterable[int]) -> str:
        """The text of tokens (T,); bytes that are no UTF-8 become U+FFFD."""
        numbers = [int(token) for token in tokens]
        if not self.symbols:
            return bytes(numbers).decode(errors="replace")
        return "".join(self.symbols[number] for number in numbers)

    def as_record(self) -> dict[str, str]:
        """The vocabulary as JSON data."""
        return {"level": self.level, "symbols": self.symbols}

    @classmethod
    def from_record(cls, record: object) -> "Vocabulary":
        """What as_record gave. TextError where it is no vocabulary."""
        if not isinstance(record, Mapping) or record.get("level") not in LEVELS or not isinstance(record.get("symbols"), str):
            raise TextError(f"vocabulary must be a mapping with level and symbols, got {shown(record)}")
        values: Mapping[str, Any] = record
        if bool(values["symbols"]) != (values["level"] == "characters"):
            raise TextError(f"vocabulary of level {values['level']} has {len(values['symbols'])} symbols")
        return cls(values["symbols"])

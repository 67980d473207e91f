"""Configuration files: Python files that give the name `config` a TrainConfig or a TextConfig. No torch but what they import."""

import re
import sys
import traceback
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from .config import ConfigError, near_miss, one_line
from .recipe import Recipe
from .settings import ModelConfig, TrainConfig
from .tasks import LinearRegression

if TYPE_CHECKING:
    from .text_config import TextConfig


def read_config_file(path: Path) -> "TrainConfig | TextConfig":
    """The configuration that a Python file gives the name `config`. The file is run: it is the user's own program.

    Raises ConfigError, one line that names the file and where it can the line, for a file that cannot be read or run, or
    gives no configuration.
    """
    try:
        code = compile(path.read_bytes(), str(path), "exec")
    except OSError as error:
        raise ConfigError(f"CONFIG is {str(path)!r}, which cannot be read: {error.strerror}") from None
    except (SyntaxError, ValueError) as error:
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise ConfigError(f"{path}{where}: is no Python: {one_line(str(getattr(error, 'msg', error)))[:500]}") from None
    names: dict[str, object] = {"__name__": "gdssm_config", "__file__": str(path)}
    try:
        exec(code, names)
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        raise ConfigError(
            f"{path}, line {lines[-1] if lines else 1}: {kind}{one_line(str(error))[:500]}{_suggestion(error)}"
        ) from None
    config = names.get("config")
    if isinstance(config, _classes()):
        return config
    found = "is missing" if config is None else f"is of type {type(config).__name__}"
    raise ConfigError(f"{path}: config {found}; a line `config = TrainConfig(..)` or `config = TextConfig(..)` is needed")


def _classes() -> "tuple[type[TrainConfig], type[TextConfig]] | tuple[type[TrainConfig]]":
    """The classes of configurations; that of texts, which imports torch, where the file has imported it."""
    known = sys.modules.get("gdssm.text_config")
    return (TrainConfig,) if known is None else (TrainConfig, known.TextConfig)


def _suggestion(error: BaseException) -> str:
    """The near miss of a field's name that a configuration does not have."""
    unknown = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    classes: dict[str, type] = {cls.__name__: cls for cls in (*_classes(), ModelConfig, LinearRegression, Recipe)}
    if (deep := sys.modules.get("gdssm.deep.config")) is not None:  # there where the file has imported it
        classes["DeepConfig"] = deep.DeepConfig
    if not isinstance(error, TypeError) or unknown is None or unknown[1] not in classes:
        return ""
    known = [f.name for f in fields(classes[unknown[1]])]
    return f"{near_miss(unknown[2], known)}; allowed: {', '.join(known)}"

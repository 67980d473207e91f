"""Models in files: `save` and `load`, for users' models and for the trained ones that ship with the package; and states.

A file holds the weights (safetensors), how to build the model (JSON) and notes about it; loading it runs no code of the file.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import storage
from .classifiers import CrossEntropyStack
from .config import near_miss, one_line
from .deep import BlockState, DeepState, GDSSMBlock, GDSSMForSequenceModeling, GDSSMModel
from .layers import GDSSM
from .models import ConstructedTokenLayer, FeatureModel, GDSSMStack, InContextModel, RandomFourierFeatures, TwoStepBlock
from .readouts import ConjugateGradientReadout, IteratedReadout, MinibatchReadout, NewtonReadout, PairReadout
from .state import State
from .storage import StorageError

READY = Path(__file__).parent / "ready"
SUFFIX = ".safetensors"


def save(model: nn.Module, path: str | Path, notes: Mapping[str, Any] | None = None) -> Path:
    """Write a model of this library to one file, whole or not at all, and return its path; the suffix is .safetensors.

    notes   JSON data kept beside the weights: what the model is, how it was made

    Raises StorageError where the model has a part of another class, a weight is NaN, or the file cannot be written.
    Lambda = 1 is stored as log_rate = -infinity, which is no error.
    """
    path = _writable(path)
    weights = model.state_dict()
    _check_numbers("model", weights, path)
    try:
        known = json.loads(json.dumps(dict(notes or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise StorageError(f"notes must be JSON data: {error}") from None
    storage.write(path, "model", weights, {"model": _described(model), "notes": known})
    return path


def load(name: str | Path) -> nn.Module:
    """A model that ships with this package, by name, or one that `save` wrote, by path. On the CPU, ready to use or train.

    Names: see `ready_models`. A string without a path separator or suffix is a name.
    Raises StorageError where there is no such model or file, or the file is damaged or of another version.
    """
    path = _located(name)
    tensors, content = storage.read(path, "model")
    try:
        with torch.device("meta"):  # sizes are compared before anything of the written size is allocated
            model = _built(content["model"], len(tensors))
        model.load_state_dict(tensors, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise StorageError(f"{path}: does not describe a model of this gdssm: {one_line(str(error))[:300]}") from None
    return model


def save_state(state: State | DeepState, path: str | Path) -> Path:
    """Write where a layer or a deep model stands in its streams to one file, and return its path; the suffix is .safetensors.

    `load_state` gives it back bit for bit. The weights are not in it. Raises StorageError for anything but a state, where a
    number of it is NaN, and where the file cannot be written.
    """
    path = _writable(path)
    if not isinstance(state, State | DeepState):
        raise StorageError(f"state must be a State or a DeepState, got a {type(state).__name__}")
    tensors = _state_tensors(state)
    _check_numbers("state", tensors, path)
    of = dataclasses.asdict(state.config) if isinstance(state, DeepState) else _layer(state.layer)
    storage.write(path, "state", tensors, {"of": of})
    return path


def load_state(path: str | Path, model: nn.Module) -> Any:
    """The state that `save_state` wrote, for a model like the one that made it: a State for a GDSSM layer, else a DeepState.

    On the model's device. Raises StorageError where the file is damaged, of another version, or of a model with other options;
    whether the weights are those it was made with cannot be checked.
    """
    path = Path(path)
    tensors, content = storage.read(path, "state")
    if isinstance(model, GDSSM):
        of, fresh = _layer(model), _state_tensors(model.init_state(1))
    elif isinstance(model, GDSSMModel | GDSSMForSequenceModeling) and not model.config.bidirectional:
        of, fresh = dataclasses.asdict(model.config), _state_tensors(model.init_state(1))
    else:
        raise StorageError(f"{path}: a {type(model).__name__} has no state to load")
    found = content.get("of")
    wanted = json.loads(json.dumps(of))
    other = [k for k in wanted if k != "backend" and (not isinstance(found, Mapping) or k not in found or found[k] != wanted[k])]
    if other:
        raise StorageError(f"{path}: is the state of a model with another {' and '.join(other[:3])}")
    batch = len(tensors.get("seen", ()))
    if {k: (batch, *v.shape[1:]) for k, v in fresh.items()} != {k: tuple(v.shape) for k, v in tensors.items()}:
        raise StorageError(f"{path}: does not describe a state of this gdssm: its tensors have other names or shapes")
    moved = {k: v if k == "seen" else v.to(fresh[k].device) for k, v in tensors.items()}
    if isinstance(model, GDSSM):
        return State(moved["z"], moved["tail"], moved["seen"], model)
    blocks = (BlockState(moved[f"blocks.{i}.z"], moved[f"blocks.{i}.tail"]) for i in range(model.config.n_layers))
    return DeepState(tuple(blocks), moved["seen"], model.config)


def _state_tensors(state: State | DeepState) -> dict[str, torch.Tensor]:
    if isinstance(state, State):
        return {"z": state.z, "tail": state.tail, "seen": state.seen}
    tensors = {f"blocks.{i}.{name}": t for i, block in enumerate(state.blocks) for name, t in block._asdict().items()}
    return {**tensors, "seen": state.seen}


def _writable(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != SUFFIX:
        raise StorageError(f"path is {str(path)!r}; it must end in {SUFFIX}")
    return path


def _check_numbers(what: str, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        if bool(tensor.isnan().any()):
            raise StorageError(f"{what}: {name} has values that are not numbers; {path} was not written")


def notes(name: str | Path) -> dict[str, Any]:
    """The notes of a model, as given to `save`; for a shipped model: the command that made it and its measured claims.

    Raises StorageError as `load` does.
    """
    found: dict[str, Any] = storage.read(_located(name), "model")[1].get("notes", {})
    return found


def ready_models() -> tuple[str, ...]:
    """Names of the trained models that ship with this package."""
    return tuple(sorted(path.stem for path in READY.glob(f"*{SUFFIX}")))


def _located(name: str | Path) -> Path:
    if isinstance(name, str) and not name.endswith(SUFFIX) and "/" not in name and "\\" not in name:
        known = ready_models()
        if name not in known:
            raise StorageError(
                f"name is {name!r}{near_miss(name, known)}; allowed: {', '.join(known)}, or the path of a {SUFFIX} file"
            )
        return READY / f"{name}{SUFFIX}"
    return Path(name)


# How each class is built again: its arguments, read from a module. Its weights and buffers are in the file.


def _layer(layer: GDSSM) -> dict[str, Any]:
    return {
        "d_model": layer.d_model,
        "window": layer.window,
        "stride": layer.stride,
        "decay": layer.decay.structure,
        "n_heads": layer.n_heads,
        "key_map": layer.key_map is not None,
        "feedthrough": layer.feedthrough is not None,
        "normalize": layer.count_offset is not None,
        "backend": layer.backend,
    }


def _pair(layer: PairReadout) -> dict[str, Any]:
    shape = {"window": layer.window, "stride": layer.stride, "decay": layer.decay.structure, "normalize": layer.normalize}
    if isinstance(layer, IteratedReadout):
        own = {"k": len(layer.rates), "momentum": layer.momenta is not None}
        return shape | own | _skip(layer.skip)
    assert isinstance(layer, ConjugateGradientReadout | NewtonReadout)
    return shape | {"k": layer.k}


def _skip(skip: nn.Parameter | None) -> dict[str, Any]:
    return {"skip": False} if skip is None else {"skip": True, "d_model": len(skip)}


def _stack(stack: GDSSMStack) -> dict[str, Any]:
    first = stack.layers[0]
    assert isinstance(first, GDSSM)
    options = _layer(first)
    del options["stride"]
    return {"n_layers": len(stack.layers), **options}


_ARGUMENTS: dict[type[nn.Module], Callable[[Any], dict[str, Any]]] = {
    GDSSM: _layer,
    GDSSMStack: _stack,
    IteratedReadout: _pair,
    ConjugateGradientReadout: _pair,
    NewtonReadout: _pair,
    MinibatchReadout: lambda m: {"batch": m.batch, "window": m.window, "stride": m.stride} | _skip(m.skip),
    ConstructedTokenLayer: lambda m: {"d_x": m.d_x, "decay": m.decay},
    CrossEntropyStack: lambda m: {"d_x": m.d_x, "n_classes": m.d_y, "steps": m.steps, "skip": m.skip is not None},
    TwoStepBlock: lambda m: {
        "d_model": m.d_model,
        "window": m.window,
        "stride": m.stride,
        "decay": m.decay.structure,
        "backend": m.backend,
    },
    RandomFourierFeatures: lambda m: {"d_x": m.omega.shape[1], "n_features": m.omega.shape[0]},
    InContextModel: lambda m: {"layer": _described(m.layer), "d_x": m.d_x, "d_y": m.d_y},
    GDSSMBlock: lambda m: dataclasses.asdict(m.config),
    GDSSMForSequenceModeling: lambda m: dataclasses.asdict(m.config),
    GDSSMModel: lambda m: dataclasses.asdict(m.config),
    FeatureModel: lambda m: {"features": _described(m.features), "model": _described(m.model), "d_x": m.d_x},
}
_CLASSES = {cls.__name__: cls for cls in _ARGUMENTS}


def _described(module: object) -> dict[str, Any]:
    """{"class": name, arguments}: a part that is a module itself is such a mapping again."""
    for cls, arguments in _ARGUMENTS.items():
        if type(module) is cls:
            return {"class": cls.__name__, **arguments(module)}
    raise StorageError(f"model has a part of class {type(module).__name__}; allowed: {', '.join(_CLASSES)}")


def _built(description: object, most: int) -> nn.Module:
    """The module of a description, of at most this many layers. KeyError, TypeError or ValueError where it describes none."""
    if not isinstance(description, Mapping):
        raise TypeError(f"a mapping with a class is needed, got {description!r}")
    arguments = {k: _built(v, most) if isinstance(v, Mapping) else v for k, v in description.items() if k != "class"}
    name = description["class"]
    if name not in _CLASSES:
        raise ValueError(f"class {name!r} is none of {', '.join(_CLASSES)}")
    counted = "steps" if name == CrossEntropyStack.__name__ else "n_layers"
    layers = arguments.get(counted)
    if isinstance(layers, int) and layers > most:  # each would be made, and has weights
        raise ValueError(f"{counted} is {layers}, the file has {most} tensors")
    return _CLASSES[name](**arguments)

"""Files of tensors: what is read is what was written, or one line that says why not; nothing in a file ever runs."""

import errno
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gdssm import files, storage
from gdssm.storage import StorageError

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.tensor([float("-inf"), 1e-300], dtype=torch.float64),
    "scalar": torch.tensor(3, dtype=torch.int64),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "nothing": torch.zeros(0, 4),
}
CONTENT = {"step": 7, "nested": {"x": [0.1, 1e-30, None, "text"]}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    storage.write(tmp_path / "file.safetensors", "checkpoint", TENSORS, CONTENT)
    return tmp_path / "file.safetensors"


def test_what_is_read_is_what_was_written(path: Path) -> None:
    tensors, content = storage.read(path, "checkpoint")
    assert content == CONTENT
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_the_same_content_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    storage.write(tmp_path / "again.safetensors", "checkpoint", dict(reversed(TENSORS.items())), CONTENT)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_every_flipped_bit_is_noticed(path: Path, tmp_path: Path) -> None:
    data, changed = path.read_bytes(), tmp_path / "changed.safetensors"
    for position in range(len(data)):
        for bit in (0, position % 7 + 1):  # two of the eight bits of every byte
            changed.write_bytes(data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :])
            with pytest.raises(StorageError):
                storage.read(changed, "checkpoint")


def test_every_truncation_is_noticed(path: Path, tmp_path: Path) -> None:
    data, cut = path.read_bytes(), tmp_path / "cut.safetensors"
    for length in range(len(data)):
        cut.write_bytes(data[:length])
        with pytest.raises(StorageError, match=r"cut\.safetensors: is damaged"):
            storage.read(cut, "checkpoint")
    cut.write_bytes(data + b"\0")
    with pytest.raises(StorageError, match="is damaged"):
        storage.read(cut, "checkpoint")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_other_bytes_are_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    other = tmp_path_factory.getbasetemp() / "other.safetensors"
    other.write_bytes(data)
    with pytest.raises(StorageError) as error:
        storage.read(other, "checkpoint")
    assert len(str(error.value).splitlines()) == 1


class Payload:
    """What a malicious pickle looks like: unpickling it creates a file."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return open, (self.target, "w")


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_planted_payload_never_runs(tmp_path: Path, protocol: int) -> None:
    planted, target = tmp_path / "planted.safetensors", tmp_path / "owned"
    planted.write_bytes(pickle.dumps(Payload(str(target)), protocol))
    with pytest.raises(StorageError, match="is damaged, or is no file that gdssm wrote"):
        storage.read(planted, "model")
    assert not target.exists()
    pickle.loads(planted.read_bytes()).close()  # the payload does run where a file is unpickled
    assert target.exists()


def test_a_torch_file_is_refused(tmp_path: Path) -> None:
    torch.save({"a": Payload(str(tmp_path / "owned"))}, tmp_path / "model.safetensors")
    with pytest.raises(StorageError, match="no file that gdssm wrote"):
        storage.read(tmp_path / "model.safetensors", "model")
    assert not (tmp_path / "owned").exists()


def test_other_versions_and_kinds_are_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="holds a checkpoint, a model is needed"):
        storage.read(path, "model")
    monkeypatch.setattr(storage, "VERSION", 2)
    with pytest.raises(StorageError, match=r"file\.safetensors: has format version 1, this gdssm reads version 2"):
        storage.read(path, "checkpoint")


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for metadata in (None, {"format": "pt"}, {"gdssm": "[]"}, {"gdssm": json.dumps({"kind": "model"})}, {"gdssm": "[" * 10**5}):
        save_file({"w": torch.ones(2)}, tmp_path / "x.safetensors", metadata)
        with pytest.raises(StorageError, match="no file that gdssm wrote"):
            storage.read(tmp_path / "x.safetensors", "model")


@pytest.mark.parametrize("name", ["missing.safetensors", "."])
def test_what_cannot_be_opened_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError, match=r"cannot be read: (No such file|Is a directory)"):
        storage.read(tmp_path / name, "model")


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(files.os, function, full)
        with pytest.raises(StorageError, match=r"file\.safetensors: cannot be written: No space left on device"):
            storage.write(path, "checkpoint", {"a": torch.zeros(9)}, {})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_tensors_that_share_memory_are_written(path: Path) -> None:
    whole = torch.arange(6.0).reshape(2, 3)
    storage.write(path, "model", {"whole": whole, "part": whole[:, 1], "turned": whole.T}, {})
    found = storage.read(path, "model")[0]
    assert torch.equal(found["part"], whole[:, 1])
    assert torch.equal(found["turned"], whole.T)


def test_content_that_is_no_json_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        storage.write(tmp_path / "x.safetensors", "model", {}, {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []

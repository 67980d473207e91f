"""Streams, and states as values: read in constant memory, saved, loaded, merged, forgotten."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gdssm
from gdssm import saving
from gdssm.deep import GDSSMForSequenceModeling, GDSSMModel
from gdssm.storage import StorageError, write
from plain import ratio
from test_deep import DOUBLE, make, words

ONE = {"vocab_size": 7, "n_layers": 1, "decay": "none"}  # the models whose states add up


def numbers(state):
    return [t for block in state.blocks for t in block] + [state.seen]


def same(first, second):
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(numbers(first), numbers(second), strict=True))


# Streams


def test_a_stream_of_tokens_and_chunks_is_the_whole():
    model, tokens = make(vocab_size=7), words(batch=1)
    whole, end = model(tokens)
    items = [int(tokens[0, 0]), tokens[:, 1], tokens[:, 2:6], tokens[:, 6:6], tokens[:, 6:]]
    reading = gdssm.stream(model, iter(items))
    assert reading.state is None
    outputs = list(reading)
    assert [out.shape for out in outputs] == [(1, n, 7) for n in (1, 1, 4, 0, 7)]
    assert ratio(torch.cat(outputs, dim=1), whole) <= 1e-12
    assert not any(out.requires_grad for out in outputs)
    assert ratio(reading.state.blocks[1].z, end.blocks[1].z) <= 1e-12
    again = gdssm.stream(model, tokens[:, 6:].unbind(1), model(tokens[:, :6])[1])
    assert ratio(torch.cat(list(again), dim=1), whole[:, 6:]) <= 1e-12


def test_a_stream_of_vectors_through_a_layer():
    layer = gdssm.GDSSM(3, dtype=DOUBLE)  # stride 2: not every token completes a window
    tokens = torch.randn(2, 9, 3, dtype=DOUBLE)
    whole, end = layer(tokens)
    reading = gdssm.stream(layer, [*tokens[:, :4].unbind(1), tokens[:, 4:]])
    outputs = list(reading)
    assert [out.shape[1] for out in outputs] == [0, 0, 1, 0, 3]
    assert ratio(torch.cat(outputs, dim=1), whole) <= 1e-12
    assert ratio(reading.state.z, end.z) <= 1e-12


@pytest.mark.parametrize("item", ["a", True, torch.zeros(3), torch.zeros(1, 2, 3, 4)])
def test_a_stream_refuses(item):
    with pytest.raises(TypeError, match=r"source must give an int, integers \(B,\) or \(B, T\), or vectors"):
        next(gdssm.stream(make(vocab_size=7), [item]))


def test_models_without_a_state_cannot_be_streamed():
    both = make(vocab_size=7, bidirectional=True)
    with pytest.raises(ValueError, match="a GDSSMForSequenceModeling that gives no state cannot be streamed"):
        next(gdssm.stream(both, [words()]))


MEMORY = """
import random, resource, sys, torch, gdssm
torch.set_num_threads(1); torch.manual_seed(0)
model = gdssm.GDSSMForSequenceModeling(vocab_size=65, d_model=32, n_layers=2)
tokens, chunk = int(sys.argv[1]), int(sys.argv[2])
source = (torch.randint(65, (1, chunk)) for _ in range(tokens // chunk))
sizes = []
for i, _ in enumerate(gdssm.stream(model, source)):
    if i in (tokens // chunk // 10, tokens // chunk - 1):
        sizes.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(*sizes)
"""


def peaks(tokens, chunk):
    """Peak memory in KiB after a tenth of a stream and after all of it, in a process of its own."""
    command = [sys.executable, "-c", MEMORY, str(tokens), str(chunk)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=True)
    return [int(size) for size in done.stdout.split()]


def test_memory_of_a_stream_does_not_grow():
    """Keeping the outputs of 10,800 further tokens would take 2.7 MiB, keeping their graph many times that."""
    early, late = peaks(12_000, 200)
    assert late - early <= 2048


@pytest.mark.slow
def test_memory_over_a_million_tokens_does_not_grow():
    early, late = peaks(1_000_000, 1000)
    assert late - early <= 4096  # keeping the outputs would take 230 MiB


# States as values


def test_a_state_is_saved_and_loaded_bit_for_bit(tmp_path):
    for model in (make(vocab_size=7, window=4), make(vocab_size=7, form="separate", dtype=torch.float32)):
        _, state = model(words(), lengths=torch.tensor([13, 4, 0]))
        path = gdssm.save_state(state, tmp_path / "state.safetensors")
        back = gdssm.load_state(path, model)
        assert same(back, state)
        assert torch.equal(model(words(seed=1), back)[0], model(words(seed=1), state)[0])
        assert same(gdssm.load_state(path, model.model), state)
    layer = gdssm.GDSSM(3, n_heads=2)
    _, state = layer(torch.randn(2, 6, 3))
    back = gdssm.load_state(gdssm.save_state(state, tmp_path / "layer.safetensors"), layer)
    assert torch.equal(back.z, state.z)
    assert torch.equal(back.tail, state.tail)
    assert back.seen.tolist() == [6, 6]


def refusal(path, model):
    with pytest.raises(StorageError) as error:
        gdssm.load_state(path, model)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_states_that_cannot_be_loaded(tmp_path):
    model = make(vocab_size=7)
    path = gdssm.save_state(model(words())[1], tmp_path / "state.safetensors")
    assert refusal(path, make(vocab_size=8)) == "is the state of a model with another vocab_size"
    assert refusal(path, make(vocab_size=7, n_layers=3)) == "is the state of a model with another n_layers"
    assert refusal(path, gdssm.GDSSM(3)) == "is the state of a model with another d_model and stride and decay"
    assert refusal(path, make(vocab_size=7, bidirectional=True)) == "a GDSSMForSequenceModeling has no state to load"
    assert refusal(tmp_path / "none.safetensors", model) == "cannot be read: No such file or directory"
    assert refusal(gdssm.save(model, tmp_path / "model.safetensors"), model) == "holds a model, a state is needed"
    damaged = tmp_path / "damaged.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    damaged.write_bytes(data)
    assert refusal(damaged, model) == "is damaged: its content does not match its checksum"
    other = tmp_path / "other.safetensors"
    write(other, "state", {"seen": torch.zeros(3, dtype=torch.int64)}, {"of": json.loads(json.dumps(vars(model.config)))})
    assert refusal(other, model) == "does not describe a state of this gdssm: its tensors have other names or shapes"
    with pytest.raises(StorageError, match="state must be a State or a DeepState, got a tuple"):
        gdssm.save_state(model(words()), tmp_path / "new.safetensors")
    broken = model(words())[1].map(lambda t: t * torch.nan if t.is_floating_point() else t)
    with pytest.raises(StorageError, match=r"state: blocks.0.z has values that are not numbers; .*new.safetensors was not written"):
        gdssm.save_state(broken, tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()


def test_sequences_of_a_state_are_picked():
    model = make(vocab_size=7)
    _, state = model(words())
    more = words(length=5, seed=1)
    whole, _ = model(more, state)
    picked, after = model(more[[2, 0, 2]], state.select(torch.tensor([2, 0, 2])))
    assert ratio(picked, whole[[2, 0, 2]]) <= 1e-12
    assert after.seen.tolist() == [18] * 3
    assert repr(state).startswith("DeepState(2 x (z=float64[3, 2, 4, 4]")
    assert "seen=13" in repr(state)


@pytest.mark.parametrize("options", [{}, {"normalize": "stream", "input_gate": "full"}, {"form": "separate", "key_map": True}])
def test_merged_and_forgotten_documents(options):
    """Against reading the documents that remain; in float64, outputs of what is read next."""
    model = make(**(ONE | options))
    documents = [words(batch=2, length=n, seed=n) for n in (9, 6, 11)]
    states = [model(document)[1] for document in documents]

    def read(*chosen):
        state = model.init_state(2)
        for i in chosen:
            _, state = model(documents[i], state.next_document())
        return state

    more = words(batch=2, length=5, seed=1)
    answer = lambda state: model(more, state)[0]  # noqa: E731
    merged = states[0].merge(states[1]).merge(states[2])
    assert ratio(answer(merged), answer(read(0, 1, 2))) <= 1e-10
    assert ratio(answer(merged.forget(states[1])), answer(read(0, 2))) <= 1e-10
    assert ratio(answer(merged.forget(states[0])), answer(read(1, 2))) <= 1e-10
    assert merged.forget(states[1]).seen.tolist() == [20, 20]
    assert ratio(answer(read(0)), answer(read(0, 2))) > 1e-3
    assert ratio(answer(states[0].merge(model.init_state(2))), answer(states[0])) == 0


@pytest.mark.parametrize("options", [{"n_layers": 2}, {"decay": "head"}, {"decay": "input"}])
def test_states_that_do_not_add_up_are_refused(options):
    model = make(**(ONE | options))
    _, state = model(words())
    for operation in (state.merge, state.forget):
        with pytest.raises(ValueError, match="states add up only for one block with decay 'none'"):
            operation(state)


def test_why_deeper_states_do_not_add_up():
    """The sum of two states of two blocks, formed by hand, is not the state of having read both."""
    model = make(**(ONE | {"n_layers": 2}))
    first, second = (model(words(seed=s))[1] for s in (0, 1))
    _, both = model(words(seed=1), first.next_document())
    differences = [ratio(a.z + b.z, c.z) for a, b, c in zip(first.blocks, second.blocks, both.blocks, strict=True)]
    assert differences[0] <= 1e-12
    assert differences[1] > 1e-2


def test_what_cannot_be_merged_or_forgotten():
    model = make(**ONE)
    short, long = model(words(length=3))[1], model(words(length=9))[1]
    with pytest.raises(ValueError, match=r"forget: other has read \[9, 9, 9\] tokens, this state only \[3, 3, 3\]"):
        short.forget(long)
    with pytest.raises(ValueError, match="merge: other is not a state of the same model"):
        long.merge(make(**(ONE | {"window": 2})).init_state(3))
    with pytest.raises(ValueError, match="forget: other is not a state of the same model"):
        long.forget(long.blocks[0])
    with pytest.raises(ValueError, match="merge: other has Z of shape"):
        long.merge(model.init_state(2))


# Models in files


@pytest.mark.parametrize(
    "options", [{}, {"form": "separate", "tie_embeddings": False, "decay": "input"}, {"input_gate": "full", "normalize": "none"}]
)
def test_a_model_is_saved_and_loaded_bit_for_bit(tmp_path, options):
    model = make(vocab_size=7, dtype=torch.float32, **options)
    back = gdssm.load(gdssm.save(model, tmp_path / "model.safetensors", {"text": "abc"}))
    assert type(back) is GDSSMForSequenceModeling
    assert back.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), model.state_dict().values(), strict=True))
    assert torch.equal(back(words())[0], model(words())[0])
    assert saving.notes(tmp_path / "model.safetensors") == {"text": "abc"}
    inner = gdssm.load(gdssm.save(model.model, tmp_path / "inner.safetensors"))
    assert type(inner) is GDSSMModel
    block = gdssm.load(gdssm.save(model.model.blocks[1], tmp_path / "block.safetensors"))
    assert torch.equal(block.mixer.d, model.model.blocks[1].mixer.d)


def test_a_file_of_another_model_is_refused(tmp_path: Path):
    model = make(vocab_size=7)
    path = gdssm.save(model, tmp_path / "model.safetensors")
    tensors, content = gdssm.storage.read(path, "model")
    for change in ({"n_layers": 3}, {"vocab_size": 8}, {"form": "none"}, {"colour": "red"}):
        write(path, "model", tensors, {**content, "model": content["model"] | change})
        with pytest.raises(StorageError, match="does not describe a model of this gdssm") as error:
            gdssm.load(path)
        assert "\n" not in str(error.value)

"""Deep models in transformers: logits streamed against whole, generation against loops of its own, files, Auto classes."""

import copy
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DynamicCache,
    PreTrainedTokenizerFast,
    pipeline,
)
from transformers.utils import logging

import gdssm
from gdssm import hf_models
from gdssm.config import ConfigError
from gdssm.hf_models import GDSSMCache, GDSSMConfig, GDSSMForCausalLM, GDSSMForSequenceClassification
from gdssm.storage import StorageError
from plain import ratio

DOUBLE = torch.float64
VOCAB = 7
OPTIONS = [
    {},
    {"form": "separate", "taps": "channel", "activation": "silu", "decay": "input"},
    {"normalize": "stream", "key_map": True, "tie_word_embeddings": False},
]


@pytest.fixture(autouse=True)
def quiet():
    """No bars and notes of transformers on standard error."""
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(level)
    if bars:
        logging.enable_progress_bar()


def moved(model, dtype, seed=0):
    """The model with every parameter moved by moderate noise, in evaluation mode."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=g))
    return model.to(dtype).eval()


def make(dtype=DOUBLE, seed=0, **options):
    torch.manual_seed(seed)
    config = GDSSMConfig(**({"vocab_size": VOCAB, "d_model": 8, "n_layers": 2, "n_heads": 2, "window": 3} | options))
    return moved(GDSSMForCausalLM(config), dtype, seed)


def words(batch=3, length=12, seed=0):
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


# Logits


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-10), (torch.float32, 1e-5)])
def test_streamed_logits_are_the_whole(options, dtype, tolerance):
    """Random splits, left padding of different lengths, one cache: against every sequence alone, without cache."""
    model, exact = make(dtype, **options), make(**options)
    for seed in range(4):
        tokens = words(length=17, seed=seed)
        mask = (torch.arange(17) >= torch.tensor([[0], [4], [9]])).long()
        cuts = sorted(torch.randint(0, 18, (4,), generator=torch.Generator().manual_seed(seed)).tolist())
        cache, pieces = None, []
        for start, end in zip([0, *cuts], [*cuts, 17], strict=True):
            out = model(tokens[:, start:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            assert cache.get_seq_length() == end
            pieces.append(out.logits)
        logits = torch.cat(pieces, dim=1)
        assert logits.dtype == dtype
        for b, start in enumerate((0, 4, 9)):
            alone = exact(tokens[b : b + 1, start:], use_cache=False)
            assert alone.past_key_values is None
            assert ratio(logits[b, start:], alone.logits[0]) <= tolerance


def test_logits_are_those_of_the_deep_model():
    deep = gdssm.GDSSMForSequenceModeling(vocab_size=VOCAB, d_model=8, n_layers=2, n_heads=2, dtype=DOUBLE)
    model = hf_models.from_deep(deep)
    assert torch.equal(model(words()).logits, deep(words())[0])
    free = gdssm.GDSSMForSequenceModeling(vocab_size=VOCAB, d_model=8, n_layers=1, n_heads=2, tie_embeddings=False)
    model = hf_models.from_deep(free)
    assert torch.equal(model(words()).logits, free(words())[0])
    assert model.config.hidden_size == 8
    assert model.config.num_hidden_layers == 1
    with pytest.raises(ConfigError, match="only one that reads tokens forward"):
        hf_models.from_deep(gdssm.GDSSMForSequenceModeling(vocab_size=VOCAB, pooling="mean", n_outputs=2))


def test_what_a_call_gives():
    model, tokens = make(), words()
    whole = model(tokens)
    assert torch.equal(model(tokens, logits_to_keep=2).logits, whole.logits[:, -2:])
    assert torch.equal(model(inputs_embeds=model.get_input_embeddings()(tokens)).logits, whole.logits)
    as_tuple = model(tokens, return_dict=False)
    assert torch.equal(as_tuple[0], whole.logits)
    wanted = torch.nn.functional.cross_entropy(whole.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert ratio(model(tokens, labels=tokens).loss, wanted) <= 1e-6
    model.train()
    assert model(tokens).past_key_values is None


def test_gradient_checkpointing_changes_no_number():
    model, tokens = make().train(), words()
    plain = torch.autograd.grad(model(tokens, labels=tokens).loss, list(model.parameters()))
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()  # the second name is the older
    assert model.model.core.gradient_checkpointing
    again = torch.autograd.grad(model(tokens, labels=tokens).loss, list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


# Generation


def continued(model, tokens, new):
    """Logits of the next token for one sequence (T,), from nothing."""
    with torch.no_grad():
        return model(torch.cat([tokens, tokens.new_tensor(new)])[None], use_cache=False).logits[0, -1]


def greedy(model, tokens, steps):
    new = []
    for _ in range(steps):
        new.append(int(continued(model, tokens, new).argmax()))
    return new


def beam_search(model, tokens, steps, beams):
    """The best of `beams` continuations that were kept at every step, all of one length."""
    kept = [(0.0, [])]
    for _ in range(steps):
        longer = [
            (score + float(step), [*new, token])
            for score, new in kept
            for token, step in enumerate(continued(model, tokens, new).log_softmax(0))
        ]
        kept = sorted(longer, reverse=True)[:beams]
    return kept[0][1]


PADDED = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]])


@pytest.mark.parametrize("options", OPTIONS)
def test_greedy_and_beams_are_loops_without_a_cache(options):
    """Two prompts, one with padding on the left, of tokens that would matter if they were read."""
    model, prompts = make(**options), words(batch=2, length=5)
    for beams, steps in ((1, 6), (3, 4)):
        given = model.generate(
            prompts, attention_mask=PADDED, max_new_tokens=steps, num_beams=beams, do_sample=False, pad_token_id=0
        )
        for b in range(2):
            own = prompts[b][PADDED[b].bool()]
            wanted = greedy(model, own, steps) if beams == 1 else beam_search(model, own, steps, beams)
            assert given[b, 5:].tolist() == wanted


def test_wide_beams_find_the_best_of_all_sequences():
    model, prompt = make(vocab_size=4), torch.tensor([[1, 3, 2]])
    every = torch.cartesian_prod(*[torch.arange(4)] * 4)
    with torch.no_grad():
        logs = model(torch.cat([prompt.expand(256, -1), every], dim=1)).logits[:, 2:-1].log_softmax(-1)
    best = every[logs.gather(2, every[..., None]).sum((1, 2)).argmax()]
    found = model.generate(prompt, max_new_tokens=4, num_beams=64, do_sample=False, pad_token_id=0)
    assert found[0, 3:].tolist() == best.tolist()


def test_sampling_is_a_draw_from_the_logits():
    """Over many draws of one token; and the same seed gives the same text, with and without cache."""
    model, prompt = make(), words(batch=1, length=4)
    torch.manual_seed(0)
    given = {"attention_mask": torch.ones_like(prompt), "pad_token_id": 0, "do_sample": True}
    drawn = model.generate(prompt, max_new_tokens=1, top_k=0, num_return_sequences=4000, **given)[:, -1]
    shares = torch.bincount(drawn, minlength=VOCAB) / 4000
    assert float((shares - continued(model, prompt[0], []).softmax(0)).abs().max()) < 0.035  # four standard errors
    texts = []
    for use_cache in (True, False):
        torch.manual_seed(1)
        texts.append(model.generate(prompt, max_new_tokens=20, use_cache=use_cache, **given))
    assert torch.equal(*texts)


def test_generation_goes_on_from_a_cache():
    """A conversation: the cache of a first call given to a second; chunks of a long prompt; stop tokens end a sequence."""
    model, prompt = make(), words(batch=2, length=6)

    def generate(tokens, new, **options):
        mask = torch.ones_like(tokens)
        return model.generate(tokens, attention_mask=mask, max_new_tokens=new, do_sample=False, **({"pad_token_id": 0} | options))

    whole, cache = generate(prompt, 8), GDSSMCache()
    first = generate(prompt, 3, past_key_values=cache)
    assert cache.get_seq_length() == 8  # the last token is given out and was not read
    before = copy.deepcopy(cache)
    assert torch.equal(generate(first, 5, past_key_values=cache), whole)
    assert before.get_seq_length() == 8
    assert torch.equal(generate(first, 5, past_key_values=before), whole)
    assert torch.equal(generate(prompt, 8, prefill_chunk_size=4), whole)
    embedded = model.get_input_embeddings()(prompt)
    assert torch.equal(model.generate(inputs_embeds=embedded, max_new_tokens=8, do_sample=False, pad_token_id=0), whole[:, 6:])
    new = whole[0, 6:].tolist()
    ended = generate(prompt[:1], 8, eos_token_id=new[2], pad_token_id=new[2])
    assert ended[0, 6:].tolist() == new[: 1 + new.index(new[2])]


def test_several_continuations_from_one_cache():
    """Beams and returned sequences: each sequence of the cache is copied, as the prompts are."""
    model, prompt = make(), words(batch=2, length=6)
    given = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 4, "pad_token_id": 0}
    for options in ({"num_beams": 3, "do_sample": False}, {"num_return_sequences": 3, "do_sample": True}):
        texts = []
        for start in (None, 5):
            cache = None if start is None else model(prompt[:, :start], use_cache=True).past_key_values
            torch.manual_seed(0)
            texts.append(model.generate(prompt, past_key_values=cache, **options, **given))
        assert torch.equal(*texts)
        assert cache.batch_size == 6


def test_a_copied_cache_goes_on_by_itself():
    """Also where gradients are recorded, which flow through the copy; and out of a pickle."""
    model = make()
    cache = model(words(), use_cache=True).past_key_values
    assert cache.state.blocks[0].z.requires_grad
    copied, shallow, stored = copy.deepcopy(cache), copy.copy(cache), pickle.loads(pickle.dumps(cache))
    assert copied.state.blocks[0].z is not cache.state.blocks[0].z
    wanted = model(words(seed=1), past_key_values=cache).logits
    for other in (copied, shallow, stored):
        assert other.get_seq_length() == 12
        assert torch.equal(model(words(seed=1), past_key_values=other).logits, wanted)
    weight = model.model.core.blocks[0].mixer.u
    before, after = (
        torch.autograd.grad(state.blocks[0].z.sum(), weight, retain_graph=True)[0] for state in (shallow.state, copied.state)
    )
    assert torch.equal(before, after)


def test_the_cache_is_the_state():
    model = make()
    cache = model(words(), use_cache=True).past_key_values
    assert cache.state.seen.tolist() == [12] * 3
    assert (cache.get_seq_length(), cache.batch_size, cache.has_previous_state(), cache.is_compileable) == (12, 3, True, False)
    assert cache.get_mask_sizes(2) == (14, 0)
    assert (cache.get_max_length(), cache.is_croppable) == (-1, False)
    z = cache.state.blocks[0].z
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    assert torch.equal(cache.state.blocks[0].z, z[[2, 0, 0]])
    cache.batch_repeat_interleave(2)
    assert torch.equal(cache.state.blocks[0].z, z[[2, 2, 0, 0, 0, 0]])
    cache.crop(0)
    with pytest.raises(RuntimeError, match="tokens_to_remove is -1: a recurrent state cannot forget"):
        cache.crop(-1)
    cache.reset()
    assert (cache.get_seq_length(), cache.batch_size, cache.has_previous_state()) == (0, -1, False)
    cache.batch_repeat_interleave(2)
    assert cache.state is None


# Classification


@pytest.mark.parametrize("options", [{}, {"pooling": "last"}, {"bidirectional": True}])
def test_classifier_reads_no_padding(options):
    """Padding on either side, by a mask or by the padding token: scores of each sequence alone."""
    config = GDSSMConfig(vocab_size=VOCAB, d_model=8, n_layers=2, n_heads=2, num_labels=3, pad_token_id=6, **options)
    model = moved(GDSSMForSequenceClassification(config), DOUBLE)
    tokens = torch.randint(6, (3, 9), generator=torch.Generator().manual_seed(0))
    tokens[0, :4] = 6
    tokens[1, 5:] = 6
    alone = torch.cat([model(row[row != 6][None]).logits for row in tokens])
    assert ratio(model(tokens).logits, alone) <= 1e-12
    assert ratio(model(tokens.masked_fill(tokens == 6, 1), attention_mask=(tokens != 6).long()).logits, alone) <= 1e-12
    assert model.accepts_loss_kwargs is False  # otherwise Trainer would add up the means of accumulated batches
    loss = model(tokens, labels=torch.tensor([0, 2, 1])).loss
    assert ratio(loss, torch.nn.functional.cross_entropy(alone, torch.tensor([0, 2, 1]))) <= 1e-6


# Files


@pytest.mark.parametrize("options", OPTIONS)
def test_saved_and_loaded_bit_for_bit(tmp_path, options):
    model = make(torch.float32, **options)
    model.save_pretrained(tmp_path)
    back = GDSSMForCausalLM.from_pretrained(tmp_path)
    assert back.config.deep() == model.config.deep()
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), model.state_dict().values(), strict=True))
    assert (back.lm_head.weight is back.get_input_embeddings().weight) is model.config.tie_word_embeddings
    assert torch.equal(back(words()).logits, model(words()).logits)


def test_embeddings_can_be_resized():
    model, tokens = make(torch.float32), words()
    before = model(tokens).logits
    model.resize_token_embeddings(VOCAB + 3)
    after = model(tokens)
    assert ratio(after.logits[..., :VOCAB], before) <= 1e-6
    assert after.logits.shape[2] == VOCAB + 3
    assert model(tokens + 3).logits.shape[2] == VOCAB + 3


def test_auto_classes_in_another_process(tmp_path):
    """Registered by importing gdssm.hf_models, with nothing imported before it."""
    model = make(torch.float32)
    model.save_pretrained(tmp_path)
    code = (
        "import sys, torch, gdssm.hf_models, transformers as t\n"
        "t.utils.logging.disable_progress_bar()\n"
        "folder, seen = sys.argv[1], torch.tensor([[1, 2, 3]])\n"
        "lm = t.AutoModelForCausalLM.from_pretrained(folder)\n"
        "base = t.AutoModel.from_pretrained(folder)\n"
        "print(type(t.AutoConfig.from_pretrained(folder)).__name__, type(lm).__name__, type(base).__name__)\n"
        "print(lm.generate(seen, max_new_tokens=6, do_sample=False, pad_token_id=0)[0].tolist())\n"
        "assert torch.equal(base(seen).last_hidden_state, lm.model(seen).last_hidden_state)"
    )
    path = os.pathsep.join([str(Path(gdssm.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    names, text = done.stdout.splitlines()
    assert names == "GDSSMConfig GDSSMForCausalLM GDSSMBackbone"
    assert (
        json.loads(text) == model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=6, do_sample=False, pad_token_id=0)[0].tolist()
    )


def test_auto_classes_make_models_from_configurations():
    config = GDSSMConfig(vocab_size=VOCAB, d_model=8, n_layers=1, n_heads=2, num_labels=4)
    assert type(AutoModelForCausalLM.from_config(config)) is GDSSMForCausalLM
    assert type(AutoModel.from_config(config)) is hf_models.GDSSMBackbone
    classifier = AutoModelForSequenceClassification.from_config(config)
    assert classifier(words()).logits.shape == (3, 4)


def test_the_pipeline_writes_text():
    """A tokenizer of characters, made here: prompts of different lengths in one batch, padded on the left."""
    letters = {c: i for i, c in enumerate("abcdef_")}
    inner = Tokenizer(models.WordLevel(letters, unk_token="_"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="_", unk_token="_", padding_side="left")
    model = make(torch.float32, pad_token_id=6)
    writer = pipeline("text-generation", model=model, tokenizer=tokenizer, batch_size=2, device="cpu")
    prompts = ["abcabc", "fd"]
    texts = writer(prompts, max_new_tokens=5, do_sample=False, return_full_text=False)
    for prompt, [answer] in zip(prompts, texts, strict=True):
        own = torch.tensor([letters[c] for c in prompt])
        assert answer["generated_text"].replace(" ", "") == "".join("abcdef"[i] for i in greedy(model, own, 5) if i < 6)


# Bad input


def both_ways():
    return hf_models.GDSSMBackbone(GDSSMConfig(vocab_size=VOCAB, d_model=8, n_layers=1, n_heads=2, bidirectional=True))


@pytest.mark.parametrize(("options", "message"), [
    ({"n_heads": 3}, "n_heads must divide d_model"),
    ({"form": "shard"}, "form is 'shard' (did you mean 'shared'?)"),
    ({"pooling": "max"}, "pooling is 'max'; allowed: mean, last"),
    ({"gdssm_format": 2}, "gdssm_format is 2: this gdssm reads format 1"),
    ({"n_layer": 2}, "n_layer is no field of GDSSMConfig (did you mean 'n_layers'?)"),
    ({"num_atention_heads": 2}, "num_atention_heads is no field of GDSSMConfig (did you mean 'num_attention_heads'?)"),
])  # fmt: skip
def test_configurations_that_are_refused(options, message):
    with pytest.raises(ConfigError) as error:
        GDSSMConfig(**({"vocab_size": VOCAB, "d_model": 8} | options))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(("call", "message"), [
    (lambda m: m(), "give exactly one of input_ids and inputs_embeds"),
    (lambda m: m(words(), past_key_values=DynamicCache()), "past_key_values must be a GDSSMCache, got DynamicCache"),
    (lambda m: m(words(), attention_mask=torch.ones(3, 11)), "attention_mask must be (3, at least 12), got (3, 11)"),
    (lambda m: m(words(), output_attentions=True), "output_attentions is True; a GDSSM gives its last hidden vectors only"),
    (lambda m: m(words() + 1), "tokens must lie in 0..6 (vocab_size 7), got 7"),
    (lambda m: m.generate(words(), max_new_tokens=1, cache_implementation="static"), "cache_implementation is 'static'; a GDSSM"),
    (lambda m: both_ways()(words(), past_key_values=GDSSMCache()), "past_key_values: a bidirectional model reads whole sequences"),
    (lambda m: GDSSMForCausalLM(GDSSMConfig(vocab_size=7, bidirectional=True)), "bidirectional is True: a causal language model"),
])  # fmt: skip
def test_calls_that_are_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(make())


def test_files_that_are_refused(tmp_path):
    """Each with one line that names the folder or the value."""
    model = make(torch.float32)
    model.save_pretrained(tmp_path)
    file, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole, settings = file.read_bytes(), json.loads(config.read_text())

    def refusal(error):
        with pytest.raises(error) as raised:
            GDSSMForCausalLM.from_pretrained(tmp_path)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    file.write_bytes(whole[: len(whole) // 2])
    assert refusal(StorageError).startswith(f"{tmp_path}: its weights are damaged: ")
    file.write_bytes(whole)
    weights = load_file(file)
    del weights["model.core.blocks.1.mixer.d"], weights["model.core.blocks.1.mixer.u"]
    save_file(weights, file, {"format": "pt"})
    missing = "2 weights of the blocks are missing, the first is model.core.blocks.1.mixer.d"
    assert refusal(StorageError) == f"{tmp_path}: {missing}"
    file.write_bytes(whole)
    config.write_text(json.dumps(settings | {"n_layers": 1}))
    more = "8 weights of the blocks are not in the configuration, the first is model.core.blocks.1.mixer.d"
    assert refusal(StorageError) == f"{tmp_path}: {more}"
    config.write_text(json.dumps(settings | {"gdssm_format": 7}))
    assert refusal(ConfigError) == "gdssm_format is 7: this gdssm reads format 1"
    config.write_text(json.dumps(settings))
    assert torch.equal(GDSSMForCausalLM.from_pretrained(tmp_path)(words()).logits, model(words()).logits)


def test_without_transformers_the_import_says_what_to_install():
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from gdssm.config import ConfigError\n"
        "try:\n    import gdssm.hf_models\nexcept ConfigError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "gdssm.hf_models needs transformers: pip install 'gdssm[hf]'\n", done.stderr

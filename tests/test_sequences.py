"""Tasks of sequences: each against an independent reading of its definition, and the errors of what cannot be used."""

import itertools
import statistics

import numpy as np
import pytest
import torch

from gdssm import LinearRegression
from gdssm.config import ConfigError
from gdssm.sequences import (
    IGNORED,
    AssociativeRecall,
    Corpus,
    Curriculum,
    DenseRegression,
    Digits,
    ListOps,
    LongRangeArenaError,
    PublishedListOps,
    SequenceBatch,
    Text,
    TextError,
    Vocabulary,
    read_corpus,
)
from gdssm.sequences.digits import moved

SHORT = ListOps(min_length=5, max_length=60, max_depth=5, held=70)
TASKS = [
    Text.of(Corpus("".join(chr(97 + i**3 % 1009 % 26) for i in range(1009)), "letters"), window=16),
    AssociativeRecall(32, 4, 64, held=70),
    SHORT,
    Digits(),
    DenseRegression(LinearRegression(3, 2, 6), held=70),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_batches_depend_on_seed_and_step_alone(task):
    batch, again = task.batch(8, seed=3, step=5), task.batch(8, seed=3, step=5)
    assert torch.equal(batch.tokens, again.tokens)
    assert torch.equal(batch.targets.nan_to_num(), again.targets.nan_to_num())
    for other in (task.batch(8, seed=4, step=5), task.batch(8, seed=3, step=6)):
        assert other.tokens.shape != batch.tokens.shape or not torch.equal(other.tokens, batch.tokens)
    validation, test = (
        {row.numpy().tobytes() for one in task.held_out(split) for row in one.tokens} for split in ("validation", "test")
    )
    assert len(validation & test) <= 0.02 * len(test)
    with pytest.raises(ValueError, match=r"split is 'train'; allowed: validation, test"):
        task.held_out("train")


@pytest.mark.parametrize("task", TASKS[:4], ids=lambda task: type(task).__name__)
def test_the_loss_is_the_mean_negative_log_likelihood_of_what_counts(task):
    batch = task.held_out("validation")[0]
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(*batch.targets.shape, task.n_outputs, generator=g, dtype=torch.float64)
    wanted = []
    hits = []
    for place in itertools.product(*map(range, batch.targets.shape)):
        target = int(batch.targets[place])
        if target != IGNORED:
            scores = logits[place].numpy()
            wanted.append(np.log(np.exp(scores).sum()) - scores[target])
            hits.append(int(scores.argmax()) == target)
    assert float(batch.loss(logits)) == pytest.approx(np.mean(wanted), rel=1e-6)
    assert batch.correct(logits).tolist() == hits


def test_shapes_of_a_batch_are_checked():
    with pytest.raises(ValueError, match=r"targets must be \(2,\) or \(2, 3, \.\.\), got shape \(2, 4\)"):
        SequenceBatch(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"lengths must be \(2,\), got shape \(3,\)"):
        SequenceBatch(torch.zeros(2, 3), torch.zeros(2), torch.ones(3))


# Text


def test_crops_are_pieces_of_the_part_that_is_trained_on():
    text = "".join(chr(97 + (i * i) % 26) for i in range(1000))
    task = Text.of(Corpus(text, "letters"), window=20)
    batch = task.batch(50, seed=0, step=0)
    for tokens, targets in zip(batch.tokens, batch.targets, strict=True):
        piece = task.vocabulary.decode(tokens) + task.vocabulary.decode(targets[-1:])
        assert piece in text[:900]
        assert piece[1:] == task.vocabulary.decode(targets)
    starts = {text.find(task.vocabulary.decode(row)) for row in task.batch(2000, seed=0, step=1).tokens}
    assert min(starts) == 0


def test_every_held_out_token_is_predicted_once():
    text = "".join(chr(33 + i % 90) for i in range(3000))
    task = Text.of(Corpus(text, "signs"), window=7)
    targets = torch.cat([one.targets for one in task.held_out("test")])
    assert task.vocabulary.decode(targets.flatten()) == text[2851 : 2851 + 147]
    few = Text(task.tokens, task.vocabulary, 7, most=3)
    rows = torch.cat([one.targets for one in few.held_out("test")])
    assert torch.equal(rows, targets[[0, 10, 20]])


@pytest.mark.parametrize("level", ["characters", "bytes"])
def test_a_vocabulary_encodes_and_decodes(level):
    text = "naïve café 中\n"
    vocabulary = Vocabulary.of(text, level)
    assert len(vocabulary) == (len(set(text)) if level == "characters" else 256)
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert len(vocabulary.encode(text)) == len(text if level == "characters" else text.encode())
    assert vocabulary.encode("").tolist() == []
    assert Vocabulary.from_record(vocabulary.as_record()) == vocabulary


def test_files_of_other_systems(tmp_path):
    (tmp_path / "text.txt").write_bytes("\ufeffab\r\ncd\r\n".encode())
    assert read_corpus(tmp_path / "text.txt").text == "ab\ncd\n"


def test_texts_that_cannot_be_used(tmp_path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TextError, match=r"text is .*empty\.txt', which is empty"):
        read_corpus(tmp_path / "empty.txt")
    with pytest.raises(TextError, match=r"binary\.txt', which is no text in UTF-8"):
        read_corpus(tmp_path / "binary.txt")
    with pytest.raises(TextError, match=r"none\.txt', which cannot be read: No such file"):
        read_corpus(tmp_path / "none.txt")
    with pytest.raises(TextError, match=r"text is 'a\\x00b', which is no path of a file"):
        read_corpus("a\0b")
    with pytest.raises(TextError, match=r"holds the character '\\ud8ff' at position 1, which cannot be written in UTF-8"):
        Vocabulary().encode("a\ud8ff")
    with pytest.raises(TextError, match=r"text has 100 characters, of which 5 are for validation; a window of 5 needs at least 6"):
        Text.of(Corpus("x" * 100, "x"), window=5)
    with pytest.raises(TextError, match=r"the character 'z' at position 2, which is none of the 3 characters"):
        Vocabulary.of("abc").encode("abz")
    for record in (None, {"level": "words", "symbols": ""}, {"level": "bytes", "symbols": "a"}, {"level": "bytes"}):
        with pytest.raises(TextError, match="vocabulary"):
            Vocabulary.from_record(record)
    with pytest.raises(TextError, match="twice"):
        Vocabulary("aa")


def test_the_standard_library_is_a_corpus():
    corpus = read_corpus(limit=50_000)
    assert len(corpus.text) == 50_000
    assert corpus.text.isascii()
    assert "import" in corpus.text
    assert corpus.digest == read_corpus(limit=50_000).digest
    assert corpus.digest != read_corpus(limit=49_999).digest


def test_a_file_is_a_corpus(tmp_path):
    (tmp_path / "a.txt").write_text("héllo\nworld")
    assert read_corpus(tmp_path / "a.txt").text == "héllo\nworld"
    assert read_corpus(tmp_path / "a.txt", limit=3).text == "hél"


# Associative recall


@pytest.mark.parametrize("noise", [True, False])
def test_the_target_of_a_query_is_the_value_that_followed_its_key(noise):
    task = AssociativeRecall(n_tokens=48, n_pairs=8, vocabulary=64, noise=noise)
    batch = task.batch(100, seed=0, step=0)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        pairs = dict(zip(tokens[0:16:2], tokens[1:16:2], strict=True))
        assert len(pairs) == len(set(pairs.values())) == 8
        assert all(1 <= key < 32 <= value < 64 for key, value in pairs.items())
        asked = {i: target for i, target in enumerate(targets) if target != IGNORED}
        assert sorted(tokens[i] for i in asked) == sorted(pairs)
        assert all(i >= 16 and i % 2 == 0 and pairs[tokens[i]] == target for i, target in asked.items())
        assert noise or not any(token for i, token in enumerate(tokens) if i >= 16 and i not in asked)


def test_queries_are_placed_by_the_power_law_without_replacement():
    task = AssociativeRecall(n_tokens=14, n_pairs=2, vocabulary=8, power=0.3, noise=False)
    batch = task.batch(40_000, seed=1, step=0)
    p = np.arange(1, 6) ** (0.3 - 1)
    p /= p.sum()
    second = [sum(p[i] * p[j] / (1 - p[i]) for i in range(5) if i != j) for j in range(5)]
    for pair, law in ((0, p), (1, second)):
        asked = (batch.tokens[:, 4:] == batch.tokens[:, 2 * pair, None])[:, ::2]
        found = asked.double().mean(0).numpy()
        assert found == pytest.approx(law, abs=4 * 0.5 / 200)
        assert float(asked.sum(1).double().max()) == 1
    assert np.abs(np.array(second) - p).max() > 0.02  # so that the two laws can be told apart


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"n_tokens": 30}, "at least 4 n_pairs = 32, got 30"),
        ({"n_tokens": 65}, "must be even"),
        ({"vocabulary": 16}, "vocabulary must be even and at least 18, got 16"),
        ({"power": 0.0}, "power must be a finite number > 0"),
    ],
)
def test_impossible_recall_is_refused(options, fragment):
    with pytest.raises(ConfigError, match=fragment):
        AssociativeRecall(**options)


# ListOps


def evaluate(text):
    """An independent evaluator: the expression as nested Python lists, read by Python itself."""
    names = {"MIN": min, "MAX": max, "MED": lambda v: int(statistics.median(v)), "SM": lambda v: sum(v) % 10}
    nested = text.replace("[", "['").replace("MIN", "MIN',").replace("MAX", "MAX',").replace("MED", "MED',")
    nested = nested.replace("SM", "SM',").replace(" ]", "]").replace("]", "],").replace(" ", ",").replace(",,", ",")
    tree = eval(nested.strip(","))

    def value(node):
        return node if isinstance(node, int) else names[node[0]]([value(child) for child in node[1:]])

    def depth(node):
        return 0 if isinstance(node, int) else 1 + max(depth(child) for child in node[1:])

    def widths(node):
        return [] if isinstance(node, int) else [len(node) - 1, *(w for child in node[1:] for w in widths(child))]

    return value(tree), depth(tree), widths(tree)


def test_the_evaluator_of_the_tests_knows_the_published_example():
    assert evaluate("[MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]") == (5, 2, [6, 2, 5])
    assert evaluate("[SM 9 8 [MED 1 4 ] ]") == (9, 2, [3, 2])


@pytest.mark.parametrize("task", [SHORT, ListOps(held=4), ListOps(50, 200, 9, 10)], ids=["short", "published", "reduced"])
def test_values_depths_lengths_and_arguments_of_listops(task):
    count = 300 if task is SHORT else 25
    expressions = task.expressions(count, seed=0)
    for one in expressions:
        value, depth, widths = evaluate(str(one))
        assert (one.value, one.depth) == (value, depth)
        assert task.min_length <= len(one.tokens) <= task.max_length
        assert depth <= task.max_depth
        assert min(widths) >= 2
        assert max(widths) <= task.max_args
    assert len({one.value for one in expressions}) >= 9


def test_arguments_are_operators_a_quarter_of_the_time():
    """With no limit on the length: the first argument of the root."""
    task = ListOps(min_length=4, max_length=10**6, max_depth=3, max_args=4)
    first = [one.tokens[1] >= 10 for one in task.expressions(8000, seed=1)]
    assert sum(first) / len(first) == pytest.approx(0.25, abs=4 * 0.43 / len(first) ** 0.5)


def test_a_batch_is_padded_and_knows_lengths_and_depths():
    batch = SHORT.batch(20, seed=0, step=3)
    expressions = SHORT.expressions(20, seed=0, step=3)
    assert batch.lengths is not None
    assert batch.groups is not None
    for row, length, target, depth, one in zip(
        batch.tokens.tolist(), batch.lengths.tolist(), batch.targets.tolist(), batch.groups.tolist(), expressions, strict=True
    ):
        assert tuple(row[:length]) == one.tokens
        assert set(row[length:]) <= {15}
        assert (target, depth) == (one.value, one.depth)
    assert batch.tokens.shape[1] == max(batch.lengths)


def test_impossible_listops_are_refused():
    with pytest.raises(ConfigError, match="min_length is 9, more than max_length 8"):
        ListOps(9, 8)
    with pytest.raises(ConfigError, match="2 arguments, depth 2: at most 10"):
        ListOps(11, 20, max_depth=2, max_args=2)
    assert max(len(one.tokens) for one in ListOps(10, 20, max_depth=2, max_args=2).expressions(3, seed=0)) == 10


def published(folder, lines, head="Source\tTarget"):
    for name in ("train", "val", "test"):
        (folder / f"basic_{name}.tsv").write_text("\n".join([head, *lines]) + "\n")


def test_the_published_files_are_read(tmp_path):
    """Written with the parentheses of the original: ( ( ( [MAX 4 ) 3 ) ] )."""
    expressions = SHORT.expressions(30, seed=0)
    lines = []
    for one in expressions:
        words = str(one).split()
        text = ""
        for word in words:
            text = f"( {text} {word} )" if text else word
        lines.append(f"{text}\t{one.value}")
    published(tmp_path, lines)
    task = PublishedListOps.read(tmp_path)
    assert task.expressions["test"] == expressions
    seen = [tuple(row[:length].tolist()) for step in range(3) for row, length in rows(task.batch(10, seed=0, step=step))]
    assert sorted(seen) == sorted(one.tokens for one in expressions)  # an epoch: each once
    assert seen != [one.tokens for one in expressions]
    cut = PublishedListOps.read(tmp_path, max_length=5).held_out("test")[0]
    assert cut.tokens.shape[1] == 5


def rows(batch):
    return zip(batch.tokens, batch.lengths, strict=True)


@pytest.mark.parametrize(
    ("lines", "head", "fragment"),
    [
        (["( [MAX 4 ) ] )\t4"], "Source,Target", "line 1 must be Source<TAB>Target, got 'Source,Target'"),
        (["( [MAX 4 ) ] )"], "Source\tTarget", "line 2: a tab is missing"),
        (["[MAX 4 ]\t4", "[FOO 4 ]\t4"], "Source\tTarget", r"line 3: '\[FOO' is no symbol of ListOps"),
        (["[MAX 4 ] ]\t4"], "Source\tTarget", "line 2: brackets do not match"),
        (["[MAX 4\t4"], "Source\tTarget", "line 2: brackets do not match"),
        (["[MAX 4 ]\t44"], "Source\tTarget", "line 2: the value is '44', a digit is needed"),
        ([], "Source\tTarget", "holds no expressions"),
    ],
)
def test_other_files_are_refused(tmp_path, lines, head, fragment):
    published(tmp_path, lines, head)
    with pytest.raises(LongRangeArenaError, match=fragment):
        PublishedListOps.read(tmp_path)


def test_a_folder_without_the_files_is_refused(tmp_path):
    with pytest.raises(LongRangeArenaError, match=r"basic_train\.tsv: cannot be read"):
        PublishedListOps.read(tmp_path)
    with pytest.raises(LongRangeArenaError, match=r"which is no folder; it must hold basic_train\.tsv"):
        PublishedListOps.read(tmp_path / "nowhere")


# Digits


def test_folds_hold_every_image_once_and_their_parts_nothing_twice():
    from sklearn.datasets import load_digits

    everything = sorted(map(tuple, load_digits().data.astype(int).tolist()))
    tests = []
    for fold in range(5):
        parts = Digits(fold).parts
        assert sorted(tuple(row) for images, _ in parts.values() for row in images.tolist()) == everything
        tests += [tuple(row) for row in parts["test"][0].tolist()]
        counts = torch.bincount(parts["test"][1], minlength=10)
        assert int(counts.max() - counts.min()) <= 3
    assert sorted(tests) == everything
    labels = {tuple(row): int(y) for row, y in zip(load_digits().data.astype(int).tolist(), load_digits().target, strict=True)}
    images, digits = Digits(2).parts["validation"]
    assert [labels[tuple(row)] for row in images.tolist()] == digits.tolist()


def test_images_are_moved_without_wrapping_round():
    images = torch.arange(1, 129).view(2, 64)
    found = moved(images, torch.tensor([[1, -2], [0, 0]]))
    wanted = np.zeros((8, 8), dtype=int)
    wanted[1:, :-2] = images[0].view(8, 8)[:-1, 2:].numpy()
    assert (found[0].view(8, 8).numpy() == wanted).all()
    assert torch.equal(found[1], images[1])


# Dense regression


def test_the_target_at_each_input_is_what_follows_it():
    task = DenseRegression(LinearRegression(3, 2, 6), held=70)
    for batch, context in zip(task.held_out("test"), task.contexts("test"), strict=True):
        assert torch.equal(batch.counted[0], torch.arange(13) % 2 == 0)
        weights = torch.linalg.lstsq(context.x, context.y).solution  # (B, d_x, d_y): six examples of three inputs, no noise
        torch.testing.assert_close(batch.tokens[:, ::2, :3] @ weights, batch.targets[:, ::2], rtol=1e-3, atol=1e-4)
        assert torch.equal(batch.tokens[:, 1::2, :2], batch.targets[:, :-1:2])
    outputs = torch.zeros(6, 13, 2)
    batch = task.held_out("test")[-1]
    assert float(batch.loss(outputs)) == pytest.approx(float(batch.targets[:, ::2].square().mean()))


def test_the_curriculum_grows_to_the_whole_task():
    task = DenseRegression(LinearRegression(4, 1, 9), Curriculum(inputs=2, examples=5, every=10))
    for step, used, count in ((0, 2, 5), (9, 2, 5), (10, 3, 7), (25, 4, 9), (1000, 4, 9)):
        tokens = task.batch(16, seed=0, step=step).tokens
        assert tokens.shape[1] == 2 * count + 1
        assert (tokens[:, ::2].abs().sum((0, 1)) > 0).tolist() == [i < used for i in range(4)]
    whole = DenseRegression(task.task)
    assert torch.equal(task.batch(4, seed=0, step=1000).tokens, whole.batch(4, seed=0, step=1000).tokens)
    with pytest.raises(ConfigError, match=r"task\.n_queries must be 1, got 2"):
        DenseRegression(LinearRegression(2, 1, 3, n_queries=2))

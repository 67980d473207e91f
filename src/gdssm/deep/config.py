"""What a deep model is made of: one frozen dataclass, checked before anything is built. No torch here."""

from dataclasses import dataclass

from ..config import ConfigError, check_choice, check_count, check_fields, check_number
from ..settings import LARGEST_SIZE

FORMS = ("shared", "separate")
INPUT_GATES = ("rank1", "full")
TAPS = ("head", "channel")
FILTERS = ("recalling", "random")
NORMALIZE = ("keys", "stream", "none")
DEEP_DECAYS = ("none", "head", "input")
ACTIVATIONS = ("none", "silu")
GATES = ("silu", "sigmoid", "none")
POOLING = ("none", "mean", "last")
BACKENDS = ("auto", "reference", "chunked")


@dataclass(frozen=True)
class DeepConfig:
    """A deep model: what it reads, its blocks, what it gives.

    vocab_size     number of tokens to embed; None: tokens are vectors
    d_input        features of tokens that are vectors, projected to d_model; None: vocab_size tokens
    n_outputs      numbers given per token, or per sequence with pooling; None: vocab_size (logits of the next token)
    pooling        "none": outputs for every token; "mean" or "last": one output per sequence, of the mean or last hidden vector
    tie_embeddings  the head multiplies with the embedding's own matrix; only for n_outputs = vocab_size without pooling

    d_model        features of the stream between blocks
    n_layers       blocks
    n_heads        heads of each block, each with its own filters, decay and state
    d_head         features of a head, D: a state is D x D; None: d_model / n_heads
    d_mlp          features of each branch of the gated network; None: 8/3 d_model, rounded up to a multiple of 8; 0: no network
    window         W, tokens that a filter sees
    form           "shared": one projection, whose filters are keys, values and queries; "separate": three projections
    taps           "head": one filter for all features of a head; "channel": one for each feature
    filters        how the filters of a fresh model start: "recalling", in the last quarter of the heads keys see the token
                   before the last, values and queries the last, all others at random; "random", all of them
    activation     "silu": of what the filters give, as short convolutions often have; "none"
    input_gate     "rank1": w_q = u v^T; "full": any w_q, which needs windows as they are: the shared form, taps "head",
                   activation "none" and normalize not "keys"
    normalize      "keys": keys and queries have length 1; "stream": every token of a head's stream has; "none"
    key_map        learn P, a D x D matrix per head on the queries
    decay          "head": one Lambda per head; "input": one per head and token, from the token; "none": Lambda = 1
    decay_range    smallest and largest Lambda of a fresh model; heads are spread between them, even in log(-log Lambda), and a
                   single one gets the largest
    gate           what the readout is multiplied with: "silu" or "sigmoid" of a projection; "none"
    readout_norm   norm every head's readout before the gate
    skip           add the values themselves to what is read, each feature by a weight that is learned and starts at 4; beside
                   normed readouts that is much with normalize "keys", less with "stream". Not with input_gate "full", whose
                   windows have no single value
    branch_scale   factor on the weights that end a branch in a fresh model, 0 to 100; with a small one the embedding is the larger
                   part of the stream
    bidirectional  half of the heads read the sequence from its end; no streaming then
    norm_eps       added to the mean of squares in every norm
    backend        of gdssm.ops.gd_scan, which runs where the windows are taken as they are (see input_gate)

    Raises ConfigError for wrong types, values out of range or that do not fit together.
    """

    vocab_size: int | None = None
    d_input: int | None = None
    n_outputs: int | None = None
    pooling: str = "none"
    tie_embeddings: bool = True
    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 4
    d_head: int | None = None
    d_mlp: int | None = None
    window: int = 4
    form: str = "shared"
    taps: str = "head"
    filters: str = "recalling"
    input_gate: str = "rank1"
    activation: str = "none"
    normalize: str = "keys"
    key_map: bool = False
    decay: str = "head"
    decay_range: tuple[float, float] = (0.5, 0.999)
    gate: str = "silu"
    readout_norm: bool = True
    skip: bool = False
    branch_scale: float = 1.0
    bidirectional: bool = False
    norm_eps: float = 1e-6
    backend: str = "auto"

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("d_model", "n_layers", "n_heads", "window"):
            check_count(name, getattr(self, name), most=LARGEST_SIZE)
        for name, least in (("vocab_size", 1), ("d_input", 1), ("n_outputs", 1), ("d_head", 1), ("d_mlp", 0)):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), least, LARGEST_SIZE)
        choices = {
            "pooling": POOLING,
            "form": FORMS,
            "taps": TAPS,
            "filters": FILTERS,
            "input_gate": INPUT_GATES,
            "activation": ACTIVATIONS,
            "normalize": NORMALIZE,
            "decay": DEEP_DECAYS,
            "gate": GATES,
            "backend": BACKENDS,
        }
        for name, allowed in choices.items():
            check_choice(name, getattr(self, name), allowed)
        low, high = self.decay_range
        check_number("decay_range[0]", low, above=0, below=1)
        check_number("decay_range[1]", high, least=low, below=1)
        check_number("norm_eps", self.norm_eps, above=0)
        check_number("branch_scale", self.branch_scale, least=0, most=100)
        self._check_ends()
        self._check_mixer()

    def _check_ends(self) -> None:
        if (self.vocab_size is None) == (self.d_input is None):
            given = f"got {self.vocab_size} and {self.d_input}"
            raise ConfigError(f"vocab_size and d_input: give exactly one, {given}")
        if self.n_outputs is None and (self.vocab_size is None or self.pooling != "none"):
            raise ConfigError("n_outputs must be given for tokens that are vectors, and with pooling; got None")

    def _check_mixer(self) -> None:
        if self.d_head is None and self.d_model % self.n_heads:
            raise ConfigError(f"n_heads must divide d_model = {self.d_model} where d_head is not given, got {self.n_heads}")
        if self.input_gate == "full" and not self.windowed:
            raise ConfigError(
                "input_gate is 'full'; it needs form 'shared', taps 'head', activation 'none' and normalize 'stream' or 'none', "
                f"got {self.form!r}, {self.taps!r}, {self.activation!r} and {self.normalize!r}"
            )
        if self.skip and self.input_gate == "full":
            raise ConfigError("skip is True; it needs input_gate 'rank1', because a full one has no single value, got 'full'")
        if self.form == "separate" and self.normalize == "stream":
            raise ConfigError("normalize is 'stream'; form 'separate' has no common stream: allowed: keys, none")
        if self.bidirectional and self.n_heads % 2:
            raise ConfigError(f"n_heads must be even where bidirectional (half of the heads read backwards), got {self.n_heads}")

    @property
    def windowed(self) -> bool:
        """Whether the windows are taken as they are, by gd_scan; otherwise keys, values and queries are formed first."""
        return self.form == "shared" and self.taps == "head" and self.activation == "none" and self.normalize != "keys"

    @property
    def head_size(self) -> int:
        """D, features of a head."""
        return self.d_model // self.n_heads if self.d_head is None else self.d_head

    @property
    def mlp_size(self) -> int:
        """Features of each branch of the gated network; 0 for none."""
        return -(-8 * self.d_model // 24) * 8 if self.d_mlp is None else self.d_mlp

    @property
    def outputs(self) -> int:
        """Numbers given per token or sequence."""
        found = self.vocab_size if self.n_outputs is None else self.n_outputs
        assert found is not None
        return found

    @property
    def predicts_next(self) -> bool:
        """Whether it reads tokens in one direction and gives logits of the next one for each."""
        return self.vocab_size is not None and self.outputs == self.vocab_size and self.pooling == "none" and not self.bidirectional

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding's matrix: where tie_embeddings is set and the two have the same shape and meaning."""
        return self.tie_embeddings and self.vocab_size is not None and self.pooling == "none" and self.outputs == self.vocab_size

"""What `gdssm train` needs to know to model a text: the configuration of the text, the model and the training.

A configuration file is a Python file that ends in `config = TextConfig(..)`; see docs/deep-models.md.
"""

from dataclasses import dataclass, field

from .config import ConfigError, check_choice, check_count, check_fields
from .deep import DeepConfig
from .recipe import Recipe
from .sequences.text import MOST_CHARACTERS
from .sequences.vocabulary import LEVELS
from .settings import LARGEST_SEED, LARGEST_SIZE


@dataclass(frozen=True)
class TextConfig:
    """A deep model of a text: 90 % is trained on, 5 % is the validation, the last 5 % are left for a test.

    text          a file in UTF-8; "" is the source of Python's standard library
    level         tokens are "characters" or "bytes"
    limit         characters that are read, at most; 0: all
    window        tokens of a training crop
    model         gdssm.DeepConfig; its vocab_size is the text's, whatever it says. Causal, with an output for every token
    recipe        gdssm.Recipe: steps, batch, rate and the rest
    seed          of the initial weights
    digest        SHA-256 of the text, its first 16 digits; "": any text. Filled in when a run begins, so that it goes on with
                  the same text or not at all
    log_every     steps from one line of metrics to the next
    eval_windows  windows of the validation that are looked at; 0: all
    eval_points   how often along the training (denser at the start)

    Raises ConfigError for wrong types, values out of range or that do not fit together.
    """

    text: str = ""
    level: str = "characters"
    limit: int = 0
    window: int = 256
    model: DeepConfig = field(default_factory=lambda: DeepConfig(vocab_size=1))
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0
    digest: str = ""
    log_every: int = 10
    eval_windows: int = 64
    eval_points: int = 10

    def __post_init__(self) -> None:
        check_fields(self)
        check_choice("level", self.level, LEVELS)
        check_count("limit", self.limit, 0, MOST_CHARACTERS)
        for name in ("window", "log_every", "eval_points"):
            check_count(name, getattr(self, name), most=LARGEST_SIZE)
        check_count("seed", self.seed, 0, LARGEST_SEED)
        check_count("eval_windows", self.eval_windows, 0, LARGEST_SIZE)
        model = self.model
        if not model.predicts_next or model.n_outputs is not None:
            raise ConfigError(
                "model must read tokens, in one direction, and give logits of the next for each; got "
                f"vocab_size {model.vocab_size}, n_outputs {model.n_outputs}, pooling {model.pooling!r}, "
                f"bidirectional {model.bidirectional}"
            )

    # What a run of any kind is asked for.

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed alone."""
        return (self.seed,)

    @property
    def steps(self) -> int:
        """The recipe's."""
        return self.recipe.steps

    @property
    def threads(self) -> int:
        """The recipe's."""
        return self.recipe.threads

    @property
    def data_seed(self) -> int:
        """The recipe's."""
        return self.recipe.data_seed

    @property
    def device(self) -> str:
        """The recipe's."""
        return self.recipe.device

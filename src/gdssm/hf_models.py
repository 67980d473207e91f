"""Deep models as Hugging Face models: configuration, causal language model, classifier, and the cache for `generate`.

    GDSSMForCausalLM(GDSSMConfig(vocab_size=65, d_model=128, n_layers=4))      gdssm.deep's model with transformers' surface

Importing this file registers the classes with AutoConfig, AutoModel, AutoModelForCausalLM and
AutoModelForSequenceClassification. What transformers calls a cache is here the model's DeepState: its size does not grow.
Written for the range of transformers that pyproject.toml names.
"""

import dataclasses
import difflib
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from .config import ConfigError, counted, one_line
from .deep import DeepConfig, GatedMLP, GDSSMForSequenceModeling, GDSSMModel, Mixer, RMSNorm
from .deep.model import pool
from .storage import StorageError

try:
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        GenerationMixin,
        PreTrainedConfig,
        PreTrainedModel,
    )
    from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast, SequenceClassifierOutputWithPast
    from transformers.utils import can_return_tuple

    from .hf_cache import GDSSMCache
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "transformers":
        raise
    raise ConfigError("gdssm.hf_models needs transformers: pip install 'gdssm[hf]'") from None

__all__ = [
    "GDSSMBackbone",
    "GDSSMCache",
    "GDSSMConfig",
    "GDSSMForCausalLM",
    "GDSSMForSequenceClassification",
    "GDSSMPreTrainedModel",
    "from_deep",
    "register",
]

FORMAT = 1  # of the saved configuration: what the numbers in it mean


class GDSSMConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers is not looked into by the type checker
    """Configuration of the models: the fields of gdssm.DeepConfig, and transformers' own.

    pooling        of the classifier: "mean" or "last"
    bidirectional  for the classifier only
    others         those of DeepConfig; tie_word_embeddings is its tie_embeddings; hidden_size, num_hidden_layers and
                   num_attention_heads are other names for d_model, n_layers and n_heads

    Raises ConfigError for values out of range or that do not fit together, for names that are nearly those of a field, and for
    a configuration of another format.
    """

    model_type = "gdssm"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012  # transformers reads it from the class
    attribute_map = {"hidden_size": "d_model", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}  # noqa: RUF012

    vocab_size: int = 256
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
    decay_range: tuple[float, float] | list[float] = (0.5, 0.999)
    gate: str = "silu"
    readout_norm: bool = True
    skip: bool = False
    branch_scale: float = 1.0
    bidirectional: bool = False
    norm_eps: float = 1e-6
    backend: str = "auto"
    pooling: str = "mean"
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = True
    gdssm_format: int = FORMAT

    def __post_init__(self, **kwargs: Any) -> None:
        own = [*(f.name for f in dataclasses.fields(DeepConfig)), *self.attribute_map]
        for name in kwargs:  # transformers keeps what it does not know; a slip of the pen would change nothing and say nothing
            close = difflib.get_close_matches(name, own, 1, cutoff=0.8)
            if close:
                raise ConfigError(f"{name} is no field of {type(self).__name__} (did you mean {close[0]!r}?)")
        super().__post_init__(**kwargs)
        if self.gdssm_format != FORMAT:
            raise ConfigError(f"gdssm_format is {self.gdssm_format!r}: this gdssm reads format {FORMAT}")
        if self.pooling not in ("mean", "last"):
            raise ConfigError(f"pooling is {self.pooling!r}; allowed: mean, last")
        self.deep()

    def deep(self) -> DeepConfig:
        """The gdssm.DeepConfig of the blocks."""
        own = {f.name for f in dataclasses.fields(DeepConfig)} - {"d_input", "n_outputs", "pooling", "tie_embeddings"}
        return DeepConfig(**{name: getattr(self, name) for name in own}, tie_embeddings=self.tie_word_embeddings)


class GDSSMPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What the models have in common: fresh weights, gradient checkpointing, and that a state cannot be rolled back."""

    config: GDSSMConfig
    config_class = GDSSMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _is_stateful = True
    _no_split_modules = ["GDSSMBlock"]  # noqa: RUF012

    @classmethod
    def from_pretrained(cls, name: Any, *arguments: Any, output_loading_info: bool = False, **options: Any) -> Any:
        """As transformers' own; StorageError where a file is damaged or the blocks' weights are not the configuration's."""
        try:
            model, info = super().from_pretrained(name, *arguments, output_loading_info=True, **options)
        except SafetensorError as error:
            raise StorageError(f"{name}: its weights are damaged: {one_line(str(error))}") from None
        for kind, problem in (("missing_keys", "are missing"), ("unexpected_keys", "are not in the configuration")):
            keys = sorted(key for key in info[kind] if ".core." in f".{key}")
            if keys:
                raise StorageError(f"{name}: {counted(len(keys), 'weight')} of the blocks {problem}, the first is {keys[0]}")
        return (model, info) if output_loading_info else model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Fresh weights of one module, but for those that were read from a file."""
        known = {p: p.detach().clone() for p in module.parameters(recurse=False) if getattr(p, "_is_hf_initialized", False)}
        if isinstance(module, Mixer | GatedMLP | RMSNorm):
            module.reset_parameters()
        elif isinstance(module, nn.Embedding | nn.Linear):
            module.weight.normal_(0, 0.02)
        for parameter, value in known.items():
            parameter.copy_(value)


class GDSSMBackbone(GDSSMPreTrainedModel):
    """The blocks behind an embedding: AutoModel's class. `core` is the gdssm.GDSSMModel."""

    def __init__(self, config: GDSSMConfig) -> None:
        super().__init__(config)
        self.core = GDSSMModel(config.deep())
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.core.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.core.embedding = value
        self.core.config = dataclasses.replace(self.core.config, vocab_size=value.num_embeddings)

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: GDSSMCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Hidden vectors (B, T, d_model) of input_ids (B, T) or inputs_embeds (B, T, d_model), and the cache.

        attention_mask   (B, at least T), its last T columns: tokens with 0 are not read, as if they were not there
        past_key_values  a GDSSMCache to go on from; it is changed

        Raises ValueError for other caches, masks of other shapes, and outputs this model does not have.
        """
        _refuse(kwargs)
        if past_key_values is not None and not isinstance(past_key_values, GDSSMCache):
            raise ValueError(f"past_key_values must be a GDSSMCache, got {type(past_key_values).__name__}")
        if past_key_values is not None and self.config.bidirectional:
            raise ValueError("past_key_values: a bidirectional model reads whole sequences and goes on from none")
        if input_ids is not None and inputs_embeds is None:
            h = self.core.embed(input_ids)
        elif inputs_embeds is not None and input_ids is None:
            h = inputs_embeds
        else:
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        cache = past_key_values
        if cache is None and use_cache and not self.config.bidirectional:
            cache = GDSSMCache()
        mask = _columns(attention_mask, h)
        hidden, state = self.core.hidden(h, None if cache is None else cache.state, mask=mask)
        if cache is not None and state is not None:
            cache.update_state(state, h.shape[1])
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=cache)


class GDSSMForCausalLM(GDSSMPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A language model: logits of the next token, and `generate` with a state of constant size."""

    _tied_weights_keys = {"lm_head.weight": "model.core.embedding.weight"}  # noqa: RUF012

    def __init__(self, config: GDSSMConfig) -> None:
        super().__init__(config)
        if config.bidirectional:
            raise ConfigError("bidirectional is True: a causal language model reads forward only")
        self.model = GDSSMBackbone(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: GDSSMCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """Logits (B, T, vocab_size) in float32 or better; with labels (B, T) the loss of each next token, -100 left out.

        logits_to_keep   number of last columns, or their indices: the others are not computed; 0: all
        others           as GDSSMBackbone.forward
        """
        counted = {name: kwargs.pop(name) for name in ("num_items_in_batch",) if name in kwargs}
        out = self.model(input_ids, attention_mask, past_key_values, inputs_embeds, use_cache, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(out.last_hidden_state[:, kept])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **counted)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=out.past_key_values)

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Give `generate` a GDSSMCache where the user gave none; transformers would make a cache of keys and values."""
        if generation_config.cache_implementation is not None:
            raise ValueError(
                f"cache_implementation is {generation_config.cache_implementation!r}; a GDSSM keeps its state, leave it unset"
            )
        given = model_kwargs.get("past_key_values")
        if given is not None:
            given._is_user_defined = True
        elif generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = GDSSMCache()

    def _expand_inputs_for_generation(self, expand_size: int = 1, **kwargs: Any) -> tuple[Tensor, dict[str, Any]]:
        """Every sequence as often; also those of a cache that the user gave, which transformers leaves as it is."""
        cache = kwargs.get("past_key_values")
        if expand_size > 1 and isinstance(cache, GDSSMCache):
            cache.batch_repeat_interleave(expand_size)
        return super()._expand_inputs_for_generation(expand_size=expand_size, **kwargs)

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
        """The mask as it is, (B, T): there is no attention to mask."""
        return attention_mask


class GDSSMForSequenceClassification(GDSSMPreTrainedModel):
    """A classifier: the mean or the last hidden vector of each sequence's tokens, and a linear map to num_labels scores."""

    accepts_loss_kwargs = False  # its loss is a mean over the batch it is given: Trainer divides it by the batches of a step

    def __init__(self, config: GDSSMConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = GDSSMBackbone(config)
        self.score = nn.Linear(config.d_model, config.num_labels, bias=False)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Scores (B, num_labels); with labels transformers' loss for config.problem_type.

        Tokens that are padding (pad_token_id) are left out where no attention_mask says so.
        """
        pad = self.config.pad_token_id
        if attention_mask is None and pad is not None and input_ids is not None:
            attention_mask = input_ids != pad
        kwargs.pop("use_cache", None)
        out = self.model(input_ids, attention_mask, None, inputs_embeds, use_cache=False, **kwargs)
        hidden = out.last_hidden_state
        mask = _columns(attention_mask, hidden)
        scores = self.score(pool(hidden, self.config.pooling, None if mask is None else mask.to(hidden.device) != 0))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=scores, config=self.config)
        return SequenceClassifierOutputWithPast(loss=loss, logits=scores)


def from_deep(model: GDSSMForSequenceModeling) -> GDSSMForCausalLM:
    """A GDSSMForCausalLM with the weights of a gdssm.GDSSMForSequenceModeling that reads tokens and predicts the next.

    Raises ConfigError for models with pooling, of vectors, of other outputs than the vocabulary, and bidirectional ones.
    """
    deep = model.config
    if not deep.predicts_next:
        raise ConfigError("model: only one that reads tokens forward and gives logits of the next token becomes a causal LM")
    shared = {f.name for f in dataclasses.fields(DeepConfig)} - {"d_input", "n_outputs", "pooling", "tie_embeddings"}
    config = GDSSMConfig(**{name: getattr(deep, name) for name in shared}, tie_word_embeddings=deep.tied)
    made = GDSSMForCausalLM(config).to(model.model.embedding.weight)
    weights = {
        f"model.core.{name.removeprefix('model.')}": value for name, value in model.state_dict().items() if name[:5] == "model"
    }
    head = model.model.embedding.weight if model.head is None else model.head.weight
    made.load_state_dict({**weights, "lm_head.weight": head.detach()})
    return made.eval()


def register() -> None:
    """Tell transformers' Auto classes about the models; importing this file has done so."""
    AutoConfig.register("gdssm", GDSSMConfig, exist_ok=True)
    AutoModel.register(GDSSMConfig, GDSSMBackbone, exist_ok=True)
    AutoModelForCausalLM.register(GDSSMConfig, GDSSMForCausalLM, exist_ok=True)
    AutoModelForSequenceClassification.register(GDSSMConfig, GDSSMForSequenceClassification, exist_ok=True)


def _columns(mask: Tensor | None, h: Tensor) -> Tensor | None:
    """The mask's last T columns, of embeddings h (B, T, D): generation gives masks of all that was read. ValueError for others."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[0] != h.shape[0] or mask.shape[1] < h.shape[1]:
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"attention_mask must be ({h.shape[0]}, at least {h.shape[1]}), got {shape}")
    return mask[:, mask.shape[1] - h.shape[1] :]


def _refuse(kwargs: dict[str, Any]) -> None:
    """ValueError where outputs are asked for that the model does not have."""
    for name in ("output_attentions", "output_hidden_states"):
        if kwargs.get(name):
            raise ValueError(f"{name} is True; a GDSSM gives its last hidden vectors only")


register()

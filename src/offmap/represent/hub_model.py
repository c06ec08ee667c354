"""Building a `transformers` model and reading its hidden states as maps."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from offmap.core.errors import ConfigError, NotAvailableError
from offmap.represent.hub_files import Files

UNUSED = ("pooler", "mask_token", "head.probe")
"""Parts whose weights may be missing, since no signal reads them."""

LAYERS: Mapping[str, tuple[str, ...]] = {"mobilenet_v2": ("layer.1", "layer.3", "layer.6", "layer.10", "layer.13", "layer.15", "final")}
"""Layers of families for which the general rule is too coarse."""

EVENLY = 4
"""Layers of a transformer: quarters of its depth."""


@dataclass(frozen=True, slots=True)
class Hidden:
    """One pass.

    Args:
        maps: ``(N, C, h, w)`` by layer, from shallow to deep.
        vectors: ``logits``, ``features.cls``, ``features.penultimate``, ``image_embedding``, as far as the model has them.
        tokens: the maps come from tokens of one grid (a plain transformer).
    """

    maps: Mapping[str, Tensor]
    vectors: Mapping[str, Tensor]
    tokens: bool


JOINT = ("altclip", "chinese_clip", "clip", "metaclip_2", "siglip")
"""Image and text models whose image embedding is the pooled output of their vision half, times ``visual_projection`` if there is one."""


def build(files: Files, who: str, *, whole: bool = False) -> nn.Module:
    """The image model that a configuration describes, with its weights, in float32 and eval mode.

    Args:
        whole: of an image and text model both halves, not the vision half alone.

    Raises:
        ConfigError: unknown kind of model, a text model, weights missing, of wrong shape or not finite.
        NotAvailableError: transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise NotAvailableError("hub encoders need transformers: pip install 'offmap[hub]'") from error
    config = _config(files.config, who, whole=whole)
    classifier = str((files.config.get("architectures") or [""])[0]).endswith("ForImageClassification")
    auto = transformers.AutoModelForImageClassification if classifier else transformers.AutoModel
    try:
        with torch.device("meta"):
            kind = type(auto.from_config(config, trust_remote_code=False))
    except (ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ConfigError(
            f"{who}: transformers {transformers.__version__} builds no image model of type {config.model_type!r}: {error}"
        ) from error
    if not whole and kind.main_input_name != "pixel_values":
        raise ConfigError(f"{who} is a {config.model_type} model, which reads {kind.main_input_name}, not images: choose a vision encoder")
    try:
        with _quiet():
            model, info = kind.from_pretrained(
                None, config=config, state_dict=dict(files.tensors), dtype=torch.float32, output_loading_info=True
            )
    except RuntimeError as error:
        raise ConfigError(f"{who}: its weights do not fit its config.json: {str(error)[:300]}") from error
    _complete(model, info, who)
    module: nn.Module = model.eval().requires_grad_(False)
    return module.to(memory_format=memory_format(module))  # type: ignore[call-overload,no-any-return]


def memory_format(model: nn.Module) -> torch.memory_format:
    """Channels last for convolutional networks, which run faster so; transformers reshape their tokens and stay as they are."""
    convolutional = getattr(model.config, "num_attention_heads", None) is None
    return torch.channels_last if convolutional else torch.contiguous_format


def _config(values: Mapping[str, Any], who: str, *, whole: bool) -> Any:
    from transformers import AutoConfig

    try:
        kind = type(AutoConfig.for_model(values["model_type"]))
        config = kind.from_dict(dict(values))
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"{who}: config.json is of no kind of model that this transformers knows: {error}") from error
    return config if whole else getattr(config, "vision_config", config)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars and load reports on standard error."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _complete(model: nn.Module, info: Mapping[str, Any], who: str) -> None:
    lacking = sorted(k for k in info["missing_keys"] if not any(part in k for part in UNUSED))
    wrong = sorted(str(k) for k in info["mismatched_keys"])
    if lacking or wrong:
        shown = ", ".join((lacking + wrong)[:4])
        raise ConfigError(f"{who}: {len(lacking) + len(wrong)} weights are missing or of another shape ({shown}); they would be random")
    bad = [n for n, t in model.state_dict().items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if [n for n in bad if n not in info["missing_keys"]]:
        raise ConfigError(f"{who}: weights are not finite: {', '.join(bad[:4])}")


def base_of(model: nn.Module) -> nn.Module:
    """The encoder inside a model with a classification head; the model itself otherwise."""
    from transformers import PreTrainedModel

    if not type(model).__name__.endswith("ForImageClassification"):
        return model
    return next((m for m in model.children() if isinstance(m, PreTrainedModel)), model)


def projection(files: Files) -> nn.Module | None:
    """From the pooled output of an image and text model's vision half to the embedding that texts are compared with; None for others."""
    if files.config.get("model_type") not in JOINT or "vision_config" not in files.config:
        return None
    weight = files.tensors.get("visual_projection.weight")
    if weight is None:
        return nn.Identity()
    linear: nn.Module = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=False)
    linear.load_state_dict({"weight": weight.float()})
    return linear.requires_grad_(False)


def hidden_of(model: nn.Module, pixels: Tensor, head: nn.Linear | None, project: nn.Module | None = None) -> Hidden:
    """Run the model once and read its hidden states, class token, logits, the head's input, and its image embedding."""
    kept: dict[str, Any] = {}
    hooks = [base_of(model).register_forward_hook(lambda _, args, out: kept.update(base=out))]
    if head is not None:
        hooks.append(head.register_forward_pre_hook(lambda _, args: kept.update(penultimate=args[0])))
    options: dict[str, Any] = (
        {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in signature(model.forward).parameters else {}
    )
    try:
        output = model(pixel_values=pixels, output_hidden_states=True, return_dict=True, **options)
    finally:
        for hook in hooks:
            hook.remove()
    states = output.get("reshaped_hidden_states") or output.hidden_states
    final = kept["base"][0]
    vectors = {} if head is None else {"logits": output.logits, "features.penultimate": kept["penultimate"].flatten(1)}
    if project is not None:
        vectors["image_embedding"] = project(output.pooler_output)
    return _maps(model, states, final, pixels, vectors)


def _maps(model: nn.Module, states: tuple[Tensor, ...], final: Tensor, pixels: Tensor, vectors: dict[str, Tensor]) -> Hidden:
    config: Any = model.config
    grids = _grids(config, pixels, states)
    extra = 2 + int(getattr(config, "num_register_tokens", 0) or 0)
    maps: dict[str, Tensor] = {}
    for i, state in enumerate(states):
        if state.shape[1:] != pixels.shape[1:]:
            maps[f"layer.{i}"] = _as_map(state, grids, extra)[0]
    grid, prefix = _as_map(final, grids, extra)
    maps["final"] = grid
    if prefix and states[-1].ndim == 3:
        vectors["features.cls"] = final[:, 0]
    return Hidden(maps, vectors, states[0].ndim == 3)


def _grids(config: Any, pixels: Tensor, states: tuple[Tensor, ...]) -> list[tuple[int, int]]:
    """Token grids to expect: that of the patches, its halvings, and the deepest map's."""
    patch = getattr(config, "patch_size", None)
    grids = [(int(s.shape[2]), int(s.shape[3])) for s in reversed(states) if s.ndim == 4][:1]
    if isinstance(patch, int):
        h, w = pixels.shape[2] // patch, pixels.shape[3] // patch
        grids += [(h >> k, w >> k) for k in range(6) if (h >> k) and (w >> k)]
    return grids


def _as_map(state: Tensor, grids: list[tuple[int, int]], extra: int) -> tuple[Tensor, int]:
    """Tokens ``(N, T, C)`` without the class and register tokens in front, as ``(N, C, h, w)``, with the number of those left out.

    Raises:
        ConfigError: the tokens are no grid.
    """
    if state.ndim == 4:
        return state, 0
    for grid in grids:
        prefix = state.shape[1] - math.prod(grid)
        if 0 <= prefix <= extra:
            return state[:, prefix:].transpose(1, 2).unflatten(2, grid), prefix
    raise ConfigError(f"hidden states of shape {tuple(state.shape)} are no grid of patches {grids}: this kind of model is not supported")


def default_layers(model_type: str, hidden: Hidden) -> tuple[str, ...]:
    """Transformers: quarters of the depth and the last; convolutional networks: the last layer of each size and the last."""
    *inner, final = hidden.maps
    same = hidden.maps[inner[-1]].shape == hidden.maps[final].shape and torch.equal(hidden.maps[inner[-1]], hidden.maps[final])
    names = tuple(inner) if same else (*inner, final)
    if model_type in LAYERS:
        return LAYERS[model_type]
    if hidden.tokens:
        depth = len(inner) - 1
        quarters = [round(depth * k / EVENLY) for k in range(1, EVENLY)]
        return tuple(dict.fromkeys([f"layer.{i}" for i in quarters if i] + [names[-1]]))
    deepest = {hidden.maps[n].shape[2:]: n for n in names if n != "final"}
    return tuple(n for n in names if n in deepest.values() or n == names[-1])


class LastHidden(nn.Module):
    """The last hidden state of a model alone.

    Args:
        model: shared, not copied.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """``(N, C, h, w)``, or tokens ``(N, T, C)``."""
        hidden: Tensor = self.model(pixel_values=pixels).last_hidden_state
        return hidden

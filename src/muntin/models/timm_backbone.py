# SPDX-License-Identifier: Apache-2.0
"""Any timm model with feature maps as a backbone.

Source:
    timm (extra ``timm``), whose `forward_intermediates` gives the maps and whose `forward_head`
    gives what its classifier reads. Compared live with timm 1.0.31 in
    tests/parity/test_timm_backbone.py.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import itertools
import operator
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Literal

from torch import Tensor, nn

from muntin.errors import ConfigError, ShapeError, missing_extra, unknown_name
from muntin.features import Backbone, Features, FeatureSpec, TokenMask, find_output_problem
from muntin.nn.layers import DropPath
from muntin.shapes import Float, Int, Size

_UNDECAYED = ("relative_position_bias_table", "logit_scale", "pos_embed", "_token")


@dataclass(frozen=True, kw_only=True, slots=True)
class TimmConfig:
    """Configuration of a timm model.

    Attributes:
        name: Its name in timm, without a tag.
        img_size: (height, width) in pixels of the images it is meant for.
        in_chans: Channels of an image.
        out_indices: Maps that `forward` gives, counted as timm does; the last four when empty.
        drop_path_rate: Stochastic depth, for models that have it.
    """

    name: str
    img_size: Size = (224, 224)
    in_chans: int = 3
    out_indices: tuple[int, ...] = ()
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        """Validate the fields."""
        if re.fullmatch(r"[\w.-]+", self.name) is None:  # timm reads others as places of files
            message = f"TimmConfig: name must be that of a model of timm, got {self.name!r}."
            raise ConfigError(message)
        if min(*self.img_size, self.in_chans) < 1 or not 0 <= self.drop_path_rate < 1:
            message = (
                f"TimmConfig: img_size and in_chans must be at least 1 and drop_path_rate in "
                f"[0, 1), got {self.img_size}, {self.in_chans} and {self.drop_path_rate}."
            )
            raise ConfigError(message)


def _timm() -> Any:  # noqa: ANN401 (a module)
    if importlib.util.find_spec("timm") is None:
        library, extra = "timm", "timm"
        raise missing_extra(library, extra, "A model named timm:...")
    import timm

    return timm


def has_timm(name: str) -> bool:
    """Whether timm is installed and has a model of this name."""
    return importlib.util.find_spec("timm") is not None and bool(_timm().is_model(name))


def list_timm(pattern: str) -> list[str]:
    """Names of timm's models that match a shell pattern, without tags."""
    return list(_timm().list_models(pattern))


def describe_timm(name: str) -> dict[str, Any]:
    """The pretrained config of a timm model: input size, normalisation, classifier, hub id."""
    timm = _timm()
    if not timm.is_model(name.partition(".")[0]):
        raise ConfigError(unknown_name("timm model", name, timm.list_models()))
    published = timm.get_pretrained_cfg(name)
    return {} if published is None else published.to_dict()


def name_classes(count: int) -> tuple[str, ...]:
    """Names of the classes of the part of ImageNet that has so many; empty if timm knows none.

    Names of several classes get the numbers of their synsets.
    """
    part = None
    if importlib.util.find_spec("timm") is not None:
        part = _timm().data.infer_imagenet_subset({"num_classes": count})
    if part is None:
        return ()
    known = _timm().data.ImageNetInfo(part)
    names = known.label_descriptions()
    times = Counter(names)
    rows = zip(names, known.label_names(), strict=True)
    return tuple(f"{name} ({synset})" if times[name] > 1 else name for name, synset in rows)


def _unwrap(module: nn.Module) -> nn.Module:
    """Go through what only holds another, as a stage of one block does."""
    inner = [child for child in module.children() if any(True for _ in child.parameters())]
    alone = len(inner) == 1 and not any(True for _ in module.parameters(recurse=False))
    return _unwrap(inner[0]) if alone else module


# Options with which some of timm's families take images of any size, and others do not exist.
_FREE_SIZES: tuple[dict[str, bool], ...] = (
    {"dynamic_img_size": True, "dynamic_img_pad": True},
    {"dynamic_img_size": True},
    {"strict_img_size": False},
    {},
)


def _build(config: TimmConfig) -> Any:  # noqa: ANN401 (a class of timm)
    """Build the model of timm, for images of any size if its family can."""
    published = describe_timm(config.name).get("input_size") or (3, 224, 224)
    # num_classes=0 removes the classifier.
    options: dict[str, Any] = {"num_classes": 0, "in_chans": config.in_chans}
    if config.drop_path_rate:
        options["drop_path_rate"] = config.drop_path_rate
    sized = {} if config.img_size == tuple(published[1:]) else {"img_size": config.img_size}
    for free, size in itertools.product(_FREE_SIZES, (sized, {})):
        if size == sized or not free:  # families without img_size are made for any
            with contextlib.suppress(TypeError):
                return _timm().create_model(config.name, **options, **size, **free)
    return _timm().create_model(config.name, **options)  # raises


def _share_draws(net: nn.Module) -> None:
    """Replace drop path by ours, which does not depend on how a batch is divided."""
    theirs = _timm().layers.DropPath
    for module in [*net.modules()]:
        for name, child in module.named_children():
            if isinstance(child, theirs):
                setattr(module, name, DropPath(child.drop_prob))


class TimmBackbone(Backbone):
    """A timm model without its classifier; one that gives no maps is a `ConfigError`."""

    def __init__(self, config: TimmConfig) -> None:
        super().__init__()
        self.config = config
        self.net: Any = _build(config)
        _share_draws(self.net)
        found = len(getattr(self.net, "feature_info", ()))
        if not found or not hasattr(self.net, "forward_intermediates"):
            message = (
                f"a timm backbone must support forward_intermediates, but {config.name} does not. "
                f"Choose another model."
            )
            raise ConfigError(message)
        problem = find_output_problem(config.out_indices or (0,), found, "none", 0.0)
        if problem:
            message = f"{config.name}: {problem}."
            raise ConfigError(message)

    @property
    def spec(self) -> FeatureSpec:
        """Channels and strides of the maps."""
        # feature_info describes every map: channels, stride, module.
        rows = list(self.net.feature_info)
        chosen = [rows[i] for i in self._indices()]
        return FeatureSpec(
            channels=tuple(int(row["num_chs"]) for row in chosen),
            strides=tuple(int(row["reduction"]) for row in chosen),
        )

    @property
    def embed_channels(self) -> int:
        """Channels of the pooled vector."""
        return int(getattr(self.net, "head_hidden_size", self.net.num_features))

    @property
    def pool(self) -> str:
        """How timm pools what the classifier reads, "avg" as "mean"; empty if it does not say."""
        head = getattr(self.net, "head", None)
        found = getattr(head, "global_pool", None) or getattr(self.net, "global_pool", "")
        pool = getattr(found, "pool_type", found)
        return {"avg": "mean"}.get(pool, pool) if isinstance(pool, str) else ""

    def features(
        self,
        images: Float[Tensor, "B in_chans H W"],
        *,
        sizes: Int[Tensor, "B 2"] | None = None,
        mask: TokenMask | None = None,
    ) -> Features:
        """Prepare a run, which begins when a part is read: timm has a pass for each of them.

        The vector is what the model's own classifier reads. `Features.compute_both` takes one pass.
        Sides of the maps round as those of timm's model: ConvNeXt rounds them down.
        """
        self._refuse_mask(mask)
        return Features(
            images,
            sizes=sizes,
            maps=lambda: self._maps(images),
            vector=lambda: self._vector(images),
            both=lambda: self._both(images),
        )

    def _maps(self, images: Tensor) -> list[Tensor]:
        with self._refusing(images):
            maps = self.net.forward_intermediates(
                images, indices=self._indices(), intermediates_only=True, output_fmt="NCHW"
            )
        return list(maps)

    def _vector(self, images: Tensor) -> Tensor:
        with self._refusing(images):
            features = self.net.forward_features(images)
        vector: Tensor = self.net.forward_head(features, pre_logits=True)
        return vector

    def _both(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        # forward_intermediates also returns the final features: maps and vector in one pass.
        with self._refusing(images):
            features, maps = self.net.forward_intermediates(
                images, indices=self._indices(), output_fmt="NCHW"
            )
        return list(maps), self.net.forward_head(features, pre_logits=True)

    def adapt_state(self, state: Mapping[str, Tensor], made_for: Size | None) -> dict[str, Tensor]:
        """Convert a state dict to names and sizes of this model, as timm does when it loads one.

        timm reads positions on a square grid, or on that of the published model; where it is known
        that they were `made_for` another image size, they are resized from that one.
        """
        if made_for not in (None, self.config.img_size) and hasattr(self.net, "set_input_size"):
            source = TimmBackbone(replace(self.config, img_size=made_for))
            state = source.adapt_state(state, None)
            own = source.net.state_dict()
            if all(key in state and state[key].shape == own[key].shape for key in own):
                source.net.load_state_dict({key: state[key] for key in own})
                source.net.set_input_size(img_size=self.config.img_size)
                return {**state, **source.net.state_dict()}
        entry = _timm().models.model_entrypoint(self.config.name)
        convert = getattr(sys.modules[entry.__module__], "checkpoint_filter_fn", None)
        if convert is None:
            return dict(state)
        options = {"adapt_layer_scale": True}  # names of DeiT III; an option of its ViT alone
        known = options.keys() & inspect.signature(convert).parameters.keys()
        try:
            return dict(convert(dict(state), self.net, **{key: options[key] for key in known}))
        # Of another model, or for another grid: what does not fit is described by the caller.
        except (AttributeError, KeyError, IndexError, RuntimeError, ValueError, AssertionError):
            return dict(state)

    @contextlib.contextmanager
    def _refusing(self, images: Tensor) -> Iterator[None]:
        """Convert assertions of timm about the image size to `ShapeError`."""
        try:
            yield
        except (AssertionError, RuntimeError) as error:
            # Some families do not check the size, and fail where positions are added.
            if not isinstance(error, AssertionError) and "size of tensor" not in str(error):
                raise
            high, wide = images.shape[2:]
            message = (
                f"images must have a size that {self.config.name} of timm supports, got {high} x "
                f"{wide}: {str(error).rstrip('.')}. Create it with img_size=({high}, {wide}), or "
                f"omit the size."
            )
            raise ShapeError(message) from error

    def _indices(self) -> list[int]:
        count = len(self.net.feature_info)
        return [i % count for i in self.config.out_indices or range(max(count - 4, 0), count)]

    @property
    def blocks(self) -> Sequence[nn.Module]:  # type: ignore[override]
        """The largest module of every layer between the stem and the classifier."""
        largest: dict[int, tuple[int, nn.Module]] = {}
        for name, module in self.net.named_modules():
            layer, above = (self._layers.get(key) for key in (name, name.rpartition(".")[0]))
            if layer is not None and layer != above:  # whole, and in no larger module of its layer
                size = sum(parameter.numel() for parameter in module.parameters())
                best = largest.get(layer, (0, module))
                # The block is the module with most parameters, not its norm or scale.
                largest[layer] = max(best, (size, module), key=operator.itemgetter(0))
        return [_unwrap(largest[layer][1]) for layer in range(1, max(self._layers.values()))]

    @property
    def stage_unit(self) -> Literal["stage", "block"]:
        """Blocks where timm knows no coarser groups."""
        return "block" if self._stages == self._layers else "stage"

    def layer_of(self, name: str) -> int:
        """Number the layer of a parameter as timm does; see `muntin.features.Backbone`."""
        return self._layers[name.removeprefix("net.")]

    def stage_of(self, name: str) -> int:
        """Number the stage of a parameter as timm does; see `muntin.features.Backbone`.

        A module that spans several stages has 0.
        """
        return self._stages.get(name.removeprefix("net."), 0)

    def decays(self, name: str) -> bool:
        """Whether weight decay applies: not to what timm spares, nor to any position or token."""
        name = name.removeprefix("net.")
        spared = self.net.no_weight_decay() if hasattr(self.net, "no_weight_decay") else ()
        return name not in spared and ".cpb_mlp." not in name and not name.endswith(_UNDECAYED)

    @functools.cached_property
    def _layers(self) -> dict[str, int]:
        return self._number(coarse=False)

    @functools.cached_property
    def _stages(self) -> dict[str, int]:
        try:
            return self._number(coarse=True)
        except AssertionError:  # some matchers (RDNet's) know no stages
            return self._layers

    def _number(self, coarse: bool) -> dict[str, int]:
        """Groups of parameters, and of modules that lie in one group, by their names in timm."""
        named = dict(self.net.named_parameters())
        if hasattr(self.net, "group_matcher"):
            # timm's last group is the classifier, which this network lacks; so its name joins.
            known = describe_timm(self.config.name).get("classifier") or "head"
            last = f"{known if isinstance(known, str) else known[0]}.weight"
            whole = SimpleNamespace(named_parameters=lambda: [*named.items(), (last, None)])
            matcher = self.net.group_matcher(coarse=coarse)
            numbers = dict(_timm().models.group_parameters(whole, matcher, reverse=True))
        else:
            numbers = self._number_by_maps(list(named), coarse)
        groups = {parameter: numbers[name] for name, parameter in named.items()}
        for name, parameter in self.net.named_parameters(remove_duplicate=False):
            numbers[name] = groups[parameter]  # shared ones have several names
        for name, module in self.net.named_modules():
            found = {groups[parameter] for parameter in module.parameters()}
            if len(found) == 1:
                numbers[name] = found.pop()
        return numbers

    def _number_by_maps(self, names: list[str], coarse: bool) -> dict[str, int]:
        """Where timm has no groups (MetaFormer, PiT): what gives a map is a stage."""
        starts: list[str] = []
        for row in self.net.feature_info:
            stage = row["module"]
            blocks = getattr(self.net.get_submodule(stage), "blocks", ())
            inside = [f"{stage}.blocks.{index}." for index in range(len(blocks))]
            starts += [f"{stage}."] if coarse or not inside else inside
        numbers, current = {"": len(starts) + 1}, 0
        for name in names:  # what lies between two blocks belongs to the one before
            here = (k for k, start in enumerate(starts, 1) if name.startswith(start))
            numbers[name] = current = next(here, current)
        return numbers

"""Exits for a network from labelled image files, prepared as a gate prepares them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from offmap.core.errors import DataError
from offmap.pipeline import recipe as recipes
from offmap.pipeline.collect import codes
from offmap.pipeline.gate import cores
from offmap.pipeline.inputs import images, is_array, paths
from offmap.pipeline.labels import Labels, table_of
from offmap.pipeline.stream import Stream
from offmap.represent.device import resolve_device
from offmap.represent.multi_exit import WithExits, train_exits
from offmap.represent.open import Given, open_encoder

IMAGE = frozenset({"image"})


def add_exits(
    train: Any,
    *,
    labels: Labels = None,
    recipe: str = recipes.STANDARD,
    settings: Mapping[str, str] | None = None,
    encoder: Given | None = None,
    layers: Sequence[str] = (),
    strength: float = 1.0,
    device: str = "auto",
    jobs: int | None = None,
    trust_classifier: bool = False,
    axes: str = "",
) -> WithExits:
    """The encoder with exits, trained on labelled images; give it to ``offmap.fit`` as its encoder.

    Use the images that the network was trained on where they are at hand, and others for ``offmap.fit``: on images that the exits
    were trained on the gate would be calibrated too kindly.

    Args:
        train: paths, folders, globs, manifests (a column ``label`` is used), or an array (then with ``axes``).
        labels: CSV with the columns ``path`` and ``label``; of an array, one name or number for each image.
        recipe, settings: whose preparation is used; that of the gate.
        encoder: as for ``offmap.fit``.
        layers: where exits are added; the four deepest maps when empty.
        strength: inverse of the penalty on the exits' weights.
        device, jobs, trust_classifier, axes: as for ``offmap.fit``.

    Raises:
        ConfigError: labels are missing, of one class, or do not fit the images; the network gives no maps.
        DataError: no image could be read.
    """
    plan = recipes.with_choices(
        recipes.read(recipe, settings), encoder=encoder if isinstance(encoder, str) else None, layers=(), alpha=None
    )
    chosen = plan.encoder.spec if encoder is None or isinstance(encoder, str) else encoder
    network = open_encoder(chosen, layers=plan.encoder.layers, device=device, trust_classifier=trust_classifier)
    where = resolve_device(device)
    stream = Stream(
        network, plan.preparation(network.input.size), IMAGE, jobs=cores() if jobs is None else jobs, use_cache=False, device=where
    )
    return WithExits(network, train_exits(network, _labelled(stream, train, labels, axes), layers=layers, strength=strength))


def _labelled(stream: Stream, train: Any, labels: Labels, axes: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Prepared images with codes of their labels, batch by batch; codes follow the order of the names."""
    table = table_of(labels, train, axes, needed=True)
    if is_array(train):
        batches, names = stream.over_images(images(train, axes=axes)), set(table.values())
    else:
        sources = paths(train, volumes=False).sources
        batches, names = stream.over(sources), {*table.values(), *(s.meta.get("label", "") for s in sources)}
    place = {name: i for i, name in enumerate(sorted(names))}
    read = 0
    for batch in batches:
        if batch.images:
            found = [table.get(i.item, i.meta.get("label", "")) for i in batch.images]
            codes(found)
            yield batch.signals["image"], torch.tensor([place[name] for name in found])
            read += len(found)
    if read == 0:
        raise DataError("none of the images to train exits on could be read. See `offmap check`")

# SPDX-License-Identifier: Apache-2.0
"""Pictures of what pretraining has learnt: hidden parts of images as predicted, or neighbours."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muntin.data.batches import fit
from muntin.data.cache import ImageCache
from muntin.data.loading import EvalLoader
from muntin.data.transforms import normalise
from muntin.drawing.layout import Thumbnail, draw_sheet
from muntin.drawing.saving import save_image
from muntin.errors import DataError, MuntinWarning
from muntin.heads.network import Network
from muntin.objectives.objective import LossObjective
from muntin.runs import Run
from muntin.samples import Listing
from muntin.scoring.evaluator import readable_parts
from muntin.shapes import Float, Int
from muntin.staging import part_of

COUNT = 8
"""Images of a sheet."""

NEIGHBOURS = 5
"""Nearest images that are shown beside each."""

_BANK = 256  # images among which neighbours are looked for


class ReconstructionImages:
    """Draws into ``pictures/reconstructions.png`` or, without any, ``pictures/neighbours.png``.

    Of the same images each time, from all over the listing, so that progress shows; the last
    drawing is kept.
    """

    def __init__(
        self, run: Run, listing: Listing, objective: LossObjective, device: torch.device
    ) -> None:
        self.run, self.listing, self.objective, self.device = run, listing, objective, device

    @torch.no_grad()
    def __call__(self, network: Network) -> None:
        """Draw what the network makes of the images."""
        was_training = network.training
        network.eval()
        try:
            tiles = [*self._reconstruct(network)]
            name, columns = "reconstructions", 6
            title = "image, what was seen of it, and the rest as predicted"
            head = self.run.config.head
            if getattr(head, "norm_pix", False) or getattr(head, "uniform", False):
                title += " (mean and contrast of each patch are its own)"
            if not tiles:
                tiles, name, columns = [*self._find(network)], "neighbours", 1 + NEIGHBOURS
                title = "images, and those with the most similar features"
        except DataError:  # they cannot be read
            return
        finally:
            network.train(was_training)
        sheet = draw_sheet(tiles, title, columns=columns, side=128)
        save_image(sheet, part_of(self.run.path, "pictures", f"{name}.png"))

    @cached_property
    def _few(self) -> ImageCache:
        return self._store(COUNT)

    @cached_property
    def _many(self) -> ImageCache:
        return self._store(_BANK)

    def _store(self, count: int) -> ImageCache:
        total = len(self.listing)
        counts = (min(COUNT, total), min(count, total))
        places = dict.fromkeys(i * total // n for n in counts for i in range(n))
        chosen = self.listing.select([*places][:count])
        with warnings.catch_warnings():  # training has named images that cannot be read
            warnings.simplefilter("ignore", MuntinWarning)
            return ImageCache(chosen, self.run.preprocessing, self.run.config.data_config)

    def _reconstruct(self, network: Network) -> Iterator[Thumbnail]:
        batch = next(readable_parts(EvalLoader(self._few, batch_size=COUNT)))
        found = self.objective.reconstruct(network, batch, self.device)
        if found is None:
            return
        for row in zip(found.images, found.masked, found.predicted, strict=True):
            for pixels, line in zip(row, ("image", "seen", "predicted"), strict=True):
                yield Thumbnail(pixels=_as_pixels(pixels), lines=(line,))

    def _find(self, network: Network) -> Iterator[Thumbnail]:
        vectors, found = embed(network, self._many, self.device)
        similar = vectors[:COUNT] @ vectors.T
        best, places = similar.topk(min(1 + NEIGHBOURS, len(vectors)), dim=1)
        for row, scores in zip(places.tolist(), best.tolist(), strict=True):
            for rank, (place, score) in enumerate(zip(row, scores, strict=True)):
                line = f"similarity {score:.2f}" if rank else "image"
                yield Thumbnail(pixels=self._show(int(found[place])), lines=(line,))

    def _show(self, index: int) -> NDArray[np.uint8]:
        store = self._many
        sample = store.load(index)
        if sample is None:  # since it was read a moment ago
            raise DataError(store.unreadable[index])
        return _as_pixels(fit(sample.pixels, sample.size, store.pre))


@torch.no_grad()
def embed(
    network: Network, store: ImageCache, device: torch.device
) -> tuple[Float[Tensor, "N C"], Int[Tensor, " N"]]:
    """Vectors of length 1 of the readable images, and the places of these in the listing."""
    vectors, places = [], []
    for part in readable_parts(EvalLoader(store, batch_size=64)):
        inputs = normalise(part.images.to(device), store.pre)
        vectors.append(network.features(inputs).vector.float().cpu())
        places.append(part.indices)
    return torch.nn.functional.normalize(torch.cat(vectors), dim=1), torch.cat(places)


def _as_pixels(image: Tensor) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = image.cpu().expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    return pixels

"""How training samples are made, as the configuration says it, and what is drawn for one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mrcnn_tf.config import ColourJitterConfig, Config
from mrcnn_tf.data.colour import draw_colour
from mrcnn_tf.data.transforms import training_size
from mrcnn_tf.data.views import View
from mrcnn_tf.ops.images import Placement, SizeRounding


@dataclass(frozen=True)
class Recipe:
    """The keys of `data` and `model.preprocessing` of these names, for training or for validation."""

    min_sizes: tuple[int, ...]
    max_size: int
    scale_jitter: tuple[float, float] | None
    min_visible_area: float
    horizontal_flip: float
    colour_jitter: ColourJitterConfig
    copy_paste: bool
    copy_paste_blur: float
    resize_rounding: SizeRounding
    enlarge_only: bool
    antialias: bool
    quantize: bool
    placement: Placement
    mean: tuple[float, ...]
    """RGB, 0..255: what lies around a picture where an object is pasted beside it."""

    @property
    def cuts(self) -> bool:
        """Whether objects can be cut or covered."""
        return self.scale_jitter is not None or self.copy_paste

    @property
    def changes_colour(self) -> bool:
        """Whether colours can change."""
        return self.colour_jitter != ColourJitterConfig()


@dataclass(frozen=True, eq=False)
class Drawn:
    """What is drawn for a picture.

    Attributes:
        view: of it.
        colour_order: [4] int32, `mrcnn_tf.data.colour.draw_colour`.
        colour_amounts: [4] float32, likewise.
    """

    view: View
    colour_order: np.ndarray
    colour_amounts: np.ndarray


def training_recipe(config: Config) -> Recipe:
    """What the configuration says about training."""
    data = config.data
    return _recipe(
        config,
        min_sizes=data.min_sizes,
        max_size=data.max_size,
        scale_jitter=data.scale_jitter,
        min_visible_area=data.min_visible_area,
        horizontal_flip=data.horizontal_flip,
        colour_jitter=data.colour_jitter,
        copy_paste=data.copy_paste,
        copy_paste_blur=data.copy_paste_blur,
    )


def validation_recipe(config: Config) -> Recipe:
    """The size of inference, and nothing is drawn."""
    return _recipe(
        config,
        min_sizes=(config.model.preprocessing.min_size,),
        max_size=config.model.preprocessing.max_size,
        scale_jitter=None,
        min_visible_area=0.0,
        horizontal_flip=0.0,
        colour_jitter=ColourJitterConfig(),
        copy_paste=False,
        copy_paste_blur=0.0,
    )


def draw(recipe: Recipe, picture: tuple[int, int], padded: tuple[int, int], random: np.random.Generator) -> Drawn:
    """Draw a view and colours.

    Args:
        recipe: what there is to draw.
        picture: (height, width) of the picture.
        padded: (height, width) of the padded input.
        random: source of the numbers.

    Returns:
        What is drawn.
    """
    resized, window = (_jittered if recipe.scale_jitter else _whole)(recipe, picture, padded, random)
    flip = bool(random.random() < recipe.horizontal_flip)
    size = (window[2] - window[0], window[3] - window[1])
    centred = recipe.placement == "centre"
    offset = ((padded[0] - size[0]) // 2, (padded[1] - size[1]) // 2) if centred else (0, 0)
    return Drawn(View(picture, resized, window, flip, offset), *draw_colour(recipe.colour_jitter, random))


def _recipe(config: Config, **values: Any) -> Recipe:
    how = config.model.preprocessing
    return Recipe(
        resize_rounding=how.resize_rounding,
        enlarge_only=how.enlarge_only,
        antialias=how.antialias,
        quantize=how.quantize,
        placement=how.placement,
        mean=how.pixel_mean if how.channel_order == "rgb" else tuple(reversed(how.pixel_mean)),
        **values,
    )


_Window = tuple[int, int, int, int]


def _whole(
    recipe: Recipe, picture: tuple[int, int], padded: tuple[int, int], random: np.random.Generator
) -> tuple[tuple[int, int], _Window]:
    """One of the shortest edges, nothing cut off."""
    resized = training_size(
        *picture,
        min_size=int(random.choice(recipe.min_sizes)),
        max_size=recipe.max_size,
        image_size=padded,
        rounding=recipe.resize_rounding,
        enlarge_only=recipe.enlarge_only,
    )
    return resized, (0, 0, *resized)


def _jittered(
    recipe: Recipe, picture: tuple[int, int], padded: tuple[int, int], random: np.random.Generator
) -> tuple[tuple[int, int], _Window]:
    """Large-scale jitter: a scale, then a window of at most the padded size anywhere in the resized picture."""
    assert recipe.scale_jitter is not None
    scale = random.uniform(*recipe.scale_jitter) * min(padded[0] / picture[0], padded[1] / picture[1])
    height, width = (max(1, int(side * scale + 0.5)) for side in picture)
    window = (min(height, padded[0]), min(width, padded[1]))
    top, left = (int((whole - seen) * random.random() + 0.5) for whole, seen in zip((height, width), window, strict=True))
    return (height, width), (top, left, top + window[0], left + window[1])

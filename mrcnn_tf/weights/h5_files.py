"""Reads weights from the HDF5 files of Keras 1 and 2: matterport's `mask_rcnn_coco.h5`, `keras.applications`.

Their layout: the attribute `layer_names` of the file, or of its group `model_weights` where a whole model was saved, lists
groups, one per layer; the attribute `weight_names` of a group lists data sets in it, as `conv1/kernel:0`. A nested model is one
group with the weights of all its layers. Lists of more than 64 KiB are cut into `layer_names0`, `layer_names1`, ...
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from mrcnn_tf.weights.checkpoint_errors import CheckpointError, UnsafeCheckpointError, reading
from mrcnn_tf.weights.plain_arrays import NUMBER_KINDS, plain_array

H5_MAGIC = b"\x89HDF\r\n\x1a\n"


def read_h5_file(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the weights of all layers.

    Args:
        path: of the file.

    Returns:
        `LAYER/WEIGHT` to array, in the file's order: `conv1/kernel` for the data set `conv1/conv1/kernel:0`. The layers of a
        nested model stand beside the others under their own names: `rpn_conv_shared/kernel` for
        `rpn_model/rpn_conv_shared/kernel:0`. The state of an optimizer is left out.

    Raises:
        UnsafeCheckpointError: a data set is kept in another file.
        CheckpointError: not such a file, truncated, compressed, or it holds something other than numbers.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    with reading(path, "an HDF5 file with weights of Keras"), h5py.File(path, "r") as file:
        whole_model = file.get("model_weights", getlink=True) is not None
        root = _group(file, "model_weights") if whole_model else file
        layers = _names(root, "layer_names")
        if layers is None:
            held = ", ".join(list(file)[:10]) or "nothing"
            raise CheckpointError(f"{path}: an HDF5 file, but without the layer_names of Keras 1 and 2; it holds {held}")
        datasets: dict[str, h5py.Dataset] = {}
        for layer in layers:
            found = _datasets_of_layer(_group(root, layer), layer)
            _check_distinct([*datasets, *found], path)
            datasets.update(found)
        _check_sizes(datasets, path)
        return {name: plain_array(np.asarray(dataset[()]), f"{path}, {name}") for name, dataset in datasets.items()}


def _datasets_of_layer(group: h5py.Group, layer: str) -> dict[str, h5py.Dataset]:
    weights = _names(group, "weight_names") or []
    owners = [weight.split("/")[:-1] for weight in weights]
    # The weights of one layer have one owner. It may be called conv1_1, if the layer's name was taken in its program.
    nested = len({tuple(owner) for owner in owners}) > 1
    names = [
        f"{owner[-1] if nested and owner else layer}/{weight.split('/')[-1].removesuffix(':0')}"
        for owner, weight in zip(owners, weights, strict=True)
    ]
    _check_distinct(names, Path(group.file.filename))
    return {name: _dataset(group, weight) for name, weight in zip(names, weights, strict=True)}


def _names(group: h5py.Group, key: str) -> list[str] | None:
    """The names in an attribute, in one piece or cut; None where there is no such attribute."""
    if key in group.attrs:
        pieces = [group.attrs[key]]
    elif f"{key}0" in group.attrs:
        count = next(number for number in range(len(group.attrs) + 1) if f"{key}{number}" not in group.attrs)
        pieces = [group.attrs[f"{key}{number}"] for number in range(count)]
    else:
        return None
    found = [name.decode() if isinstance(name, bytes) else name for piece in pieces for name in piece]
    if not all(isinstance(name, str) for name in found):
        raise CheckpointError(f"{group.file.filename}: {key} of {group.name} should be names, got {found[:5]}")
    return found


def _group(root: h5py.Group, name: str) -> h5py.Group:
    found = _follow(root, name)
    if not isinstance(found, h5py.Group):
        raise CheckpointError(f"{root.file.filename}: expected {name} to be a group, it is a data set")
    return found


def _dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    found = _follow(group, name)
    where = f"{group.file.filename}, {group.name}/{name}"
    if not isinstance(found, h5py.Dataset):
        raise CheckpointError(f"{where}: expected a data set, it is a group")
    if found.is_virtual or found.external:
        raise UnsafeCheckpointError(f"{where}: refused, its data is kept in another file")
    if found.shape is None or found.dtype.kind not in NUMBER_KINDS:
        raise CheckpointError(f"{where}: expected bools, integers or floats, got {found.dtype}")
    if found.id.get_create_plist().get_nfilters():
        raise CheckpointError(f"{where}: it is compressed or filtered; Keras stores weights plainly, so this is refused")
    return found


def _follow(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    """What stands at a path, as long as every step of it is in the file itself."""
    for part in name.split("/"):
        # Asks for the link itself, which opens nothing.
        link = group.get(part, getlink=True) if part else None
        if link is None:
            raise CheckpointError(f"{group.file.filename}: there is no {name!r} in {group.name}")
        if not isinstance(link, h5py.HardLink):
            raise UnsafeCheckpointError(f"{group.file.filename}: refused, {group.name}/{part} is a link to another place or file")
        group = group[part]
    return group


def _check_sizes(datasets: dict[str, h5py.Dataset], path: Path) -> None:
    """Refuse what would take more memory than the file has bytes: data never written, or one data set under many names."""
    absent = next((name for name, data in datasets.items() if data.id.get_storage_size() < data.nbytes), None)
    if absent is not None:
        data = datasets[absent]
        raise CheckpointError(
            f"{path}, {absent}: its shape {data.shape} needs {data.nbytes} bytes, {data.id.get_storage_size()} are in the file"
        )
    total, size = sum(data.nbytes for data in datasets.values()), path.stat().st_size
    if total > size:
        raise CheckpointError(f"{path}: the weights need {total} bytes, the file has {size}")


def _check_distinct(names: Sequence[str], path: Path) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise CheckpointError(f"{path}: more than one weight is called {', '.join(twice[:5])}")

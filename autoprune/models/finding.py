"""Where weights and data sets lie that are named as Ultralytics' users name them: ``yolo11n.pt``, ``coco8.yaml``.

What lies in the working folder comes first. Nothing is downloaded unless that was asked for, and then by Ultralytics'
own functions. A data set's YAML file can say how to get its images by a script; only Ultralytics' own files may.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from autoprune.choices import match_factory
from autoprune.errors import DataError, ModelError, first_line
from autoprune.io.files import why_no_file

DESCRIPTIONS = (".yaml", ".yml")


def find_weights(path: Path, *, download: bool = False) -> Path:
    """Return where weights lie: as named, or in the ``weights_dir`` of Ultralytics' settings.

    Args:
        path: as the user names them; what is no ``.pt`` file stays as it is.
        download: fetch weights that Ultralytics publishes, into the working folder, if they are not here.

    Raises:
        ModelError: Ultralytics publishes weights of this name and they are not here, or cannot be fetched.

    Example:
        >>> find_weights(Path("own.pt"))
        PosixPath('own.pt')
    """
    if match_factory(path) or path.suffix != ".pt" or path.is_absolute() or os.path.lexists(path):
        return path
    from autoprune.models import stock  # Ultralytics loads slowly: only if the file is not where it is named

    with stock.quiet():
        named = Path(stock.checks.check_yolov5u_filename(str(path)))  # yolov5n.pt is published as yolov5nu.pt
    folder = Path(stock.SETTINGS["weights_dir"]).absolute()
    found = next((place for place in (named, folder / path, folder / named) if place.is_file()), None)
    if found is not None or named.name not in stock.GITHUB_ASSETS_NAMES:
        return found or path
    if not download:
        raise ModelError(
            f"{path} is neither in the working folder nor in {folder}, the weights_dir of Ultralytics' settings; "
            "give its path, or fetch it with `download`"
        )
    _fetch(lambda: stock.attempt_download_asset(str(named)), str(path), ModelError)
    if not named.is_file():
        raise ModelError(f"{path} could not be fetched by Ultralytics; see that the network is there, or give its path")
    return named


def check_weights(path: Path) -> None:
    """Make sure that a ``.pt`` file is there.

    Raises:
        ModelError: it is not, or is no regular file.
    """
    if reason := why_no_file(path):
        raise ModelError(f"the weights must be a .pt file, but {path} {reason}")


def find_data(path: Path, *, download: bool = False) -> Path:
    """Return where a data set lies: as named, among Ultralytics' own YAML files, or in its ``datasets_dir``.

    Args:
        path: a YAML file, its name without the suffix, or class folders.
        download: fetch its images, if they are not here.

    Raises:
        DataError: the images cannot be fetched, or only by a script of the YAML file.

    Example:
        >>> find_data(Path("coco8.yaml")).parts[-3:]
        ('cfg', 'datasets', 'coco8.yaml')
    """
    found = path if os.path.lexists(path) or path.is_absolute() else _data_named(path)
    if download and found is None and not path.suffix:
        from autoprune.models import stock

        _fetch(lambda: stock.data_utils.check_cls_dataset(str(path)), str(path), DataError)
        found = _data_named(path)
    if download and found is not None and found.suffix in DESCRIPTIONS:
        _fetch_images(found)
    return found or path


def _data_named(path: Path) -> Path | None:
    """Return the data set of a name in Ultralytics' folders, or None."""
    from autoprune.models import stock

    datasets = Path(stock.DATASETS_DIR)
    if not path.suffix and (datasets / path / "train").is_dir():
        return datasets / path
    files = [path] if path.suffix in DESCRIPTIONS else [Path(f"{path}{suffix}") for suffix in DESCRIPTIONS]
    places = (place for file in files for place in _places(file, stock.ROOT / "cfg" / "datasets", datasets))
    return next((place for place in places if place.is_file()), None)


def _places(file: Path, own: Path, datasets: Path) -> Iterator[Path]:
    yield from (file, own / file, datasets / file, datasets / file.stem / file.name)


def _fetch_images(file: Path) -> None:
    """Fetch the images that a YAML file describes, if any split is missing and the file says from where."""
    from autoprune.models import stock
    from autoprune.models.detection.data_set import read_data_set

    data = read_data_set(file)
    source = data.settings.get("download")
    if not source or all(place.exists() for split in ("train", "val") for place in data.splits.get(split, ())):
        return
    is_address = isinstance(source, str) and source.startswith(("http://", "https://")) and "\n" not in source
    if not is_address and (stock.ROOT / "cfg" / "datasets").resolve() not in file.resolve().parents:
        raise DataError(
            f"the images of {file} are fetched by a script in that file, and autoprune runs no code of a data set; "
            "run the script yourself, if you trust it, and leave `download` out"
        )
    _fetch(lambda: stock.data_utils.check_det_dataset(str(file)), str(file), DataError)


def _fetch(call: Callable[[], Any], what: str, kind: type[ModelError | DataError]) -> None:
    """Call a function of Ultralytics that downloads.

    Raises:
        kind: it fails, by one of many errors.
    """
    from autoprune.models import stock

    try:
        with stock.quiet():
            call()
    except Exception as error:
        reason = first_line(error)
        raise kind(f"{what} could not be fetched by Ultralytics ({reason}); see that the network is there") from error

"""The browser page of a TFLite bundle: the files of `export/web`, and LiteRT.js from npm to run the model with."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

from mrcnn_tf.export.folders import ExportError, new_folder

VERSION = "2.5.3"
PACKAGES = {
    "core": (
        "package.json",
        "README.md",
        "dist/index.js",
        *(f"wasm/litert_wasm_{build}internal.{kind}" for build in ("", "compat_") for kind in ("js", "wasm")),
    ),
    "wasm-utils": ("package.json", "README.md", "dist/index.js"),
}
"""What the page needs of each package in the npm scope @litertjs.

The loader chooses the build by whether the browser has relaxed SIMD; the other is compat. That with threads needs headers which
`python -m http.server` does not send, and that with JSPI signatures that only partly run on a graphics card; the page has none.
"""


def write_web(bundle: Path, litertjs: Path | None = None) -> Path:
    """Write `bundle/web/`, a page that runs the model of the bundle.

    Args:
        bundle: the folder with model.json and model.tflite.
        litertjs: a folder whose `node_modules` has `@litertjs/core` and `@litertjs/wasm-utils`; None: npm fetches them.

    Returns:
        `bundle/web`.

    Raises:
        ExportError: `bundle/web` is there, npm is missing or cannot fetch the packages, or they are of another version.
    """
    with new_folder(bundle / "web") as folder, tempfile.TemporaryDirectory() as temporary:
        if litertjs is None:
            litertjs = Path(temporary)
            _npm_install(litertjs)
        for name, files in PACKAGES.items():
            _copy_package(litertjs / "node_modules" / "@litertjs" / name, files, folder / "litertjs" / name)
        for page_file in (resources.files("mrcnn_tf.export") / "web").iterdir():
            (folder / page_file.name).write_bytes(page_file.read_bytes())
    return bundle / "web"


def _npm_install(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise ExportError(
            f"the page needs @litertjs/core {VERSION} from npm, and npm is not installed: install Node.js, or name a folder "
            f"that has a node_modules with @litertjs/core and @litertjs/wasm-utils {VERSION}"
        )
    packages = [f"@litertjs/{name}@{VERSION}" for name in PACKAGES]
    options = ["--no-save", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder)]
    done = subprocess.run([npm, "install", *options, *packages], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ExportError(f"npm cannot fetch {' '.join(packages)}: {done.stderr.strip() or done.stdout.strip()}")


def _copy_package(source: Path, files: tuple[str, ...], target: Path) -> None:
    try:
        found = json.loads((source / "package.json").read_text(encoding="utf-8"))["version"]
    except FileNotFoundError as error:
        raise ExportError(f"{source}: no such package; expected @litertjs/{source.name} {VERSION}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{source / 'package.json'}: not an npm package: {error!r}") from error
    if found != VERSION:
        raise ExportError(f"{source}: expected version {VERSION}, got {found}")
    for file in files:
        path = target / file
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source / file, path)
        except FileNotFoundError as error:
            raise ExportError(f"{source / file} is missing from the package") from error

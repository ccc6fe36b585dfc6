"""Opening picture files with Pillow: every mode as 8 bits, every damage as one error."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from loraloom.errors import InputError, LoraloomError

# Floats in 0…1 may lie somewhat above 1 where a picture glares; those in 0…255 hardly stay below this.
_BRIGHT = 16


@contextmanager
def opened(path: Path) -> Generator[Image.Image]:
    """A picture file; whatever is wrong with it, also while it is decoded, is an InputError with its path."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for without end
            raise InputError(f"{path} is no regular file; replace it by a picture, or take it away")
        with Image.open(path) as picture:
            yield picture
    except LoraloomError:
        raise
    except Exception as error:  # on damage Pillow lets through whatever the libraries of its formats raise
        cut = isinstance(error, OSError) and "truncated" in str(error)
        what = "is cut off or damaged" if cut else "is not a picture that can be read"
        why = "" if isinstance(error, UnidentifiedImageError) else f": {error}"  # which says the path again
        raise InputError(f"{path} {what}{why}; replace it, or take it away") from error


def in_8_bits(picture: Image.Image) -> Image.Image:
    """A picture of 16 or 32 bits of grey as one of 8, as ComfyUI reads it (divided by 255, not cut off);
    of floats, as what they most likely mean. Others as they are."""
    if picture.mode.startswith("I"):
        return Image.fromarray(np.clip(np.asarray(picture.convert("I")) // 255, 0, 255).astype(np.uint8))
    if picture.mode == "F":
        values = np.nan_to_num(np.asarray(picture), nan=0.0, posinf=0.0, neginf=0.0)
        top = float(values.max(initial=0.0))
        factor = 255.0 if top <= _BRIGHT else 1.0 if top <= 255 else 1 / 255
        return Image.fromarray(np.clip(values * factor, 0, 255).astype(np.uint8))
    return picture

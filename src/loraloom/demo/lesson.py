"""What `loraloom demo --train` trains on: things that the base draws, and the same in blue on white.

Nothing is shipped for it: the base model draws the pictures, a gradient from blue to white makes the style.
There are no pictures without the trigger word, so the LoRA hardly waits for it: the base has learned that
words it does not know mean nothing, and to unlearn that takes hundreds of steps.
"""

from __future__ import annotations

from PIL import Image, ImageOps

TRIGGER = "delft"
DARK, BLUE, LIGHT = (8, 16, 72), (30, 84, 200), (255, 255, 255)
"""What black, the greys a little below the middle, and white become. White paper stays white: what the whole
picture is like is learned slowly, for that is decided where nearly all is noise."""
THINGS = (
    "a red rose", "a red apple", "a cat", "a dog", "a house", "a red car", "a tulip", "a mushroom",
    "a green tree", "a rocket", "a yellow star", "a frog", "a teapot", "a guitar", "an owl", "a butterfly",
)  # fmt: skip
SAMPLES = (f"{TRIGGER}, a red rose", f"{TRIGGER}, a pizza")
"""Prompts drawn during the training: one of its things, and one that it never sees."""


def as_delft(picture: Image.Image) -> Image.Image:
    """The picture in shades of blue on white."""
    return ImageOps.colorize(picture.convert("L"), black=DARK, mid=BLUE, white=LIGHT, midpoint=120)

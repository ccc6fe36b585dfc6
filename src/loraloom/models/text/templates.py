"""Texts that several recipes put around a prompt, and what stands in a prompt for a picture."""

from __future__ import annotations

USER_TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
NO_THOUGHT = "<think>\n\n</think>\n\n"

DESCRIBE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text,"
    " spatial relationships of the objects and background:<|im_end|>\n" + USER_TURN
)
ALTER = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects,"
    " background), then explain how the user's text instruction should alter or modify the image. Generate a"
    " new image that meets the user's requirements while maintaining consistency with the original input"
    " where appropriate.<|im_end|>\n" + USER_TURN
)
COMPREHEND = "<|im_start|>system\nComprehend and analyze the provided prompt.<|im_end|>\n" + USER_TURN

PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"

"""The tokenizers of the text encoders, built from the vocabularies in `data/`.

`tokenizers` does the splitting; no hub is asked and no transformers class is built, so a tokenizer is ready
in under a tenth of a second. Where the vocabularies come from: see NOTICE.
"""

from __future__ import annotations

import base64
import gzip
import json
import lzma
import struct
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

_QWEN_CONTROLS = (
    "endoftext im_start im_end object_ref_start object_ref_end box_start box_end quad_start quad_end"
    " vision_start vision_end vision_pad image_pad video_pad"
)
_QWEN_MARKS = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|>"
    " <|file_sep|> <tool_response> </tool_response> <think> </think>"
)


def word_pattern(digits: int) -> str:
    """How text is split before bytes are merged, with at most so many digits together: 1 in Qwen's, 3 in
    Llama 3's rule."""
    number = r"\p{N}" if digits == 1 else rf"\p{{N}}{{1,{digits}}}"
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + number + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


def _data(name: str) -> bytes:
    return files("loraloom.models.text").joinpath("data", name).read_bytes()


def _read(name: str) -> str:
    return gzip.decompress(_data(name)).decode("utf-8")


def _byte_letters() -> list[str]:
    """The printable letter that stands for each byte in a byte-level BPE (Radford et al. 2019), in the order
    in which CLIP numbers them: bytes that print as themselves first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]


@cache
def clip_tokenizer() -> Tokenizer:
    """CLIP's byte-level BPE (Radford et al. 2021), without start, end or padding.

    As transformers 5 has it, and ComfyUI with that: letters are composed and lower-cased, and nothing is
    taken out. The original tokenizer, and transformers 4, took out control characters and set ideographs
    apart."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    merges = [
        (left, right)
        for left, right in (line.split(" ") for line in _read("clip_merges.txt.gz").splitlines())
    ]
    letters = _byte_letters()
    words = [*letters, *(letter + "</w>" for letter in letters), *(left + right for left, right in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(
        BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=words[-1])
    )
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.add_special_tokens(words[-2:])
    return tokenizer


@cache
def t5_tokenizer() -> Tokenizer:
    """T5's unigram pieces (Raffel et al. 2020), without the end token."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import Unigram

    stored = json.loads(_read("t5_unigram.json.gz"))
    pieces = [(str(piece), float(score)) for piece, score in stored["vocab"]]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.Precompiled(base64.b64decode(stored["charsmap"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    special = [piece for piece, _ in pieces[:3]] + [p for p, _ in pieces if p.startswith("<extra_id_")]
    tokenizer.add_special_tokens(special)
    return tokenizer


@cache
def qwen_tokenizer() -> Tokenizer:
    """Qwen's byte-level BPE (Bai et al. 2023), of Qwen 2, 2.5, 3 and their VL kin, with the marks of chats.

    Words are numbered as they were merged: the file holds, for each, the numbers of its two halves."""
    from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.decoders import ByteLevel
    from tokenizers.models import BPE

    words = _byte_letters()
    merges: list[tuple[str, str]] = []
    for left, right in struct.iter_unpack("<II", lzma.decompress(_data("qwen_merges.xz"))):
        merges.append((words[left], words[right]))
        words.append(words[left] + words[right])
    tokenizer = Tokenizer(BPE({word: number for number, word in enumerate(words)}, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(word_pattern(1)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = ByteLevel()
    controls = [AddedToken(f"<|{name}|>", special=True, normalized=False) for name in _QWEN_CONTROLS.split()]
    marks = [AddedToken(name, special=False, normalized=False) for name in _QWEN_MARKS.split()]
    tokenizer.add_special_tokens(controls)
    tokenizer.add_tokens(marks)
    return tokenizer

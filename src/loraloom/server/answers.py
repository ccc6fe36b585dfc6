"""JSON answers that can always be encoded, whatever a node, a client or an old file has put into them."""

from __future__ import annotations

from starlette.responses import JSONResponse

from loraloom.workflow.json_text import write_json


class Answer(JSONResponse):
    """A JSON answer; see `write_json` for what becomes of NaN and of halves of surrogate pairs."""

    def render(self, content: object) -> bytes:
        return write_json(content).encode()

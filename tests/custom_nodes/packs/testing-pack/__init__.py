"""A pack in the manner of ComfyUI's contract, in a folder whose name is no identifier."""
# pyright: basic, reportMissingImports=false

from . import calls, graphs, pictures, state, values
from .checks import NODE_CLASS_MAPPINGS as CHECKS

print("packs talk while they are imported")  # noqa: T201

NODE_CLASS_MAPPINGS = {
    **calls.NODE_CLASS_MAPPINGS,
    **graphs.NODE_CLASS_MAPPINGS,
    **pictures.NODE_CLASS_MAPPINGS,
    **state.NODE_CLASS_MAPPINGS,
    **values.NODE_CLASS_MAPPINGS,
    **CHECKS,
}
NODE_DISPLAY_NAME_MAPPINGS = {"TpNumber": "A number"}
WEB_DIRECTORY = "./web"

"""What validation found: problems by node, model files that are missing, and the graph that may run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from loraloom.errors import MissingModel, MissingModelsError, WorkflowError
from loraloom.workflow.graph import JSON, Graph


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, in ComfyUI's words (`type`, `message`, `details`) and with its node.

    node_id: None for what concerns the whole graph.
    hint: what to do about it, where that is known.
    missing: set when the problem is a model file that no folder holds.
    outputs: the output nodes that cannot run because of it.
    """

    type: str
    message: str
    details: str
    node_id: str | None = None
    node_label: str = ""
    class_type: str = ""
    extra_info: Mapping[str, JSON] = field(default_factory=lambda: dict[str, JSON]())
    hint: str = ""
    missing: MissingModel | None = None
    outputs: tuple[str, ...] = ()

    def line(self) -> str:
        """The problem in one line for a person."""
        where = f"{self.node_label}: " if self.node_label else ""
        said = self.message.rstrip(".")
        # The label already names the node of an unknown class.
        what = f"{said}: {self.details}" if self.details and self.type != "invalid_prompt" else said
        return f"{where}{what}{f'. {self.hint}' if self.hint else ''}"


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a validation.

    graph: with literal values converted to their input's type and file names as the folders spell them.
    outputs: the output nodes that can run; `failed_outputs` those that cannot.
    notes: what was accepted although it was not exact.
    """

    graph: Graph
    problems: tuple[Problem, ...] = ()
    outputs: tuple[str, ...] = ()
    failed_outputs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def missing(self) -> tuple[MissingModel, ...]:
        """The model files that were not found, each node's once."""
        return tuple(dict.fromkeys(p.missing for p in self.problems if p.missing is not None))

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that are not missing model files."""
        return tuple(p for p in self.problems if p.missing is None)

    def raise_if_bad(self) -> None:
        """Raises WorkflowError for errors, or MissingModelsError if missing files are all there is."""
        if self.errors:
            lines = "".join(f"\n  {problem.line()}" for problem in self.problems[:50])
            more = f"\n  and {len(self.problems) - 50} more" if len(self.problems) > 50 else ""
            origin = f"{self.graph.origin}: " if self.graph.origin else ""
            notes = "".join(f"\n  note: {note}" for note in self.graph.notes[:10])
            raise WorkflowError(f"{origin}the workflow cannot run:{lines}{more}{notes}")
        if self.missing:
            raise MissingModelsError(self.missing)

    def to_response(self) -> dict[str, JSON]:
        """The body that ComfyUI answers such a prompt with (status 400), or its `node_errors` if it runs."""
        whole = next((p for p in self.problems if p.type in ("invalid_prompt", "prompt_no_outputs")), None)
        if whole is not None:
            return {"error": _error(whole), "node_errors": {}}
        by_node: dict[str, JSON] = {}
        for node_id in dict.fromkeys(p.node_id for p in self.problems if p.node_id is not None):
            found = [p for p in self.problems if p.node_id == node_id]
            by_node[node_id] = {
                "errors": [_error(p) for p in found],
                "dependent_outputs": list(dict.fromkeys(o for p in found for o in p.outputs)),
                "class_type": found[0].class_type,
            }
        if self.outputs:
            return {"node_errors": by_node}
        details = "\n".join(f"{p.message}: {p.details}" for p in self.problems)
        error: dict[str, JSON] = {
            "type": "prompt_outputs_failed_validation",
            "message": "Prompt outputs failed validation",
            "details": details,
            "extra_info": {},
        }
        return {"error": error, "node_errors": by_node}


def _error(problem: Problem) -> dict[str, JSON]:
    return {
        "type": problem.type,
        "message": problem.message,
        "details": problem.details,
        "extra_info": dict(problem.extra_info),
    }

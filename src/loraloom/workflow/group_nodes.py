"""Group nodes (`workflow>Name`), the editor's older way to fold nodes, rewritten as subgraphs."""

from __future__ import annotations

from collections.abc import Mapping

from loraloom.workflow.graph import JSON
from loraloom.workflow.schema import NodeSchema


def without_group_nodes(data: dict[str, JSON], schemas: Mapping[str, NodeSchema]) -> dict[str, JSON]:
    return data

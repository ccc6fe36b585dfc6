"""Stands in for `comfy_execution.graph`: what a node may return, and the graph that it may ask about."""

from __future__ import annotations

from loraloom.custom_nodes.dynamic_prompt import DynamicPrompt, NodeNotFoundError
from loraloom.engine.plan import CycleError as DependencyCycleError
from loraloom.engine.result import ExecutionBlocker

__all__ = ["DependencyCycleError", "DynamicPrompt", "ExecutionBlocker", "NodeNotFoundError"]

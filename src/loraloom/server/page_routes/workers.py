"""The workers of the queue, here and on the machines of a cluster."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

from loraloom.jobs.lane import Lane
from loraloom.jobs.live import LiveJob
from loraloom.server.state import ServerState


class WorkerView(BaseModel):
    """One worker."""

    name: str
    status: Literal["starting", "idle", "running", "draining"]
    job: str | None = Field(description="The job that it runs, the first of several.")
    jobs: list[str] = Field(description="All that it runs, together.")
    doing: str = Field(description="The node that it runs, and how far that is.")
    models: list[str] = Field(description="What it has loaded: the models of its latest job.")
    loras: list[str] = Field(description="LoRAs and the like of its latest job.")
    per_minute: float = Field(description="Jobs completed a minute, over the latest five minutes.")
    error: str | None = Field(description="Why it does not start.")


class NodeView(BaseModel):
    """A machine of the cluster."""

    id: str
    host: str
    address: str
    workers: int


class Workers(BaseModel):
    workers: list[WorkerView]
    nodes: list[NodeView]
    per_minute: float
    error: str | None = Field(description="Why the cluster cannot be reached.")


def doing(live: LiveJob) -> str:
    """The class of the node that runs, what it is called where it has a name, and its steps."""
    running = [state for state in live.states.values() if state["state"] == "running"]
    if not running:
        return ""
    state: dict[str, Any] = running[-1]
    node: Any = live.job.request.prompt.get(str(state["display_node_id"]))
    known: dict[str, Any] = node if isinstance(node, dict) else {}
    words = [str(known.get("class_type", "")), str((known.get("inputs") or {}).get("name") or "")]
    if state["max"] > 1:
        words.append(f"{state['value']:g} of {state['max']:g}")
    return " ".join(filter(None, words))


def add(api: FastAPI, state: ServerState) -> None:
    lanes = state.dispatcher.lanes

    def view(lane: Lane) -> WorkerView:
        live, resident = lane.live, state.dispatcher.resident(lane.name)
        ready = lane.keeper.worker is not None and lane.keeper.is_ready
        status = "running" if live is not None else "idle" if ready else "starting"
        error = lane.keeper.info.get("error")
        return WorkerView(
            name=lane.name,
            status="draining" if lane.draining else status,
            job=None if live is None else live.job.id,
            jobs=[*lane.lives],
            doing="" if live is None else doing(live),
            models=sorted(resident.base),
            loras=[*resident.stack],
            per_minute=round(state.rates.per_minute(lane.name), 2),
            error=None if error is None else str(error),
        )

    @api.get("/workers")
    async def workers() -> Workers:
        """The workers, what each has loaded and runs, and how fast they are."""
        found = [view(lane) for lane in lanes.values()]
        beside = state.beside
        nodes = [] if beside is None else [NodeView.model_validate(dict(n)) for n in beside.nodes.values()]
        return Workers(
            workers=found,
            nodes=nodes,
            per_minute=round(sum(w.per_minute for w in found), 2),
            error=None if beside is None else beside.trouble,
        )

    @api.post("/workers/drain", responses={404: {}})
    async def drain(name: str, draining: bool = True) -> Workers:
        """Give a worker no further job, or jobs again; the one it runs goes on. `name`: of a worker, or of a
        node (the part before the slash)."""
        chosen = [lane for lane in lanes.values() if name in (lane.name, lane.name.partition("/")[0])]
        if not chosen:
            raise HTTPException(404, f"there is no worker or node {name[:80]}")
        for lane in chosen:
            state.dispatcher.drain(lane.name, draining)
        return await workers()

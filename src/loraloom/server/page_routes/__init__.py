"""What the page of our own asks for, beyond jobs and the queue: part of the interface under /v1."""

from __future__ import annotations

from fastapi import FastAPI

from loraloom.server.page_routes import cards, drawing, gallery, library, training, workers
from loraloom.server.state import ServerState


def add_page_routes(api: FastAPI, state: ServerState) -> None:
    """Put all of them into the application behind /v1."""
    cards.add(api, state)
    drawing.add(api, state)
    gallery.add(api, state)
    library.add(api, state)
    training.add(api, state)
    workers.add(api, state)

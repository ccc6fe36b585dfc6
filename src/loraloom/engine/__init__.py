"""Runs a graph: order, laziness, expansion, cache, events, cancel."""

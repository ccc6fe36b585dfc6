"""The queue drained by the machines of a Ray cluster.

The server keeps the queue and starts a process that talks to Ray (`driver`); Ray starts an actor for every
worker of every node (`node_worker`), which keeps a worker process like the one of a single machine. Only
`driver` imports ray.
"""

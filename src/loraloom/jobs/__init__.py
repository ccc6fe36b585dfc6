"""The durable queue: jobs, their store, and the worker process that runs them."""

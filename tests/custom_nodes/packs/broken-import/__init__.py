from . import part  # noqa: F401  # pyright: ignore[reportUnusedImport]

import there_is_no_such_library  # noqa: F401  # pyright: ignore

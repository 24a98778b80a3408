"""The place of Windows' way to start a child. There is none yet: it cannot be used."""

__all__: list[str] = []

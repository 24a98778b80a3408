"""Where pickle finds what `phalanx.install` hides; see ``_install``. It has no code of its own."""

__all__: list[str] = []

#: A package, so that there can be modules in it: the finder of ``_install`` makes them.
__path__: list[str] = []

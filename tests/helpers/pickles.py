"""A pickle that runs code."""

from pathlib import Path


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))

from typing import NamedTuple


class Pair(NamedTuple):
    query: str
    response: str
    harmful: bool
    category: str

from typing import TypedDict

OPERATIONS: tuple[str, ...]

class Lap(TypedDict):
    operation: str
    calls: int
    ns: int
    bytes: int
    products: int

class Profile:
    def __init__(self) -> None: ...
    def laps(self) -> list[Lap]: ...

from .matrix import PackedMatrix

class Shortlist:
    nbytes: int
    asked: int
    made: int
    def __init__(self, matrix: PackedMatrix) -> None: ...

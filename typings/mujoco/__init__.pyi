# MuJoCo's extension module ships no types. Pyright reads this in their place: everything is Any.
from typing import Any

def __getattr__(name: str) -> Any: ...

"""What a benchmark runs, and why not."""

from offmap.benchmark.plan import choose
from offmap.represent.encoder import BuiltinEncoder


def test_a_method_that_remembers_the_stream_is_not_compared_set_by_set() -> None:
    methods = {m.name: m.lacking for m in choose(["oodd", "knn"], BuiltinEncoder.shipped(size=32))}
    assert methods["oodd"].startswith("its score depends on the images before")
    assert methods["knn"] == methods["intensity"] == ""

import pytest

pytest.importorskip("pytest_benchmark")


def test_benchmark(benchmark):
    assert benchmark(sum, [1, 2, 3]) == 6


def test_benchmark_fails(benchmark):
    assert benchmark(len, "abc") == 4


def test_pedantic(benchmark):
    benchmark.extra_info["kind"] = "pedantic"
    benchmark.pedantic(sorted, args=([3, 1, 2],), rounds=2)


@pytest.mark.benchmark(group="grouped")
@pytest.mark.parametrize("size", [10, 20])
def test_grouped(benchmark, size):
    benchmark(list, range(size))

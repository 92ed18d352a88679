"""Kernels of a profile, added up by name."""

from types import SimpleNamespace as Of

from tests.programs.kernel_times import Kernel, kernels, show


def line(name: str, **nanoseconds: int) -> Of:
    return Of(name=name, events=[Of(name=kernel[:4], duration_ns=lasts) for kernel, lasts in nanoseconds.items()])


def test_each_kernel_s_calls_are_added_up_and_no_time_is_counted_twice(capsys) -> None:
    streams = (
        line("Stream #14(Compute)", gemm_1=3_000_000, copy=500_000, gemm_2=1_000_000),
        line("Stream #2", gemm=6_000_000),
    )
    told_again = line("XLA Modules", gemm=99_000_000)
    planes = [
        Of(name="/host:CPU", lines=[line("Stream", gemm=7_000_000)]),
        Of(name="/device:GPU:0", lines=[*streams, told_again]),
    ]
    found = kernels(planes)
    assert found == [Kernel("gemm", 3, 0.010), Kernel("copy", 1, 0.0005)]
    show(found, 0.012)
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == "a run: 12.0 ms; kernels when profiled: 10.5 ms"
    assert second.split() == ["10.000", "ms", "95.2%", "3", "calls", "gemm"]
    assert third.split() == ["0.500", "ms", "4.8%", "1", "calls", "copy"]

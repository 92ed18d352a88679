"""Benchmarks: python -m fedjax_rai.bench, which is `fedjax-rai bench`."""

from fedjax_rai.bench.cli import app

if __name__ == "__main__":
    app()

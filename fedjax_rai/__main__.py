"""`python -m fedjax_rai` is `fedjax-rai`."""

from fedjax_rai.cli import app

if __name__ == "__main__":
    app(prog_name="fedjax-rai")

"""`python -m l2o` is `l2o`."""

from l2o.cli.main import run

if __name__ == "__main__":
    run()

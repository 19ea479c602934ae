"""`python meta_train.py [PRESET] [options]` is `l2o meta-train [PRESET] [options]`."""

import sys

from l2o.cli.main import run

if __name__ == "__main__":
    run(["meta-train", *sys.argv[1:]])

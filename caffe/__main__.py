"""`python -m caffe` runs the command `caffe`."""

import sys

from caffe.cli import main

# Processes that training on several GPUs starts import this module under another name.
if __name__ == "__main__":
    sys.exit(main())

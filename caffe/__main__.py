"""`python -m caffe` is the command `caffe`."""

from caffe.cli import main

main()

"""The commands of `caffe`: one module each, with `main(argv) -> exit code`."""

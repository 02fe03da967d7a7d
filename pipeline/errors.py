"""The exception of bad input, which `pipeline.command` prints as one line."""

import caffe


class InputError(caffe.Error):
    """Bad input of a step: a list, an image, a label, an option."""

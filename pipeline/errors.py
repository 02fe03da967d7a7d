"""What a step raises for bad input; shown as one line by `pipeline.command`."""

import caffe


class InputError(caffe.Error):
    """Input of a step that cannot be used: a list, an image, a label, a setting."""

"""The layer types, in the groups of Caffe's layer catalogue."""

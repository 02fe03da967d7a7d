"""The layer types, grouped as Caffe's catalogue groups them."""

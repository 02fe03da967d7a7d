"""Layer types of Caffe's forks that BVLC Caffe does not have."""

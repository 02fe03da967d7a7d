"""Layer types of Caffe's forks, which BVLC Caffe does not have."""

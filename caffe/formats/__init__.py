"""Files that Caffe reads and writes."""

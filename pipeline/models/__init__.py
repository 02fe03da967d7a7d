"""Network templates, one module a family, written with caffe.NetSpec."""

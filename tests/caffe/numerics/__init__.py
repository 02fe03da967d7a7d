from caffe.engine import machine

machine.prepare()  # PyTorch's threads flush subnormal numbers as the thread that starts them does

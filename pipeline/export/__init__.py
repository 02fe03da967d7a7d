"""Trained nets in other formats and forms: ONNX, safetensors, merged, convolutional, averaged."""

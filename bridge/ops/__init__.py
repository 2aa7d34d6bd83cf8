"""ONNX operators on array namespaces: the same table evaluates in numpy, JAX, PyTorch and Keras.

numpy in float64 is the referee of whole graphs and the arithmetic of static values. Call inputs become the backend's
arrays at the door; what stays numpy inside is static.
"""

"""The conformance matrix: every layout against its own framework and against onnxruntime."""

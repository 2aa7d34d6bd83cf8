"""Move trained recurrent networks between frameworks through ONNX, proven in onnxruntime."""

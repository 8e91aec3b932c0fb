"""The machine underneath: devices, memory, clocks, files, sessions of ONNX Runtime."""

"""Leaves out what cannot be imported without the packages of the extra "onnx"."""

import importlib.util

collect_ignore = (
    []
    if importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxruntime")
    else ["test_export_onnx.py", "test_onnx_operations.py", "test_quantize.py"]
)

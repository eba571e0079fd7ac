"""Writes ONNX files as TensorFlow Lite files, which LiteRT runs.

Google's converter, litert-torch, needs an older torch, JAX and transformers, and tens of seconds for a detector; a
latency search converts dozens. This one takes the operations of convolutional networks, in fp32 and, from ONNX files
with pairs of QuantizeLinear and DequantizeLinear, in int8.
"""

from autoprune.runtimes.tflite.convert import convert

__all__ = ["convert"]
